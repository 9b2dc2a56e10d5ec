"""What unlabelled inputs say about the layers."""

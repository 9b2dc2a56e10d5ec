"""What is reduced together: a layer and the one that reads it, or the layers that read one tensor."""

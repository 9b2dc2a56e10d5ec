"""The torch.fx passes, one file each."""

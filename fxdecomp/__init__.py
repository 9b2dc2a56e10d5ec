"""Low-rank decomposition of PyTorch networks as a torch.fx graph transformation."""

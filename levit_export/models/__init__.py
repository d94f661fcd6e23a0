"""Between PyTorch and the network: how a module is read, and what its operators compute."""

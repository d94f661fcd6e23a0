"""The PyTorch side of a model on its way to a file."""

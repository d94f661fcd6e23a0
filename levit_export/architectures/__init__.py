"""Faithful PyTorch modules of the networks that this toolchain ships."""

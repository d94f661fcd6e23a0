"""From a checkpoint to the network that a format is written from.

The room has the models known by name, their architectures, the readers of checkpoints, published
weights, the passes with their proofs, and the capture.
"""

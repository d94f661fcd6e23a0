"""Core ML packages, written from the network.

The evaluator in ``formats.mil`` executes them on every system, and Core ML does on a Mac.
"""

"""What every other room stands on: values, the network, errors, files, processes, progress.

Nothing here knows a format, a checkpoint or a command. NumPy is the only package it needs.
"""

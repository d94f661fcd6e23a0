"""What every other room stands on: values, the network, errors, files, processes, progress.

Nothing here opens a file of a format, reads a checkpoint or parses a command. NumPy is the only
heavy package that it imports by itself.
"""

"""Each verb as a function: a request goes in, a report comes out.

The command line, the Python interface and the cells of a sweep all call these.
"""

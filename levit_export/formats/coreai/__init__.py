"""Core AI, written from the network and executed by Apple's own runtime, on Linux too.

What is Apple's here is called in another process (``program``): its readers trust what they read.
"""

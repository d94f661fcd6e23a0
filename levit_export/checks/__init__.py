"""Is it the same model? The reference, parity, tolerances, weights, claims, timing, and drift.

A check gives values; whoever called it decides what a user sees, and with which exit status.
"""

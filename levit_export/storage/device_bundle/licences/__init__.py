"""Licence texts that are copied into every bundle."""

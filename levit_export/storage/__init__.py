"""What lies on disk after an export: the export directory, and the bundle for a device.

Both hold a manifest with hashes, and both are written whole or not at all.
"""

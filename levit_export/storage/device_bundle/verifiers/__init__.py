"""Programs that are copied into every bundle and import nothing of this package."""

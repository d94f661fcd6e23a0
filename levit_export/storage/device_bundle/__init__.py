"""The device bundle: one reproducible zip that carries its own check (docs/bundle-format.md)."""

from __future__ import annotations

from levit_export.storage.device_bundle.archive import open_bundle, write

__all__ = ["open_bundle", "write"]

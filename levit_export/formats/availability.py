"""Whether packages that a target needs are installed, told without importing them."""

from __future__ import annotations

from importlib.util import find_spec

from levit_export.core.values import Availability


def needs(*packages: str) -> Availability:
    """Available when all ``packages`` are; else says which are not and what installs them."""
    missing = [package for package in packages if not _present(package)]
    if not missing:
        return Availability(ok=True)
    return Availability(
        ok=False,
        reason=f"{', '.join(missing)} not installed",
        fix=f"pip install {' '.join(missing)}",
    )


def _present(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # a module that was put into sys.modules without a spec
        return False

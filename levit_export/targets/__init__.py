"""The formats this toolchain writes, and how to find one by name."""

from __future__ import annotations

import logging
from functools import cache
from importlib.metadata import entry_points

from levit_export.core import FORMAT_ALIASES, Target
from levit_export.errors import UnknownNameError
from levit_export.targets.coreml import CoremlTarget
from levit_export.targets.onnx import OnnxTarget
from levit_export.targets.openvino import OpenvinoTarget

__all__ = ["GROUP", "TARGETS", "known_targets", "target"]

TARGETS: tuple[Target, ...] = (OnnxTarget(), OpenvinoTarget(), CoremlTarget())
"""Our own, in the order of reports. ``--format all`` means these."""

GROUP = "levit_export.targets"
"""Entry-point group under which other packages register a target class."""


@cache
def known_targets() -> tuple[Target, ...]:
    """Our own targets and those of installed packages; a broken one is a warning in the log."""
    found = list(TARGETS)
    for entry in entry_points(group=GROUP):
        try:
            found.append(entry.load()())
        except Exception as error:
            logging.getLogger("levit_export").warning(
                "target %r of %s does not load: %s", entry.name, entry.value, error
            )
    return tuple(found)


def target(name: str) -> Target:
    """The target called ``name``, aliases included."""
    wanted = FORMAT_ALIASES.get(name.lower(), name.lower())
    for known in known_targets():
        if known.name == wanted:
            return known
    raise UnknownNameError("format", name, ["all", *(known.name for known in known_targets())])

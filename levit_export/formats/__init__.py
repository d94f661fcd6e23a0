"""The formats this toolchain writes, and how to find one by name."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from levit_export.core.errors import UnknownNameError
from levit_export.core.values import (
    FORMAT_ALIASES,
    Artifact,
    ExportOptions,
    Prepared,
    Target,
    applied,
)
from levit_export.formats.coreai.target import CoreaiTarget
from levit_export.formats.coreml.target import CoremlTarget
from levit_export.formats.onnx.target import OnnxTarget
from levit_export.formats.openvino.target import OpenvinoTarget

__all__ = ["GROUP", "PREVIEWS", "TARGETS", "Job", "known_targets", "target"]

TARGETS: tuple[Target, ...] = (OnnxTarget(), OpenvinoTarget(), CoremlTarget())
"""Our own, in the order of reports. ``--format all`` means these."""

PREVIEWS: tuple[Target, ...] = (CoreaiTarget(),)
"""Our own that stand on a pre-release: they are asked for by name, never by ``all``."""

GROUP = "levit_export.targets"
"""Entry-point group under which other packages register a target class."""


@cache
def known_targets() -> tuple[Target, ...]:
    """Our own targets and those of installed packages; a broken one is a warning in the log."""
    found = [*TARGETS, *PREVIEWS]
    for entry in entry_points(group=GROUP):
        try:
            found.append(entry.load()())
        except Exception as error:
            logging.getLogger("levit_export").warning(
                "target %r of %s does not load: %s", entry.name, entry.value, error
            )
    return tuple(found)


@dataclass(frozen=True)
class Job:
    """One artifact to make: a format, and what is asked of it."""

    format: str
    options: ExportOptions

    def write(self, model: Prepared, folder: Path) -> Artifact:
        """Export ``model`` into a folder of its own below ``folder``."""
        kind = target(self.format)
        place = folder / f"{kind.name}-{self.options.precision}"
        place.mkdir()
        made = kind.export(model, place / (model.info.name + kind.suffix), self.options)
        return replace(made, keep=self.options.keep, passes=applied(model.passes))


def target(name: str) -> Target:
    """The target called ``name``, aliases included."""
    wanted = FORMAT_ALIASES.get(name.lower(), name.lower())
    for known in known_targets():
        if known.name == wanted:
            return known
    raise UnknownNameError("format", name, ["all", *(known.name for known in known_targets())])

"""What every artifact says of itself, in the format's own metadata fields."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict

from levit_export.core.packages import versions
from levit_export.core.values import ExportOptions, Prepared, applied

PREFIX = "levit_export."


def passes_in(said: Mapping[str, str]) -> tuple[str, ...] | None:
    """The passes that an artifact's metadata names, or None when it has none of ours."""
    return _names(said, "passes")


def keep_in(said: Mapping[str, str]) -> tuple[str, ...]:
    """The blocks of which an artifact's metadata says that they were left in float."""
    return _names(said, "keep") or ()


def _names(said: Mapping[str, str], key: str) -> tuple[str, ...] | None:
    try:
        names = json.loads(said[PREFIX + key])
    except (KeyError, ValueError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) else None


def claims_in(said: Mapping[str, str]) -> dict[str, str] | None:
    """What an artifact's metadata says of itself, without our prefix; None when nothing is ours.

    These are claims: they are compared with what is known, and decide nothing.
    """
    found = {k.removeprefix(PREFIX): v for k, v in said.items() if k.startswith(PREFIX)}
    return found or None


def metadata(model: Prepared, options: ExportOptions, packages: Iterable[str]) -> dict[str, str]:
    """String pairs for an artifact: no wall-clock, no paths, so that a re-export is identical.

    Structured values are JSON with sorted keys.
    """
    info = model.info
    values = {
        "model": info.name,
        "dialect": info.dialect,
        "checkpoint_sha256": info.checkpoint_sha256,
        "heads": str(info.heads),
        "task": info.task,
        "precision": options.precision,
        "labels": json.dumps(info.labels, ensure_ascii=False),
        "preprocessing": json.dumps(asdict(info.preprocessing), sort_keys=True),
        "embedded": json.dumps(asdict(model.embedded), sort_keys=True),
        "passes": json.dumps(applied(model.passes)),
        "versions": json.dumps(versions(("levit-export", "torch", *packages)), sort_keys=True),
        "licence": info.licence,
    }
    if options.keep:
        values["keep"] = json.dumps(options.keep)
    return {PREFIX + key: value for key, value in values.items()}

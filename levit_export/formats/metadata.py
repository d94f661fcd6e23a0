"""What every artifact says of itself, in the format's own metadata fields."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from levit_export.core.constants import Constant, precision_of, shares_of
from levit_export.core.packages import versions
from levit_export.core.values import Artifact, ExportOptions, Prepared, Signature, applied

PREFIX = "levit_export."


def inspected(
    kind: str,
    path: Path,
    signature: Signature,
    said: Mapping[str, str],
    contents: Iterable[Constant],
    *,
    classes: tuple[str, ...] = (),
    beside: tuple[Path, ...] = (),
) -> Artifact:
    """A file of the format ``kind`` as it is on disk: ``contents`` decide what its precision is.

    What its metadata ``said`` are claims: they are compared with what is known, and decide
    nothing. None of them is ours in a file that another tool wrote.
    """
    shares = shares_of(contents)
    claims = {k.removeprefix(PREFIX): v for k, v in said.items() if k.startswith(PREFIX)}
    return Artifact(
        kind,
        precision_of(shares),
        path,
        signature,
        passes=_names(claims, "passes"),
        keep=_names(claims, "keep") or (),
        claims=claims or None,
        shares=shares,
        classes=classes,
        beside=beside,
    )


def _names(claims: Mapping[str, str], key: str) -> tuple[str, ...] | None:
    try:
        names = json.loads(claims[key])
    except (KeyError, ValueError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) else None


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

"""Write a Core ML package so that the same model always gives the same bytes.

coremltools draws random UUIDs for the manifest, serialises protocol buffers in hash order and
stamps the date of conversion. Here the identifiers follow from the content and nothing else does.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

AUTHOR = "com.apple.CoreML"
SPECIFICATION = "model.mlmodel"
WEIGHTS = "weights"
DATED = "com.github.apple.coremltools.conversion_date"

_NAMESPACE = UUID("3b2a9d0e-7d0b-5c0e-9a1f-6c657669742d")
"""Of this project's own; only has to stay the same."""


def write_package(
    path: Path, specification: Any, weights: Path, user_defined: Mapping[str, str]
) -> None:
    """Write ``specification`` (a ``Model`` message) and its weight folder as ``path``.

    ``user_defined`` joins the model's metadata; the conversion date leaves it.
    """
    from hashlib import sha256

    metadata = specification.description.metadata.userDefined
    metadata.pop(DATED, None)
    for key, value in user_defined.items():
        metadata[key] = value
    data = path / "Data" / AUTHOR
    data.mkdir(parents=True)
    content = specification.SerializeToString(deterministic=True)
    (data / SPECIFICATION).write_bytes(content)
    shutil.copytree(weights, data / WEIGHTS)
    digest = sha256(content).hexdigest()
    items = {
        SPECIFICATION: "CoreML Model Specification",
        WEIGHTS: "CoreML Model Weights",
    }
    entries = {
        str(uuid5(_NAMESPACE, f"{digest}/{name}")): {
            "author": AUTHOR,
            "description": description,
            "name": name,
            "path": f"{AUTHOR}/{name}",
        }
        for name, description in items.items()
    }
    root = str(uuid5(_NAMESPACE, f"{digest}/{SPECIFICATION}"))
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": entries,
        "rootModelIdentifier": root,
    }
    text = json.dumps(manifest, indent=4, sort_keys=True)
    (path / "Manifest.json").write_text(text + "\n", encoding="utf-8")

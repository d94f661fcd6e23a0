"""From a prepared model to a Core ML package, so that the same model always gives the same bytes.

coremltools draws random UUIDs for the manifest, serialises protocol buffers in hash order and
stamps the date of conversion. Here the identifiers follow from the content and nothing else does.
"""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

from levit_export.core import packages
from levit_export.core.values import PROBABILITIES, ExportOptions, Prepared
from levit_export.models.zoo import DISTILL, LOGITS

DEPLOYMENT_TARGETS = {
    "iOS15": "iOS15",
    "iOS16": "iOS16",
    "iOS17": "iOS17",
    "iOS18": "iOS18",
    "iOS26": "iOS26",
    "macOS12": "iOS15",
    "macOS13": "iOS16",
    "macOS14": "iOS17",
    "macOS15": "iOS18",
    "macOS26": "iOS26",
}
"""What ``--deployment-target`` takes, and the iOS release of the same specification version."""

SAID_OF_OUTPUTS = {
    LOGITS: "Logits, one for each class",
    PROBABILITIES: "Probabilities, one for each class",
    DISTILL: "Logits of the distillation head",
}


def assembled(written: Any, target: Any, inputs: Sequence[Any], labels: Sequence[str] = ()) -> Any:
    """A MIL program as an ``MLModel`` that classifies if there are ``labels``.

    coremltools adds what an image or labels need, and leaves the rest as it was written.
    """
    ct = packages.coremltools()
    # ct.convert ends with a search for garbage among all objects, most of them PyTorch's.
    gc.freeze()
    try:
        return ct.convert(
            written,
            inputs=list(inputs),
            convert_to="mlprogram",
            minimum_deployment_target=target,
            pass_pipeline=ct.PassPipeline.EMPTY,
            skip_model_load=True,
            classifier_config=ct.ClassifierConfig(list(labels)) if labels else None,
        )
    finally:
        gc.unfreeze()


def describe(specification: Any, model: Prepared, options: ExportOptions) -> None:
    """What Xcode shows of the model."""
    info = model.info
    description = specification.description
    description.metadata.shortDescription = f"{info.name}: {info.kind}"
    description.metadata.author = "levit-export"
    description.metadata.license = info.licence
    description.metadata.versionString = info.checkpoint_sha256[:12]
    description.input[0].shortDescription = info.preprocessing.in_words(
        embedded=model.embedded.preprocessing
    )
    if not options.classifier:
        for output in description.output:
            output.shortDescription = SAID_OF_OUTPUTS[output.name]


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

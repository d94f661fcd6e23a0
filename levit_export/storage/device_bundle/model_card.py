"""The bundle's README and its licence page; the words are in ``README.md.j2``, ``LICENCES.md.j2``.

The manifest says what there is, and the report beside it what was measured. Nothing vouches for a
report: what it says is shown where it is what it has to be, and is left out where it is not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from levit_export.core import files, serialisation
from levit_export.core.precisions import FLOATS, HINTED
from levit_export.core.values import applied
from levit_export.storage.device_bundle.description import SCHEMA
from levit_export.storage.device_bundle.golden import GoldenImage
from levit_export.storage.device_bundle.web.library import VERSION
from levit_export.storage.export_directory import REPORT, ArtifactEntry, Manifest

REPORT_SCHEMA = 1
"""Of the reports that are read here, which are written by a room above."""

HUGGING_FACE = {
    "Apache-2.0": "apache-2.0",
    "BSD-3-Clause": "bsd-3-clause",
    "CC-BY-4.0": "cc-by-4.0",
    "MIT": "mit",
}
"""Licences by SPDX's name and by the one that the Hugging Face Hub has; others are ``other``."""

MOST_CHARACTERS = 200
"""Of a text from a report."""

RUNTIMES = {
    "onnx": "ONNX Runtime",
    "openvino": "OpenVINO",
    "coreml": "Core ML",
    "coreai": "Core AI",
}
SNIPPETS = ("onnx", "openvino", "coreml", "coreai")
"""Formats that ``README.md.j2`` has lines of Python for."""

PROGRAMS = {
    "onnx": "`verify_onnxruntime.cpp` (C++, ONNX Runtime)",
    "openvino": "`verify_openvino.cpp` (C++, OpenVINO)",
    "coreml": "`verify.swift` (Swift, Core ML)",
    "coreai": "`verify_coreai.swift` (Swift, Core AI)",
}


@dataclass(frozen=True)
class Measured:
    """What was measured of an artifact, in words; empty where it was not."""

    error: str = ""
    accuracy: str = ""
    latency: str = ""


@dataclass(frozen=True)
class Measurements:
    """What the report of an export says of its artifacts, by path, and where it was measured."""

    of: Mapping[str, Measured] = field(default_factory=dict)
    data: tuple[str, ...] = ()
    machine: str = ""


def measurements(folders: Sequence[Path]) -> Measurements:
    """The figures in the reports of export directories; none of one that has no report."""
    found: dict[str, Measured] = {}
    data: dict[str, None] = {}
    machines: dict[str, None] = {}
    for folder in folders:
        try:
            report = serialisation.parse(files.read_text(folder / REPORT), REPORT_SCHEMA)
        except (OSError, ValueError):
            continue
        found |= _figures(report, data)
        machines[_text(_dict(report.get("machine")).get("processor"))] = None
    return Measurements(found, tuple(data), ", ".join(filter(None, machines)))


def _figures(report: Mapping[str, Any], data: dict[str, None]) -> dict[str, Measured]:
    """The figures of each artifact of a report; ``data`` is told of the images."""
    found = {}
    for artifact in _list(report.get("artifacts")):
        parity, accuracy, timing = (
            _dict(artifact.get(name)) for name in ("parity", "accuracy", "timing")
        )
        error, top1, images = (
            _number(parity.get("max_rel")),
            _number(accuracy.get("top1")),
            _number(accuracy.get("images")),
        )
        median, batch = _number(timing.get("median_ms")), _number(timing.get("batch"))
        threads = _number(timing.get("threads"))
        said = ["", "", ""]
        if error is not None:
            said[0] = f"{error:.1e}" if error else "0"
        if top1 is not None and images:
            said[1] = f"{top1:.2f} %"
            data[f"{images:.0f} images of {_text(accuracy.get('dataset'))}"] = None
        if median is not None and batch and threads:
            words = "1 thread" if threads == 1 else f"{threads:.0f} threads"
            said[2] = f"{median:.2f} ms (batch {batch:.0f}, {words})"
        found[_text(artifact.get("path"))] = Measured(*said)
    return found


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[dict[str, Any]]:
    return [_dict(each) for each in value] if isinstance(value, list) else []


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value < math.inf else None


def _text(value: Any) -> str:
    """One line without what Markdown would take for a table, a link or a tag."""
    text = value if isinstance(value, str) else ""
    kept = " ".join("".join(c for c in text if c not in "|<>[]`\\").split())
    if not kept.isprintable():
        return ""
    return kept if len(kept) <= MOST_CHARACTERS else ""


def render(
    manifest: Manifest,
    images: Mapping[str, GoldenImage],
    measured: Measurements | None = None,
    *,
    has_page: bool = False,
    has_gpu: bool = False,
) -> str:
    """``README.md`` of a bundle.

    ``has_page`` says whether it holds the page for browsers, ``has_gpu`` whether that page can use
    a GPU.
    """
    known = measured or Measurements()
    of_artifacts = [known.of.get(artifact.path, Measured()) for artifact in manifest.artifacts]
    sizes = [
        # An artifact's twin and its package's files lie in its folder.
        sum(
            entry.bytes
            for name, entry in manifest.files.items()
            if name.startswith(artifact.path.rsplit("/", 1)[0] + "/")
        )
        for artifact in manifest.artifacts
    ]
    formats = dict.fromkeys(artifact.format for artifact in manifest.artifacts)
    hints = {a.path: _hint(a) for a in manifest.artifacts if a.format == "openvino"}
    by_default = [name for name in HINTED if hints and name in manifest.golden.tolerances]
    if manifest.embedded.preprocessing:
        formats.pop("coreml", None)  # verify.swift feeds arrays, and the model takes an image
    return _template("README.md.j2").render(
        manifest=manifest,
        model=manifest.model,
        runtimes=RUNTIMES,
        artifacts=list(zip(manifest.artifacts, sizes, of_artifacts, strict=True)),
        columns=[
            (name, heading)
            for name, heading in (
                ("error", "largest relative error"),
                ("accuracy", "top-1"),
                ("latency", "latency"),
            )
            if any(getattr(each, name) for each in of_artifacts)
        ],
        measured=known,
        hints=list(hints.items()),
        has_default="f32" in hints.values() and bool(by_default),
        front=_front_matter(manifest),
        python=_python(manifest, images),
        swift=next((a.path for a in manifest.artifacts if a.format == "coreml"), ""),
        coreai=any(a.format == "coreai" for a in manifest.artifacts),
        takes_image=manifest.embedded.preprocessing,
        some_image=next(iter(images), ""),
        is_quantised=any(a.precision not in FLOATS for a in manifest.artifacts),
        has_notes=any(artifact.notes for artifact in manifest.artifacts),
        recipe=manifest.model.preprocessing,
        takes_pixels=manifest.signature.inputs[0].dtype == "uint8",
        as_they_are=[name for name, image in images.items() if not image.entry.resized],
        resized=[name for name, image in images.items() if image.entry.resized],
        programs=[PROGRAMS[name] for name in formats if name in PROGRAMS],
        tolerances=[
            (precision, output, tolerance)
            for precision in sorted({*by_default, *(a.precision for a in manifest.artifacts)})
            for output, tolerance in sorted(manifest.golden.tolerances[precision].items())
        ],
        passes=applied(manifest.passes),
        has_page=has_page,
        has_gpu=has_gpu,
        web_version=VERSION,
        schema=SCHEMA,
    )


def _front_matter(manifest: Manifest) -> list[str]:
    """What the Hugging Face Hub reads at the top of a README; JSON is YAML too."""
    model = manifest.model
    formats = list(dict.fromkeys(artifact.format for artifact in manifest.artifacts))
    known = HUGGING_FACE.get(model.licence)
    lines = [f"license: {known or 'other'}"]
    if known is None:
        lines += [f"license_name: {json.dumps(model.licence or 'not stated')}"]
        lines += ["license_link: LICENCES.md"]
    if model.task in ("single-label", "multi-label"):
        lines.append("pipeline_tag: image-classification")
    return [*lines, f"library_name: {formats[0]}", f"tags: {json.dumps(['levit', *formats])}"]


def _hint(artifact: ArtifactEntry) -> str:
    """What OpenVINO was told to compute an artifact in when it was checked."""
    return artifact.precision if artifact.precision in HINTED else "f32"


@dataclass(frozen=True)
class Snippet:
    """What lines of Python that classify a golden image are filled with."""

    format: str
    path: str
    image: str
    output: str
    batch: int
    hint: str


def _python(manifest: Manifest, images: Mapping[str, GoldenImage]) -> Snippet | None:
    """For the first artifact that takes an array; None where there is none."""
    artifacts = [
        artifact
        for artifact in manifest.artifacts
        if artifact.format in SNIPPETS
        and not (artifact.format == "coreml" and manifest.embedded.preprocessing)
    ]
    outputs = [spec.name for spec in manifest.signature.outputs]
    resized = [name for name, image in images.items() if image.entry.resized]
    # One that has an answer of PyTorch's in the bundle, if there is one.
    image = next(iter(sorted(resized, key=lambda name: images[name].entry.row is None)), None)
    if not artifacts or image is None:
        return None
    return Snippet(
        artifacts[0].format,
        artifacts[0].path,
        image,
        "logits" if "logits" in outputs else outputs[0],
        manifest.signature.batch or 1,
        _hint(artifacts[0]),
    )


def licences(manifest: Manifest, *, has_digits: bool, has_page: bool = False) -> str:
    """``LICENCES.md``: what in the bundle is under which licence."""
    return _template("LICENCES.md.j2").render(
        licence=manifest.model.licence,
        has_digits=has_digits,
        has_page=has_page,
        web_version=VERSION,
    )


def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(  # noqa: S701 - it is Markdown, read as text
        loader=jinja2.PackageLoader("levit_export.storage", "device_bundle"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(name)

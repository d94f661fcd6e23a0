"""The bundle's README and its licence page: the manifest's figures in words, nothing measured.

The words are in ``README.md.j2`` and ``LICENCES.md.j2``.
"""

from __future__ import annotations

from collections.abc import Mapping

import jinja2

from levit_export.core.values import applied
from levit_export.storage.device_bundle.description import SCHEMA
from levit_export.storage.device_bundle.golden import GoldenImage
from levit_export.storage.device_bundle.web.library import VERSION
from levit_export.storage.export_directory import Manifest

RUNTIMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO", "coreml": "Core ML"}
PROGRAMS = {
    "onnx": "`verify_onnxruntime.cpp` (C++, ONNX Runtime)",
    "openvino": "`verify_openvino.cpp` (C++, OpenVINO)",
    "coreml": "`verify.swift` (Swift, Core ML)",
}


def render(
    manifest: Manifest, images: Mapping[str, GoldenImage], *, has_page: bool = False
) -> str:
    """``README.md`` of a bundle; ``has_page`` says whether it holds the page for browsers."""
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
    if manifest.embedded.preprocessing:
        formats.pop("coreml", None)  # verify.swift feeds arrays, and the model takes an image
    return _template("README.md.j2").render(
        manifest=manifest,
        model=manifest.model,
        runtimes=RUNTIMES,
        artifacts=list(zip(manifest.artifacts, sizes, strict=True)),
        has_notes=any(artifact.notes for artifact in manifest.artifacts),
        recipe=manifest.model.preprocessing,
        takes_pixels=manifest.signature.inputs[0].dtype == "uint8",
        as_they_are=[name for name, image in images.items() if not image.entry.resized],
        resized=[name for name, image in images.items() if image.entry.resized],
        programs=[PROGRAMS[name] for name in formats if name in PROGRAMS],
        tolerances=[
            (precision, output, tolerance)
            for precision in sorted({artifact.precision for artifact in manifest.artifacts})
            for output, tolerance in sorted(manifest.golden.tolerances[precision].items())
        ],
        passes=applied(manifest.passes),
        has_page=has_page,
        web_version=VERSION,
        schema=SCHEMA,
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

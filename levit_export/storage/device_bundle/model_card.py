"""The bundle's README and its licence page: the manifest's figures in words, nothing measured."""

from __future__ import annotations

from collections.abc import Mapping

from levit_export.core.values import Tolerance, applied
from levit_export.storage.device_bundle import web
from levit_export.storage.device_bundle.description import SCHEMA
from levit_export.storage.device_bundle.golden import GoldenImage
from levit_export.storage.export_directory import Manifest

RUNTIMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO", "coreml": "Core ML"}
BUILT = {
    "onnx": "`verify_onnxruntime.cpp` (C++, ONNX Runtime)",
    "openvino": "`verify_openvino.cpp` (C++, OpenVINO)",
    "coreml": "`verify.swift` (Swift, Core ML)",
}


def render(
    manifest: Manifest, images: Mapping[str, GoldenImage], *, has_page: bool = False
) -> str:
    """``README.md`` of a bundle; ``has_page`` says whether it holds the page for browsers."""
    parts = [_heading(manifest), _formats(manifest), _preprocessing(manifest, images)]
    parts += [_verification(manifest), *([web.CARD] if has_page else [])]
    parts += [_parity(manifest), _origin(manifest)]
    return "\n\n".join(parts) + "\n"


def _heading(manifest: Manifest) -> str:
    model = manifest.model
    warning = {
        "pass": "",
        "fail": "\n\n**This export FAILED its check. Do not ship it.**",
        "inconclusive": "\n\n**The check of this export decided nothing: it is not known to be "
        "right.**",
        "not-run": "\n\n**A check of this export was not run: it is not known to be right.**",
    }[manifest.verdict]
    return (
        f"# {model.name}\n\n"
        f"A LeViT {model.kind} (names in `labels.txt`, in the order of the outputs), "
        f"{model.parameters:,} parameters, {model.macs:,} multiply-accumulates an "
        f"image. Made by levit-export {manifest.toolchain.get('levit-export', '')} from "
        f"`{model.checkpoint}` (SHA-256 {model.checkpoint_sha256}).{warning}"
    )


def _formats(manifest: Manifest) -> str:
    lines = [
        f"| {RUNTIMES.get(a.format, a.format)} | {a.precision} | `{a.path}` | "
        f"{_size(manifest, a.path):,} bytes | {a.verdict} | {a.runs_on} |"
        for a in manifest.artifacts
    ]
    ports = [
        f"- {kind} `{spec.name}`: {spec.dtype} "
        f"{[d if d is not None else 'any' for d in spec.shape]}".replace("'", "")
        for kind, specs in (
            ("input", manifest.signature.inputs),
            ("output", manifest.signature.outputs),
        )
        for spec in specs
    ]
    table = "| runtime | precision | file | size | parity | runs on |\n|---|---|---|---|---|---|\n"
    notes = [f"- {a.path}: {note}" for a in manifest.artifacts for note in a.notes]
    return "\n\n".join(
        filter(None, ["## Formats", table + "\n".join(lines), "\n".join(ports), "\n".join(notes)])
    )


def _size(manifest: Manifest, path: str) -> int:
    """Bytes of an artifact, its twin or its package's files included."""
    folder = path.rsplit("/", 1)[0] + "/"
    return sum(entry.bytes for name, entry in manifest.files.items() if name.startswith(folder))


def _preprocessing(manifest: Manifest, images: Mapping[str, GoldenImage]) -> str:
    recipe, spec = manifest.model.preprocessing, manifest.signature.inputs[0]
    if spec.dtype == "uint8":
        words = (
            f"{recipe.in_words()}. The model itself does what follows the crop: feed it the "
            "cropped uint8 RGB pixels and do not divide, subtract or normalise."
        )
    else:
        words = f"{recipe.in_words()}. Once: nothing of it is inside the model."
    as_is = [name for name, image in images.items() if not image.entry.resized]
    resized = [name for name, image in images.items() if image.entry.resized]
    return (
        f"## Preprocessing\n\n{words} The numbers are in `bundle.json`.\n\n"
        "For each golden image there are `golden/images/NAME.png` and `golden/pixels/NAME.npy` "
        "(the picture), `golden/cropped/NAME.npy` (uint8 RGB after resize and crop) and, where it "
        "has a row in `golden/samples.txt`, that row of `golden/input.npy` (what the model "
        "takes).\n\n"
        f"- have the model's size already, leave out the resize: {', '.join(as_is) or 'none'}\n"
        f"- to be resized: {', '.join(resized) or 'none'}"
    )


def _verification(manifest: Manifest) -> str:
    formats = tuple(dict.fromkeys(a.format for a in manifest.artifacts))
    built = ", ".join(
        BUILT[name]
        for name in formats
        if name in BUILT and not (name == "coreml" and manifest.embedded.preprocessing)
    )
    return (
        "## Verify\n\n"
        "```console\n"
        "$ sha256sum -c SHA256SUMS      # every file; on macOS shasum -a 256 -c SHA256SUMS\n"
        f"$ python verify.py --format {formats[0]}"
        "      # files, pixels and outputs; needs NumPy and the runtime\n"
        "$ python verify.py --input fed.npy --sample gradient      # what your app fed for it\n"
        "```\n\n"
        "Exit status: 0 pass, 1 fail, 2 bad usage, 3 not run. The same check without Python: "
        f"{built or 'none for these formats'}; how to build each is at its top. "
        "`SHA256SUMS` shows damage, not who made the bundle: sign the zip for that."
    )


def _parity(manifest: Manifest) -> str:
    lines = []
    for precision in sorted({a.precision for a in manifest.artifacts}):
        for output, tolerance in sorted(manifest.golden.tolerances[precision].items()):
            lines.append(f"| {precision} | `{output}` | {_tolerance(tolerance)} |")
    count, doubt = len(manifest.golden.samples), manifest.golden.doubt
    return (
        "## Parity\n\n"
        f"On {count} golden samples, each row i of an output is held against PyTorch's answer "
        "and passes when `max|candidate - reference| <= atol + rtol_i * max|reference|`.\n\n"
        "| precision | output | atol, rtol (smallest to largest), origin |\n|---|---|---|\n"
        + "\n".join(lines)
        + (f"\n\nDoubt: {doubt}" if doubt else "")
    )


def _tolerance(tolerance: Tolerance) -> str:
    low, high = min(tolerance.rtol), max(tolerance.rtol)
    return f"{tolerance.atol:.3g}, {low:.3g} to {high:.3g}, {tolerance.origin}"


def _origin(manifest: Manifest) -> str:
    tools = ", ".join(f"{name} {version}" for name, version in sorted(manifest.toolchain.items()))
    passes = ", ".join(applied(manifest.passes)) or "none"
    assumed = "".join(f"Assumed: {each}.\n\n" for each in manifest.model.assumptions)
    return (
        f"## Origin\n\n{assumed}"
        f"Passes applied: {passes}. Tools: {tools}. Licences: `LICENCES.md`. "
        f"Bundle format {SCHEMA}."
    )


def licences(manifest: Manifest, *, has_digits: bool, has_page: bool = False) -> str:
    """``LICENCES.md``: what in the bundle is under which licence."""
    weights = manifest.model.licence or (
        "not stated in the export: ask whoever trained the model before you ship it"
    )
    lines = [
        "# Licences",
        "",
        f"- The model's weights, in every format: {weights}.",
        "- verify.py, verify.swift, golden.hpp and verify_*.cpp, where present: "
        "part of levit-export, Apache-2.0, `licences/Apache-2.0.txt`.",
    ]
    if has_page:
        lines += web.LICENCE_LINES
    if has_digits:
        lines.append(
            "- Golden images called `real-…`: UCI digits, CC BY 4.0, `licences/digits.md`."
        )
    lines.append(
        "- All other golden images are synthetic and, like this text, under Apache-2.0."
        if has_digits
        else "- Golden images made by levit-export are synthetic and under Apache-2.0; images "
        "called `real-…`, where present, are yours."
    )
    return "\n".join(lines) + "\n"

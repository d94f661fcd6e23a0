"""What goes into a bundle: an export directory's files and what a device needs beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np

from levit_export.core import files
from levit_export.core.errors import BundleError, UnknownNameError
from levit_export.core.values import overall
from levit_export.inputs.samples import Samples, held_out_digits
from levit_export.storage import export_directory
from levit_export.storage.device_bundle import golden, model_card, web
from levit_export.storage.device_bundle.description import Description
from levit_export.storage.device_bundle.golden import GoldenImage
from levit_export.storage.device_bundle.web import library as web_library
from levit_export.storage.export_directory import GOLDEN, LABELS, MANIFEST, Manifest

Source = bytes | Path
SHARED = ("model", "signature", "embedded", "toolchain")
"""What exports in one bundle have in common."""

VERIFIERS = {
    "verify.py": (),
    "golden.hpp": ("onnx", "openvino"),
    "verify_onnxruntime.cpp": ("onnx",),
    "verify_openvino.cpp": ("openvino",),
    "golden.swift": ("coreml", "coreai"),
    "verify.swift": ("coreml",),
    "verify_coreai.swift": ("coreai",),
}
"""The programs that a bundle carries, and the formats that each is for; none means all."""


def joined(exports: Mapping[Path, Manifest]) -> tuple[Manifest, dict[str, Path]]:
    """Exports of one model as one, and the directory that each of its files is taken from.

    Raises ``BundleError`` where they differ in more than their artifacts: golden vectors and
    tolerances are those of all.
    """
    (first, manifest), *others = exports.items()
    places = dict.fromkeys(manifest.files, first)
    for folder, other in others:
        if reason := next(_differences(manifest, other), ""):
            raise BundleError(
                f"{folder} cannot go into one bundle with {first}: {reason}",
                remedy="Export both with one version, from one checkpoint and with one --seed.",
            )
        places = {**dict.fromkeys(other.files, folder), **places}
        ours, theirs = manifest.golden, other.golden
        manifest = replace(
            manifest,
            artifacts=(*manifest.artifacts, *other.artifacts),
            files={**manifest.files, **other.files},
            passes=tuple(dict.fromkeys((*manifest.passes, *other.passes))),
            verdict=overall((manifest.verdict, other.verdict)),
            golden=replace(
                ours,
                tolerances={**ours.tolerances, **theirs.tolerances},
                weights={**ours.weights, **theirs.weights},
            ),
        )
    return manifest, places


def _differences(one: Manifest, other: Manifest) -> Iterator[str]:
    """What two exports differ in beside the artifacts."""
    passes = [{record.name: record for record in each.passes} for each in (one, other)]
    golden = [
        {name: entry for name, entry in each.files.items() if name.startswith(f"{GOLDEN}/")}
        for each in (one, other)
    ]
    same = [
        *((name, getattr(one, name), getattr(other, name)) for name in SHARED),
        # Files laid out as maps went through one pass more than those in tokens.
        *((f"the pass {name}", passes[0].get(name, new), new) for name, new in passes[1].items()),
        ("their golden vectors", *golden),
        *(
            (f"the golden {name}", getattr(one.golden, name), getattr(other.golden, name))
            for name in ("samples", "labels", "pixels", "doubt")
        ),
        *(
            (f"the tolerances of {name}", one.golden.tolerances.get(name, new), new)
            for name, new in other.golden.tolerances.items()
        ),
    ]
    yield from (f"they differ in {name}" for name, first, second in same if first != second)
    both = {a.path for a in one.artifacts} & {a.path for a in other.artifacts}
    yield from (f"both hold {path}" for path in sorted(both))


def choose(manifest: Manifest, formats: Sequence[str] | None, *, allow_failed: bool) -> Manifest:
    """``manifest`` with the artifacts of ``formats`` alone; all of them when None.

    Raises ``BundleError`` for an export that failed.
    """
    known = tuple(dict.fromkeys(artifact.format for artifact in manifest.artifacts))
    wanted = known if formats is None else tuple(formats)
    for name in wanted:
        if name not in known:
            raise UnknownNameError("format in this export", name, known)
    chosen = tuple(a for a in manifest.artifacts if a.format in wanted)
    left_out = tuple(a for a in manifest.artifacts if a.format not in wanted)
    blamed = [a.path for a in chosen if a.verdict == "fail"]
    unexplained = manifest.verdict == "fail" and not any(a.verdict == "fail" for a in left_out)
    if (blamed or unexplained) and not allow_failed:
        raise BundleError(
            f"the export failed its check: {', '.join(blamed) or manifest.model.name}",
            remedy="Export again until it passes; --allow-failed makes a bundle all the same, "
            "and says in it that it failed.",
        )
    files = {
        name: entry
        for name, entry in manifest.files.items()
        if not any(_belongs(name, a.path) for a in left_out)
        or any(_belongs(name, a.path) for a in chosen)
    }
    verdict = overall(a.verdict for a in chosen) if left_out else manifest.verdict
    verdict = "fail" if unexplained else verdict
    return replace(manifest, artifacts=chosen, files=files, verdict=verdict)


def _belongs(name: str, artifact: str) -> bool:
    """Whether a file is part of the artifact, which may be one of several files in its folder."""
    return Path(name).parts[0] == Path(artifact).parts[0]


def collect(
    folder: Path,
    manifest: Manifest,
    places: Mapping[str, Path],
    library: Mapping[str, bytes] | None = None,
) -> tuple[dict[str, Source], Description]:
    """Every file of the bundle but its first two, and the description with no hashes yet.

    ``folder`` has the golden vectors, ``places`` the directory of each file. ``library`` are the
    files of ONNX Runtime Web; with them the bundle has a page.
    """
    has_page = library is not None
    samples, outputs = export_directory.read_golden(folder, manifest)
    images = golden.collect(manifest, samples)
    described = Description(
        {}, {name: image.entry for name, image in images.items()}, manifest.model.preprocessing
    )
    generated = {
        MANIFEST: export_directory.encode(manifest).encode(),
        **golden.files(images),
        **_for_simple_readers(manifest, samples, outputs),
        **_programs(manifest),
        **_licences(manifest, images, has_page=has_page),
        **(web.files(manifest, library) if library is not None else {}),
    }
    sources: dict[str, Source] = {name: places[name] / name for name in manifest.files}
    for name, content in generated.items():
        if name in sources and files.read_bytes(places[name] / name) != content:
            raise BundleError(
                f"the export already holds another {name}", remedy="Rename that output or sample."
            )
        sources[name] = content
    measured = model_card.measurements(tuple(dict.fromkeys(places.values())))
    has_gpu = any(name in (library or ()) for name in web_library.GPU_FILES)
    card = model_card.render(manifest, images, measured, has_page=has_page, has_gpu=has_gpu)
    sources["README.md"] = card.encode()
    return sources, described


def possible_names(manifest: Manifest) -> set[str]:
    """Every file that a bundle of ``manifest`` may hold, beside the two that list the others.

    ``bundle.json`` cannot tell which files :func:`collect` writes: whoever puts another one into
    a bundle can list it there, and make the hashes anew.
    """
    present = {artifact.format for artifact in manifest.artifacts}
    images = {
        f"{GOLDEN}/{kind}/{name}{suffix}"
        for name in (*manifest.golden.pixels, golden.LANDSCAPE, golden.PORTRAIT)
        for kind, suffix in (("pixels", ".npy"), ("cropped", ".npy"), ("images", ".png"))
    }
    allowed = {
        f"{GOLDEN}/allowed/{precision}/{output}.npy"
        for precision, tolerances in manifest.golden.tolerances.items()
        for output in tolerances
    }
    programs = {name for name, kinds in VERIFIERS.items() if not kinds or present & {*kinds}}
    page = {web.LICENCE, *(f"{web.FOLDER}/{name}" for name in web.PAGE)}
    library = {**web_library.FILES, **web_library.GPU_FILES}
    page |= {f"{web.RUNTIME}/{name}" for name in library}
    return {
        *manifest.files,
        *REQUIRED,
        *(f"{GOLDEN}/samples.txt", f"{GOLDEN}/normalisation.npy"),
        *("licences/Apache-2.0.txt", "licences/digits.md"),
        *images,
        *allowed,
        *programs,
        *(page if "onnx" in present else ()),
    }


def _for_simple_readers(
    manifest: Manifest, samples: Samples, outputs: Mapping[str, np.ndarray]
) -> dict[str, bytes]:
    """What the C++ and Swift programs read in place of JSON; all of it follows from the manifest.

    ``allowed`` holds ``atol + rtol_i * max|reference_i|`` for each row i.
    """
    recipe = manifest.model.preprocessing
    files = {
        f"{GOLDEN}/samples.txt": "".join(f"{name}\n" for name in samples.names).encode(),
        f"{GOLDEN}/normalisation.npy": golden.encode_array(np.array([recipe.mean, recipe.std])),
    }
    for precision in sorted({artifact.precision for artifact in manifest.artifacts}):
        for output, tolerance in manifest.golden.tolerances[precision].items():
            allowed = np.broadcast_to(tolerance.allowed(outputs[output]), len(samples))
            files[f"{GOLDEN}/allowed/{precision}/{output}.npy"] = golden.encode_array(allowed)
    return files


def _programs(manifest: Manifest) -> dict[str, bytes]:
    present = {artifact.format for artifact in manifest.artifacts}
    if manifest.embedded.preprocessing:
        present.discard("coreml")  # verify.swift feeds arrays, and the model takes an image
    folder = resources.files("levit_export.storage.device_bundle.verifiers")
    return {
        name: (folder / name).read_bytes()
        for name, formats in VERIFIERS.items()
        if not formats or present.intersection(formats)
    }


def _licences(
    manifest: Manifest, images: Mapping[str, GoldenImage], *, has_page: bool
) -> dict[str, bytes]:
    """The programs' licence, what is known of the weights', and that of bundled images."""
    apache = resources.files("levit_export.storage.device_bundle.licences") / "Apache-2.0.txt"
    files = {"licences/Apache-2.0.txt": apache.read_bytes()}
    has_digits = _holds_digits(images)
    if has_digits:
        digits = resources.files("levit_export.inputs.data") / "LICENSE-digits.md"
        files["licences/digits.md"] = digits.read_bytes()
    page = model_card.licences(manifest, has_digits=has_digits, has_page=has_page)
    files["LICENCES.md"] = page.encode()
    return files


def _holds_digits(images: Mapping[str, GoldenImage]) -> bool:
    """Whether an image is one of the UCI digits that travel with this package."""
    known = {image.tobytes() for image in held_out_digits()[0]}
    return any(image.pixels.tobytes() in known for image in images.values())


REQUIRED = (MANIFEST, LABELS, "README.md", "LICENCES.md", "verify.py")
"""What every bundle holds beside its artifacts and golden arrays."""

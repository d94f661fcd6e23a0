"""The bundle's page: it runs the ONNX file in a browser and checks the golden vectors there.

The page is plain JavaScript modules beside this file; the runtime is ONNX Runtime Web, which
:mod:`levit_export.storage.device_bundle.web.library` finds, and which this repository does not
hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources

from levit_export.core.errors import UsageError
from levit_export.storage.export_directory import Manifest

FOLDER = "web"
RUNTIME = f"{FOLDER}/onnxruntime"
LICENCE = "licences/onnxruntime-web.txt"
PAGE = (
    "app.js",
    "bundle.js",
    "camera.js",
    "checks.js",
    "decode.js",
    "icon.svg",
    "index.html",
    "model.js",
    "npy.js",
    "recipe.js",
    "results.js",
    "style.css",
)


def files(manifest: Manifest, library: Mapping[str, bytes]) -> dict[str, bytes]:
    """The page, the runtime's files ``library`` and its licence, by their names in the bundle.

    Raises ``UsageError`` for a bundle without an ONNX file, and for a model whose outputs are not
    one class of several, as the page shows them.
    """
    if manifest.model.task != "single-label":
        raise UsageError(
            f"the page shows the likeliest classes, and the task of {manifest.model.name} is "
            f"{manifest.model.task}",
            remedy="Leave out --with web.",
        )
    if not any(artifact.format == "onnx" for artifact in manifest.artifacts):
        known = ", ".join(dict.fromkeys(a.format for a in manifest.artifacts))
        raise UsageError(
            f"the page runs an ONNX file, and this bundle is to hold {known}",
            remedy="Add onnx to --format, or export with --format onnx.",
        )
    page = resources.files("levit_export.storage.device_bundle.web")
    licence = (
        resources.files("levit_export.storage.device_bundle.licences") / "onnxruntime-web.txt"
    )
    return {
        **{f"{FOLDER}/{name}": (page / name).read_bytes() for name in PAGE},
        **{f"{RUNTIME}/{name}": content for name, content in library.items()},
        LICENCE: licence.read_bytes(),
    }

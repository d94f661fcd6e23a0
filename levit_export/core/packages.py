"""Other packages: which are installed, and how they are imported.

Heavy ones are imported without what they would look for and what is never needed here.

``import coremltools`` imports scikit-learn, transformers, XGBoost, LIBSVM and TensorFlow where
they are installed, to learn that it could convert their models; that took longer than the import
itself (2.4 of 4.4 seconds). ``import openvino`` imports openvino_telemetry, which then tells
Google Analytics of each conversion, from a copy of the whole process (1.6 seconds of processor
time for LeViT-256). Both treat what cannot be imported as not installed.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from levit_export.core.errors import MissingDependencyError

if TYPE_CHECKING:
    from levit_export.core.values import Availability

PRECISION_HINT = "INFERENCE_PRECISION_HINT"
"""OpenVINO's property that says what it computes float32 numbers in, and its provider's."""

COMPUTED_IN = {"f32": "fp32", "bf16": "bf16", "f16": "fp16"}
"""What OpenVINO calls the types that it computes in, and what they are called here."""

GARBAGE_THRESHOLDS = (50_000, 20, 20)
"""For ``gc.set_threshold``, which begins with 700, 10, 10."""

UNUSED = {
    "coremltools": ("sklearn", "transformers", "xgboost", "libsvm", "tensorflow"),
    "openvino": ("openvino_telemetry",),
}
"""What a package must not find while it is imported."""

TOOLCHAIN = (
    "levit-export",
    "torch",
    "numpy",
    "onnx",
    "onnxsim",
    "onnxruntime",
    "openvino",
    "coremltools",
    "coreai-core",
)
"""Packages whose versions a report names."""


NO_WHEEL = {"coremltools": (3, 14)}
"""The first Python that the latest release of a package has no wheel for."""


def collect_garbage_rarely() -> None:
    """Look for garbage in cycles after more objects: importing PyTorch makes a million, to stay.

    A quarter of the time of importing ``torch`` and ``torch.export`` went there.
    """
    gc.set_threshold(*GARBAGE_THRESHOLDS)


def coremltools(module: str = "") -> ModuleType:
    """``coremltools``, or its submodule ``module``. Raises ``ImportError`` where it is missing."""
    return load("coremltools" + (f".{module}" if module else ""))


def openvino() -> ModuleType:
    """``openvino``. Raises ``MissingDependencyError`` where it is missing."""
    try:
        return load("openvino")
    except ImportError as error:
        raise MissingDependencyError(
            f"OpenVINO cannot be imported: {error}", remedy="pip install openvino"
        ) from error


def load_early(names: Sequence[str]) -> None:
    """Import ``names`` before they are needed; whoever needs one that is missing says so."""
    for name in names:
        with suppress(ImportError):
            load(name)


def load(name: str) -> ModuleType:
    """The module ``name``; what it does not need is hidden while its package is imported."""
    package = name.partition(".")[0]
    unused = () if package in sys.modules else UNUSED.get(package, ())
    hidden = [n for n in unused if n not in sys.modules]
    for each in hidden:
        sys.modules[each] = None  # type: ignore[assignment]
    try:
        return import_module(name)
    finally:
        for each in hidden:
            sys.modules.pop(each, None)


@contextmanager
def told(variable: str, value: str) -> Iterator[None]:
    """Have an environment variable say something to another package while the block lasts."""
    before = os.environ.get(variable)
    os.environ[variable] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


def needs(*packages: str) -> Availability:
    """Available when all ``packages`` are installed; otherwise names the missing ones and
    the command that installs them.

    They are not imported.
    """
    from importlib.util import find_spec

    from levit_export.core.values import Availability

    missing = []
    for package in packages:
        try:
            is_there = find_spec(package) is not None
        except ValueError:  # a module that was put into sys.modules without a spec
            is_there = False
        if not is_there:
            missing.append(package)
    if not missing:
        return Availability(ok=True)
    python = sys.version_info[:2]
    without = [name for name in missing if python >= NO_WHEEL.get(name, (*python, 1))]
    if without:
        last = f"{NO_WHEEL[without[0]][0]}.{NO_WHEEL[without[0]][1] - 1}"
        return Availability(
            ok=False,
            reason=f"{without[0]} has no wheel for Python {'.'.join(map(str, python))}",
            fix=f"use Python {last} for it, or leave this format out with --format",
        )
    return Availability(
        ok=False,
        reason=f"{', '.join(missing)} not installed",
        fix=f"pip install {' '.join(missing)}",
    )


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Installed versions of ``packages``; absent ones are left out."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found

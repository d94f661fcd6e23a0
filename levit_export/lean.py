"""Import coremltools without the frameworks it would look for and never needs here.

``import coremltools`` imports scikit-learn, transformers, XGBoost, LIBSVM and TensorFlow where
they are installed, to learn that it could convert their models; that took longer than the import
itself (2.4 of 4.4 seconds). It treats one that cannot be imported as not installed.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

UNUSED = ("sklearn", "transformers", "xgboost", "libsvm", "tensorflow")


def coremltools(module: str = "") -> ModuleType:
    """``coremltools``, or its submodule ``module``. Raises ``ImportError`` where it is missing."""
    name = "coremltools" + (f".{module}" if module else "")
    hidden = [] if "coremltools" in sys.modules else [n for n in UNUSED if n not in sys.modules]
    for unused in hidden:
        sys.modules[unused] = None  # type: ignore[assignment]
    try:
        return importlib.import_module(name)
    finally:
        for unused in hidden:
            sys.modules.pop(unused, None)

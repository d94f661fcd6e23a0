"""Importing coremltools and OpenVINO without what they would look for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import subjects

from levit_export.core import packages
from levit_export.core.errors import MissingDependencyError
from levit_export.formats import mil
from levit_export.workflows import export_plan
from levit_export.workflows.export_plan import ExportRequest

LOOKED_FOR = """
import json, sys, warnings
warnings.simplefilter("ignore")
from levit_export.core import packages
before = {name: module for name, module in sys.modules.items() if module is None}
found = packages.coremltools(), packages.coremltools("proto.Model_pb2")
assert found[0] is sys.modules["coremltools"]
assert found[1] is sys.modules["coremltools.proto.Model_pb2"]
assert {name: module for name, module in sys.modules.items() if module is None} == before
print(json.dumps([name for name in packages.UNUSED['coremltools'] if name in sys.modules]))
"""

PLAIN = """
import json, sys, warnings
warnings.simplefilter("ignore")
import coremltools
print(json.dumps([name for name in ("sklearn", "transformers") if name in sys.modules]))
"""


CONVERTED = """
import json, pathlib, sys, tempfile, warnings
warnings.simplefilter("ignore")
from levit_export.checks import reference
from levit_export.models import loading
from levit_export.models import preparation
from levit_export.core.values import ExportOptions
from levit_export.formats import target
model = preparation.prepare(loading.load(loading.ModelChoice()))
with tempfile.TemporaryDirectory() as folder:
    target("openvino").export(model, pathlib.Path(folder, "model.xml"), ExportOptions())
print(json.dumps([name for name in sys.modules if name.startswith("openvino_telemetry")]))
"""

PLAIN_OPENVINO = """
import json, sys, openvino
print(json.dumps([name for name in sys.modules if name.startswith("openvino_telemetry")]))
"""

FRAMEWORKS = packages.UNUSED["coremltools"]


def run(script: str) -> list[str]:
    """What a script prints as JSON in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    found: list[str] = json.loads(done.stdout)
    return found


def test_nothing_unused_is_imported() -> None:
    """No framework is imported with coremltools, and none is left hidden afterwards."""
    assert run(LOOKED_FOR) == []


def test_a_plain_import_imports_them() -> None:
    """Imported by itself, coremltools does import one of them: what is avoided exists."""
    pytest.importorskip("sklearn", exc_type=ImportError)
    assert "sklearn" in run(PLAIN)


def test_nobody_is_told_of_a_conversion() -> None:
    """A conversion by OpenVINO is not reported to anyone: its telemetry is not even imported."""
    assert run(CONVERTED) == []


def test_a_plain_import_would_tell() -> None:
    """Imported by itself, OpenVINO imports its telemetry: what is avoided exists."""
    pytest.importorskip("openvino_telemetry", exc_type=ImportError)
    assert run(PLAIN_OPENVINO)


def test_what_was_imported_before_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A framework that the caller has imported is the same module afterwards."""
    theirs = ModuleType("sklearn")
    seen: list[dict[str, object]] = []

    def record(name: str) -> ModuleType:
        seen.append({unused: sys.modules.get(unused, "absent") for unused in FRAMEWORKS})
        return ModuleType(name)

    for unused in ("coremltools", *FRAMEWORKS):
        monkeypatch.delitem(sys.modules, unused, raising=False)
    monkeypatch.setitem(sys.modules, "sklearn", theirs)
    monkeypatch.setattr(packages, "import_module", record)
    assert packages.coremltools("models").__name__ == "coremltools.models"
    assert seen == [{**dict.fromkeys(FRAMEWORKS), "sklearn": theirs}]
    assert sys.modules["sklearn"] is theirs
    assert not {"transformers", "xgboost", "libsvm", "tensorflow"} & set(sys.modules)


def test_a_failed_import_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """When coremltools is missing that is an ImportError, and nothing stays hidden."""

    def refuse(name: str) -> ModuleType:
        raise ModuleNotFoundError(f"No module named {name!r}")

    for unused in ("coremltools", *FRAMEWORKS):
        monkeypatch.delitem(sys.modules, unused, raising=False)
    monkeypatch.setattr(packages, "import_module", refuse)
    with pytest.raises(ImportError, match="'coremltools'"):
        packages.coremltools()
    assert not set(FRAMEWORKS) & set(sys.modules)


def test_the_evaluator_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without coremltools a package cannot be read, and the error says what to install."""
    package: Path = subjects.artifact("coreml", "fp16").path
    monkeypatch.setitem(sys.modules, "coremltools", None)
    monkeypatch.setitem(sys.modules, "coremltools.proto.Model_pb2", None)
    with pytest.raises(MissingDependencyError, match="needs coremltools") as raised:
        mil.load(package)
    assert raised.value.remedy == "pip install coremltools"


@pytest.mark.parametrize("python", [(3, 13), (3, 14)])
def test_a_python_without_a_wheel(
    monkeypatch: pytest.MonkeyPatch, python: tuple[int, int]
) -> None:
    """Where coremltools has no wheel, nobody is told to install it, but which Python to take.

    Python 3.14 is pretended here.
    """
    pretended = SimpleNamespace(version_info=(*python, 0, "final", 0), modules=sys.modules)
    monkeypatch.setattr(packages, "sys", pretended)
    monkeypatch.setitem(sys.modules, "coremltools", None)
    found = packages.needs("coremltools")
    assert not found.ok
    if python == (3, 13):
        assert found.fix == "pip install coremltools"
    else:
        assert found.reason == "coremltools has no wheel for Python 3.14"
        assert found.fix.startswith("use Python 3.13")
    with pytest.raises(MissingDependencyError, match=found.reason):
        export_plan.plan(ExportRequest(formats=("coreml",)))

"""``scripts/coremltools-suite``: what it counts, writes, and ends with."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support import script_module

SCRIPT = Path(__file__).parents[3] / "scripts" / "coremltools-suite"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script as a module."""
    return script_module("coremltools-suite")


def _suite(script: ModuleType, **given: Any) -> Any:
    return script.Suite(
        argparse.Namespace(
            **{"ops": [], "each": 0, "seed": 0, "torch": False, "json": None, **given}
        )
    )


def _run(folder: Path, body: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Run the script's main on the tests ``body``; the process and the tables that it wrote."""
    (folder / "test_given.py").write_text(body, encoding="utf-8")
    run = (
        "import sys; from importlib.machinery import SourceFileLoader as Loader\n"
        "from importlib.util import module_from_spec, spec_from_loader\n"
        f"loader = Loader('suite', {str(SCRIPT)!r})\n"
        "script = module_from_spec(spec_from_loader('suite', loader))\n"
        "sys.modules['suite'] = script; loader.exec_module(script)\n"
        f"script.OP_TESTS = script.Path({str(folder)!r})\n"
        "sys.exit(script.main())"
    )
    tables = folder / "tables.json"
    done = subprocess.run(
        [sys.executable, "-c", run, "--json", tables], capture_output=True, text=True, check=False
    )
    return done, json.loads(tables.read_text(encoding="utf-8"))


def test_an_interrupted_run_is_incomplete(tmp_path: Path) -> None:
    """Its status is 130, it says so, and the tables hold what had run."""
    done, tables = _run(
        tmp_path,
        "def test_first(): pass\n"
        "def test_then(): raise KeyboardInterrupt\n"
        "def test_never(): pass\n",
    )
    assert done.returncode == 130
    assert "The run is incomplete: it was interrupted." in done.stderr
    assert tables["total"] == {"no prediction": 1}
    assert not list(tmp_path.glob("*.part"))


def test_tests_that_cannot_be_imported_leave_a_run_incomplete(tmp_path: Path) -> None:
    """Pytest runs none then, which is not a run of all that passed."""
    done, tables = _run(tmp_path, "import there_is_no_such_module\n")
    assert done.returncode == 2
    assert "The run is incomplete: pytest ended with status 2." in done.stderr
    assert tables["total"] == {}


def test_errors_around_a_test_are_failures(tmp_path: Path) -> None:
    """A fixture that raises fails the test that needs it; one that skips does not."""
    done, tables = _run(
        tmp_path,
        "import pytest\n"
        "@pytest.fixture\n"
        "def broken(): raise OSError('no disk')\n"
        "@pytest.fixture\n"
        "def skipping(): pytest.skip('not here')\n"
        "def test_one(broken): pass\n"
        "def test_two(skipping): pass\n",
    )
    assert done.returncode == 1
    assert tables["total"]["failed"] == 1
    assert set(tables["total"]) == {"failed", "beyond 2^-10"}
    (said,) = tables["wrong"].values()
    assert said == ["failed", "setup: no disk"]


@pytest.mark.parametrize(
    ("ended", "total", "expected"),
    [
        (0, {"passed": 3, "refused": 1}, 0),
        (1, {"passed": 3, "refused": 1}, 0),
        (1, {"passed": 3, "wrong": 1}, 1),
        (1, {"passed": 3, "failed": 1}, 1),
        (0, {"no prediction": 3}, 1),
        (3, {"passed": 3}, 2),
        (5, {}, 2),
    ],
)
def test_the_status_is_of_the_evaluator_when_all_has_run(
    script: ModuleType, ended: int, total: dict[str, int], expected: int
) -> None:
    """Refusals leave it 0; a wrong value or no passed test makes it 1, an incomplete run 2."""
    assert script.status(ended, total, interrupted=False) == expected


@pytest.mark.parametrize(
    ("found", "exact", "excused"),
    [
        (np.float32([1024.5]), np.float32([1024]), True),
        (np.int32([1025]), np.int32([1024]), False),
        (np.float32([1025]), np.int32([1024]), False),
        (np.array([[True, False]]), np.array([[True, True]]), False),
    ],
)
def test_half_precision_excuses_floats_alone(
    script: ModuleType, found: Any, exact: Any, *, excused: bool
) -> None:
    """An index that is one off is wrong, whatever values a program has beside it."""
    suite = _suite(script)
    suite.case = script.Case(predictions=1, half=True)
    assert suite.is_close(found, exact) is excused
    assert suite.case.worst > 0


def test_tables_are_not_torn(script: ModuleType, tmp_path: Path) -> None:
    """Who reads the tables while they are written anew has all of the old ones."""
    path = tmp_path / "tables.json"
    script.write(path, {"total": {"passed": 1}})
    with path.open(encoding="utf-8") as reader:
        script.write(path, {"total": {"passed": 2}})
        assert json.load(reader) == {"total": {"passed": 1}}
    assert json.loads(path.read_text(encoding="utf-8")) == {"total": {"passed": 2}}
    assert [p.name for p in tmp_path.iterdir()] == ["tables.json"]


def test_tables_are_written_now_and_then(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each writing goes through all tests that have run, so that not each test can write."""
    written: list[int] = []
    monkeypatch.setattr(
        script, "write", lambda _, found: written.append(sum(found["total"].values()))
    )
    suite = _suite(script, json=tmp_path / "tables.json")
    for number in range(250):
        item = SimpleNamespace(nodeid=f"test_{number}", name=f"test_{number}")
        suite.pytest_runtest_setup(item)
        suite.pytest_runtest_makereport(item, SimpleNamespace(when="call", excinfo=None))
    assert written == [100, 200]

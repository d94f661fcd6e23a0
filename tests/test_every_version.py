"""``scripts/every-version``: what it tries, what it records, and the table in the README."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import click
import pytest
from support import script_module

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "every-version"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script as a module."""
    return script_module("every-version")


def test_the_readme_shows_what_is_recorded() -> None:
    """README's table is made of the record."""
    done = subprocess.run(
        [sys.executable, SCRIPT, "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_its_commands_exist(script: ModuleType) -> None:
    """Every command that it runs is one of ours, with options that there are."""
    from levit_export.cli.help_page import commands

    verbs: dict[str, click.Command] = commands()
    for words in script.CORE.values():
        verb, *rest = words.split()
        known = {o for p in verbs[verb].params for o in (*p.opts, *p.secondary_opts)}
        assert {word for word in rest if word.startswith("--")} <= known, words


def test_it_tries_what_setup_cfg_admits(script: ModuleType) -> None:
    """The Pythons are those of the classifiers."""
    named = re.findall(r"Python :: (3\.\d+)", (ROOT / "setup.cfg").read_text("utf-8"))
    assert list(script.PYTHONS) == named


def test_results_take_the_place_of_earlier_ones(script: ModuleType, tmp_path: Path) -> None:
    """A record holds one result for each environment, the latest, and says what did not pass."""
    (tmp_path / "docs").mkdir()
    page = f"before\n{script.BEGIN}\n{script.END}\nafter\n"
    (tmp_path / "README.md").write_text(page, encoding="utf-8")
    first = script.Result(
        "2026-01-01",
        "Linux x86_64",
        "3.11",
        "newest",
        {"torch": "2.13.0", "numpy": "2.3.5"},
        ("torch==2.13.0",),
        {"export": "pass", "check": "pass"},
        "pass",
    )
    older = replace(first, versions="lowest", pinned=())
    script.record(tmp_path, [first, older])
    later = replace(first, date="2026-02-02", verdict="fail", steps={"export": "fail"})
    script.record(tmp_path, [later])
    assert script.recorded(tmp_path) == [older, later]
    text = (tmp_path / "README.md").read_text("utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| 3.11")]
    assert lines[0].startswith("| 3.11 | lowest | 2.13.0 | 2.3.5 | – |")
    assert lines[0].endswith("| pass | 2026-01-01 |")
    assert lines[1].startswith("| 3.11 | newest | 2.13.0* | 2.3.5 | – |")
    assert lines[1].endswith("| fail (export) | 2026-02-02 |")
    assert text.startswith("before\n")
    assert text.endswith("after\n")


def test_a_python_that_is_not_here(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an interpreter nothing is said of the versions: not run, with the reason."""
    monkeypatch.setattr(script, "interpreter", lambda _: None)
    found = script.tried(Path("uv"), "3.12", "lowest", [])
    assert (found.verdict, found.reason) == ("not-run", "there is no Python 3.12 here")


def test_a_command_that_does_not_end(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that goes on for too long is ended, and which one it was is said."""
    monkeypatch.setattr(script, "LIMIT_S", 0.2)
    with pytest.raises(script.FailedError, match=r"not ended after 0 s: sleep 60"):
        script.run(["sleep", "60"])


def test_what_a_command_started_ends_with_it(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes of a command that goes on for too long end too; what it printed is said."""
    monkeypatch.setattr(script, "LIMIT_S", 1)
    read, write = os.pipe()  # whose other end is held as long as one of them lives
    words = "echo so far; sleep 60 >/dev/null 2>&1 & wait"
    with pytest.raises(script.FailedError, match=r"sleep 60.*\nIt had printed: so far$"):
        script.run(["sh", "-c", words], pass_fds=(write,))
    os.close(write)
    ended, _, _ = select.select([read], [], [], 10)
    os.close(read)
    assert ended

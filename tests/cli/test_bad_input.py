"""What the command line refuses: it says what, which value and what to do, and changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support import Cli

Tree = Callable[[Path], dict[str, object]]
Tensors = dict[str, torch.Tensor]
LABELS = "one\ntwo\nthree\n"


class RunsCode:
    """A pickle of this touches a file when something executes it."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.sentinel}",)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with an earlier export ``out`` and some files that must stay."""
    for name in ("out", "foreign", "website"):
        (tmp_path / name).mkdir()
    manifest = {"schema": 1, "toolchain": {"levit-export": "0.1.0"}, "files": {}}
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (tmp_path / "foreign" / "thesis.tex").write_text("years of work", encoding="utf-8")
    (tmp_path / "website" / "manifest.json").write_text('{"name": "app"}', encoding="utf-8")
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    (tmp_path / "labels.txt").write_text(LABELS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(cli: Cli, place: Path, tree: Tree, arguments: tuple[object, ...], *parts: str) -> None:
    """Assert status 2, ``parts`` in the message, and no difference in the working folder."""
    before = tree(place)
    result = cli(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    for part in parts:
        assert part in result.stderr
    assert "Traceback" not in result.stderr
    assert "bug" not in result.stderr
    assert "weights_only" not in result.stderr
    assert tree(place) == before


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--model", "levit_12s"), ("'levit_12s'", "Did you mean 'levit_128s'?")),
        (("--model", "resnet18"), ("'resnet18'", "Known:", "levit_digits")),
        (("--model", "levit_256"), ("levit_256", "no weights", "--checkpoint")),
        (("--format", "onx"), ("'onx'", "Did you mean 'onnx'?")),
        (("--format", "onnx,tflite"), ("'tflite'", "Known:")),
        (("--format", ""), ("no format was given", "--format")),
        (("--precision", "int3"), ("int3", "fp32")),
        (("--imgsz", 100), ("100", "96")),
        (("--imgsz", 128), ("--imgsz 128", "trained at 96", "Export at 96")),
        (("--random-weights", 0, "--imgsz", 100), ("100", "16", "such as 96")),
        (("--random-weights", -1), ("--random-weights", "-1")),
        (("--batch", 0), ("--batch", "0")),
        (("--batch", 2, "--dynamic"), ("--dynamic", "--batch 2", "one of them")),
        (("--checkpoint", "x", "--random-weights", 0), ("--checkpoint", "--random-weights")),
        (("--opset", 5), ("opset 5", " to 26")),
        (("--skip-pass", "fuse_batchnrm"), ("'fuse_batchnrm'", "'fuse_batchnorm'")),
        (("--skip-pass", "fuse_batchnorm"), ("head", "--skip-pass merge_heads")),
        (
            *(("-f", "coreml", "--precision", "w8", "--skip-pass", "fuse_batchnorm"),),
            ("coremltools folds BatchNorm", "--precision coreml=fp16"),
        ),
        (("--labels", "labels.txt"), ("3 labels", "10 classes")),
        (("--labels", "nowhere.txt"), ("nowhere.txt", "cannot be read")),
        (("--checkpoint", "nowhere.pth"), ("nowhere.pth", "does not exist")),
        (("--checkpoint", "foreign"), ("foreign", "is a folder")),
        (("--checkpoint", "labels.txt"), ("labels.txt", "not a whole PyTorch checkpoint")),
        (("--output", "file"), ("file", "not a folder", "--output")),
        (("--output", "foreign"), ("foreign", "no export", "thesis.tex", "--output")),
        (("--output", "website"), ("website", "no export", "manifest.json", "--output")),
        (("--no-such-option",), ("--no-such-option",)),
        (("positional",), ("positional",)),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_refused_request(
    cli: Cli, place: Path, tree: Tree, arguments: tuple[object, ...], parts: tuple[str, ...]
) -> None:
    """A request that cannot be met is refused by name, and nothing on disk is touched."""
    refused(cli, place, tree, ("export", *arguments), *parts)


@pytest.mark.parametrize(
    ("arguments", "message", "remedy"),
    [
        (("export", "--no-such"), "error: no such option", "See levit-export export --help."),
        (("evaluate", "out"), "error: missing option", "See levit-export evaluate --help."),
        (
            ("chek",),
            "error: unknown verb 'chek': Did you mean 'check'?",
            "See levit-export --help.",
        ),
    ],
)
def test_what_click_refuses_looks_like_all_errors(
    cli: Cli, arguments: tuple[str, ...], message: str, remedy: str
) -> None:
    """A line says what happened and the next one what to do, whoever found it; status 2."""
    result = cli(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    first, second = result.stderr.splitlines()
    assert first.startswith(message)
    assert second.strip() == remedy


@pytest.mark.parametrize("arguments", [("--opset", 5), ("--skip-pass", "fuse_batchnrm")])
def test_earlier_export_survives_refusal(
    cli: Cli, place: Path, tree: Tree, arguments: tuple[object, ...]
) -> None:
    """A refusal leaves the export that was at the output exactly as it was."""
    refused(cli, place, tree, ("export", *arguments, "--output", "out"))


def test_unknown_verb(cli: Cli, place: Path, tree: Tree) -> None:
    """A verb that does not exist is refused with the nearest one."""
    refused(cli, place, tree, ("chek", "out"), "'chek'", "Did you mean 'check'?")


def write_truncated_pickle(file: Path, tensors: Tensors) -> None:
    """The first half of a ``.pth`` file."""
    torch.save(tensors, file)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def write_nan(file: Path, tensors: Tensors) -> None:
    """Weights with one NaN."""
    tensors["blocks.0.m.qkv.c.weight"][3, 4] = float("nan")
    save_file(tensors, file)


def write_other_network(file: Path, tensors: Tensors) -> None:
    """Weights of another architecture."""
    del tensors
    torch.save({"conv1.weight": torch.ones(64, 3, 7, 7), "fc.bias": torch.ones(10)}, file)


def write_one_number(file: Path, tensors: Tensors) -> None:
    """Something that is no dictionary."""
    del tensors
    torch.save(torch.ones(3), file)


def write_training_state(file: Path, tensors: Tensors) -> None:
    """Some weights beside what is not a tensor."""
    torch.save({"head.weight": tensors["head.l.weight"], "epoch": 3}, file)


@pytest.mark.parametrize(
    ("write", "parts"),
    [
        (write_truncated_pickle, ("not a whole PyTorch checkpoint", "again")),
        (write_nan, ("NaN", "blocks.0.m.qkv.c.weight")),
        (write_other_network, ("not a checkpoint of a known form", "conv1.weight", "Known forms")),
        (write_one_number, ("Tensor", "state_dict()")),
        (write_training_state, ("'epoch'", "state_dict()")),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_refused_checkpoint(  # noqa: PLR0917 - fixtures and parameters
    cli: Cli,
    place: Path,
    tree: Tree,
    digits_tensors: Tensors,
    write: Callable[[Path, Tensors], None],
    parts: tuple[str, ...],
) -> None:
    """A checkpoint that is damaged or something else is refused by name and with the reason."""
    file = place / "weights.pth"
    write(file, digits_tensors)
    arguments = ("export", "--checkpoint", file, "--output", "out")
    refused(cli, place, tree, arguments, "weights.pth", *parts)


def test_checkpoint_of_another_shape(cli: Cli, place: Path, tree: Tree, digits_file: Path) -> None:
    """A checkpoint that is not the model it is said to be: its keys, expected and found shapes."""
    arguments = ("export", "--checkpoint", digits_file, "--model", "levit_128s", "-o", "out")
    refused(
        cli,
        place,
        tree,
        arguments,
        ": expected [",
        "], found [",
        " more",
        "--model",
    )


def test_pickle_that_wants_to_run_code(cli: Cli, place: Path, tree: Tree) -> None:
    """A pickle with a payload is refused as unsafe, and the payload does not run."""
    sentinel = place / "sentinel"
    torch.save({"model": RunsCode(sentinel)}, place / "evil.pth")
    arguments = ("export", "--checkpoint", "evil.pth", "--output", "out")
    refused(cli, place, tree, arguments, "evil.pth", "system", "nothing of it was executed")
    assert not sentinel.exists()


def test_output_that_cannot_be_made(
    cli: Cli, place: Path, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder without write permission is refused with the system's reason."""

    def deny(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied", "out")

    monkeypatch.setattr("tempfile.mkdtemp", deny)
    arguments = ("export", "--no-check", "--no-bench", "--output", "new/out")
    refused(cli, place, tree, arguments, "out cannot be written: Permission denied", "--output")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="there is no /proc")
def test_output_on_a_read_only_file_system(cli: Cli, place: Path, tree: Tree) -> None:
    """Where the system itself lets nobody write, root included, its reason is passed on."""
    arguments = ("export", "--no-check", "--no-bench", "--output", "/proc/self/out")
    refused(cli, place, tree, arguments, "/proc/self/out cannot be written", "--output")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no resource limits")
def test_disk_that_is_full(place: Path, tree: Tree) -> None:
    """When the system refuses to write on, the partial result goes and the earlier export stays.

    A limit on the size of files stands for the full disk: 1 MB, where the model takes 3.
    """
    before = tree(place)
    script = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
        "from levit_export.cli import main\n"
        "main()\n"
    )
    options = ("--no-check", "--no-bench", "--no-simplify", "--output", "out")
    done = subprocess.run(
        [sys.executable, "-c", script, "export", *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "out cannot be written: File too large" in done.stderr
    assert "free space" in done.stderr
    assert tree(place) == before


def test_report_that_cannot_be_written(cli: Cli, place: Path) -> None:
    """A report file in a folder that does not exist is an error with the file's name."""
    result = cli("models", "--json")
    assert result.exit_code == 0
    result = cli("check", "nowhere", "--json", place / "no" / "report.json")
    assert result.exit_code == 2
    assert not (place / "no").exists()


def test_traceback_only_when_asked(cli: Cli, place: Path) -> None:
    """An error shows its traceback with ``-v``, and only then."""
    arguments = ("export", "--checkpoint", place / "nowhere.pth")
    assert "Traceback" not in cli(*arguments).stderr
    assert "Traceback" in cli(*arguments, "-v").stderr


def test_bug_is_not_a_failed_check(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected exception ends with status 2 and asks for a report, never with status 1."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("levit_export.workflows.export_plan.plan", broken)
    result = cli("export")
    assert result.exit_code == 2
    assert "ZeroDivisionError: oops" in result.stderr
    assert "report it" in result.stderr


def test_interrupt(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends with the shell's status for it and no traceback."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("levit_export.workflows.export_plan.plan", interrupted)
    result = cli("export")
    assert result.exit_code == 130
    assert "interrupted" in result.stderr
    assert "Traceback" not in result.stderr

"""The second process: what it makes, what it raises, and that it goes away."""

from __future__ import annotations

import copyreg
import pickle
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from operator import attrgetter
from pathlib import Path

import pytest
import subjects
from torch.export import ExportedProgram
from torch.nn import Module

from levit_export import errors, helper, machine, pipeline, preparation, reference
from levit_export.core import ExportOptions, Signature
from levit_export.errors import (
    ExportFailedError,
    LevitExportError,
    UnknownNameError,
    UsageError,
)
from levit_export.helper import Helper, Job
from levit_export.preparation import Forms
from levit_export.targets.onnx import OnnxTarget

JOBS = (
    Job("openvino", ExportOptions(precision="fp32")),
    Job("coreml", ExportOptions(precision="fp16")),
)
KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, LevitExportError)
]


def test_the_same_bytes(tmp_path: Path) -> None:
    """What the other process exports is byte for byte what this one does, in the order asked."""
    with helper.helper() as other:
        other.start([(job, subjects.digits()) for job in JOBS], tmp_path)
        made = list(other.results())
    assert [artifact.id for artifact in made] == ["openvino-fp32", "coreml-fp16"]
    for artifact in made:
        here = subjects.artifact(artifact.format, artifact.precision)
        applied = tuple(record.name for record in subjects.digits().passes)
        assert artifact == replace(here, path=artifact.path, passes=applied)
        assert artifact.path.parent == tmp_path / artifact.id
        theirs, ours = subjects.contents(artifact), subjects.contents(here)
        assert list(theirs.values()) == list(ours.values())


def test_calls_are_answered_in_their_order(tmp_path: Path) -> None:
    """Calls and jobs are answered as they were asked; one may be about the last artifact."""
    job = Job("openvino", ExportOptions(precision="fp32"))
    with helper.helper() as other:
        other.get_ready(("colorsys", "no_such_package"))
        other.ask(partial(divmod, 17, 5))
        other.start([(job, subjects.tiny())], tmp_path)
        other.ask_about_last(attrgetter("path.name"))
        assert other.answer() == (3, 2)
        (made,) = other.results()
        assert other.answer() == made.path.name == "levit_tiny.xml"


def test_a_call_that_raises() -> None:
    """What a call raises over there is raised by whoever asks for it or for anything after it."""
    with helper.helper() as other:
        other.ask(partial(open, "no such file"))
        other.ask(partial(divmod, 17, 5))
        for _ in range(2):
            with pytest.raises(FileNotFoundError, match="no such file"):
                other.answer()


def test_a_long_message_and_a_long_answer() -> None:
    """Neither process waits for the other to read: more than a pipe holds goes both ways."""
    much = bytes(2**24)
    with helper.helper() as other:
        for _ in range(3):
            other.ask(partial(bytes.upper, much))
        assert [len(other.answer()) for _ in range(3)] == [2**24] * 3


def test_helped_or_not_it_is_the_same_report(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a helper that computes the reference and checks the last artifact, and without."""
    reports = []
    for cores in (1, 2):
        monkeypatch.setattr(machine, "usable_cores", lambda cores=cores: cores)
        request = pipeline.ExportRequest(
            formats=("onnx", "coreml"), output=tmp_path / str(cores), bench=False
        )
        reports.append(pipeline.export(request))
    alone, helped = reports
    assert [a.parity.verdict for a in alone.artifacts] == ["pass", "pass"]
    assert helped.artifacts == alone.artifacts


def test_jobs_in_two_layouts(tmp_path: Path) -> None:
    """Each job is done from the form of the model that it came with."""
    forms = Forms(subjects.tiny_checkpoint())
    options = {
        "fp32": ExportOptions(precision="fp32", layout="tokens"),
        "w8": ExportOptions(precision="w8", layout="maps"),
    }
    with helper.helper() as other:
        other.start([(Job("onnx", o), forms.of("onnx", o)) for o in options.values()], tmp_path)
        made = list(other.results())
    for artifact in made:
        wanted = options[artifact.precision].layout
        assert artifact.layout == OnnxTarget().inspect(artifact.path).layout == wanted


def test_a_program_is_captured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model is captured once, when its program is asked for; its module goes to another."""
    count: list[str] = []
    capture = preparation._program

    def counted(module: Module, signature: Signature, name: str) -> ExportedProgram:
        count.append(name)
        return capture(module, signature, name)

    monkeypatch.setattr(preparation, "_program", counted)
    model = preparation.prepare(subjects.tiny_checkpoint())
    assert count == []
    assert replace(model, passes=()).program is model.program
    assert count == ["levit_tiny"]
    sent = pickle.loads(pickle.dumps(helper._bare(model)))  # noqa: S301 - made on this line
    assert count == ["levit_tiny"]
    assert str(sent.program.graph) == str(model.program.graph)
    assert count == ["levit_tiny"] * 2


def test_an_error_over_there(tmp_path: Path) -> None:
    """What is raised over there is raised here: the same type, words and remedy."""
    model = subjects.tiny()
    doubled = replace(model, info=replace(model.info, labels=("same",) * 10))
    job = Job("coreml", ExportOptions(precision="fp16", classifier=True))
    with pytest.raises(UsageError) as here:
        helper.run(job, doubled, tmp_path)
    (tmp_path / "coreml-fp16").rmdir()
    with helper.helper() as other:
        other.start([(job, doubled)], tmp_path)
        with pytest.raises(UsageError) as there:
            list(other.results())
    assert type(there.value) is type(here.value)
    assert (there.value.what, there.value.remedy) == (here.value.what, here.value.remedy)
    assert "9 are repeated" in there.value.what


NOISE = """
import os, pickle
load = pickle.load
def noisy(file):
    os.write(1, b"Converting: 50%")
    print("Converting: 50%", flush=True)
    return load(file)
pickle.load = noisy
"""


def test_noise_does_not_get_between(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is printed over there, by Python or below it, does not spoil the answer.

    The answer is an error here: a format that only the other process is asked for.
    """
    (tmp_path / "sitecustomize.py").write_text(NOISE)
    monkeypatch.syspath_prepend(tmp_path)
    job = Job("tflite", ExportOptions())
    with helper.helper() as other:
        other.start([(job, subjects.tiny())], tmp_path)
        with pytest.raises(UnknownNameError, match="'tflite'") as raised:
            list(other.results())
    assert "onnx" in raised.value.remedy


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_errors_cross_process_borders(kind: type[LevitExportError]) -> None:
    """Every error of this package is the same after its way through a pipe."""
    error = kind("gpu", "x", ["a", "b"]) if kind is UnknownNameError else kind("w", remedy="r")  # type: ignore[call-arg,arg-type]
    arrived = pickle.loads(pickle.dumps(error))  # noqa: S301 - made on this line
    assert type(arrived) is kind
    assert vars(arrived) == vars(error)
    assert (str(arrived), arrived.exit_status) == (str(error), error.exit_status)


class TwoArguments(Exception):  # noqa: N818 - of the kind that libraries have
    """Cannot be rebuilt from its message, as exceptions are by default."""

    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{reason} ({code})")


def test_an_error_that_cannot_cross(monkeypatch: pytest.MonkeyPatch) -> None:
    """A foreign exception that pickle cannot rebuild arrives as a failed export, in its words."""
    # distributed, where a test has imported it, teaches pickle every exception that there is.
    monkeypatch.delitem(copyreg.dispatch_table, TwoArguments, raising=False)
    sent = helper._sendable(TwoArguments(7, reason="no such op"))
    arrived = pickle.loads(pickle.dumps(sent))  # noqa: S301 - made on this line
    assert isinstance(arrived, ExportFailedError)
    assert "TwoArguments: no such op (7)" in arrived.what
    error = OSError(28, "No space left on device", "m.bin")
    assert helper._sendable(error) is error


@contextmanager
def stand_in(monkeypatch: pytest.MonkeyPatch, script: str) -> Iterator[Helper]:
    """A helper whose process runs ``script`` instead."""
    start = subprocess.Popen

    def other(command: list[str], **settings: object) -> subprocess.Popen[bytes]:
        return start([command[0], "-c", script], **settings)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(subprocess, "Popen", other)
    with helper.helper() as made:
        yield made


def test_a_process_that_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ends without an answer is a failed export with its own status."""
    # It closes its pipe some time before it ends, as an interpreter does that is torn down.
    script = "import os, time; os.close(1); time.sleep(0.2); os._exit(7)"
    with (
        stand_in(monkeypatch, script) as other,
        pytest.raises(ExportFailedError, match="ended with status 7") as raised,
    ):
        other.answer()
    assert "one --format at a time" in raised.value.remedy


def test_a_process_that_is_killed(tmp_path: Path) -> None:
    """A process that is killed, as for want of memory, is a failed export that says so."""
    with helper.helper() as other:
        other._process.kill()
        other._process.wait()
        other.start([(job, subjects.tiny()) for job in JOBS], tmp_path)
        with pytest.raises(ExportFailedError, match="ended with status -9"):
            list(other.results())
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that closes its pipe and stays is killed."""
    monkeypatch.setattr(helper, "GRACE_S", 0.1)
    script = "import os, time; os.close(1); time.sleep(600)"
    with (
        stand_in(monkeypatch, script) as other,
        pytest.raises(ExportFailedError, match="ended with status -9"),
    ):
        other.answer()


def test_an_answer_that_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that prints something else than an answer is a failed export."""
    script = "import os; os.write(1, b'Converting: 50%'); os._exit(0)"
    with stand_in(monkeypatch, script) as other, pytest.raises(ExportFailedError):
        other.answer()


@pytest.mark.parametrize("error", [None, UsageError("stop"), KeyboardInterrupt()], ids=repr)
def test_it_is_gone_afterwards(error: BaseException | None) -> None:
    """After the block the process has ended, also when the block raises or is interrupted."""
    processes: list[subprocess.Popen[bytes]] = []

    def block() -> None:
        with helper.helper() as other:
            processes.append(other._process)
            assert other._process.poll() is None
            if error is not None:
                raise error

    if error is None:
        block()
    else:
        with pytest.raises(type(error)):
            block()
    (process,) = processes
    assert process.returncode is not None
    assert process.stdin is not None
    assert process.stdin.closed
    assert process.stdout is not None
    assert process.stdout.closed


@pytest.mark.parametrize(
    ("formats", "cores", "started"),
    [
        (("onnx",), 2, 0),
        (("onnx", "openvino"), 1, 0),
        (("onnx", "openvino"), 2, 1),
    ],
    ids=["one format", "one core", "two of each"],
)
def test_it_is_started_when_it_helps(
    formats: tuple[str, ...], cores: int, started: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One format, or one core, needs no helper; several formats on several cores start one."""
    count: list[None] = []
    real = helper.helper

    @contextmanager
    def counted() -> Iterator[Helper]:
        count.append(None)
        with real() as other:
            yield other

    def stop(*_: object) -> None:
        raise UsageError("stop")

    replacements: list[tuple[object, str, Callable[..., object]]] = [
        (helper, "helper", counted),
        (machine, "usable_cores", lambda: cores),
        (reference, "load", stop),
    ]
    for module, name, value in replacements:
        monkeypatch.setattr(module, name, value)
    with pytest.raises(UsageError, match="stop"):
        pipeline.export(pipeline.ExportRequest(formats=formats))
    assert len(count) == started

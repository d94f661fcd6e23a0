"""Other processes: what they answer, what they raise, how they die, and that they go away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path

import pytest

from levit_export.core import errors, processes
from levit_export.core.errors import (
    LevitExportError,
    RuntimeFailedError,
    UnknownNameError,
    UsageError,
)
from levit_export.core.processes import Worker, alone, each_alone

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, LevitExportError)
]


def add(a: int, b: int) -> int:
    """Something to be done elsewhere."""
    return a + b


def noisy(text: str) -> str:
    """Prints where answers go."""
    sys.stdout.write(text)
    os.write(1, text.encode())
    return text


def sleep(started: Path) -> None:
    """Say that the call has arrived, and keep the process busy."""
    started.touch()
    time.sleep(60)


def die(status: int, words: str) -> None:
    """End the process as a crash does."""
    sys.stderr.write(f"{words}\n")
    sys.stderr.flush()
    os._exit(status)


def refuse(remedy: str) -> None:
    """An error on purpose."""
    raise UsageError("no", remedy=remedy)


def run_out() -> None:
    """An error that reading a pipe raises as well."""
    raise EOFError("out of input")


def unsendable() -> Callable[[], None]:
    """A result that no pickle can hold."""
    return lambda: None


def here() -> tuple[int, list[str]]:
    """Which process, and what it may import from."""
    return os.getpid(), sys.path


def test_calls_are_answered_in_their_order() -> None:
    """One process answers all calls, each by its own future, in the order they were made."""
    with Worker() as worker:
        futures = [worker.submit(add, i, 1) for i in range(5)]
        assert [future.result() for future in futures] == [1, 2, 3, 4, 5]
        (first, _), (second, _) = (worker.submit(here).result() for _ in range(2))
    assert first == second != os.getpid()


def test_arguments_are_taken_at_once() -> None:
    """What changes after it was submitted does not change what was asked."""
    numbers = [1, 2]
    with Worker() as worker:
        future = worker.submit(sum, numbers)
        numbers.append(100)
        assert future.result() == 3


def test_long_messages() -> None:
    """Arguments and answers may be longer than a pipe holds."""
    with alone(bytes.upper, b"a" * 5_000_000) as future:
        assert future.result() == b"A" * 5_000_000


def test_noise_does_not_get_between() -> None:
    """What a call prints, in Python or below it, is not taken for an answer."""
    with Worker() as worker:
        assert worker.submit(noisy, "x" * 100_000).result() == "x" * 100_000
        assert worker.submit(add, 1, 2).result() == 3


def test_nothing_is_imported_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ``random.py`` or ``pickle.py`` in a user's folder is not run in place of the real one."""
    for name in ("pickle", "random", "subprocess", "tempfile", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    with alone(here) as future:
        _, path = future.result()
    assert path == sys.path


@pytest.mark.parametrize("kind", KINDS, ids=attrgetter("__name__"))
def test_errors_cross_process_borders(kind: type[LevitExportError]) -> None:
    """Every error of this package arrives as what it is, with its words and its remedy."""
    known = kind is UnknownNameError
    sent = UnknownNameError("format", "onx", ["onnx"]) if known else kind("no", remedy="Do.")
    rebuild, arguments = sent.__reduce__()[:2]
    found = rebuild(*arguments)
    assert type(found) is type(sent)
    assert (str(found), found.remedy) == (str(sent), sent.remedy)


def test_an_error_over_there() -> None:
    """What a call raises is raised here; the process goes on."""
    with Worker() as worker:
        with pytest.raises(UsageError) as raised:
            worker.submit(refuse, "Do.").result()
        assert raised.value.remedy == "Do."
        assert worker.submit(add, 1, 2).result() == 3


@pytest.mark.parametrize(
    ("function", "words"),
    [(run_out, "EOFError: out of input"), (unsendable, "PicklingError|AttributeError")],
)
def test_an_unexpected_error(function: Callable[[], object], words: str) -> None:
    """An exception of another kind, and a result that cannot be sent, are errors that say so."""
    with Worker() as worker:
        with pytest.raises(RuntimeFailedError, match=words) as raised:
            worker.submit(function).result()
        assert "please report" in raised.value.remedy
        assert worker.submit(add, 1, 2).result() == 3


def test_a_process_that_dies(tmp_path: Path) -> None:
    """Its status and last words are in the error; the next call gets a new process."""
    with Worker() as worker:
        first, _ = worker.submit(here).result()
        with pytest.raises(RuntimeFailedError, match="status 9: out of luck") as raised:
            worker.submit(die, 9, "first\nout of luck").result()
        assert "memory" in raised.value.remedy
        second, _ = worker.submit(here).result()
        assert second != first
        asleep = worker.submit(sleep, tmp_path / "started")
        while not (tmp_path / "started").exists():  # a call that waits would get a new process
            time.sleep(0.01)
        os.kill(second, signal.SIGKILL)
        with pytest.raises(RuntimeFailedError, match="status -9"):
            asleep.result()


def test_a_process_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that closes its pipe and stays is killed."""
    monkeypatch.setattr(processes, "GRACE_S", 0.1)
    monkeypatch.setattr(processes, "SERVE", "import os, time; os.close(1); time.sleep(60)")
    with alone(add, 1, 2) as future, pytest.raises(RuntimeFailedError, match="status -9"):
        future.result()


def test_an_answer_that_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that prints something else than an answer is an error."""
    monkeypatch.setattr(processes, "SERVE", "import os; os.write(1, b'Converting'); os._exit(0)")
    with alone(add, 1, 2) as future, pytest.raises(RuntimeFailedError, match="status 0"):
        future.result()


@pytest.mark.parametrize("error", [None, UsageError("stop"), KeyboardInterrupt()], ids=repr)
def test_it_is_gone_afterwards(error: BaseException | None) -> None:
    """After the block the process has ended, whatever it was doing and however the block ends."""
    found: list[int] = []
    before = threading.active_count()

    def block() -> None:
        with Worker() as worker:
            found.append(worker.submit(here).result()[0])
            worker.submit(time.sleep, 60)
            if error is not None:
                raise error

    if error is None:
        block()
    else:
        with pytest.raises(type(error)):
            block()
    with pytest.raises(ProcessLookupError):
        os.kill(found[0], 0)
    assert threading.active_count() == before


def test_what_waits_for_a_killed_process() -> None:
    """Calls that a killed worker had not answered raise; so do later ones."""
    with Worker() as worker:
        worker.submit(here).result()
        asleep = worker.submit(time.sleep, 60)
        worker.kill()
        with pytest.raises(RuntimeFailedError):
            asleep.result()
        with pytest.raises(RuntimeFailedError, match="was ended"):
            worker.submit(add, 1, 2).result()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the closed pipe ends it, later")
def test_it_dies_with_its_parent() -> None:
    """A parent that is killed takes its processes along, also those that compute."""
    script = (
        "import os, signal, time\n"
        "from levit_export.core.processes import Worker\n"
        "worker = Worker()\n"
        "print(worker.submit(os.getpid).result(), flush=True)\n"
        "worker.submit(time.sleep, 60)\n"
        "time.sleep(0.2)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(processes.command(script), capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while Path(f"/proc/{int(done.stdout)}").exists():
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.05)


def test_each_alone() -> None:
    """Results come in the order of the calls; one that dies takes no other with it."""
    ids = each_alone(here, [(), ()], at_a_time=1)
    assert len({found[0] for found in ids if isinstance(found, tuple)}) == 2
    results = each_alone(divmod, [(7, 2), (1, 0), (9, 4)], at_a_time=3)
    assert results[0] == (3, 1)
    assert isinstance(results[1], RuntimeFailedError)
    assert results[2] == (2, 1)

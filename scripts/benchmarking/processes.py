"""Start processes and account for them: wall clock, processor time, memory of the whole tree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from threading import Event
from typing import Any

from benchmarking.values import Command, Run

ROOT = Path(__file__).resolve().parents[2]
COMMAND = str(ROOT / ".venv" / "bin" / "levit-export")
EVERY_S = 0.02
"""How often memory is looked at."""

PAGE = os.sysconf("SC_PAGE_SIZE")
THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Not passed on: thread counts are part of what is measured."""

QUIET = {"HF_HUB_OFFLINE": "1", "NNCF_CI": "1", "TOKENIZERS_PARALLELISM": "false"}
"""No network and no telemetry in a measured process."""


class WorkerError(Exception):
    """A process of the benchmark's own did not answer; the message is the end of what it said."""


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """What every process is started with."""
    kept = {name: value for name, value in os.environ.items() if name not in THREAD_SETTINGS}
    return {**kept, **QUIET, "PYTHONPATH": str(ROOT / "scripts"), **(more or {})}


def run_once(command: Sequence[str]) -> Run:
    """Run ``command`` to its end; what it says is dropped."""
    done = Event()
    start = time.perf_counter()
    nothing = subprocess.DEVNULL
    with ThreadPoolExecutor(1) as watcher:
        process = subprocess.Popen(
            command, stdin=nothing, stdout=nothing, stderr=nothing, env=environment()
        )
        peak = watcher.submit(_peak, process.pid, done)
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - start
        done.set()
    process.returncode = os.waitstatus_to_exitcode(status)
    # The system's own figure starts at what the parent had, so it is the second choice.
    largest = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Run(
        wall_s=wall_s,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_bytes=peak.result() or largest,
        status=process.returncode,
    )


def measure(
    commands: Mapping[str, Sequence[str]], runs: int, *, warm_up: bool = False
) -> list[Command]:
    """Run the commands in turn, ``runs`` times; once before where they are to be warm."""
    if warm_up:
        for command in commands.values():
            run_once(command)
    found: dict[str, list[Run]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            found[name].append(run_once(command))
    return [Command(name, tuple(done)) for name, done in found.items()]


def worker(module: str, task: Any, *, more: Mapping[str, str] | None = None) -> Any:
    """What ``benchmarking.<module>`` answers to ``task``, in a process of its own."""
    return answer([sys.executable, "-m", f"benchmarking.{module}"], task, more=more)


def answer(command: Sequence[str], task: Any, *, more: Mapping[str, str] | None = None) -> Any:
    """Give a program ``task`` as a JSON file and read its answer from another."""
    with tempfile.TemporaryDirectory(prefix="levit-export-benchmark-") as folder:
        given, taken = Path(folder, "task.json"), Path(folder, "answer.json")
        given.write_text(json.dumps(task), encoding="utf-8")
        done = subprocess.run(
            [*command, str(given), str(taken)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            env=environment(more),
        )
        if done.returncode or not taken.is_file():
            said = [line for line in done.stderr.splitlines() if line.strip()]
            raise WorkerError(said[-1] if said else f"exit status {done.returncode}")
        return json.loads(taken.read_text(encoding="utf-8"))


def serve(function: Callable[[Any], Any]) -> None:
    """In a worker: have ``function`` answer the task that the command line names."""
    given, taken = map(Path, sys.argv[1:])
    answer = function(json.loads(given.read_text(encoding="utf-8")))
    taken.write_text(json.dumps(answer, default=asdict), encoding="utf-8")


def _peak(pid: int, done: Event) -> int:
    """Largest sum of the resident sets of a process and its children, looked at now and then.

    Pages that processes share count in each. Zero where the system has no ``/proc``.
    """
    largest = 0
    while not done.wait(EVERY_S):
        largest = max(largest, sum(_resident(each) for each in _tree(pid)))
    return largest


def _tree(pid: int) -> list[int]:
    """The process and all below it, as far as they have not ended meanwhile."""
    found = [pid]
    for each in found:
        try:
            for children in list(Path(f"/proc/{each}/task").glob("*/children")):
                found += [int(child) for child in children.read_text().split()]
        except OSError:
            continue
    return found


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except (OSError, IndexError):  # it ended meanwhile
        return 0

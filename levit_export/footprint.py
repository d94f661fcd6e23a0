"""Peak memory of an artifact: that of a fresh process which loads it and runs it once.

Measured in a process of its own, because this one holds PyTorch and every other format.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from levit_export import launch
from levit_export.core import Artifact, RunOptions

TIMEOUT_S = 120


def start(artifact: Artifact, threads: int) -> subprocess.Popen[str]:
    """Begin measuring; :func:`finish` waits for the figure."""
    code = "from levit_export.footprint import main; main()"
    return subprocess.Popen(  # noqa: S603 - our own interpreter and module
        launch.command(code, artifact.format, str(artifact.path), str(threads)),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> int | None:
    """Peak resident memory in bytes, or None where it could not be measured."""
    try:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return None
    last = (output.split() or [""])[-1]
    return int(last) if process.returncode == 0 and last.isdigit() else None


def stop(processes: Iterable[subprocess.Popen[str]]) -> None:
    """End what is still being measured."""
    for process in processes:
        process.kill()
        process.communicate()


def _measure(name: str, path: Path, threads: int) -> int:
    import numpy as np

    from levit_export.targets import target

    kind = target(name)
    with kind.open(kind.inspect(path), RunOptions(threads)) as session:
        session.run(
            {
                spec.name: np.zeros([d or 1 for d in spec.shape], spec.dtype)
                for spec in session.signature.inputs
            }
        )
    return peak_bytes()


def peak_bytes() -> int:
    """Peak resident memory of this process.

    On Linux ``ru_maxrss`` will not do: it survives ``exec``, so a small child of a large parent
    reports the parent's. ``VmHWM`` belongs to the address space and starts afresh.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        return next(1024 * int(ln.split()[1]) for ln in lines if ln.startswith("VmHWM:"))
    import resource

    peak: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def main() -> None:
    """Measure what the command line names, and print it."""
    print(_measure(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))  # noqa: T201 - its answer

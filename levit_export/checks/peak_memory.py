"""Peak memory of an artifact: that of a fresh process which loads it and runs it once.

Measured in a process of its own, because this one holds PyTorch and every other format.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from levit_export.core.errors import LevitExportError
from levit_export.core.machine import usable_cores
from levit_export.core.processes import each_alone
from levit_export.core.values import Artifact, RunOptions


def peaks(rows: Sequence[tuple[Artifact, RunOptions]], threads: int) -> list[int | None]:
    """Peak resident memory in bytes of each artifact, executed as its options say.

    None where it could not be measured. As many at a time as there are cores.
    """
    calls = [(artifact.format, artifact.path, run) for artifact, run in rows]
    found = each_alone(measure, calls, at_a_time=max(1, usable_cores() // threads))
    return [None if isinstance(each, LevitExportError) else each for each in found]


# This module imports little, for all of it counts in the process that is measured.
def measure(name: str, path: Path, run: RunOptions) -> int:
    """Load the artifact of format ``name`` in this process, run it once, and say what it took."""
    import numpy as np

    from levit_export.formats import target

    kind = target(name)
    with kind.open(kind.inspect(path), run) as session:
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

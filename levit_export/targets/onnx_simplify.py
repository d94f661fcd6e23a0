"""Run onnxsim in a process of its own and keep its result only when it proves equal.

onnxsim has crashed the interpreter on some graphs (onnxsim#426, #291, #231); a subprocess turns
that into an exit status.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from levit_export.core import UNIT_ROUNDOFF, processes
from levit_export.targets.quiet import first_line

if TYPE_CHECKING:
    from onnx import ModelProto

TIMEOUT_S = 600
SUM_LENGTH = 4096
"""Upper bound of the number of terms that one output of one operator sums in these networks."""

# Gemm takes rank 2 only: turning MatMul+Add of (B, N, C) tokens into it costs two Reshapes each,
# and ONNX Runtime fuses the pair by itself.
# onnxsim imports torch and sympy where they are installed, for parts that are not used here.
# Newer ones write the file themselves, which spares reading and writing the weights in Python.
SCRIPT = """
import inspect, sys
sys.modules["torch"] = sys.modules["sympy"] = None
import onnx, onnxsim
before, after = sys.argv[1:]
skipped = ["fuse_matmul_add_bias_into_gemm_batched"]
direct = {"output_path": after, "external_data_threshold": "2GB"}
if not {*direct} <= {*inspect.signature(onnxsim.simplify).parameters}:
    direct = {}
model, ok = onnxsim.simplify(before, skipped_optimizers=skipped, **direct)
if not direct:
    onnx.save(model, after)
sys.exit(0 if ok else 3)
"""


@dataclass(frozen=True)
class Simplified:
    """The graph to go on with, and a note where it is not the simplified one."""

    model: ModelProto
    note: str = ""


def simplify(
    model: ModelProto, inputs: Mapping[str, np.ndarray], *, script: str = SCRIPT
) -> Simplified:
    """``model`` simplified, or ``model`` itself with a note that says what went wrong.

    Both are run on ``inputs``; they must agree to ``sqrt(n) * u`` of the largest output for the
    longest sum n and float32's unit roundoff u (Higham and Mary 2019, probabilistic bound).
    """
    import onnx

    with tempfile.TemporaryDirectory(prefix="levit-export-") as folder:
        before, after = Path(folder, "before.onnx"), Path(folder, "after.onnx")
        onnx.save(model, before)
        command = processes.command(script, str(before), str(after))
        try:
            done = subprocess.run(  # noqa: S603 - our interpreter, our script
                command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            return Simplified(model, f"not simplified: onnxsim took longer than {TIMEOUT_S} s")
        if done.returncode != 0 or not after.exists():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            return Simplified(
                model, f"not simplified: onnxsim ended with status {done.returncode} ({last})"
            )
        try:
            simplified = onnx.load(after)
            del simplified.metadata_props[:]
            difference = _largest_difference(before, after, inputs)
        except Exception as error:
            return Simplified(
                model, f"not simplified: onnxsim's result is unusable ({first_line(error)})"
            )
    bound = SUM_LENGTH**0.5 * UNIT_ROUNDOFF["fp32"]
    if not difference <= bound:
        return Simplified(
            model,
            f"not simplified: onnxsim's graph differs by {difference:.1e}, "
            f"rounding would by {bound:.0e}",
        )
    return Simplified(simplified)


def _largest_difference(one: Path, other: Path, inputs: Mapping[str, np.ndarray]) -> float:
    import onnxruntime

    results = []
    for path in (one, other):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        results.append(session.run(None, dict(inputs)))
    if len(results[0]) != len(results[1]):
        return float("inf")
    return max(
        float(np.abs(a - b).max() / np.abs(a).max()) if a.shape == b.shape else float("inf")
        for a, b in zip(*results, strict=True)
    )

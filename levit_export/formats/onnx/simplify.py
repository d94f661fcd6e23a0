"""onnxsim as the judge of a graph: what was written is lean when it finds nothing to remove.

It runs beside other work, and in a process of its own: onnxsim has crashed the interpreter on
some graphs (onnxsim#426, #291, #231). What it does find is taken when it proves to be the same
function, and reported.

It sees the graph with its large weights as inputs, which takes a fifth of the time and half of
the memory. Little is missed by that: a node is folded when all that it reads is constant, which
is looked for here; and of what onnxsim moves into weights there is only a BatchNorm in these
networks. A graph that has either is judged with its weights.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTimeError
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from levit_export.core.errors import RuntimeFailedError
from levit_export.core.processes import alone
from levit_export.core.quiet import first_line

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

TIMEOUT_S = 600
LARGE = 4096
"""Bytes from which a weight is left out of what is judged."""

SUM_LENGTH = 4096
"""Upper bound of the number of terms that one output of one operator sums in these networks."""

# Gemm takes rank 2 only: turning MatMul+Add of (B, N, C) tokens into it costs two Reshapes each,
# and ONNX Runtime fuses the pair by itself.
SKIPPED = ["fuse_matmul_add_bias_into_gemm_batched"]


@dataclass(frozen=True)
class Judged:
    """The leaner graph where onnxsim found one, and a note for the user unless all is well."""

    leaner: ModelProto | None = None
    note: str = ""


@contextmanager
def judged(
    model: ModelProto,
    inputs: Mapping[str, np.ndarray],
    unit_roundoff: float,
    *,
    simplify: Callable[[bytes], bytes | None] | None = None,
) -> Iterator[Callable[[], Judged]]:
    """Have ``model`` judged beside the work of the block, which asks for the verdict at its end.

    A leaner graph is run on ``inputs`` beside the one that was written; they must agree to
    ``sqrt(n) * u`` of the largest output for the longest sum n and the unit roundoff
    ``u`` (Higham and Mary 2019, probabilistic bound).
    """
    shown = _without_weights(model)
    with alone(simplify or simplified, shown.SerializeToString()) as future:
        yield lambda: _verdict(model, shown, future, inputs, unit_roundoff)


def simplified(content: bytes) -> bytes | None:
    """What onnxsim makes of a graph; None when it has the same operators as before."""
    # onnxsim imports them where they are installed, for parts that are not used here.
    sys.modules["torch"] = sys.modules["sympy"] = None  # type: ignore[assignment]
    import onnx
    import onnxsim

    before = onnx.load_from_string(content)
    after, is_equal = onnxsim.simplify(before, skipped_optimizers=SKIPPED)
    if not is_equal:
        raise RuntimeFailedError(
            "onnxsim found its own result to be another function", remedy="Try --no-simplify."
        )
    is_lean = _operators(after.graph) == _operators(before.graph)
    return None if is_lean else bytes(after.SerializeToString())


def _operators(graph: GraphProto) -> Counter[str]:
    return Counter(node.op_type for node in graph.node)


def _without_weights(model: ModelProto) -> ModelProto:
    """The graph with its large weights as inputs, unless they may become others."""
    import onnx

    constants = {tensor.name for tensor in model.graph.initializer}
    if any(
        node.op_type == "BatchNormalization" or constants.issuperset(node.input)
        for node in model.graph.node
    ):
        return model
    shown = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    shown.graph.name = model.graph.name
    for field in ("node", "input", "output", "value_info"):
        getattr(shown.graph, field).extend(getattr(model.graph, field))
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) < LARGE:
            shown.graph.initializer.append(tensor)
        else:
            shown.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    return shown


def _verdict(
    model: ModelProto,
    shown: ModelProto,
    future: Future[bytes | None],
    inputs: Mapping[str, np.ndarray],
    unit_roundoff: float,
) -> Judged:
    import onnx

    try:
        content = future.result(TIMEOUT_S)
    except NotInTimeError:
        return Judged(note=f"not simplified: onnxsim took longer than {TIMEOUT_S} s")
    except RuntimeFailedError as error:
        return Judged(note=f"not simplified: {error.what}")
    if content is None:
        return Judged()
    try:
        leaner = _with_weights(onnx.load_from_string(content), model, shown)
        difference = _largest_difference(model, leaner, inputs)
    except Exception as error:
        return Judged(note=f"not simplified: onnxsim's result is unusable ({first_line(error)})")
    bound = SUM_LENGTH**0.5 * unit_roundoff
    if not difference <= bound:
        return Judged(
            note=f"not simplified: onnxsim's graph differs by {difference:.1e}, "
            f"rounding would by {bound:.0e}"
        )
    gone = _operators(model.graph) - _operators(leaner.graph)
    new = _operators(leaner.graph) - _operators(model.graph)
    said = [", ".join(f"{count} {kind}" for kind, count in sorted(c.items())) for c in (gone, new)]
    return Judged(leaner, f"simplified: onnxsim replaced {said[0]} by {said[1] or 'nothing'}")


def _with_weights(leaner: ModelProto, model: ModelProto, shown: ModelProto) -> ModelProto:
    """``leaner`` with those weights of ``model`` that it still reads."""
    left_out = {value.name for value in shown.graph.input[len(model.graph.input) :]}
    read = {name for node in leaner.graph.node for name in node.input} & left_out
    kept = [value for value in leaner.graph.input if value.name not in left_out]
    del leaner.graph.input[:], leaner.metadata_props[:]
    leaner.graph.input.extend(kept)
    leaner.graph.initializer.extend(t for t in model.graph.initializer if t.name in read)
    return leaner


def _largest_difference(
    one: ModelProto, other: ModelProto, inputs: Mapping[str, np.ndarray]
) -> float:
    import onnxruntime

    results = []
    for model in (one, other):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        results.append(session.run(None, dict(inputs)))
    if len(results[0]) != len(results[1]):
        return float("inf")
    return max(
        float(np.abs(a - b).max() / np.abs(a).max()) if a.shape == b.shape else float("inf")
        for a, b in zip(*results, strict=True)
    )

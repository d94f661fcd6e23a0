"""How large the values inside a network become: what float16 can hold and what it cannot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.fx import Interpreter, Node

from levit_export.naming import block_of

if TYPE_CHECKING:
    from levit_export.core import Prepared

FLOAT16_MAX = 65504.0
BATCH = 8


class _Peaks(Interpreter):
    """Runs a program and keeps the largest magnitude of every block's values."""

    def __init__(self, module: Any, blocks: Mapping[str, str]) -> None:
        super().__init__(module)
        self.peaks: dict[str, float] = {}
        self._owners = {node: block_of(node, blocks) for node in module.graph.nodes}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if (
            n.op == "call_function"
            and isinstance(value, torch.Tensor)
            and value.is_floating_point()
        ):
            owner = self._owners[n]
            self.peaks[owner] = max(self.peaks.get(owner, 0.0), float(value.abs().max()))
        return value


def peaks(model: Prepared, inputs: np.ndarray) -> dict[str, float]:
    """The largest ``|x|`` that each block computes for ``inputs`` ``(n, 3, H, W)``, in float32.

    Values of no block, such as the pooled tokens, count under the empty name.
    """
    runner = _Peaks(model.program.module(), model.blocks)
    size = model.signature.batch or BATCH
    with torch.inference_mode():
        for start in range(0, len(inputs), size):
            images = inputs[start : start + size]
            if model.signature.batch:
                images = np.resize(images, (size, *images.shape[1:]))
            runner.run(torch.from_numpy(np.ascontiguousarray(images)))
    return runner.peaks


def overflows(model: Prepared, inputs: np.ndarray) -> dict[str, float]:
    """The blocks with a value that float16 turns into infinity, and how large it is."""
    return {block: peak for block, peak in peaks(model, inputs).items() if peak > FLOAT16_MAX}

"""Measure one cell: every way to execute one model at one batch on so many threads.

usage: python -m benchmarking.cell TASK ANSWER

All are opened in this process and called round robin, as ``levit_export.checks.timing`` does
it: each timed call of a fast session follows an untimed one, which brings its weights
back to the caches and wakes its threads. A call of ``SETTLED_S`` and more does that by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter, sleep
from typing import Any, cast

import numpy as np
import torch

from benchmarking.alternatives import choice
from benchmarking.processes import serve
from benchmarking.values import COMPILED, EAGER, Cell, Row
from levit_export.checks import reference, timing
from levit_export.checks.execution import SPIN_S, gemm_seconds
from levit_export.core.hashing import digest
from levit_export.core.values import RunOptions, Session, Signature, TensorSpec
from levit_export.formats import target
from levit_export.formats.pytorch import EagerSession
from levit_export.models import loading
from levit_export.models.checkpoints import Checkpoint
from levit_export.models.passes import PASSES, apply_passes

SETTLED_S = 0.05
WARM_UP_S = 0.3
FEWEST_WARM_UPS = 3
LONGEST_WARM_UP_S = 1.0
"""Calls that take longer are warm with fewer."""
FEWEST, MOST = 7, 60
"""Rounds."""

Call = Callable[[], object]


@dataclass(frozen=True)
class Entrant:
    """A row without its seconds yet, and what is to be timed."""

    row: Row
    call: Call


def main(task: Mapping[str, Any]) -> Cell:
    """Open, warm up, measure."""
    torch.set_num_threads(task["threads"])
    with ExitStack() as stack:
        opened = [_entrant(stack, row, task) for row in task["rows"]]
        calls = {i: each.call for i, each in enumerate(opened) if isinstance(each, Entrant)}
        before = gemm_seconds(task["threads"])
        spinning = {i for i in calls if not task["rows"][i]["format"] and task["threads"] > 1}
        fewest = task.get("fewest", FEWEST)
        seconds = interleaved(calls, task["seconds"], spinning, fewest=fewest)
        after = gemm_seconds(task["threads"])
    rows = tuple(
        replace(each.row, seconds=seconds[i]) if isinstance(each, Entrant) else each
        for i, each in enumerate(opened)
    )
    return Cell(task["batch"], task["threads"], before + after, rows)


def interleaved(
    calls: Mapping[int, Call],
    budget_s: float,
    spinning: Collection[int] = (),
    *,
    fewest: int = FEWEST,
) -> dict[int, tuple[float, ...]]:
    """Seconds of each call, in as many rounds as ``budget_s`` allows, within bounds.

    After those of ``spinning`` there is a pause: PyTorch's threads go on for a while.
    """
    warm = {key: _warm_up(call) for key, call in calls.items()}
    settles = {key: seconds < SETTLED_S for key, seconds in warm.items()}
    a_round = sum(seconds * (1 + settles[key]) for key, seconds in warm.items())
    rounds = min(MOST, max(fewest, int(budget_s / max(a_round, 1e-6))))
    found: dict[int, list[float]] = {key: [] for key in calls}
    for _ in range(rounds):
        for key, call in calls.items():
            if settles[key]:
                call()
            found[key] += timing.series(call, 1)
            if key in spinning:
                sleep(SPIN_S)
    return {key: tuple(seconds) for key, seconds in found.items()}


def _warm_up(call: Call) -> float:
    """Seconds of the last call of some."""
    start, count, spent = perf_counter(), 0, 0.0
    while spent < WARM_UP_S or (count < FEWEST_WARM_UPS and spent < LONGEST_WARM_UP_S):
        (seconds,) = timing.series(call, 1)
        count, spent = count + 1, perf_counter() - start
    return seconds


def _entrant(stack: ExitStack, given: Mapping[str, Any], task: Mapping[str, Any]) -> Entrant | Row:
    """An open session that has answered once, or the row that says why it did not."""
    row = Row(given["name"], given["format"], given["precision"], reason=given["reason"])
    if row.reason:
        return row
    try:
        start = perf_counter()
        session, size = _open(stack, row, given, task)
        load_s = perf_counter() - start
        call = _call(session, task["batch"], given.get("side") or task["side"])
        call()
    except Exception as error:
        said = str(error).replace(f"{Path(given['path']).parent}/", "").splitlines()
        return replace(row, reason=": ".join((type(error).__name__, *said[:1])))
    return Entrant(replace(row, runtime=session.runtime, bytes=size, load_s=load_s), call)


def _open(
    stack: ExitStack, row: Row, given: Mapping[str, Any], task: Mapping[str, Any]
) -> tuple[Session, int]:
    path = Path(given["path"])
    if row.name in (EAGER, COMPILED):
        return _fused(task["model"], compiled=row.name == COMPILED), 0
    if not row.format:
        return _saved(path, given["side"]), 0
    kind = target(row.format)
    artifact = kind.inspect(path)
    options = RunOptions(threads=task["threads"])
    return stack.enter_context(kind.open(artifact, options)), digest(artifact.files).bytes


def fused(model: str) -> tuple[torch.nn.Module, Checkpoint]:
    """Our prepared module of ``model``, and what it was made of."""
    checkpoint = loading.load(choice(model))
    shape = (3, *checkpoint.config.image_size)
    return apply_passes(checkpoint.build(), PASSES, input_shape=shape)[0], checkpoint


def _fused(model: str, *, compiled: bool) -> Session:
    """:func:`fused` in PyTorch; without autograd, as its session runs it."""
    module, checkpoint = fused(model)
    if compiled:
        module = cast("torch.nn.Module", torch.compile(module))
    return reference.session_of(checkpoint, module)


def _saved(path: Path, side: int) -> Session:
    """A module that another process of this benchmark saved, run in the same way."""
    module = torch.load(path, weights_only=False)
    taken = TensorSpec("input", (None, 3, side, side))
    return EagerSession(module, Signature((taken,), (TensorSpec("logits", (None, 1000)),)))


def _call(session: Session, batch: int, side: int) -> Call:
    generator = np.random.default_rng(0)
    images = generator.standard_normal((batch, 3, side, side), dtype=np.float32)
    inputs = {session.signature.inputs[0].name: images}
    return lambda: session.run(inputs)


if __name__ == "__main__":
    serve(main)

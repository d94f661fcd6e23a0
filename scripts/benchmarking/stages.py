"""Where the time of an export goes.

usage: python -m benchmarking.stages TASK ANSWER

Once as ``--format all`` runs, and once the work of each part alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

from benchmarking.processes import serve
from benchmarking.values import Stage

if TYPE_CHECKING:
    from levit_export.core.values import Prepared
    from levit_export.models.checkpoints import Checkpoint

T = TypeVar("T")
FORMATS = ("onnx", "openvino", "coreml")


class Stamps:
    """A :class:`levit_export.core.progress.Progress` that notes when each stage began."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, float]] = []

    def plan(self, total: int) -> None:
        """Of no interest here."""

    def stage(self, text: str) -> None:
        """Note it."""
        self.begun.append((text, perf_counter()))

    def steps(self, total: int) -> None:
        """Of no interest here."""

    def advance(self) -> None:
        """Of no interest here."""

    def stages(self, end: float) -> list[Stage]:
        """Each with its seconds up to the next."""
        ends = [*(start for _, start in self.begun[1:]), end]
        return [
            Stage(text, until - start)
            for (text, start), until in zip(self.begun, ends, strict=True)
        ]


class Parts:
    """Seconds of single calls."""

    def __init__(self) -> None:
        self.found: list[Stage] = []

    def time(self, name: str, call: Callable[[], T]) -> T:
        """What ``call`` returns; its seconds are kept."""
        start = perf_counter()
        result = call()
        self.found.append(Stage(name, perf_counter() - start))
        return result


def main(task: Mapping[str, Any]) -> tuple[list[Stage], list[Stage]]:
    """Run both."""
    parts, weights = Parts(), Path(task["checkpoint"])
    folder = Path(task["folder"])
    folder.mkdir()
    parts.time("import torch", partial(import_module, "torch.export"))
    parts.time("import the rest", _import_rest)
    _one_by_one(parts, weights, folder)
    return _as_run(weights, folder / "exported"), parts.found


def _import_rest() -> None:
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401

    from levit_export.core import packages
    from levit_export.core.quiet import quiet
    from levit_export.models import preparation  # noqa: F401
    from levit_export.workflows import export  # noqa: F401

    packages.openvino()
    with quiet():
        packages.coremltools()


def _as_run(weights: Path, output: Path) -> list[Stage]:
    """The whole export, timing included, in a process that has imported everything."""
    from levit_export.models.loading import ModelChoice
    from levit_export.workflows import export

    stamps = Stamps()
    request = export.ExportRequest(choice=ModelChoice(checkpoint=weights), output=output)
    export.export(request, stamps)
    return stamps.stages(perf_counter())


def _one_by_one(parts: Parts, weights: Path, folder: Path) -> None:
    from levit_export.checks import execution, reference
    from levit_export.core import machine
    from levit_export.core.values import ExportOptions, RunOptions
    from levit_export.formats import target
    from levit_export.models import loading

    choice = loading.ModelChoice(checkpoint=weights)
    checkpoint = parts.time("load the checkpoint", lambda: loading.load(choice))
    models = _prepared(parts, checkpoint)
    first = next(iter(models.values()))
    expected = parts.time(
        "reference and tolerances",
        lambda: reference.make(
            checkpoint, first.info, {"fp32", "fp16"}, fingerprints=first.fingerprints
        ),
    )
    for form, model in models.items():
        kind = target(form)
        options = ExportOptions(precision=kind.precisions[0])
        path = folder / f"{form}{kind.suffix}"
        made = parts.time(f"export {form}", partial(kind.export, model, path, options))
        row = execution.Row(made, RunOptions(threads=machine.usable_cores()))
        parts.time(f"check {form}", partial(execution.check, row, expected))


def _prepared(parts: Parts, checkpoint: Checkpoint) -> dict[str, Prepared]:
    """What each format is written from: the passes, then each layout that is needed."""
    from levit_export.formats import target
    from levit_export.models import preparation

    rewritten = parts.time("passes, proven", lambda: preparation.rewrite(checkpoint))
    made: dict[str, Prepared] = {}
    found = {}
    for form in FORMATS:
        precision = target(form).precisions[0]
        layout = preparation.layout_of("auto", form, precision, checkpoint.config, ())
        if layout not in made:
            laid_out = rewritten
            if layout != rewritten.layout:
                laid_out = parts.time(
                    f"laid out as {layout}, proven",
                    partial(preparation.laid_out, rewritten, layout),
                )
            made[layout] = preparation.capture(laid_out, 1)
            parts.time(f"capture, {layout}", made[layout].capture.network)
        found[form] = made[layout]
    return found


if __name__ == "__main__":
    serve(main)

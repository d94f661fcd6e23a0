"""``scripts/benchmark``: parse, measure section by section, show, keep."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from benchmarking import (
    alternatives,
    evaluator,
    growth,
    headline,
    latency,
    pages,
    record,
    tables,
    tool,
)
from benchmarking.alternatives import Alternatives
from benchmarking.processes import ROOT, WorkerError
from benchmarking.values import SECTIONS, Record, ToolRecord
from levit_export.core import machine

FULL = ("levit_128s", "levit_128", "levit_192", "levit_256", "levit_384")
QUICK = ("levit_digits", "levit_128s")
THOROUGH = "levit_256"
"""The model whose commands are run more than once, and taken apart."""


@dataclass(frozen=True)
class Request:
    """What is to be measured: sections of models, in a folder, beside what others make.

    ``named`` are the models that were asked for, if any were; ``seconds`` for each cell, if said.
    """

    quick: bool
    models: tuple[str, ...]
    named: tuple[str, ...]
    sections: tuple[str, ...]
    seconds: float | None
    folder: Path
    others: Alternatives

    def place(self, model: str) -> Path:
        """Where files of that model go."""
        path = self.folder / model
        path.mkdir(parents=True, exist_ok=True)
        return path

    def pick(self, wanted: Sequence[str]) -> list[str]:
        """Those of ``wanted`` that are measured, or the last model where none is."""
        return [model for model in wanted if model in self.models] or [self.models[-1]]


def _tool(request: Request) -> Iterator[Record]:
    (thorough,) = request.pick([THOROUGH])
    models = request.models[-1:] if request.quick else request.models
    order = sorted(models, key=lambda model: model != thorough)
    for model in order:
        full = model == thorough and not request.quick
        place, runs = request.place(model), 3 if full else 1
        yield tool.run(
            model, place, request.others, runs=runs, timed=not request.quick, thorough=full
        )


def _latency(request: Request) -> Iterator[Record]:
    seconds = request.seconds or (3.0 if request.quick else 10.0)
    for model in request.models:
        place = request.place(model)
        yield latency.run(model, place, request.others, quick=request.quick, seconds=seconds)


def _headline(request: Request) -> Iterator[Record]:
    yield from headline.run(request.place(headline.NAME), request.named, request.seconds)


def _startup(request: Request) -> Iterator[Record]:
    yield tool.startup(3 if request.quick else 10)


def _growth(request: Request) -> Iterator[Record]:
    (model,) = request.pick(["levit_digits" if request.quick else "levit_128s"])
    counts = (10, 100) if request.quick else (10, 100, 1000)
    yield growth.run(model, request.place(model) / "growth", counts)


def _evaluator(request: Request) -> Iterator[Record]:
    for model in request.pick(["levit_digits"] if request.quick else ["levit_128s", "levit_256"]):
        place = request.place(model) / "evaluator"
        place.mkdir(exist_ok=True)
        yield evaluator.run(model, place, threads=machine.usable_cores())


RUN: dict[str, Callable[[Request], Iterator[Record]]] = {
    "startup": _startup,
    "tool": _tool,
    "latency": _latency,
    "headline": _headline,
    "growth": _growth,
    "evaluator": _evaluator,
}
"""In this order: what the commands of ``tool`` export is timed by ``latency``."""

BESIDE_OTHERS = ("tool", "latency")
ON_REQUEST = ("headline",)
"""Of networks that are not this package's as well; measured when it is named."""


def main() -> int:
    """Measure what is asked for; exit status 1 when a section could not be measured."""
    arguments = _parser().parse_args()
    named = _names(arguments.models)
    sections = _names(arguments.sections) or tuple(name for name in RUN if name not in ON_REQUEST)
    others = Alternatives("no section needs them")
    if any(name in sections for name in BESIDE_OTHERS):
        print("preparing the environment of the alternatives", file=sys.stderr)
        others = alternatives.prepare()
    with tempfile.TemporaryDirectory(prefix="levit-export-benchmark-") as folder:
        request = Request(
            quick=arguments.quick,
            models=named or (QUICK if arguments.quick else FULL),
            named=named,
            sections=sections,
            seconds=arguments.seconds,
            folder=Path(folder),
            others=others,
        )
        records, failed = _measure(request, keep=_keep if arguments.record else _drop)
    commands = [each for each in records if isinstance(each, ToolRecord)]
    if len(commands) > 1:
        print(f"## Export time over model size\n\n{tables.export_over_size(commands)}")
    if arguments.json:
        everything = [
            {"section": record.section_of(each), **json.loads(record.to_json(each))}
            for each in records
        ]
        arguments.json.write_text(json.dumps(everything) + "\n", encoding="utf-8")
    return 1 if failed else 0


def _keep(each: Record) -> None:
    path = record.write(ROOT / "models", each)
    print(f"wrote {path.relative_to(ROOT)}", file=sys.stderr)
    for page, text in pages.pages(ROOT).items():
        page.write_text(text, encoding="utf-8")


def _drop(_: Record) -> None:
    """A run that is not recorded."""


def _measure(request: Request, keep: Callable[[Record], None]) -> tuple[list[Record], bool]:
    """The records of all sections, each kept as soon as it is there.

    A section that fails leaves the others as they are.
    """
    records: list[Record] = []
    failed = False
    for section, run in RUN.items():
        if section not in request.sections:
            continue
        start = perf_counter()
        try:
            for each in run(request):
                records.append(each)
                keep(each)
                print(f"## {pages.TITLES[section]}: {each.model}\n\n{pages.show(each)}")
                sys.stdout.flush()
        except (WorkerError, RuntimeError) as error:
            failed = True
            print(f"{section} could not be measured: {error}", file=sys.stderr)
        print(f"{section}: {perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return records, failed


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/benchmark",
        description="Measure artifacts, commands and growth beside the alternatives; see "
        "docs/performance.md. The machine should have nothing else to do.",
    )
    parser.add_argument("--quick", action="store_true", help="three minutes, two small models")
    parser.add_argument("--models", help=f"comma-separated; default: {','.join(FULL)}")
    parser.add_argument("--sections", help=f"comma-separated, of {', '.join(SECTIONS)}")
    parser.add_argument("--seconds", type=float, help="for each cell; default: 10, headline 40")
    parser.add_argument("--record", action="store_true", help="keep the results in models/")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the results there as well"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

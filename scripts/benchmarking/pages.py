"""Pages made of records: ``models/<model>/README.md``, ``docs/headline.md``, the front page.

usage: python -m benchmarking.pages [--check]

A model's page is its ``about.md``, written by hand, and what was measured. With ``--check``
nothing is written; exit status 1 when a page is not what the records make.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TypeVar

from benchmarking import headline, record, tables
from benchmarking.processes import ROOT
from benchmarking.values import SECTIONS, HeadlineRecord, LatencyRecord, Record, ToolRecord
from levit_export.models.zoo import VARIANTS

KindT = TypeVar("KindT")

ABOUT, PAGE, PLOT = "about.md", "README.md", "latency.svg"
BEGIN, END = "<!-- figures -->", "<!-- /figures -->"
SHOWN = "levit_256"
NONE_YET = "Nothing is recorded yet: `scripts/benchmark --record` does it.\n"
TITLES = {
    "latency": "Latency and throughput",
    "headline": "Accuracy over speed",
    "tool": "Exporting",
    "startup": "Start-up",
    "growth": "Growth with the number of samples",
    "evaluator": "Core ML reference evaluator",
}


def show(found: Record) -> str:
    """Everything that a record says."""
    return headline.show(found) if isinstance(found, HeadlineRecord) else tables.show(found)


def model_page(about: str, records: dict[str, Record], beside: str = "") -> str:
    """The page of one model; ``beside`` says how it does beside others."""
    parts = [about.rstrip() + "\n", "## Measured\n"]
    if not records:
        parts.append(NONE_YET)
    if isinstance(latency := records.get("latency"), LatencyRecord):
        parts += [f"![Latency of {latency.model}, the table below as bars]({PLOT})\n"]
        parts += [tables.few(latency)]
    parts += [beside] if beside else []
    for section in SECTIONS:
        if section in records:
            parts.append(folded(TITLES[section], show(records[section])))
    parts.append("Made by `scripts/model-pages` from `about.md` and `results/`.\n")
    return "\n".join(parts)


def folded(title: str, text: str) -> str:
    """What is there for those who unfold it."""
    return f"<details><summary>{title}: all figures</summary>\n\n{text}\n</details>\n"


def figures(records: dict[str, dict[str, Record]], beside: str = "") -> str:
    """What the front page says of speed, from every model's records.

    ``beside`` says how the models do beside others.
    """
    latency = _of_kind(records, LatencyRecord)
    commands = _of_kind(records, ToolRecord)
    if not latency and not commands:
        return NONE_YET
    parts = []
    if latency:
        where = latency[-1].circumstances.machine
        parts += [
            f"One image, {where.cores} threads, {where.processor}; in brackets the fastest of "
            "PyTorch, torch.compile and what optimum exports from the same weights:\n",
            tables.overview(latency, 1),
        ]
        shown = [each for each in latency if each.model == SHOWN] or latency[-1:]
        parts += [
            f"![Latency of {shown[0].model}, float32 and int8, beside PyTorch and optimum]"
            f"(models/{shown[0].model}/{PLOT})\n",
        ]
    parts += [beside] if beside else []
    if commands:
        parts += ["Whole commands:\n", tables.export_over_size(commands)]
    return "\n".join(parts)


def _of_kind(records: dict[str, dict[str, Record]], kind: type[KindT]) -> list[KindT]:
    return [
        each for found in records.values() for each in found.values() if isinstance(each, kind)
    ]


def with_figures(page: str, text: str) -> str:
    """``page`` with ``text`` between its two markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n\n{text.strip()}\n\n{END}{after}"


def pages(root: Path) -> dict[Path, str]:
    """Every page and what it has to say."""
    order = {known.name: index for index, known in enumerate(VARIANTS)}
    folders = [path.parent for path in (root / "models").glob(f"*/{ABOUT}")]
    folders.sort(key=lambda folder: (order.get(folder.name, len(order)), folder.name))
    records = {folder.name: record.read(folder) for folder in folders}
    kept = record.read(root / "models" / headline.NAME).get(headline.NAME)
    beside = kept if isinstance(kept, HeadlineRecord) else None
    found = {
        folder / PAGE: model_page(
            (folder / ABOUT).read_text("utf-8"),
            records[folder.name],
            headline.of(beside, folder.name) if beside else "",
        )
        for folder in folders
    }
    if beside:
        page = root / "docs" / f"{headline.NAME}.md"
        found[page] = with_figures(page.read_text(encoding="utf-8"), headline.show(beside))
        found[page.with_suffix(".svg")] = headline.drawing(beside)
    found |= {
        folder / PLOT: tables.drawing(latency)
        for folder in folders
        if isinstance(latency := records[folder.name].get("latency"), LatencyRecord)
    }
    front = root / PAGE
    said = headline.front_page(beside) if beside else ""
    found[front] = with_figures(front.read_text(encoding="utf-8"), figures(records, said))
    return found


def outdated(root: Path) -> dict[Path, str]:
    """The pages that are not what the records make, and what they have to say."""
    return {
        path: text
        for path, text in pages(root).items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    }


def main() -> int:
    """Write the pages, or hold them against the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    stale = outdated(ROOT)
    for path, text in stale.items():
        if arguments.check:
            print(f"{path.relative_to(ROOT)} is out of date: run scripts/model-pages")
        else:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    return 1 if stale and arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())

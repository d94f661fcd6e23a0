"""The article's headline, measured here: published top-1 over images a second.

usage: python -m benchmarking.headline TASK ANSWER     (writes what is to be timed of one network)

Every network takes part in the same rounds of a cell, so that the ratios of networks hold on a
machine that slows down. EfficientNet is not of this package: it is transformers' classes with
seeded weights, exported by PyTorch's and OpenVINO's own converters.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from benchmarking import artifacts, latency, plot, record, tables
from benchmarking.artifacts import File
from benchmarking.processes import WorkerError, serve, worker
from benchmarking.values import Cell, HeadlineRecord, Row, ratio
from levit_export.core import machine
from levit_export.models.zoo import variant

if TYPE_CHECKING:
    from torch import nn

NAME = "headline"
EAGER = "eager.pt"
BATCHES = (1, 16)
SECONDS = 40.0
"""For each cell."""

FEWEST = 3
"""Rounds: one of all networks takes minutes at batch 16 on one thread."""

CALIBRATION_IMAGES = 8
"""Enough for files that are timed only."""

PROTOCOL = (16, 1)
"""Batch and threads of the article's figures on a processor."""

RUNTIMES = {"": "PyTorch", **{form: tables.RUNTIMES[form] for form in artifacts.FORMATS}}


FAMILIES = {
    "ours": "LeViT",
    "third": "EfficientNet",
    "other": "ResNet-50, DeiT-S, and graftings (stages + layers)",
}
"""Kinds of points in the plot."""

NOTE = (
    "Images a second of one over images a second of the other, in float32, with the 95 % "
    "bootstrap interval. In the tables, *article* are its images a second on an Intel Xeon 6138; "
    "top-1 is published, and that of float32: what int8 keeps of it was not measured.\n"
)


@dataclass(frozen=True)
class Network:
    """A network of the plot, where it is called ``short``.

    ``top1`` is published, in percent; ``speed`` are the article's images a second on one thread
    of an Intel Xeon 6138, 0 where it has none.
    """

    name: str
    title: str
    short: str
    kind: str
    top1: float
    side: int
    speed: float = 0.0


@dataclass(frozen=True)
class Scaling:
    """What makes an EfficientNet of transformers' configuration.

    ``padding`` are the blocks whose depthwise convolution is padded on all sides, as the
    checkpoints that transformers publishes have it.
    """

    width: float
    depth: float
    side: int
    hidden: int
    padding: tuple[int, ...] = ()


EFFICIENTNETS = {
    "efficientnet_b0": Scaling(1.0, 1.0, 224, 1280),
    "efficientnet_b1": Scaling(1.0, 1.1, 240, 1280, (16,)),
    "efficientnet_b2": Scaling(1.1, 1.2, 260, 1408, (5, 8, 16)),
    "efficientnet_b3": Scaling(1.2, 1.4, 300, 1536, (5, 18)),
    "efficientnet_b4": Scaling(1.4, 1.8, 380, 1792, (6,)),
}


def _own(name: str, short: str, kind: str, speed: float = 0.0) -> Network:
    known = variant(name)
    if known.top1 is None:
        raise ValueError(f"nobody published the accuracy of {name}")
    return Network(name, known.title, short, kind, known.top1, known.config.image_size[0], speed)


def _efficientnet(number: int, top1: float, speed: float) -> Network:
    name, short = f"efficientnet_b{number}", f"B{number}"
    side = EFFICIENTNETS[name].side
    return Network(name, f"EfficientNet {short}", short, "third", top1, side, speed)


NETWORKS = (
    _own("levit_128s", "128S", "ours", 131.1),
    _own("levit_128", "128", "ours", 94.0),
    _own("levit_192", "192", "ours", 65.0),
    _own("levit_256", "256", "ours", 42.5),
    _own("levit_384", "384", "ours", 23.1),
    _efficientnet(0, 77.1, 30.1),
    _efficientnet(1, 79.1, 20.0),
    _efficientnet(2, 80.1, 13.1),
    _efficientnet(3, 81.6, 5.9),
    _efficientnet(4, 82.9, 2.5),
    _own("resnet50", "ResNet-50", "other"),
    _own("resnet50_3_deit_3", "3+3", "other"),
    _own("resnet50_2_deit_6", "2+6", "other"),
    _own("resnet50_1_deit_9", "1+9", "other"),
    _own("deit_s", "DeiT-S", "other"),
)
"""Figures of EfficientNet and all speeds are those of the article's table 3 (arXiv 2104.01136v2);
the others' accuracy is that of ``zoo``, from tables 3 and 1."""

STATED = (("levit_192", "efficientnet_b2", 5), ("levit_256", "efficientnet_b3", 7))
"""Pairs and ratios of the article's section 5.3: as accurate, and so many times as fast."""


# --- measuring -------------------------------------------------------------------------------


def run(folder: Path, names: Sequence[str], seconds: float | None) -> Iterator[HeadlineRecord]:
    """Export what is to be timed, then measure cell by cell, each in a process of its own.

    ``names`` are of the networks to be measured; all of them where there are none. Raises
    ``WorkerError``, after the record of the other cells, where a cell could not be measured.
    """
    known = {each.name: each for each in NETWORKS}
    if unknown := set(names) - known.keys():
        raise WorkerError(f"the headline has no {', '.join(sorted(unknown))}; it has {[*known]}")
    networks = [known[name] for name in names or known]
    start = perf_counter()
    with ThreadPoolExecutor(machine.usable_cores()) as pool:
        made = list(pool.map(lambda each: _prepare(each, folder / each.name), networks))
    files = [file for found in made for file in found]
    _say(f"{len(files)} files of {len(networks)} networks in {perf_counter() - start:.0f} s")
    sides = {network.name: network.side for network in networks}
    cells, failed = [], list[str]()
    for batch in BATCHES:
        for threads in latency.all_threads():
            start = perf_counter()
            rows = [{**row, "side": sides[row["name"]]} for row in artifacts.at(files, batch)]
            task = {"batch": batch, "threads": threads, "rows": rows, "fewest": FEWEST}
            try:
                cells.append(latency.measure(NAME, {**task, "seconds": seconds or SECONDS}))
            except WorkerError as error:  # the other cells are kept
                failed.append(f"{error}: this cell could not be measured")
                _say(failed[-1])
            took = perf_counter() - start
            _say(f"batch {batch}, {threads} threads: {took:.0f} s")
    notes = (
        "all networks in the same rounds; weights are random (seed 0) and int8 is calibrated on "
        f"{CALIBRATION_IMAGES} synthetic images, which is right for timing and says nothing about "
        "accuracy",
        "EfficientNet: transformers' classes, exported by torch.onnx and openvino.convert_model; "
        "every other file is written by this package",
        "BatchNorm is folded on every side before anything is timed, as in the article's own test",
    )
    if cells:
        yield HeadlineRecord(record.circumstances({}, (*notes, *failed)), NAME, tuple(cells))
    if failed:
        raise WorkerError("; ".join(failed))


def _prepare(network: Network, folder: Path) -> list[File]:
    """What is to be timed of one network: PyTorch's module at any batch, and exported files."""
    folder.mkdir(parents=True)
    name = network.name
    try:
        reasons = worker("headline", {"network": name, "folder": str(folder)})
    except WorkerError as error:
        reasons = dict.fromkeys(RUNTIMES, str(error))
    files = [File(name, "", "fp32", 0, folder / EAGER, reasons.get("", ""))]
    if name in EFFICIENTNETS:
        files += [
            File(name, form, "fp32", batch, _theirs(folder, form, batch), reasons.get(form, ""))
            for form in artifacts.FORMATS
            for batch in BATCHES
        ]
        return files
    calibration = artifacts.calibrate(name, folder, CALIBRATION_IMAGES)
    for batch in BATCHES:
        asked = artifacts.Export(name, batch, artifacts.ALL)
        files += artifacts.export(folder / f"{batch}", asked, name, calibration)
    return files


def _theirs(folder: Path, form: str, batch: int) -> Path:
    return folder / f"{batch}{artifacts.SUFFIX[form]}"


def main(task: Mapping[str, Any]) -> dict[str, str]:
    """In a worker: PyTorch's module of one network, and what converters make of it."""
    import torch

    folder, reasons = Path(task["folder"]), dict[str, str]()
    if task["network"] in EFFICIENTNETS:
        module = efficientnet(EFFICIENTNETS[task["network"]])
        reasons = dict(_converted(module, EFFICIENTNETS[task["network"]].side, folder))
    else:
        from benchmarking.cell import fused

        module, _ = fused(task["network"])
    torch.save(module, folder / EAGER)
    return reasons


def efficientnet(scaling: Scaling) -> nn.Module:
    """An EfficientNet of transformers with seeded weights, simplified."""
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    from levit_export.models.architectures.random_weights import randomize_

    config = EfficientNetConfig(
        width_coefficient=scaling.width,
        depth_coefficient=scaling.depth,
        image_size=scaling.side,
        hidden_dim=scaling.hidden,
        depthwise_padding=list(scaling.padding),
        num_labels=1000,
        return_dict=False,
    )
    return simplified(randomize_(EfficientNetForImageClassification(config), 0).eval())


def simplified(network: nn.Module) -> nn.Module:
    """Fold each BatchNorm into the convolution before it, in place; their order is the code's.

    Global pooling is written there as a window as wide as there are channels, which OpenVINO's
    converter refuses; it becomes the mean over the map that it is.
    """
    from torch import nn
    from torch.nn.utils import fuse_conv_bn_eval

    network.set_submodule("efficientnet.pooler", nn.AdaptiveAvgPool2d(1))
    for parent in network.modules():
        for (before, conv), (after, norm) in pairwise(list(parent.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, before, fuse_conv_bn_eval(conv, norm))
                setattr(parent, after, nn.Identity())
    if any(isinstance(each, nn.BatchNorm2d) for each in network.modules()):
        raise ValueError("a BatchNorm has no convolution before it")
    return network


def _converted(module: nn.Module, side: int, folder: Path) -> Iterator[tuple[str, str]]:
    """Write the files of both converters; each format that failed, and why."""
    import torch

    convert: dict[str, Callable[[Any, Path], None]] = {
        "onnx": lambda image, path: _to_onnx(module, image, path),
        "openvino": lambda image, path: _to_openvino(module, image, path),
    }
    for form in artifacts.FORMATS:
        try:
            for batch in BATCHES:
                image = torch.zeros(batch, 3, side, side)
                convert[form](image, _theirs(folder, form, batch))
        except Exception as error:  # a converter may raise anything; its rows say so
            yield form, f"{type(error).__name__}: {str(error).splitlines()[0]}"


def _to_onnx(module: nn.Module, image: Any, path: Path) -> None:
    import torch

    torch.onnx.export(
        module,
        (image,),
        path,
        dynamo=True,
        external_data=False,
        input_names=["input"],
        output_names=["logits"],
        verbose=False,
    )


def _to_openvino(module: nn.Module, image: Any, path: Path) -> None:
    import openvino

    found = openvino.convert_model(module, example_input=image, input=[list(image.shape)])
    found.inputs[0].get_tensor().set_names({"input"})
    found.outputs[0].get_tensor().set_names({"logits"})
    openvino.save_model(found, path, compress_to_fp16=False)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- showing ---------------------------------------------------------------------------------


def show(found: HeadlineRecord) -> str:
    """Everything that the record says."""
    parts = [leads(found), _stated(found), NOTE]
    for cell in found.cells:
        parts += [f"Images a second, {tables.title(cell)}:\n", _speeds(cell)]
    return "\n".join([*parts, tables.circumstances(found.circumstances)])


def leads(found: HeadlineRecord) -> str:
    """The article's two ratios, and what is left of each in every runtime."""
    return " ".join(_lead(found, *pair) for pair in STATED) + "\n"


def front_page(found: HeadlineRecord) -> str:
    """What the front page says."""
    return f"{leads(found)}\n{_folded('docs/')}"


def of(found: HeadlineRecord, name: str) -> str:
    """What the page of the model ``name`` says: its speed, and the EfficientNet as accurate."""
    known = {network.name: network for network in NETWORKS}
    cell = _protocol(found)
    if cell is None or name not in known:
        return ""
    other = min(
        (known[each] for each in EFFICIENTNETS), key=lambda o: abs(o.top1 - known[name].top1)
    )
    said = ", ".join(
        f"{tables.interval(lead)} in {RUNTIMES[form]}"
        for form in RUNTIMES
        if (lead := times(cell, name, other.name, form))
    )
    if not said:
        return ""
    return (
        f"Images a second over those of {other.title}, which has {other.top1:.1f} % top-1 "
        f"(published) where this one has {known[name].top1:.1f} %; float32, {tables.title(cell)}: "
        f"{said}.\n\n{_folded('../../docs/')}"
    )


def _folded(docs: str) -> str:
    return (
        "<details><summary>Published accuracy over speed: LeViT, EfficientNet, ResNet-50, DeiT-S"
        "</summary>\n\n![Top-1 over images a second in three runtimes, each with its front]"
        f"({docs}{NAME}.svg)\n\n"
        f"Figures and how they were measured: [{NAME}.md]({docs}{NAME}.md).\n</details>\n"
    )


def times(cell: Cell, one: str, other: str, form: str) -> tuple[float, float, float] | None:
    """Images a second of ``one`` over those of ``other`` in float32, with the interval."""
    first, second = cell.row(one, form), cell.row(other, form)
    return ratio(second, first) if first and second else None


def drawing(found: HeadlineRecord) -> str:
    """Accuracy over speed as the article measures it, a panel for each runtime, in float32."""
    cell = _protocol(found) or found.cells[0]
    points = {
        runtime: [
            plot.Point(network.short, _speed(cell, row), network.top1, network.kind)
            for network in NETWORKS
            if (row := cell.row(network.name, form))
        ]
        for form, runtime in RUNTIMES.items()
    }
    where = found.circumstances.machine.processor
    return plot.panels(
        f"Published top-1 over speed measured here, float32, {tables.title(cell)}, {where}",
        ("images a second", "top-1 on ImageNet in percent"),
        FAMILIES,
        {runtime: spots for runtime, spots in points.items() if spots},
    )


def _protocol(found: HeadlineRecord) -> Cell | None:
    """What was measured as the article measures."""
    return next((c for c in found.cells if (c.batch, c.threads) == PROTOCOL), None)


def _lead(found: HeadlineRecord, one: str, other: str, stated: int) -> str:
    cell = _protocol(found)
    known = {
        runtime: lead
        for form, runtime in RUNTIMES.items()
        if cell and (lead := times(cell, one, other, form))
    }
    if not known:
        return ""
    words = ", ".join(f"{lead[0]:.1f} in {runtime}" for runtime, lead in known.items())
    # Disjoint intervals, so that no rounding of a figure decides it.
    eager = known.get(RUNTIMES[""])
    less = [name for name, lead in known.items() if eager and lead[2] < eager[1]]
    shrunk = f" {' and '.join(less)} shrink{'s' * (len(less) == 1)} the gap." if less else ""
    return (
        f"{_title(one)} classifies {stated} times as many images a second as {_title(other)} in "
        f"the article; here, on one thread at batch 16 in float32: {words}.{shrunk}"
    )


def _title(name: str) -> str:
    return next(network.title for network in NETWORKS if network.name == name)


def _stated(found: HeadlineRecord) -> str:
    lines = []
    for one, other, stated in STATED:
        for cell in found.cells:
            said = [times(cell, one, other, form) for form in RUNTIMES]
            lines.append(
                (
                    f"{_title(one)} over {_title(other)}, {tables.title(cell)}",
                    f"{stated}" if (cell.batch, cell.threads) == PROTOCOL else "",
                    *("not run" if each is None else tables.interval(each) for each in said),
                )
            )
    return tables.table(("times the speed", "article", *RUNTIMES.values()), lines)


def _speeds(cell: Cell) -> str:
    kinds = (("", "fp32"), *tables.KINDS)
    is_protocol = (cell.batch, cell.threads) == PROTOCOL
    header = ("", "top-1, %", *["article"] * is_protocol)
    lines = []
    for network in NETWORKS:
        rows = [cell.row(network.name, *kind) for kind in kinds]
        if not any(rows):
            continue
        published = [tables.number(network.speed) if network.speed else ""] * is_protocol
        figures = [tables.number(_speed(cell, row)) if row else "" for row in rows]
        lines.append((network.title, f"{network.top1:.1f}", *published, *figures))
    reasons = [
        f"{_title(row.name)} {row.format} {row.precision} was not run: {row.reason}\n"
        for row in cell.rows
        if row.reason
    ]
    columns = (f"{RUNTIMES[form]} {precision}" for form, precision in kinds)
    return "\n".join([tables.table((*header, *columns), lines), *reasons])


def _speed(cell: Cell, row: Row) -> float:
    """Images a second."""
    return 1e3 * cell.batch / row.median_ms


if __name__ == "__main__":
    serve(main)

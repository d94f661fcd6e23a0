"""Faults to inject: into a file on disk, over all blocks, or into a stage before the files.

A fault knows which block and which stage are to be named, and how to take itself back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from mutations import (
    EDITS,
    SPECIFICATION,
    Change,
    Weight,
    find_weights,
    one_percent,
    other_channels,
    permuted,
    transposed_grid,
    value,
    vouch,
    with_nan,
)
from torch import nn

from levit_export.checks.drift import chain, verdict
from levit_export.checks.drift.chain import DriftReference, Model
from levit_export.checks.drift.values import DriftFinding
from levit_export.checks.drift.verdict import block_of_weight
from levit_export.core.network import Network
from levit_export.core.values import Artifact, RunOptions
from levit_export.formats import target
from levit_export.formats.coreai.program import PROGRAM
from levit_export.models.architectures.levit import AttentionBias
from levit_export.models.passes import PASSES
from levit_export.models.passes.base import Outcome, Pass

if TYPE_CHECKING:
    from levit_export.models.checkpoints import Checkpoint

Array = np.ndarray
FLOAT16_MAX = 65504.0


@dataclass(frozen=True)
class Expected:
    """Who has to be named."""

    kind: str
    block: str
    stage: str
    causes: tuple[str, ...]

    def is_named_by(self, finding: DriftFinding) -> bool:
        """Whether block, stage and cause are right."""
        named = (finding.block, finding.stage)
        return named == (self.block, self.stage) and finding.cause in self.causes

    def __str__(self) -> str:
        return f"{self.kind} in {self.block} ({self.stage})"


@dataclass(frozen=True)
class Fault:
    """``run`` injects it, has the drift of it judged, and takes it back."""

    expected: Expected
    run: Callable[[], DriftFinding]


# --- files ----------------------------------------------------------------------------------


def graph_file(artifact: Artifact) -> Path:
    """The file that holds the graph of an artifact."""
    inside = {"coreml": SPECIFICATION, "coreai": PROGRAM}
    return artifact.path / inside.get(artifact.format, "")


@contextmanager
def restored(file: Path) -> Iterator[None]:
    """Put back what is in ``file`` now."""
    before = file.read_bytes()
    try:
        yield
    finally:
        file.write_bytes(before)
        vouch(file)


@dataclass(frozen=True)
class Patient:
    """A file that may be changed, and what it is held against."""

    artifact: Artifact
    against: DriftReference
    clean: DriftFinding
    weights: dict[str, Weight]

    @classmethod
    def of(cls, artifact: Artifact, against: DriftReference) -> Patient:
        """The stages before the file are known to be clean."""
        clean = DriftFinding("model", "none", sentence="clean")
        return cls(artifact, against, clean, find_weights(artifact, against.tensors))

    def judge(self, against: DriftReference | None = None) -> DriftFinding:
        """Whom the drift of the file as it is now names."""
        held = against or self.against
        run = RunOptions()
        return held.judge(self.artifact, run, held.artifact(self.artifact, run), self.clean)

    def expected(self, kind: str, block: str, *causes: str) -> Expected:
        """A fault of this file."""
        return Expected(kind, block, self.artifact.id, causes)

    def block_of(self, tensor: str) -> str:
        """The block of a tensor."""
        return block_of_weight(tensor, self.against.model.blocks)

    def by_block(self) -> dict[str, list[str]]:
        """The tensors of each block."""
        found: dict[str, list[str]] = {}
        for name in self.against.tensors:
            found.setdefault(self.block_of(name), []).append(name)
        return found

    def with_weights(self, kind: str, changes: dict[str, Change]) -> Fault:
        """A fault of some tensors of one block."""
        (block,) = {self.block_of(name) for name in changes}

        def run() -> DriftFinding:
            before = {name: self.weights[name].read() for name in changes}
            try:
                for name, change in changes.items():
                    self.weights[name].write(change(before[name].copy()))
                return self.judge()
            finally:
                for name, array in before.items():
                    self.weights[name].write(array)

        return Fault(self.expected(kind, block, "weights"), run)

    def with_graph(self, kind: str, block: str, edit: Callable[[Artifact], None]) -> Fault:
        """A fault of the graph."""

        def run() -> DriftFinding:
            file = graph_file(self.artifact)
            with restored(file):
                before = file.read_bytes()
                edit(self.artifact)
                assert file.read_bytes() != before
                return self.judge()

        return Fault(self.expected(kind, block, "conversion"), run)


def beyond_float16(array: Array) -> Array:
    """One number as a compressor to float16 leaves one that float16 cannot hold."""
    array.flat[array.size // 2] = np.inf
    return array


def heads_of(module: nn.Module, path: str) -> int:
    """The heads of the attention at ``path``."""
    part = module.get_submodule(path)
    return int(cast("Any", part).heads)


def one_head_zeroed(heads: int) -> Change:
    """A projection that takes nothing of one attention head."""

    def change(weight: Array) -> Array:
        by_head = weight.reshape(len(weight), heads, -1)
        by_head[:, heads // 2] = 0
        return by_head.reshape(weight.shape)

    return change


def rolled_rows(rows: Array) -> Change:
    """Some rows of a weight, or numbers of a bias, each in the place of the next."""

    def change(array: Array) -> Array:
        array[rows] = np.roll(array[rows], 1, axis=0)
        return array

    return change


def one_heads_rows(module: nn.Module, path: str) -> dict[str, Change]:
    """What makes the queries of one head, with its rows in another order."""
    attention = cast("Any", module.get_submodule(path))
    layer, of_queries = attention.query_rows()
    (name,) = (name for name, part in module.named_modules() if part is layer)
    rows = np.flatnonzero(of_queries.numpy()).reshape(attention.heads, -1)[-1]
    return {f"{name}.{kind}": rolled_rows(rows) for kind in ("weight", "bias")}


def weight_faults(patient: Patient) -> Iterator[Fault]:
    """Faults of numbers, over all blocks."""
    module = chain.rewritten(patient.against.model)
    for number, (block, names) in enumerate(patient.by_block().items()):
        yield patient.with_weights("scaled by 1 %", {names[number % len(names)]: one_percent})
        yield patient.with_weights("NaN", {names[0]: with_nan})
        if patient.artifact.precision == "fp32":
            yield patient.with_weights("beyond float16", {names[-1]: beyond_float16})
        for name in names:
            if name.endswith("baked_bias"):
                path = name.removesuffix(".baked_bias")
                heads = heads_of(module, path)
                yield patient.with_weights("transposed bias table", {name: transposed_grid})
                projection = f"{path}.proj.1.weight"
                yield patient.with_weights("permuted heads", {projection: permuted(heads)})
                zeroed_head: dict[str, Change] = {projection: one_head_zeroed(heads)}
                yield patient.with_weights("zeroed attention head", zeroed_head)
                rows = one_heads_rows(module, path)
                yield patient.with_weights("one head's rows permuted", rows)
        yield from wrong_epsilon(patient, block, names)
    yield patient.with_weights("swapped channels", {"patch_embed.0.weight": other_channels})
    zeroed: dict[str, Change] = {"head.weight": np.zeros_like, "head.bias": np.zeros_like}
    yield patient.with_weights("zeroed classifier", zeroed)


def wrong_epsilon(patient: Patient, block: str, names: list[str]) -> Iterator[Fault]:
    """The first BatchNorm of a block fused with an epsilon of 1e-3."""

    def run() -> DriftFinding:
        module = patient.against.model.checkpoint.build()
        spoil_epsilon(module, path_of(patient.against.model, block))
        made = chain.rewritten(replace(patient.against.model, module=module)).state_dict()
        before = {name: patient.weights[name].read() for name in names}
        try:
            for name in names:
                patient.weights[name].write(made[name].numpy())
            return patient.judge()
        finally:
            for name, array in before.items():
                patient.weights[name].write(array)

    yield Fault(patient.expected("BatchNorm eps 1e-3", block, "weights"), run)


def path_of(model: Model, block: str) -> str:
    """The module path of a block."""
    (path,) = (path for path, name in model.blocks.items() if name == block)
    return path


def spoil_epsilon(module: nn.Module, path: str) -> None:
    """Another epsilon in the first BatchNorm below ``path``."""
    parts = module.get_submodule(path).modules()
    norm = next(p for p in parts if isinstance(p, nn.BatchNorm1d | nn.BatchNorm2d))
    norm.eps = 1e-3


# --- float16 --------------------------------------------------------------------------------


def overflow_faults(patient: Patient) -> Iterator[Fault]:
    """In each block a layer whose results are beyond float16, in the checkpoint and the file."""
    model = patient.against.model
    layers = {
        block: next(n.removesuffix(".weight") for n in names if n.endswith(".weight"))
        for block, names in patient.by_block().items()
    }
    peaks = peaks_of(model, set(layers.values()))
    for block, layer in layers.items():
        yield Fault(
            patient.expected("float16 overflow", block, "precision"),
            lambda layer=layer: overflowing(patient, layer, 4 * FLOAT16_MAX / peaks[layer]),  # type: ignore[misc]
        )


def overflowing(patient: Patient, layer: str, factor: float) -> DriftFinding:
    """The verdict when a layer, in the checkpoint and in the file, gives ``factor`` times more."""
    model = patient.against.model
    scaled = replace(
        model.checkpoint,
        tensors={
            name: tensor * factor if _makes(name, layer) else tensor
            for name, tensor in model.checkpoint.tensors.items()
        },
    )
    against = DriftReference(replace(model, checkpoint=scaled))
    names = [f"{layer}.weight", f"{layer}.bias"]
    before = {name: patient.weights[name].read() for name in names}
    try:
        for name in names:
            patient.weights[name].write(against.tensors[name])
        return patient.judge(against)
    finally:
        for name, array in before.items():
            patient.weights[name].write(array)


def _makes(name: str, layer: str) -> bool:
    """Whether a tensor of the checkpoint is the last factor, or the shift, of a layer."""
    if layer == "head":
        return name.startswith(("head.l.", "head_dist.l."))
    return name in (f"{layer}.bn.weight", f"{layer}.bn.bias")


def peaks_of(model: Model, layers: set[str]) -> dict[str, float]:
    """The largest result of each layer of the prepared module on the sample with the smallest."""
    module = chain.rewritten(model)
    found: dict[str, float] = {}
    for path, part in module.named_modules():
        if path in layers:
            part.register_forward_hook(
                lambda _, __, y, path=path: found.update(
                    {path: float(y.flatten(1).abs().amax(dim=1).min())}
                )
            )
    with torch.no_grad():
        module(torch.from_numpy(model.samples.inputs))
    return found


# --- graphs ---------------------------------------------------------------------------------


def graph_faults(patient: Patient) -> Iterator[Fault]:
    """Faults of what is computed, over all blocks that have it."""
    edit = EDITS[patient.artifact.format]
    for block in patient.by_block():
        if block.endswith("attention"):
            yield patient.with_graph(
                "softmax axis",
                block,
                lambda a, b=block: edit.axis(a, value(b, "softmax")),  # type: ignore[misc]
            )
        if block.endswith(("attention", "mlp")):
            yield patient.with_graph(
                "SiLU for Hardswish",
                block,
                lambda a, b=block: edit.silu(a, value(b, "hardswish")),  # type: ignore[misc]
            )
    stems = [block for block in patient.by_block() if block.startswith("stem.")]
    for index, block in enumerate(stems[1:]):  # what it is given
        name = f"model_hardswish_{index}" if index else "model_hardswish"
        yield patient.with_graph("SiLU for Hardswish", block, lambda a, n=name: edit.silu(a, n))  # type: ignore[misc]
    yield patient.with_graph("missing output", "head", edit.renamed)


def file_faults(patient: Patient) -> Iterator[Fault]:
    """All faults of a file."""
    yield from weight_faults(patient)
    yield from graph_faults(patient)
    if computes_in_half(patient):
        yield from overflow_faults(patient)


def computes_in_half(patient: Patient) -> bool:
    """Whether the file's format computes its precision in float16."""
    artifact = patient.artifact
    return target(artifact.format).computes_in_half(artifact.precision)


# --- stages ---------------------------------------------------------------------------------


def stage_faults(model: Model, network: Network) -> Iterator[Fault]:
    """Faults of the module that is exported, of the passes, and of the captured network."""
    for path, block in model.blocks.items():
        if block == "head_dist":
            continue
        yield _of_module(model, block, "scaled by 1 %", _scaled(path))
        yield _of_pass(model, block, "fuse_batchnorm", "BatchNorm eps 1e-3", path)
        yield _of_network(model, network, block, path)
        if block.endswith("attention"):
            yield _of_module(model, block, "stale bias table", _stale(path))
            yield _of_pass(model, block, "bake_attention_bias", "transposed bias table", path)
            yield _of_pass(model, block, "fold_attention_scale", "scale folded twice", path)


def _chained(model: Model, network: Network | None) -> DriftFinding:
    """The verdict on the stages before the files; what comes behind a fault is not run."""
    against = DriftReference(model)
    stages = []
    for stage in against.stages({} if network is None else {"tokens": network}):
        stages.append(stage)
        if stage.first_fault:
            break
    return verdict.of_chain(stages)


def _of_module(model: Model, block: str, kind: str, spoil: Callable[[nn.Module], None]) -> Fault:
    def run() -> DriftFinding:
        module = model.checkpoint.build()
        with torch.no_grad():
            spoil(module)
        return _chained(replace(model, module=module), None)

    return Fault(Expected(kind, block, chain.CHECKPOINT, ("checkpoint",)), run)


def _scaled(path: str) -> Callable[[nn.Module], None]:
    def spoil(module: nn.Module) -> None:
        next(module.get_submodule(path).parameters()).mul_(1.01)

    return spoil


def attention_at(module: nn.Module, path: str) -> AttentionBias:
    """The attention in a block."""
    parts = module.get_submodule(path).modules()
    return next(part for part in parts if isinstance(part, AttentionBias))


def _stale(path: str) -> Callable[[nn.Module], None]:
    def spoil(module: nn.Module) -> None:
        biases = attention_at(module, path).attention_biases
        biases.copy_(biases.flip(1))

    return spoil


def _of_pass(model: Model, block: str, name: str, kind: str, path: str) -> Fault:
    def wrong(module: nn.Module) -> Outcome:
        (right,) = (each for each in PASSES if each.name == name)
        if name == "fuse_batchnorm":
            spoil_epsilon(module, path)
        outcome = right.apply(module)
        if name != "fuse_batchnorm":
            attention = attention_at(module, path)
            if name == "bake_attention_bias":
                table = cast("torch.Tensor", attention.baked_bias)
                table.copy_(torch.from_numpy(transposed_grid(table.numpy()).copy()))
            else:
                layer, rows = cast("Any", attention).query_rows()
                cast("nn.Linear", layer).weight.data[rows] *= 0.25
        return outcome

    def run() -> DriftFinding:
        passes = tuple(Pass(name, wrong) if each.name == name else each for each in PASSES)
        return _chained(replace(model, passes=passes), None)

    return Fault(Expected(kind, block, f"pass {name}", ("pass",)), run)


def _of_network(model: Model, network: Network, block: str, path: str) -> Fault:
    def run() -> DriftFinding:
        name = next(name for name in network.constants if name.startswith(f"{path}."))
        constants = {**network.constants, name: network.constants[name] * np.float32(1.01)}
        return _chained(model, replace(network, constants=constants))

    return Fault(Expected("scaled by 1 %", block, chain.PROGRAM, ("program",)), run)


def checkpoint_of(name: str) -> Checkpoint:
    """The bundled model, or a known one with seeded weights that exercise every branch."""
    from levit_export.models import checkpoints
    from levit_export.models.zoo import variant

    if name == "levit_digits":
        return checkpoints.bundled()
    return checkpoints.randomised(variant(name), 0)

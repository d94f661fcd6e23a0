"""From a checkpoint to the networks that targets write: one for each layout.

A layout is the form of a LeViT that an artifact is written in. Tokens are ``(B, N, C)`` with
linear layers, maps ``(B, C, H, W)`` with 1x1 convolutions; the weights are the same
(``passes.lay_out_maps``). ``--layout`` overrides what is taken here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
from torch import nn
from torch.export import ExportedProgram

from levit_export.core import constants
from levit_export.core.errors import UsageError
from levit_export.core.network import Network
from levit_export.core.precisions import FLOATS, HINTED
from levit_export.core.values import (
    Embedded,
    ExportOptions,
    Fingerprints,
    Layout,
    PassRecord,
    Prepared,
    Preprocessing,
    Signature,
    TensorSpec,
)
from levit_export.models import graph_ends
from levit_export.models.architectures.blocks import block_names
from levit_export.models.architectures.levit import AttentionBias
from levit_export.models.capture import exported, read
from levit_export.models.checkpoints import Checkpoint
from levit_export.models.interpreter import evaluate
from levit_export.models.passes import LAY_OUT_MAPS, PASSES, apply_passes
from levit_export.models.zoo import AUTO_LAYOUT, Config, LevitConfig

NOTHING = Embedded()

IN_MAPS: Collection[tuple[str, str]] = (
    ("onnx", "fp32"),
    ("onnx", "int8"),
    *(("coreml", precision) for precision in ("fp16", "fp32", "int8", "w8", "w6", "w4")),
    *(("coreai", precision) for precision in ("fp16", "fp32", "w8", "w6", "w4")),
)
"""Formats and precisions that take maps; the rest takes tokens.

ONNX Runtime and OpenVINO were measured (docs/performance.md). Core ML takes maps: nothing is
transposed there, so that a program has a fifth fewer ops (LeViT-128S 205 against 255, the other
sizes 256 against 318), and float16 costs as much in both, 0.0010 to 0.0017 of the largest logit.
Apple's guidance for the Neural Engine is four axes with channels second
(apple/ml-ane-transformers), and linear layers with Hardswish were reported to be wrong there on
two or three axes and right on four (https://github.com/apple/coreai-torch/issues/51).
Core AI takes maps as its runtime was more exact in them in float16 (docs/targets.md).
"""


@dataclass(frozen=True)
class Rewritten:
    """A fresh build of a checkpoint with the passes applied and proven, and their ledger."""

    checkpoint: Checkpoint
    module: nn.Module
    passes: tuple[PassRecord, ...]
    layout: Layout = "tokens"


def layout_of(
    asked: str, kind: str, precision: str, config: Config, skip: Collection[str]
) -> Layout:
    """The layout of an artifact of format ``kind``.

    Networks other than LeViT have one layout; so has one whose BatchNorms stay, as they are over
    tokens. Raises ``UsageError`` when maps are asked for there.
    """
    why_not = ""
    if not isinstance(config, LevitConfig):
        why_not = "this network has one layout"
    elif "fuse_batchnorm" in skip:
        why_not = "without fuse_batchnorm its BatchNorms are over tokens"
    if asked == "maps" and why_not:
        raise UsageError(
            f"--layout maps is not possible: {why_not}", remedy="Leave it out, or take tokens."
        )
    if asked != AUTO_LAYOUT:
        return cast("Layout", asked)
    return "maps" if not why_not and (kind, precision) in IN_MAPS else "tokens"


def signature_of(config: Config, batch: int | None) -> Signature:
    """``input (batch, 3, *image_size)`` to ``logits (batch, classes)`` and what else there is."""
    return Signature(
        inputs=(TensorSpec("input", (batch, 3, *config.image_size)),),
        outputs=tuple(TensorSpec(name, (batch, width)) for name, width in config.outputs),
    )


def prepare(
    checkpoint: Checkpoint,
    *,
    batch: int | None = 1,
    skip: Collection[str] = (),
    embedded: Embedded = NOTHING,
    layout: Layout = "tokens",
) -> Prepared:
    """Build the module, and apply and prove the passes; ``torch.export`` captures it when asked.

    All shapes are fixed but for the batch, which is left open when it is None. ``embedded`` is
    what the graph does beside the network.
    """
    return capture(laid_out(rewrite(checkpoint, skip=skip), layout), batch, embedded)


@dataclass
class Forms:
    """A checkpoint prepared in each layout that artifacts need, once when it is first needed."""

    checkpoint: Checkpoint
    skip: Collection[str] = ()
    batch: int | None = 1
    embedded: Embedded = NOTHING
    _plain: Rewritten | None = field(default=None, init=False)
    _made: dict[Layout, Prepared] = field(default_factory=dict, init=False)

    def of(self, kind: str, options: ExportOptions) -> Prepared:
        """The form that an artifact of format ``kind`` is written from."""
        config, skip = self.checkpoint.config, self.skip
        chosen = layout_of(options.layout, kind, options.precision, config, skip)
        if chosen not in self._made:
            form = laid_out(self.prove(), chosen)
            other = next(iter(self._made.values()), None)
            self._made[chosen] = capture(form, self.batch, self.embedded, like=other)
        return self._made[chosen]

    def prove(self) -> Rewritten:
        """Apply and prove the passes that all forms share."""
        self._plain = self._plain or rewrite(self.checkpoint, skip=self.skip)
        return self._plain


def rewrite(checkpoint: Checkpoint, *, skip: Collection[str] = ()) -> Rewritten:
    """Apply the passes to a fresh build, each proven."""
    shape = _input_shape(checkpoint)
    module, records = apply_passes(checkpoint.build(), PASSES, input_shape=shape, skip=skip)
    return Rewritten(checkpoint, module, records)


def laid_out(rewritten: Rewritten, layout: Layout) -> Rewritten:
    """The same in another layout, proven as well. Its weights are the same, bit for bit."""
    if layout == rewritten.layout:
        return rewritten
    shape = _input_shape(rewritten.checkpoint)
    module, records = apply_passes(rewritten.module, (LAY_OUT_MAPS,), input_shape=shape)
    return replace(rewritten, module=module, passes=(*rewritten.passes, *records), layout=layout)


def _input_shape(checkpoint: Checkpoint) -> tuple[int, int, int]:
    return (3, *checkpoint.config.image_size)


class Capture:
    """What ``torch.export`` makes of a module, once, when it is first asked for."""

    def __init__(
        self, module: nn.Module, signature: Signature, names: Mapping[str, str], name: str
    ) -> None:
        self._module = module
        self._signature = signature
        self._blocks = names
        self._name = name
        self._program: ExportedProgram | None = None
        self._network: Network | None = None

    def program(self) -> ExportedProgram:
        """The program. Raises ``ExportFailedError`` where there can be none."""
        if self._program is None:
            self._program = exported(self._module, self._signature, self._name)
        return self._program

    def network(self) -> Network:
        """The network. Raises ``ExportFailedError`` where there can be none."""
        if self._network is None:
            self._network = read(self.program(), self._signature, self._blocks, self._name)
        return self._network


def capture(
    rewritten: Rewritten,
    batch: int | None,
    embedded: Embedded = NOTHING,
    *,
    like: Prepared | None = None,
) -> Prepared:
    """A model that is ready for every target, the batch fixed or (None) open.

    ``like`` is one in another layout: it has the same weights, and digests see no layout.
    """
    checkpoint, config = rewritten.checkpoint, rewritten.checkpoint.config
    # Before ``torch.export`` touches the module.
    recipe = checkpoint.preprocessing if embedded.preprocessing else None
    tensors = weights_of(rewritten.module, recipe)
    module = graph_ends.around(
        rewritten.module, checkpoint.preprocessing, embedded, checkpoint.task
    )
    signature = graph_ends.signature(signature_of(config, batch), embedded)
    names = graph_ends.blocks(block_names(config), embedded)
    captured = Capture(module, signature, names, checkpoint.name)
    if not tensors:  # passes were left out
        tensors = constants_of(captured.network())
    return Prepared(
        info=checkpoint.describe() if like is None else like.info,
        signature=signature,
        passes=rewritten.passes,
        fingerprints=fingerprint(tensors) if like is None else like.fingerprints,
        blocks=names,
        weights=tensors,
        capture=captured,
        embedded=embedded,
        layout=rewritten.layout,
    )


def weights_of(module: nn.Module, recipe: Preprocessing | None = None) -> dict[str, np.ndarray]:
    """The rewritten weights by name, and the constants of ``recipe`` where one is embedded.

    Empty when a pass was left out after which the module's tensors are not what a file holds:
    :func:`constants_of` says that then.
    """
    for part in module.modules():
        is_norm = isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)
        if is_norm or (isinstance(part, AttentionBias) and part.baked_bias is None):
            return {}
    tensors = {
        name: tensor.numpy()
        for name, tensor in module.state_dict().items()
        if tensor.is_floating_point()
    }
    return tensors if recipe is None else {**graph_ends.constants(recipe), **tensors}


def constants_of(network: Network) -> dict[str, np.ndarray]:
    """What a file of ``network`` joins with its input: the constants that are numbers.

    What is made of constants alone, such as a table that is gathered, counts as it is made.
    """
    fixed, made = [], set(network.constants)
    for op in network.ops:
        if made.issuperset(op.inputs):
            fixed.append(op)
            made |= {value.name for value in op.outputs}
    joined = {name for op in network.ops if op not in fixed for name in op.inputs} & made
    taken = {name for op in fixed for name in op.inputs}
    constants = {name: array for name, array in network.constants.items() if name in taken}
    computed = tuple(sorted(joined - set(network.constants)))
    found = evaluate(Network((), computed, tuple(fixed), constants), {})
    every = {**network.constants, **found}
    return {n: a for n, a in every.items() if n in joined and np.issubdtype(a.dtype, np.floating)}


def fingerprint(tensors: Mapping[str, np.ndarray]) -> Fingerprints:
    """The digests of rewritten weights, by precision."""
    if not tensors:
        return {}
    found = {each: constants.fingerprints(tensors, each) for each in FLOATS if each not in HINTED}
    return found | dict.fromkeys(HINTED, found["fp32"])

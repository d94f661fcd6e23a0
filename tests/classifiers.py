"""Image classifiers that are not LeViTs, sound and with faults, as vendors' converters write them.

They are transformers' ResNet and ViT, small, with randomised weights. A fault is made in the
module, so that every converter writes it its own way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AttentionInterface,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from levit_export.core import packages
from levit_export.core.quiet import quiet
from levit_export.testing import randomize_

SIDE = 32
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "coreml": ".mlpackage"}
HEADS, WIDTH, PATCH = 4, 32, 8


class Classifier(nn.Module):
    """Logits, and what they are made of."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Two outputs of one input."""
        found = self.model(pixel_values, output_hidden_states=True)
        return found.logits, found.hidden_states[-1]


class LogitsOnly(nn.Module):
    """A classifier that lost its second output."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The first output."""
        logits: torch.Tensor = self.classifier(pixel_values)[0]
        return logits


def resnet() -> nn.Module:
    """Convolutions with BatchNorm, and additions."""
    config = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        num_labels=10,
    )
    model = ResNetForImageClassification(config)
    randomize_(model, 0)
    return Classifier(model).eval()


def vit(attention: str = "eager") -> nn.Module:
    """Attention of four heads, LayerNorm and GELU."""
    config = ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=64,
        image_size=SIDE,
        patch_size=PATCH,
        num_labels=10,
        attn_implementation=attention,
    )
    model = ViTForImageClassification(config)
    randomize_(model, 0)
    return Classifier(model).eval()


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {"resnet": resnet, "vit": vit}


# --- faults -----------------------------------------------------------------------------------


def zero_the_head(network: nn.Module) -> nn.Module:
    """Every image gets the same logits."""
    _linear(network, -1).weight.data.zero_()
    return network


def permute_heads(network: nn.Module) -> nn.Module:
    """The queries of the second layer's heads change places."""
    layer = _linear(network, 6)
    for tensor in (layer.weight, layer.bias):
        heads = tensor.data.reshape(HEADS, WIDTH // HEADS, -1)
        tensor.data = heads.roll(1, 0).reshape(tensor.shape)
    return network


def transpose_positions(network: nn.Module) -> nn.Module:
    """Rows and columns of the table that tells the patches apart change places."""
    table = network.get_parameter("model.vit.embeddings.position_embeddings").data
    patches = table[:, 1:].reshape(SIDE // PATCH, SIDE // PATCH, WIDTH)
    table[:, 1:] = patches.transpose(0, 1).reshape(1, -1, WIDTH)
    return network


def change_eps(network: nn.Module) -> nn.Module:
    """A normalisation in the middle takes 1e-2 for what it has."""
    layers = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d | nn.LayerNorm)]
    layers[2].eps = 1e-2
    return network


def swap_channels(network: nn.Module) -> nn.Module:
    """The first convolution sees blue for red."""
    first = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    first.weight.data = first.weight.data.flip(1)
    return network


def _softmax_over_queries(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _: object = None,
    *,
    scaling: float,
    **__: object,
) -> tuple[torch.Tensor, None]:
    del module
    shares = torch.softmax(query @ key.transpose(-1, -2) * scaling, dim=-2)
    return (shares @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register("softmax_over_queries", _softmax_over_queries)


def change_softmax(network: nn.Module) -> nn.Module:
    """Attention is normalised over the queries, not over the keys."""
    changed = vit("softmax_over_queries")
    changed.load_state_dict(network.state_dict())
    return changed


def lose_an_output(network: nn.Module) -> nn.Module:
    """Only the logits are left."""
    return LogitsOnly(network)


def put_nan(network: nn.Module) -> nn.Module:
    """One bias of the head is not a number."""
    _linear(network, -1).bias.data[3] = torch.nan
    return network


def scale_a_tensor(network: nn.Module) -> nn.Module:
    """One weight tensor in the middle is 1 % larger."""
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    layers[4].weight.data *= 1.01
    return network


def _linear(network: nn.Module, at: int) -> nn.Linear:
    return [m for m in network.modules() if isinstance(m, nn.Linear)][at]


FAULTS: Mapping[str, Callable[[nn.Module], nn.Module]] = {
    "zeroed head": zero_the_head,
    "permuted heads": permute_heads,
    "transposed table": transpose_positions,
    "wrong eps": change_eps,
    "swapped channels": swap_channels,
    "softmax over queries": change_softmax,
    "missing output": lose_an_output,
    "NaN": put_nan,
    "one tensor 1 % larger": scale_a_tensor,
}


# --- files ------------------------------------------------------------------------------------


def faulty(network: nn.Module, fault: str) -> nn.Module:
    """A copy with a fault of :data:`FAULTS`."""
    return FAULTS[fault](copy.deepcopy(network)).eval()


def captured(network: nn.Module) -> torch.export.ExportedProgram:
    """One image at a time."""
    image = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return torch.export.export(network, (image,))


def _where(condition: torch.Tensor, taken: torch.Tensor, other: float) -> torch.Tensor:
    return torch.where(condition, taken, torch.full_like(taken, other))


FORMS = {torch.ops.aten.where.ScalarOther: _where}
"""Operators in a form that coremltools 9.0 reads. transformers 5 masks the attention of a ViT."""


def write(
    program: torch.export.ExportedProgram, kind: str, path: Path, *, half: bool = False
) -> Path:
    """``program`` by the vendor's own converter; the files are ``path`` with their suffixes."""
    place = path.with_suffix(SUFFIXES[kind])
    with quiet("coremltools", "torch", "openvino", "onnxscript"):
        if kind == "onnx":
            made = torch.onnx.export(program, dynamo=True, verbose=False)
            assert made is not None
            made.save(place)
        elif kind == "openvino":
            openvino = packages.openvino()
            openvino.save_model(openvino.convert_model(program), place, compress_to_fp16=half)
        else:
            ct = packages.coremltools()
            precision = ct.precision.FLOAT16 if half else ct.precision.FLOAT32
            made = ct.convert(
                program.run_decompositions(FORMS),
                compute_precision=precision,
                minimum_deployment_target=ct.target.iOS16,
            )
            made.save(str(place))
    return place

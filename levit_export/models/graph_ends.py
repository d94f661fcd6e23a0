"""What a graph can do beside the network: normalise raw pixels, and end in its activation.

The normalisation is operators of its own before the first convolution, never folded into its
weights and bias: that convolution pads with zeros *after* normalisation, which stand for the mean
colour, and a folded one would pad with black.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from levit_export.core.errors import UsageError
from levit_export.core.values import (
    PROBABILITIES,
    Embedded,
    Preprocessing,
    Signature,
    Task,
    TensorSpec,
)

IMAGE = "image"
CLASSIFIER = "--classifier"
NETWORK = "network"
"""The path of the network's module in the one around it."""


def constants(recipe: Preprocessing) -> dict[str, np.ndarray]:
    """Shift and scale ``(3,)`` float32 with ``(p / 255 - mean) / std = shift - p * scale``.

    ``shift = -mean / std`` and ``scale = -1 / (255 std)``, computed in float64 and rounded once.
    It is this difference because coremltools makes a BatchNorm of a sum, which divides by
    ``sqrt(1 + 1e-5)``, and OpenVINO stores the negative of a constant that is subtracted.
    """
    mean, std = np.array(recipe.mean), np.array(recipe.std)
    return {
        "preprocessing.scale": (-1 / (255 * std)).astype(np.float32),
        "preprocessing.shift": (-mean / std).astype(np.float32),
    }


class Around(nn.Module):
    """A network with what is embedded around it.

    With preprocessing it takes uint8 ``(B, H, W, 3)``, else what the network takes. With the
    activation of ``task`` its first output are probabilities; that of a distillation head stays
    as it is.
    """

    def __init__(
        self, network: nn.Module, recipe: Preprocessing, embedded: Embedded, task: Task
    ) -> None:
        super().__init__()
        self.task = task
        self.network = network
        self.embedded = embedded
        self.preprocessing = nn.Module()  # so that constants have their names here as well
        for name, array in constants(recipe).items():
            tensor = torch.from_numpy(array).reshape(1, 3, 1, 1)
            self.preprocessing.register_buffer(name.rpartition(".")[2], tensor)

    def forward(self, image: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """``image`` to the network's outputs."""
        if self.embedded.preprocessing:
            shift, scale = map(self.preprocessing.get_buffer, ("shift", "scale"))
            image = shift - image.permute(0, 3, 1, 2).to(torch.float32) * scale
        found = self.network(image)
        if not self.embedded.softmax:
            return found  # type: ignore[no-any-return]
        if isinstance(found, tuple):
            return (self._probabilities(found[0]), *found[1:])
        return self._probabilities(found)

    def _probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.sigmoid() if self.task == "multi-label" else logits.softmax(dim=-1)


def around(
    network: nn.Module,
    recipe: Preprocessing,
    embedded: Embedded,
    task: Task = "single-label",
) -> nn.Module:
    """``network`` with what is embedded; itself where that is nothing."""
    return network if embedded == Embedded() else Around(network, recipe, embedded, task)


def refuse_task(task: Task, outputs: int, option: str) -> None:
    """Raise where ``option``, which gives probabilities, has no meaning for a model's outputs."""
    if task == "unsaid":
        raise UsageError(
            f"{option} makes probabilities, and nothing says whether the model's one output is a "
            "class or a number",
            remedy=f"Say it with --task multi-label (a sigmoid) or regression, or leave out "
            f"{option}.",
        )
    if task == "regression":
        raise UsageError(
            f"{option} makes probabilities, and the model's outputs are numbers (regression)",
            remedy=f"Leave out {option}.",
        )
    if task == "single-label" and outputs == 1:
        raise UsageError(
            f"{option} makes probabilities, and the softmax of a single class is always 1",
            remedy=f"Leave out {option}, or say with --task multi-label that the output is the "
            "logit of a yes or no.",
        )
    if task == "multi-label" and option == CLASSIFIER:
        raise UsageError(
            f"{option} makes a Core ML model that names one class, and this model answers for "
            "each label by itself",
            remedy="Give --softmax in its place: it adds the sigmoid that the task asks for.",
        )


def blocks(names: Mapping[str, str], embedded: Embedded) -> dict[str, str]:
    """The names of blocks by the paths that their modules have in :func:`around`."""
    if embedded == Embedded():
        return dict(names)
    return {f"{NETWORK}.{path}": name for path, name in names.items()}


def signature(network: Signature, embedded: Embedded) -> Signature:
    """What :func:`around` takes and gives for a network of this signature."""
    inputs, outputs = network.inputs, network.outputs
    if embedded.preprocessing:
        batch, channels, height, width = inputs[0].shape
        inputs = (TensorSpec(IMAGE, (batch, height, width, channels), "uint8"),)
    if embedded.softmax:
        outputs = (TensorSpec(PROBABILITIES, outputs[0].shape), *outputs[1:])
    return Signature(inputs, outputs)

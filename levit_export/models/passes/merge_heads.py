"""Make one linear layer of the two classifier heads, whose mean is the prediction.

*Given* ``((W1 x + c1) + (W2 x + c2)) / 2``, *result* ``((W1 + W2) / 2) x + (c1 + c2) / 2``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from levit_export.core.errors import PassError
from levit_export.models.architectures.levit import Levit
from levit_export.models.passes.base import Matched, NotApplicable, Outcome, Pass, Probe, example


@torch.no_grad()
def apply(module: nn.Module) -> Outcome:
    """Merge ``head_dist`` into ``head`` in place."""
    if not isinstance(module, Levit) or not hasattr(module, "head_dist"):
        return NotApplicable("the model has one head")
    first, second = module.head, module.head_dist
    if not isinstance(first, nn.Linear) or not isinstance(second, nn.Linear):
        raise PassError(
            f"the heads are {type(first).__name__}, not Linear: their BatchNorm is not folded yet",
            remedy="Keep fuse_batchnorm, or add --skip-pass merge_heads.",
        )
    removed = second.weight.numel() + second.bias.numel()
    first.weight.copy_((first.weight + second.weight) / 2)
    first.bias.copy_((first.bias + second.bias) / 2)
    del module.head_dist
    return Matched(1, bytes_added=-4 * removed)


def probes(module: nn.Module) -> Mapping[str, Probe]:
    """The mean of the heads."""
    if not isinstance(module, Levit) or not hasattr(module, "head_dist"):
        return {}
    x = example(module.head, "head")

    def mean(network: nn.Module) -> torch.Tensor:
        names = [name for name in ("head", "head_dist") if hasattr(network, name)]
        return torch.stack([getattr(network, name)(x) for name in names]).mean(dim=0)

    return {"head": mean}


MERGE_HEADS = Pass("merge_heads", apply, probes)

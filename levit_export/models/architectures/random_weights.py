"""Seeded weights that exercise every branch of a network, for tests and dry runs."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from levit_export.models.architectures.layers import Residual, last_layer

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@torch.no_grad()
def randomize_(module: ModuleT, seed: int) -> ModuleT:
    """Fill every parameter and BatchNorm statistic of ``module`` in place, reproducibly.

    A freshly built LeViT is useless for checking anything: its residual branches start at exactly
    zero and its logits barely vary. Here matrices keep the variance of their input
    (``std = fan_in ** -0.5``), normalisation scales lie in [0.5, 1.5], running variances in
    [0.5, 2], and shifts, means and attention biases differ from zero. Branches of networks that do
    not normalise them are made smaller (``residual_gain``): rounding would be enlarged until
    a comparison of float32 answers said nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            if norm.running_mean is not None:
                norm.running_mean.normal_(0.0, 0.2, generator=generator)
            if norm.running_var is not None:
                norm.running_var.uniform_(0.5, 2.0, generator=generator)
    scales = {
        id(norm.weight)
        for norm in module.modules()
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm)
    }
    for name, parameter in module.named_parameters():
        if id(parameter) in scales:
            parameter.uniform_(0.5, 1.5, generator=generator)
        elif name.endswith("attention_biases"):
            # Standard deviation 1 where it is added to the scores, whatever it is divided by.
            owner = module.get_submodule(name.rpartition(".")[0])
            divisor = float(getattr(owner, "bias_divisor", 1.0))
            parameter.normal_(0.0, divisor, generator=generator)
        elif parameter.dim() < 2:
            parameter.normal_(0.0, 0.1, generator=generator)
        else:
            fan_in = parameter[0].numel()
            parameter.normal_(0.0, fan_in**-0.5, generator=generator)
    gain = float(getattr(module, "residual_gain", 1.0))
    for branch in (part for part in module.modules() if isinstance(part, Residual)):
        last_layer(branch).weight.mul_(gain)
    return module

"""SGD as recipes ask for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.compute.eager import EagerSGD
from pipeline.params.recipe import Recipe


def sgd(parameters: list[nn.Parameter], recipe: Recipe, *, fused: bool = False) -> torch.optim.SGD:
    """Return the optimizer of a recipe.

    Args:
        parameters: what it updates.
        recipe: gives its settings.
        fused: update all of them by one kernel, at a learning rate that is a tensor on their device.
    """
    fused = fused and bool(parameters)
    optimizer = EagerSGD(
        parameters,
        lr=torch.tensor(recipe.learning_rate, device=parameters[0].device) if fused else recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        fused=fused or None,
    )

    if fused and recipe.momentum:
        for parameter in parameters:
            # Momentum of 0 is what torch starts from, and one kernel has it of all parameters or of none.
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def set_rate(optimizer: torch.optim.SGD, rate: float) -> None:
    """Set the learning rate; one that is a tensor keeps its address."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate

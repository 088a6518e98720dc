"""SGD and AdamW as recipes ask for them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.compute.eager import EagerAdamW, EagerSGD
from pipeline.params.recipe import Recipe


def recipe_optimizer(
    parameters: Sequence[nn.Parameter],
    recipe: Recipe,
    *,
    fused: bool = False,
    undecayed: Collection[int] = (),
) -> Optimizer:
    """Return the optimizer of a recipe.

    Args:
        parameters: what it updates.
        recipe: gives its settings.
        fused: update all of them by one kernel, at a learning rate that is a tensor on their device.
        undecayed: ids of parameters that have no weight decay.
    """
    fused = fused and bool(parameters)
    rate = torch.tensor(recipe.learning_rate, device=parameters[0].device) if fused else recipe.learning_rate
    groups = _groups(parameters, undecayed)

    optimizer: Optimizer
    if recipe.optimizer == "adamw":
        optimizer = EagerAdamW(
            groups,
            lr=rate,
            betas=recipe.betas,
            eps=recipe.eps,
            weight_decay=recipe.weight_decay,
            fused=fused or None,
            # Without it torch refuses to be captured; elsewhere it has no meaning.
            capturable=fused and parameters[0].is_cuda,
        )
        for parameter in parameters:
            optimizer.state[parameter] = _moments(parameter, fused)
        return optimizer

    optimizer = EagerSGD(
        groups,
        lr=rate,
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


def undecayed(modules: Iterable[nn.Module], kinds: Collection[str]) -> set[int]:
    """Return the ids of the parameters that a recipe leaves without weight decay.

    Args:
        modules: whose parameters.
        kinds: those of `Recipe.undecayed`.
    """
    found = set()
    for module in modules:
        for layer in module.modules():
            # torch, torchvision and timm name them alike, and share no base class.
            norm = "norm" in type(layer).__name__.lower() and "norm" in kinds
            for name, parameter in layer.named_parameters(recurse=False):
                if norm or (name == "bias" and "bias" in kinds):
                    found.add(id(parameter))
    return found


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate; one that is a tensor keeps its address."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def _groups(parameters: Sequence[nn.Parameter], undecayed: Collection[int]) -> list[dict[str, object]]:
    """Return the groups of an optimizer: one where all have the same weight decay."""
    decayed = [x for x in parameters if id(x) not in undecayed]
    free = [x for x in parameters if id(x) in undecayed]
    groups: list[dict[str, object]] = []
    if decayed or not free:
        groups.append({"params": decayed})
    if free:
        groups.append({"params": free, "weight_decay": 0.0})
    return groups


def _moments(parameter: nn.Parameter, fused: bool) -> dict[str, Tensor]:
    """Return what AdamW starts from; made beforehand, a captured step and a checkpoint find it at one address."""
    return {
        # torch keeps the count on the CPU unless one kernel reads it.
        "step": torch.zeros((), device=parameter.device if fused else "cpu"),
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }

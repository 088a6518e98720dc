"""How much work a network's forward pass is: it decides about threads, and how many students a GPU trains at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def macs(network: nn.Module, image: Tensor) -> int:
    """Return the multiply-accumulates of a network's convolutions and linear layers.

    torch's own counter is not used: its import takes longer than a small network's epoch.

    Args:
        network: called with `image`; it is left as it is.
        image: (1, C, H, W).
    """
    total = 0

    def count(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal total
        weight = module.weight
        assert isinstance(weight, Tensor)
        total += weight.numel() * out[0].numel() // out.shape[1]  # every weight, at every pixel

    _run(network, image, lambda module: isinstance(module, nn.Conv2d | nn.Linear), count)
    return total


def activation_bytes(network: nn.Module, image: Tensor) -> int:
    """Return the bytes that the layers of a network give out; its arguments are those of `macs`."""
    total = 0

    def count(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal total
        total += out.nbytes

    _run(network, image, lambda module: not list(module.children()), count)
    return total


def _run(
    network: nn.Module,
    image: Tensor,
    counted: Callable[[nn.Module], bool],
    count: Callable[[nn.Module, tuple[Tensor, ...], Tensor], None],
) -> None:
    """Run a network once, with a hook on those of its modules that are counted."""
    hooks = [module.register_forward_hook(count) for module in network.modules() if counted(module)]
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            network(image)
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()

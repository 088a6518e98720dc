"""How many threads a training computes with on a CPU.

A network whose step is a few milliseconds of one core gains nothing by a second thread. Beside busy neighbors it loses
much: in each of a step's hundreds of parallel loops one thread waits until the scheduler lets the other run.

The number is a function of the networks and the batch alone: with another one sums run in another order, and a
training that is resumed must end in the same bits. `stages/command.py` says how long threads spin while they wait.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

SMALL = 200_000_000  # multiply-accumulates of a step's forward pass
CHOSEN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # the user's own choice


@contextmanager
def suited(networks: Iterable[nn.Module], image: Callable[[], Tensor], batch_size: int) -> Iterator[None]:
    """Compute with one thread inside the block where the networks are small; leave the number as it is otherwise.

    Args:
        networks: that run in a step, each on the images.
        image: gives one normalized image (1, C, H, W); it is not called where the networks alone decide.
        batch_size: images of a step.
    """
    before = torch.get_num_threads()
    single = _small(list(networks), image, batch_size)
    if single:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if single:
            torch.set_num_threads(before)


def _small(networks: list[nn.Module], image: Callable[[], Tensor], batch_size: int) -> bool:
    if not networks or any(os.environ.get(name) for name in CHOSEN):
        return False
    if any(getattr(network, "compiled", False) for network in networks):
        return False  # what is compiled is trained for long
    if any(x.device.type != "cpu" for network in networks for x in network.parameters()):
        return False

    plain = image()
    return batch_size * sum(macs(network, plain) for network in networks) < SMALL


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

    hooks = [
        module.register_forward_hook(count)
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]

    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            network(image)
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    return total

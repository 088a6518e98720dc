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

from pipeline.compute.work import macs

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

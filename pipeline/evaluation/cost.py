"""What a network costs: parameters, multiply-accumulates, time."""

from __future__ import annotations

import copy
import statistics
import time

import torch
from torch import nn
from torch.utils import flop_counter

from pipeline.compute.eager import keep_out
from pipeline.params.size import Size, sides

keep_out(flop_counter._FlopCounterMode)


def num_params(network: nn.Module) -> int:
    """Return the number of parameters, trained or frozen; BN's statistics are buffers and do not count."""
    return sum(x.numel() for x in network.parameters())


def macs(network: nn.Module, size: Size, channels: int) -> int:
    """Return the multiply-accumulates of one image at inference.

    Convolutions and matrix products count, whatever module makes them; biases, BN, activations and pooling do
    not. The network may live on the meta device.
    """
    device = next(network.parameters()).device
    training = network.training
    network.eval()
    counter = flop_counter.FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            network(torch.zeros(1, channels, *sides(size), device=device))
    finally:
        network.train(training)
    return counter.get_total_flops() // 2  # torch counts a multiply-accumulate as two


def latency(network: nn.Module, size: Size, channels: int, batch_size: int = 1, repeats: int = 30) -> float:
    """Return the median time of one forward pass at inference on the CPU, in milliseconds.

    Args:
        network: a classifier of images; it is left where it is.
        size: height and width of the images.
        channels: channels of the images.
        batch_size: images in a pass.
        repeats: passes that are timed, after three that are not.
    """
    network = copy.deepcopy(network).cpu().eval()
    image = torch.zeros(batch_size, channels, *sides(size))
    times = []
    with torch.inference_mode():
        for _ in range(repeats + 3):
            start = time.perf_counter()
            network(image)
            times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[3:])

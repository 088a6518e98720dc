"""The taps of a network over a split, averaged over pixels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.compute.machine import Machine
from pipeline.evaluation.forward import PlainSplit
from pipeline.networks.network import Network


@torch.no_grad()
def pooled(
    network: Network,
    split: PlainSplit,
    names: Iterable[str],
    machine: Machine,
    rows: Tensor | None = None,
) -> dict[str, NDArray[Any]]:
    """Return taps averaged over all pixels, float32 (n, C) by name; the network is in evaluation mode meanwhile.

    Args:
        network: on the machine's device.
        split: its samples.
        names: the taps.
        machine: where it runs.
        rows: the samples that are wanted, int64 (n,) on the CPU; None is all of them.
    """
    training, wanted = network.training, list(names)
    network.eval()
    # On the device until the end: no batch waits for the one before.
    parts: dict[str, list[Tensor]] = {name: [] for name in wanted}
    for image in split.batches(rows):
        with machine.autocast():
            taps = network.record(image, wanted)

        for name in wanted:
            x = taps[name].float()
            parts[name].append(x.flatten(2).mean(dim=2) if x.ndim > 2 else x)  # (B, C)
    network.train(training)
    return {name: torch.cat(tensors).cpu().numpy() for name, tensors in parts.items()}

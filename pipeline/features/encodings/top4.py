"""The four nearest words of every pixel and how far each lies: 16 bytes a pixel keep p_T soft.

The distances are kept relative to the nearest, as the bits of a float16, so that the temperature stays a
setting of the run.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.features.codebook import TOP, log_words, nearest_words, pack, unpack

AXES = 4
READS = ("table",)
ARRAYS = ("centers",)


def encode(x: Tensor, table: Mapping[str, Tensor]) -> Tensor:
    """Return uint16 (B, 2 k, H, W) of a map (B, C, H, W): k ids, then the bits of k distances."""
    return pack(*nearest_words(x, table["centers"]), len(table["centers"]))


def differing(stored: Tensor, live: Tensor) -> Tensor:
    """Return the share of codes that differ, (B,): other words, or distances off by 1 % of a pixel's largest."""
    (ids, near), (words, far) = unpack(stored), unpack(live)
    off = (near - far).abs() > 0.01 * far.amax(dim=1, keepdim=True)
    return torch.cat([ids != words, off], dim=1).float().flatten(1).mean(dim=1)


def lost(x: Tensor, table: Mapping[str, Tensor]) -> Tensor:
    """Return KL(code || p_T), (B, H, W): -log of p_T's mass on the four words, at the table's temperature."""
    log_p = log_words(x, table["centers"], table["temperature"])
    return -log_p.topk(min(TOP, log_p.shape[1]), dim=1).values.logsumexp(dim=1)


def stand_in(channels: int, classes: int) -> dict[str, Tensor]:
    """Return the smallest table of its kind, for maps of so many channels: a code's shape needs no values."""
    return {"centers": torch.zeros(TOP, channels)}

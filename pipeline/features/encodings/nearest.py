"""The nearest word of every pixel: two bytes a pixel stand for the whole map (hard letKD-1 and QUEST)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.features.codebook import as_code, log_words, nearest_word

AXES = 4
READS = ("table",)
ARRAYS = ("centers",)


def encode(x: Tensor, table: Mapping[str, Tensor]) -> Tensor:
    """Return the nearest of `table["centers"]` (K, C), uint16 (B, H, W) of a map (B, C, H, W)."""
    return as_code(nearest_word(x, table["centers"]), len(table["centers"]))


def lost(x: Tensor, table: Mapping[str, Tensor]) -> Tensor:
    """Return KL(code || p_T), (B, H, W): -log p_T of the nearest word, at the table's temperature."""
    return -log_words(x, table["centers"], table["temperature"]).amax(dim=1)


def stand_in(channels: int, classes: int) -> dict[str, Tensor]:
    """Return the smallest table of its kind, for maps of so many channels: a code's shape needs no values."""
    return {"centers": torch.zeros(1, channels)}

"""The sub-class of every pixel within the sample's own class (letKD's h1): two bytes a pixel, nothing lost."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.features.codebook import as_code
from pipeline.features.codebook import subclass as subclass_of

AXES = 4
READS = ("table", "label")
ARRAYS = ("mean", "scalings", "centers", "per_class")


def encode(x: Tensor, table: Mapping[str, Tensor], label: Tensor) -> Tensor:
    """Return sub-class ids uint16 (B, H, W) of a map (B, C, H, W); `table` as `codebook.subclass` reads it."""
    return as_code(subclass_of(x, table, label), len(table["centers"]))


def stand_in(channels: int, classes: int) -> dict[str, Tensor]:
    """Return the smallest table of its kind, for maps of so many channels: a code's shape needs no values."""
    return {
        "mean": torch.zeros(channels),
        "scalings": torch.zeros(channels, 1),
        "centers": torch.zeros(classes, 1),
        "per_class": torch.tensor(1),
    }

"""How soft the distributions p_T over words are, pixel by pixel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor  # imported where it computes: settings are checked without it

# Rows whose logits over all words are in memory at a time: they stay in the cache, which is twice as fast.
ROWS = 256


@dataclass
class Softness:
    """Means over pixels, added up block by block, where their logits are: nothing waits for a GPU.

    Attributes:
        pixels: number of pixels so far.
        probability: sum of their largest probabilities, float64 ().
        entropy: sum of their entropies, in nats, float64 ().
    """

    pixels: int = 0
    probability: Tensor | float = 0.0
    entropy: Tensor | float = 0.0

    def add(self, logits: Tensor) -> None:
        """Add pixels whose p_T is the softmax of `logits` (n, K)."""
        log = logits.log_softmax(dim=1)
        p = log.exp()
        self.pixels += len(p)
        self.probability = self.probability + p.amax(dim=1).double().sum()
        self.entropy = self.entropy - (p * log).sum(dim=1).double().sum()

    def quality(self) -> dict[str, float]:
        """Return both means."""
        return {
            "mean_max_probability": float(self.probability) / self.pixels,
            "mean_entropy": float(self.entropy) / self.pixels,
        }


def pieces(x: NDArray[Any]) -> Iterator[Tensor]:
    """Cut rows (n, D) into pieces, each small enough for its logits over all words."""
    import torch

    rows = torch.from_numpy(x)
    for first in range(0, len(rows), ROWS):
        yield rows[first : first + ROWS]

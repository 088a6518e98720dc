"""letKD's layer g: 1x1 - BN - ReLU - 1x1 beside an identity, x + alpha g(x); it stays at inference.

The first 1x1 scores K words by scaled cosine, and its scores are what the teacher supervises; BN and ReLU stand
on another branch. The second 1x1 reads the K-vector of a pixel, L2-normalized, with output filters that are
normalized too, times a learnable scale. Nothing is frozen: cross-entropy trains the templates as well.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.networks.cosine import CosineScores, pixelwise
from pipeline.networks.network import Tap, require_map
from pipeline.params.numbers import Factor, Weight, Width


def build(
    name: str,
    channels: int,
    *,
    words: Width,
    alpha: Weight = 1.0,
    scale: Factor = 3.0,
    value_scale: Factor = 1.0,
) -> nn.Module:
    """Build the layer.

    Args:
        name: the tap that it is inserted after.
        channels: of the map.
        words: K, the number of templates.
        alpha: constant weight of g.
        scale: what the scores' learnable scale starts at.
        value_scale: what the second 1x1's learnable scale starts at.
    """
    return KDLayer(name, channels, words, alpha, scale, value_scale)


class KDLayer(nn.Module):
    """The layer; it offers the taps `<name>.input` (B, C, H, W) and `<name>.scores` (B, K, H, W)."""

    def __init__(
        self, name: str, channels: int, words: int, alpha: float, scale: float, value_scale: float
    ) -> None:
        super().__init__()
        self.name, self.alpha = name, alpha
        self.scores = CosineScores(channels, words, scale)
        self.norm = nn.BatchNorm2d(words)
        self.values = nn.Parameter(torch.empty(channels, words))
        self.value_scale = nn.Parameter(torch.empty(()))
        self._start = value_scale
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the values anew and set their scale back; the other modules reset themselves."""
        # (C, K): a deviation by the words that each output reads.
        nn.init.normal_(self.values, 0.0, (2.0 / self.values.shape[1]) ** 0.5)
        nn.init.constant_(self.value_scale, self._start)

    def forward(self, x: Tensor, tap: Tap) -> Tensor:
        """Map (B, C, H, W) to x + alpha g(x).

        Raises:
            ShapeError: the tap is no map.
        """
        require_map(x, "kd_layer", self.name)
        scores = tap(f"{self.name}.scores", self.scores(tap(f"{self.name}.input", x)))
        # Normalized over the K words of each pixel.
        active = F.normalize(F.relu(self.norm(scores)), dim=1)
        return x + self.alpha * pixelwise(active, self.value_scale * F.normalize(self.values, dim=1))

"""Scores of pixels by scaled cosines: QuEST's predictor, and the first 1x1 of letKD's layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CosineScores(nn.Module):
    """Scores s_k = scale cos(kernel_k, x) of every pixel x, without bias (QuEST's predictor, letKD's first 1x1).

    Args:
        channels: C of the map.
        words: K kernels, drawn from N(0, 2 / C); only their direction matters.
        scale: what the learnable scale starts at.
    """

    def __init__(self, channels: int, words: int, scale: float = 3.0) -> None:
        super().__init__()
        self.kernels = nn.Parameter(torch.empty(words, channels))
        self.scale = nn.Parameter(torch.empty(()))
        self._start = scale
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the kernels anew and set the scale back."""
        nn.init.normal_(self.kernels, 0.0, (2.0 / self.kernels.shape[1]) ** 0.5)
        nn.init.constant_(self.scale, self._start)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (B, K, H, W) of a map (B, C, H, W)."""
        # The scale multiplies the kernels: they are fewer numbers than the scores.
        return pixelwise(F.normalize(x, dim=1), self.scale * F.normalize(self.kernels, dim=1))


def pixelwise(x: Tensor, matrix: Tensor) -> Tensor:
    """Multiply every pixel of (B, C, H, W) by a matrix (K, C): a 1x1 convolution, (B, K, H, W)."""
    return F.conv2d(x, matrix[:, :, None, None])

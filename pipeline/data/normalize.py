"""From stored bytes to what a network reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Normalize:
    """Turns uint8 images into what a network reads: (x / 255 - mean) / std per channel, float32."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        shape = (1, len(mean), 1, 1)
        # Folded into one factor and one offset: two passes over the images instead of three.
        scale = 255 * torch.tensor(std, dtype=torch.float64).view(shape)
        shift = torch.tensor(mean, dtype=torch.float64).view(shape) / torch.tensor(std).double().view(shape)
        self._scale = (1 / scale).float().to(device)
        self._shift = shift.float().to(device)

    def __call__(self, image: Tensor) -> Tensor:
        """Return float32 (B, C, H, W) of uint8 (B, C, H, W)."""
        # In place, on the copy that `float` has made.
        return image.float().mul_(self._scale).sub_(self._shift)

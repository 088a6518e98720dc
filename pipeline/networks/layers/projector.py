"""SimKD's projector: the student's last map becomes one of the teacher's shape, and stays so at inference.

1x1 to half the teacher's channels, 3x3, 1x1 to all of them, each with BN and ReLU; a map that is larger than the
teacher's is averaged first.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.networks.blocks import conv_bn
from pipeline.networks.network import Tap, require_map
from pipeline.params.numbers import Width


def build(name: str, channels: int, *, outputs: Width, height: Width, width: Width) -> nn.Module:
    """Build the layer.

    Args:
        name: the tap that it is inserted after.
        channels: of the map that it reads.
        outputs: channels of the map that it gives.
        height: of the map that it gives, at most; a smaller one keeps its size.
        width: of the map that it gives, at most.
    """
    return Projector(name, channels, outputs, (height, width))


class Projector(nn.Module):
    """The layer; it offers no taps inside.

    Args:
        name: the tap that it is inserted after.
        channels: of the map that it reads.
        outputs: channels of the map that it gives.
        size: height and width of the map that it gives, at most.
    """

    def __init__(self, name: str, channels: int, outputs: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.name, self.size = name, size
        inner = max(1, outputs // 2)
        self.body = nn.Sequential(
            *conv_bn(channels, inner, 1),
            nn.ReLU(),
            *conv_bn(inner, inner, 3),
            nn.ReLU(),
            *conv_bn(inner, outputs, 1),
            nn.ReLU(),
        )

    def forward(self, x: Tensor, tap: Tap) -> Tensor:
        """Map (B, C, H, W) to (B, outputs, h, w).

        Raises:
            ShapeError: the tap is no map.
        """
        require_map(x, "projector", self.name)
        size = (min(x.shape[2], self.size[0]), min(x.shape[3], self.size[1]))
        if tuple(x.shape[2:]) != size:
            x = F.adaptive_avg_pool2d(x, size)
        projected: Tensor = self.body(x)
        return projected

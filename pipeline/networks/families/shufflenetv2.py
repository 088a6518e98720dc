"""ShuffleNetV2 for small images (Ma et al. 2018, arXiv:1807.11164), width 1.

As the distillation literature uses it: a 1x1 stem of 24 channels at stride 1, three stages of 4, 8 and 4
blocks, each beginning at stride 2, and a last 1x1 convolution of 1024 channels (the tail). torch's default
initialization.

A block transforms half of the channels and passes the other half on. So `stage<k>_pre` is the two halves
before the ReLU and before the shuffle: its channels are not in the order of `stage<k>`.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.networks import pretrained
from pipeline.networks.blocks import Activated, conv_bn, shuffle
from pipeline.networks.network import Network, Tap
from pipeline.params.size import Size

STEM = 24
FINAL = 1024
# channels and blocks by stage
NETWORKS = {"shufflenetv2": ((116, 4), (232, 8), (464, 4))}


class Down(nn.Module):
    """Halves the map: two branches, both from the whole input."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.left = nn.Sequential(
            *conv_bn(inputs, inputs, 3, 2, groups=inputs), *conv_bn(inputs, half, 1), nn.ReLU()
        )
        self.right = nn.Sequential(*_branch(inputs, half, 2), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H / 2, W / 2)."""
        return shuffle(torch.cat([self.left(x), self.right(x)], dim=1), 2)


class Split(nn.Module):
    """Transforms the second half of the channels and passes the first on."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.right = _branch(width // 2, width // 2, 1)

    def forward(self, x: Tensor, tap: Tap, pre: str | None = None) -> Tensor:
        """Map (B, width, H, W) to the same shape.

        Args:
            x: the map.
            tap: the taps of this pass.
            pre: the tap that this block's pre-activation is, if it is one.
        """
        left, right = x.chunk(2, dim=1)
        right = self.right(right)
        if pre is not None:
            # The tap holds both halves, so a layer inserted there may change the passed one too.
            left, right = tap(pre, torch.cat([left, right], dim=1)).chunk(2, dim=1)
        return shuffle(torch.cat([left, F.relu(right)], dim=1), 2)


class ShuffleStage(nn.Module):
    """A unit: one block that halves the map, then blocks that keep it.

    Args:
        name: the unit's tap.
        first: the block that halves the map.
        others: the blocks after it, at least one.
    """

    def __init__(self, name: str, first: nn.Module, others: Iterable[nn.Module]) -> None:
        super().__init__()
        self.name = name
        self.first = first
        self.others = nn.ModuleList(others)

    def forward(self, x: Tensor, tap: Tap) -> Tensor:
        """Run the blocks; the first one's output and the last one's pre-activation are offered."""
        x = tap(f"{self.name}_block1", self.first(x))
        for block in self.others[:-1]:
            x = block(x, tap)
        y: Tensor = self.others[-1](x, tap, f"{self.name}_pre")
        return y


def build(name: str, size: Size, channels: int, classes: int, weights: str) -> Network:
    """Build the network `name`; images of any size.

    Raises:
        ParamsError: weights other than "none".
    """
    pretrained.refuse("shufflenetv2", weights)
    units: dict[str, nn.Module] = {"stem": Activated("stem", *conv_bn(channels, STEM, 1))}
    inputs = STEM
    for k, (width, count) in enumerate(NETWORKS[name], start=1):
        others = [Split(width) for _ in range(count - 1)]
        units[f"stage{k}"] = ShuffleStage(f"stage{k}", Down(inputs, width), others)
        inputs = width
    return Network(units, FINAL, classes, tail=Activated("final", *conv_bn(inputs, FINAL, 1)))


def _branch(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Return 1x1, channel-wise 3x3 and 1x1 convolutions, without the last ReLU."""
    return nn.Sequential(
        *conv_bn(inputs, outputs, 1),
        nn.ReLU(),
        *conv_bn(outputs, outputs, 3, stride, groups=outputs),
        *conv_bn(outputs, outputs, 1),
    )

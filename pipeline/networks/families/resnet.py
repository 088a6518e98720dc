"""ResNets for small images (He et al. 2016, arXiv:1512.03385), as the distillation literature uses them.

A 3x3 stem without max-pool. Depth 6n+2 has three stages of n basic blocks; "x4", "x0.5" and "x0.25" scale the widths
("x4" leaves the stem at 32). `resnet29` and `resnet83` are letKD's: depth 9n+2, bottlenecks with expansion 2.
`resnet50_cifar` has the four stages of the ImageNet network, expansion 4. Where the shape changes, the
shortcut is a 1x1 convolution with BN instead of the paper's zero padding.

`stage<k>_conv` is what the last block's 3x3 convolution gives, before its BN; of a basic block the first one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.networks import pretrained
from pipeline.networks.blocks import Activated, Stage, conv_bn, convolve, fan_out
from pipeline.networks.network import Network, Tap
from pipeline.params.size import Size


class Setting(NamedTuple):
    """One network of the family.

    Attributes:
        blocks: blocks by stage.
        widths: channels of the stem, then the width of each stage.
        expansion: output channels of a bottleneck over its width; None for basic blocks.
    """

    blocks: tuple[int, ...]
    widths: tuple[int, ...] = (16, 16, 32, 64)
    expansion: int | None = None


NETWORKS = {
    "resnet8": Setting((1, 1, 1)),
    "resnet14": Setting((2, 2, 2)),
    "resnet20": Setting((3, 3, 3)),
    "resnet32": Setting((5, 5, 5)),
    "resnet44": Setting((7, 7, 7)),
    "resnet56": Setting((9, 9, 9)),
    "resnet110": Setting((18, 18, 18)),
    "resnet20x0.5": Setting((3, 3, 3), (8, 8, 16, 32)),
    "resnet8x0.25": Setting((1, 1, 1), (4, 4, 8, 16)),
    "resnet8x4": Setting((1, 1, 1), (32, 64, 128, 256)),
    "resnet32x4": Setting((5, 5, 5), (32, 64, 128, 256)),
    "resnet29": Setting((3, 3, 3), expansion=2),
    "resnet83": Setting((9, 9, 9), expansion=2),
    "resnet50_cifar": Setting((3, 4, 6, 3), (64, 64, 128, 256, 512), expansion=4),
}


class Basic(nn.Module):
    """Two 3x3 convolutions beside a shortcut; returns the sum before the ReLU."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv_bn(inputs, width, 3, stride)
        self.conv2 = conv_bn(width, width, 3)
        self.shortcut = _shortcut(inputs, width, stride)

    @property
    def norm(self) -> nn.Module:
        """The BN beside the shortcut."""
        return self.conv2[1]

    def forward(self, x: Tensor, tap: Tap | None = None, name: str = "") -> Tensor:
        """Map (B, inputs, H, W) to (B, width, H / stride, W / stride); the first convolution is offered."""
        y: Tensor = self.conv2(F.relu(convolve(self.conv1, x, tap, name)))
        passed: Tensor = self.shortcut(x)
        return y + passed


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 beside a shortcut; returns the sum before the ReLU."""

    def __init__(self, inputs: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        self.conv1 = conv_bn(inputs, width, 1)
        self.conv2 = conv_bn(width, width, 3, stride)
        self.conv3 = conv_bn(width, width * expansion, 1)
        self.shortcut = _shortcut(inputs, width * expansion, stride)

    @property
    def norm(self) -> nn.Module:
        """The BN beside the shortcut."""
        return self.conv3[1]

    def forward(self, x: Tensor, tap: Tap | None = None, name: str = "") -> Tensor:
        """Map (B, inputs, H, W) to (B, width * expansion, H / stride, W / stride); the 3x3 is offered."""
        y: Tensor = self.conv3(F.relu(convolve(self.conv2, F.relu(self.conv1(x)), tap, name)))
        passed: Tensor = self.shortcut(x)
        return y + passed


def build(name: str, size: Size, channels: int, classes: int, weights: str) -> Network:
    """Build the network `name`; images of any size.

    Raises:
        ParamsError: weights other than "none".
    """
    pretrained.refuse("resnet", weights)
    setting = NETWORKS[name]
    inputs, *widths = setting.widths
    units: dict[str, nn.Module] = {"stem": Activated("stem", *conv_bn(channels, inputs, 3))}

    for k, (count, width) in enumerate(zip(setting.blocks, widths, strict=True), start=1):
        blocks: list[nn.Module] = []
        for index in range(count):
            # Stage 1 keeps the stem's size; each later stage halves it.
            stride = 2 if index == 0 and k > 1 else 1
            if setting.expansion is None:
                blocks.append(Basic(inputs, width, stride))
                inputs = width
            else:
                blocks.append(Bottleneck(inputs, width, stride, setting.expansion))
                inputs = width * setting.expansion
        units[f"stage{k}"] = Stage(f"stage{k}", blocks, conv=True)
    return Network(units, inputs, classes, initialize=fan_out)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    return nn.Identity() if (inputs, stride) == (outputs, 1) else conv_bn(inputs, outputs, 1, stride)

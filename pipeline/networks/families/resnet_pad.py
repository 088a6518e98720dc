"""ResNets for small images with the paper's own shortcuts (He et al. 2016, arXiv:1512.03385, option A).

Where the shape changes, the shortcut takes every other row and column and pads the channels with zeros, half of them
before and half of them behind: it has no parameters. `resnet.py` has a 1x1 convolution there, as the distillation
literature does. Public CIFAR-10 checkpoints are often of these.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.networks import pretrained
from pipeline.networks.blocks import Activated, Stage, conv_bn, convolve, fan_out
from pipeline.networks.network import Network, Tap
from pipeline.params.size import Size

# Blocks a stage: depth 6n+2 has three stages of n blocks.
NETWORKS = {
    "resnet20_pad": 3,
    "resnet32_pad": 5,
    "resnet44_pad": 7,
    "resnet56_pad": 9,
    "resnet110_pad": 18,
}
WIDTHS = (16, 32, 64)


class Padded(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters; returns the sum before the ReLU."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv_bn(inputs, width, 3, stride)
        self.conv2 = conv_bn(width, width, 3)
        self.stride, self.added = stride, width - inputs

    @property
    def norm(self) -> nn.Module:
        """The BN beside the shortcut."""
        return self.conv2[1]

    def forward(self, x: Tensor, tap: Tap | None = None, name: str = "") -> Tensor:
        """Map (B, inputs, H, W) to (B, width, H / stride, W / stride); the first convolution is offered."""
        y: Tensor = self.conv2(F.relu(convolve(self.conv1, x, tap, name)))
        before = self.added // 2
        return y + F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.added - before))


def build(name: str, size: Size, channels: int, classes: int, weights: str) -> Network:
    """Build the network `name`; images of any size.

    Raises:
        ParamsError: weights other than "none".
    """
    pretrained.refuse("resnet_pad", weights)
    inputs = WIDTHS[0]
    units: dict[str, nn.Module] = {"stem": Activated("stem", *conv_bn(channels, inputs, 3))}

    for k, width in enumerate(WIDTHS, start=1):
        blocks: list[nn.Module] = []
        for index in range(NETWORKS[name]):
            # Stage 1 keeps the stem's size; each later stage halves it.
            blocks.append(Padded(inputs, width, 2 if index == 0 and k > 1 else 1))
            inputs = width
        units[f"stage{k}"] = Stage(f"stage{k}", blocks, conv=True)
    return Network(units, inputs, classes, initialize=fan_out)

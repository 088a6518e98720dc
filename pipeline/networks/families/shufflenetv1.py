"""ShuffleNet for small images (Zhang et al. 2018, arXiv:1707.01083), three groups.

As the distillation literature uses it: a 1x1 stem of 24 channels at stride 1, three stages of 4, 8 and 4
blocks, each beginning at stride 2, and a ReLU after the channel-wise convolution, which the paper does not
have. torch's default initialization.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.networks import pretrained
from pipeline.networks.blocks import Activated, Stage, conv_bn, shuffle
from pipeline.networks.network import Network
from pipeline.params.size import Size

STEM = 24
# channels and blocks by stage
NETWORKS = {"shufflenetv1": ((240, 4), (480, 8), (960, 4))}
GROUPS = 3


class Shuffled(nn.Module):
    """A bottleneck of grouped convolutions with a channel shuffle; returns what stands before the ReLU.

    At stride 2 the averaged input is appended to the new channels, otherwise it is added.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.downsamples = stride == 2
        new = outputs - inputs if self.downsamples else outputs
        width = new // 4
        self.groups = 1 if inputs == STEM else GROUPS  # the stem's channels are too few to be grouped
        self.conv1 = conv_bn(inputs, width, 1, groups=self.groups)
        self.conv2 = conv_bn(width, width, 3, stride, groups=width)
        self.conv3 = conv_bn(width, new, 1, groups=GROUPS)

    @property
    def norm(self) -> nn.Module:
        """The BN beside the shortcut."""
        return self.conv3[1]

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        y = shuffle(F.relu(self.conv1(x)), self.groups)
        z: Tensor = self.conv3(F.relu(self.conv2(y)))
        if self.downsamples:
            return torch.cat([z, F.avg_pool2d(x, 3, 2, 1)], dim=1)
        return x + z


def build(name: str, size: Size, channels: int, classes: int, weights: str) -> Network:
    """Build the network `name`; images of any size.

    Raises:
        ParamsError: weights other than "none".
    """
    pretrained.refuse("shufflenetv1", weights)
    units: dict[str, nn.Module] = {"stem": Activated("stem", *conv_bn(channels, STEM, 1))}
    inputs = STEM
    for k, (width, count) in enumerate(NETWORKS[name], start=1):
        blocks = [Shuffled(inputs, width, 2), *(Shuffled(width, width, 1) for _ in range(count - 1))]
        units[f"stage{k}"] = Stage(f"stage{k}", blocks)
        inputs = width
    return Network(units, inputs, classes)

"""VGG with batch norm for small images (Simonyan and Zisserman 2015, arXiv:1409.1556).

Five stages of 3x3 convolutions with bias, global average pooling and one linear layer instead of the paper's
three. The first stage is the tap `stem`, the others `stage1` to `stage4`. Each max-pool stands at the start
of the unit that follows, so that an auxiliary head begins with it. The fourth one is there for images of 64
pixels and more only: smaller ones keep `stage4` as large as `stage3`. The first block is the first
convolution with its BN and ReLU.
"""

from __future__ import annotations

from torch import nn

from pipeline.networks import pretrained
from pipeline.networks.blocks import Activated, Stage, fan_out_small_linear
from pipeline.networks.network import Network
from pipeline.params.size import Size, sides

# convolutions by stage
NETWORKS = {
    "vgg8": (1, 1, 1, 1, 1),
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
WIDTHS = (64, 128, 256, 512, 512)


def build(name: str, size: Size, channels: int, classes: int, weights: str) -> Network:
    """Build the network `name`; `size` decides on the fourth max-pool.

    Raises:
        ParamsError: weights other than "none".
    """
    pretrained.refuse("vgg", weights)
    units: dict[str, nn.Module] = {}
    inputs = channels

    for k, (count, width) in enumerate(zip(NETWORKS[name], WIDTHS, strict=True)):
        blocks = []
        for index in range(count):
            pooled = index == 0 and 1 <= k <= (4 if min(sides(size)) >= 64 else 3)
            block = nn.Sequential(nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width))
            blocks.append(nn.Sequential(nn.MaxPool2d(2), *block) if pooled else block)
            inputs = width

        if k == 0:
            between = [module for block in blocks for module in (*block, nn.ReLU())]
            # Without the last ReLU: `Activated` has its own, behind the tap.
            units["stem"] = Activated("stem", *between[:-1])
        else:
            units[f"stage{k}"] = Stage(f"stage{k}", blocks)
    return Network(units, inputs, classes, initialize=fan_out_small_linear)

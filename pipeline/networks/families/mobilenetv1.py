"""MobileNet for larger images (Howard et al. 2017, arXiv:1704.04861), width 1.

The usual student of ImageNet's ResNet50 ("MV1"; letKD's tables call it MNV2). A stem of stride 2, then blocks
of a channel-wise 3x3 and a 1x1 convolution, in four stages of output stride 4, 8, 16 and 32. torch's default
initialization, as in the public distillation code.
"""

from __future__ import annotations

from torch import nn

from pipeline.networks import pretrained
from pipeline.networks.blocks import Activated, Stage, conv_bn
from pipeline.networks.network import Network
from pipeline.params.size import Size

STEM = 32
# by stage: channels and stride of each block
NETWORKS = {
    "mobilenetv1": (
        ((64, 1), (128, 2), (128, 1)),
        ((256, 2), (256, 1)),
        ((512, 2), *((512, 1),) * 5),
        ((1024, 2), (1024, 1)),
    )
}


def build(name: str, size: Size, channels: int, classes: int, weights: str) -> Network:
    """Build the network `name`; images of any size.

    Raises:
        ParamsError: weights other than "none".
    """
    pretrained.refuse("mobilenetv1", weights)
    units: dict[str, nn.Module] = {"stem": Activated("stem", *conv_bn(channels, STEM, 3, 2))}
    inputs = STEM
    for k, settings in enumerate(NETWORKS[name], start=1):
        blocks = []
        for width, stride in settings:
            channelwise = conv_bn(inputs, inputs, 3, stride, groups=inputs)
            blocks.append(nn.Sequential(*channelwise, nn.ReLU(), *conv_bn(inputs, width, 1)))
            inputs = width
        units[f"stage{k}"] = Stage(f"stage{k}", blocks)
    return Network(units, inputs, classes)

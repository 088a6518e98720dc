"""MobileNetV2 for larger images (Sandler et al. 2018, arXiv:1801.04381), made of torchvision's blocks.

Width 1 or 0.5, in multiples of 8 as torchvision rounds them; the last 1x1 convolution has 1280 channels at either.
ReLU6. The stages end at output stride 4, 8, 16 and 32, where the family `mobilenetv2` cuts too; the last 1x1
convolution is the tail. Blocks end linearly, so a stage has no `_pre`. torchvision's dropout before the classifier is
left out: outputs at inference are the same, and heads and inserted layers see what the classifier sees.
`weights: imagenet` takes IMAGENET1K_V1, which torchvision has at width 1 alone; with other classes than 1000 the
classifier is fresh.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import nn
from torchvision.models import MobileNet_V2_Weights, MobileNetV2, WeightsEnum
from torchvision.models.mobilenetv2 import InvertedResidual

from pipeline.networks import pretrained
from pipeline.networks.blocks import Activated, Stage, fan_out_small_linear
from pipeline.networks.network import Network
from pipeline.params.size import Size


class Setting(NamedTuple):
    """One network: its width as a share of the published one, its ImageNet weights if it has any."""

    width: float
    weights: WeightsEnum | None


PRETRAINED = (3,)
NETWORKS = {
    "mobilenet_v2": Setting(1.0, MobileNet_V2_Weights.IMAGENET1K_V1),
    "mobilenet_v2x0.5": Setting(0.5, None),
}
FRESH = tuple(name for name, setting in NETWORKS.items() if setting.weights is None)


class Inverted(InvertedResidual):  # type: ignore[misc]  # torchvision is untyped
    """torchvision's block, as it is."""

    @property
    def norm(self) -> nn.Module:
        """The BN that ends the block linearly."""
        norm: nn.Module = self.conv[-1]
        return norm


def build(name: str, size: Size, channels: int, classes: int, weights: str) -> Network:
    """Build the network; images of any size.

    Raises:
        ParamsError: ImageNet weights of a width that has none, or for images that do not have three channels.
        MachineError: the ImageNet weights cannot be fetched.
    """
    setting = NETWORKS[name]
    if setting.weights is None:
        pretrained.refuse("torchvision_mobilenetv2", weights, name)
    body = MobileNetV2(width_mult=setting.width, block=Inverted)
    # The classifier is ours; without one, `body` takes a state dict that has none (`pretrained.fill`).
    body.classifier = nn.Identity()
    stem, *blocks, last = body.features
    if channels != 3:
        stem[0] = nn.Conv2d(channels, stem[0].out_channels, 3, 2, 1, bias=False)

    units: dict[str, nn.Module] = {
        # Without the ReLU6 modules of stem and tail: they work in place, and the taps before them are recorded.
        "stem": Activated("stem", stem[0], stem[1], activation=F.relu6),
        "stage1": Stage("stage1", blocks[:3], activation=None),
        "stage2": Stage("stage2", blocks[3:6], activation=None),
        "stage3": Stage("stage3", blocks[6:13], activation=None),
        "stage4": Stage("stage4", blocks[13:], activation=None),
    }
    tail = Activated("final", last[0], last[1], activation=F.relu6)

    network = Network(units, body.last_channel, classes, tail=tail, initialize=fan_out_small_linear)
    pretrained.called(network, body, "classifier.1.")
    if weights == "imagenet" and setting.weights is not None:
        state = pretrained.fetch(setting.weights, channels)
        pretrained.fill(network, body, state, "classifier.1.")
    return network

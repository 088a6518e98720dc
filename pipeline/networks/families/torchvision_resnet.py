"""ResNets for larger images (He et al. 2016, arXiv:1512.03385), made of torchvision's blocks.

Stride 2 stands at the 3x3 convolution of a bottleneck, as in torchvision. `weights: imagenet` takes
torchvision's first weights (IMAGENET1K_V1), the ones of the published distillation tables; with other classes
than 1000 the classifier is fresh. The max-pool stands at the start of stage1, so `stem` is the map before it.
`stage<k>_conv` is as in `resnet.py`.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torchvision.models import (
    ResNet,
    ResNet18_Weights,
    ResNet34_Weights,
    ResNet50_Weights,
    ResNet152_Weights,
    WeightsEnum,
)
from torchvision.models.resnet import BasicBlock, Bottleneck

from pipeline.networks import pretrained
from pipeline.networks.blocks import Activated, Stage, fan_out
from pipeline.networks.network import Network, Tap
from pipeline.params.size import Size


class Basic(BasicBlock):  # type: ignore[misc]  # torchvision is untyped
    """torchvision's block, up to the residual sum before the last ReLU."""

    @property
    def norm(self) -> nn.Module:
        """The BN beside the shortcut."""
        norm: nn.Module = self.bn2
        return norm

    def forward(self, x: Tensor, tap: Tap | None = None, name: str = "") -> Tensor:
        """Map (B, C, H, W) to the pre-activation of the block's output; the first convolution is offered."""
        y: Tensor = self.conv1(x)
        y = self.bn2(self.conv2(self.relu(self.bn1(y if tap is None else tap(name, y)))))
        passed: Tensor = x if self.downsample is None else self.downsample(x)
        return y + passed


class Neck(Bottleneck):  # type: ignore[misc]  # torchvision is untyped
    """torchvision's bottleneck, up to the residual sum before the last ReLU."""

    @property
    def norm(self) -> nn.Module:
        """The BN beside the shortcut."""
        norm: nn.Module = self.bn3
        return norm

    def forward(self, x: Tensor, tap: Tap | None = None, name: str = "") -> Tensor:
        """Map (B, C, H, W) to the pre-activation of the block's output; the 3x3 convolution is offered."""
        y: Tensor = self.conv2(self.relu(self.bn1(self.conv1(x))))
        z: Tensor = self.bn3(self.conv3(self.relu(self.bn2(y if tap is None else tap(name, y)))))
        passed: Tensor = x if self.downsample is None else self.downsample(x)
        return z + passed


class Setting(NamedTuple):
    """One network: its block, the blocks by stage, its ImageNet weights."""

    block: type[nn.Module]
    blocks: tuple[int, int, int, int]
    weights: WeightsEnum


PRETRAINED = (3,)
NETWORKS = {
    "resnet18": Setting(Basic, (2, 2, 2, 2), ResNet18_Weights.IMAGENET1K_V1),
    "resnet34": Setting(Basic, (3, 4, 6, 3), ResNet34_Weights.IMAGENET1K_V1),
    "resnet50": Setting(Neck, (3, 4, 6, 3), ResNet50_Weights.IMAGENET1K_V1),
    "resnet152": Setting(Neck, (3, 8, 36, 3), ResNet152_Weights.IMAGENET1K_V1),
}


def build(name: str, size: Size, channels: int, classes: int, weights: str) -> Network:
    """Build the network `name`; images of any size.

    Raises:
        ParamsError: ImageNet weights for images that do not have three channels.
        MachineError: the ImageNet weights cannot be fetched.
    """
    setting = NETWORKS[name]
    body = ResNet(setting.block, list(setting.blocks))
    width = body.fc.in_features
    # The classifier is ours; without one, `body` takes a state dict that has none (`pretrained.fill`).
    body.fc = nn.Identity()
    if channels != 3:
        body.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)

    first, *others = body.layer1
    units: dict[str, nn.Module] = {
        "stem": Activated("stem", body.conv1, body.bn1),
        "stage1": Stage("stage1", [nn.Sequential(body.maxpool, first), *others], conv=True),
        "stage2": Stage("stage2", body.layer2, conv=True),
        "stage3": Stage("stage3", body.layer3, conv=True),
        "stage4": Stage("stage4", body.layer4, conv=True),
    }
    network = Network(units, width, classes, initialize=fan_out)
    pretrained.called(network, body, "fc.")
    if weights == "imagenet":
        pretrained.fill(network, body, pretrained.fetch(setting.weights, channels), "fc.")
    return network

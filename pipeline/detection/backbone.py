"""A ResNet with a feature pyramid, whose places are taps of the names that classifiers have.

Modules are called as in torchvision's `BackboneWithFPN`, so that its state dicts fit. What runs is ours: its blocks
overwrite the map before their last ReLU, which is the map that KCD reads.

Taps: `stem`, `stage1` to `stage4`, each with `_pre`; of a stage also `_block1` and `_conv`, as in
`networks/families/torchvision_resnet.py`; then the levels of the pyramid from the finest, `fpn0` to `fpn4`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import (
    ResNet18_Weights,
    ResNet34_Weights,
    ResNet50_Weights,
    ResNet101_Weights,
    ResNet152_Weights,
    WeightsEnum,
)
from torchvision.models.resnet import conv1x1
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, FeaturePyramidNetwork

from pipeline.networks.blocks import Stage, fan_out
from pipeline.networks.families.torchvision_resnet import Basic, Neck
from pipeline.networks.network import Tap

NormLayer = Callable[[int], nn.Module]
STAGES = 4


class Setting(NamedTuple):
    """One ResNet: its block, the blocks by stage, the channels of its stem, its ImageNet weights."""

    block: type[Basic | Neck]
    blocks: tuple[int, int, int, int]
    width: int
    weights: WeightsEnum | None


# The first weights of each, which the published detectors start from.
BACKBONES = {
    "resnet10x0.25": Setting(Basic, (1, 1, 1, 1), 16, None),
    "resnet10": Setting(Basic, (1, 1, 1, 1), 64, None),
    "resnet18": Setting(Basic, (2, 2, 2, 2), 64, ResNet18_Weights.IMAGENET1K_V1),
    "resnet34": Setting(Basic, (3, 4, 6, 3), 64, ResNet34_Weights.IMAGENET1K_V1),
    "resnet50": Setting(Neck, (3, 4, 6, 3), 64, ResNet50_Weights.IMAGENET1K_V1),
    "resnet101": Setting(Neck, (3, 4, 23, 3), 64, ResNet101_Weights.IMAGENET1K_V1),
    "resnet152": Setting(Neck, (3, 8, 36, 3), 64, ResNet152_Weights.IMAGENET1K_V1),
}


class Body(nn.Module):
    """A ResNet without its classifier.

    Args:
        setting: which one.
        norm: makes the normalization of so many channels.

    Attributes:
        widths: channels of each stage.
    """

    def __init__(self, setting: Setting, norm: NormLayer) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, setting.width, 7, 2, 3, bias=False)
        self.bn1 = norm(setting.width)

        self.widths: list[int] = []
        inputs = setting.width
        for k, blocks in enumerate(setting.blocks):
            stage = _stage(
                f"stage{k + 1}", setting, inputs, setting.width << k, blocks, 1 if k == 0 else 2, norm
            )
            self.add_module(f"layer{k + 1}", stage)
            inputs = (setting.width << k) * setting.block.expansion
            self.widths.append(inputs)
        self.apply(fan_out)

    def forward(self, x: Tensor, tap: Tap) -> list[Tensor]:
        """Map images (B, 3, H, W) to the output of each stage, at strides of 4 to 32 pixels."""
        x = F.relu(tap("stem_pre", self.bn1(self.conv1(x))))
        x = F.max_pool2d(tap("stem", x), 3, 2, 1)
        maps = []
        for k in range(1, STAGES + 1):
            x = tap(f"stage{k}", self.get_submodule(f"layer{k}")(x, tap))
            maps.append(x)
        return maps

    def freeze(self, stages: int) -> None:
        """Train none of the first so many of stem, stage1 to stage4."""
        parts = [nn.ModuleList([self.conv1, self.bn1])]
        parts += [nn.ModuleList([self.get_submodule(f"layer{k}")]) for k in range(1, STAGES + 1)]
        for part in parts[:stages]:
            part.requires_grad_(False)


class Backbone(nn.Module):
    """A ResNet and the pyramid over its stages.

    Args:
        body: the ResNet.
        first: the stage whose map the finest level is made of.
        width: channels of each level.
        coarser: makes further levels of the coarsest.

    Attributes:
        out_channels: channels of each level.
        strides: pixels from one value to the next, by tap.
    """

    def __init__(self, body: Body, first: int, width: int, coarser: ExtraFPNBlock) -> None:
        super().__init__()
        self.body = body
        self.first = first
        self.fpn = FeaturePyramidNetwork(body.widths[first - 1 :], width, coarser)
        self.out_channels = width
        self.strides = _strides(first)
        self._tap = Tap()

    @contextmanager
    def recording(self, tap: Tap) -> Iterator[None]:
        """Hand the places of all passes in this block to `tap`.

        torchvision's models call `forward` with images alone, so the tap cannot come with them.
        """
        self._tap = tap
        try:
            yield
        finally:
            self._tap = Tap()

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Map images (B, 3, H, W) to the levels (B, D, H / stride, W / stride) by torchvision's names."""
        return self.levels(self.body(x, self._tap), self._tap)

    def levels(self, maps: Sequence[Tensor], tap: Tap) -> OrderedDict[str, Tensor]:
        """Map the outputs of all stages to the levels of the pyramid."""
        of_stages = OrderedDict((str(k), x) for k, x in enumerate(maps[self.first - 1 :]))
        levels: OrderedDict[str, Tensor] = self.fpn(of_stages)
        return OrderedDict((name, tap(f"fpn{k}", x)) for k, (name, x) in enumerate(levels.items()))


def _stage(
    name: str, setting: Setting, inputs: int, width: int, blocks: int, stride: int, norm: NormLayer
) -> Stage:
    """Return a stage of torchvision's blocks; the first has the stride, and a projection where the shape changes."""
    outputs = width * setting.block.expansion
    projection = None
    if stride != 1 or inputs != outputs:
        projection = nn.Sequential(conv1x1(inputs, outputs, stride), norm(outputs))

    row = [setting.block(inputs, width, stride, projection, norm_layer=norm)]
    row += [setting.block(outputs, width, norm_layer=norm) for _ in range(1, blocks)]
    return Stage(name, row, conv=True)


def _strides(first: int) -> dict[str, int]:
    """Return pixels from one value of a tap to the next, by tap in their order."""
    strides = {"stem_pre": 2, "stem": 2}
    for k in range(1, STAGES + 1):
        strides |= dict.fromkeys((f"stage{k}_block1", f"stage{k}_conv", f"stage{k}_pre", f"stage{k}"), 2 << k)
    # Both pyramids have five levels; a level's stride is that of the stage below it, and then doubles.
    return strides | {f"fpn{k}": 2 << (first + k) for k in range(5)}

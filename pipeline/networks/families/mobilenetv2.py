"""MobileNetV2 for small images (Sandler et al. 2018, arXiv:1801.04381), half width, expansion 6.

As the distillation literature uses it: a stem of stride 2, the second group at stride 1, widths `int(c / 2)`
without rounding to 8, ReLU instead of ReLU6, an expansion convolution in the first block too, and a last 1x1
convolution of full width 1280 (the tail). Blocks end linearly, so a stage has no `_pre`.
"""

from __future__ import annotations

from torch import Tensor, nn

from pipeline.networks import pretrained
from pipeline.networks.blocks import Activated, Stage, conv_bn, fan_out_small_linear
from pipeline.networks.network import Network
from pipeline.params.size import Size

# width over the paper's
NETWORKS = {"mobilenetv2_half": 0.5}
# by stage, groups of blocks: expansion, channels, blocks, stride of the first
STAGES = (
    ((1, 16, 1, 1), (6, 24, 2, 1)),
    ((6, 32, 3, 2),),
    ((6, 64, 4, 2), (6, 96, 3, 1)),
    ((6, 160, 3, 2), (6, 320, 1, 1)),
)


class Inverted(nn.Module):
    """An inverted residual: expand, convolve each channel, project linearly."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.body = nn.Sequential(
            *conv_bn(inputs, width, 1),
            nn.ReLU(),
            *conv_bn(width, width, 3, stride, groups=width),
            nn.ReLU(),
            *conv_bn(width, outputs, 1),
        )
        self.residual = (inputs, stride) == (outputs, 1)

    @property
    def norm(self) -> nn.Module:
        """The BN that ends the block linearly."""
        return self.body[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        y: Tensor = self.body(x)
        return x + y if self.residual else y


def build(name: str, size: Size, channels: int, classes: int, weights: str) -> Network:
    """Build the network `name`; images of any size.

    Raises:
        ParamsError: weights other than "none".
    """
    pretrained.refuse("mobilenetv2", weights)
    factor = NETWORKS[name]
    inputs = int(32 * factor)
    units: dict[str, nn.Module] = {"stem": Activated("stem", *conv_bn(channels, inputs, 3, 2))}
    for k, groups in enumerate(STAGES, start=1):
        blocks = []
        for expansion, width, count, stride in groups:
            outputs = int(width * factor)
            for index in range(count):
                blocks.append(Inverted(inputs, outputs, stride if index == 0 else 1, expansion))
                inputs = outputs
        units[f"stage{k}"] = Stage(f"stage{k}", blocks, activation=None)
    tail = Activated("final", *conv_bn(inputs, 1280, 1))
    return Network(units, 1280, classes, tail=tail, initialize=fan_out_small_linear)

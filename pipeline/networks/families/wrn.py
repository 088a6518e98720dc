"""Wide residual networks (Zagoruyko and Komodakis 2016, arXiv:1605.07146), without dropout.

Depth 6n+4, three stages of n pre-activation blocks, widths 16 and 16, 32, 64 times the factor: `wrn_16_2` has
depth 16 and factor 2.

The stages end in the raw residual sum, which is the tap `stage<k>`. The map before the activation that
follows, the output of the next block's first BN, is `stage<k>_pre` (`stem_pre` for the stem). The forward
pass computes it anyway, one unit later: stage k+1 offers `stage<k>_pre`, and the tail offers `stage3_pre`,
the output of the last BN. So an auxiliary head made of stage k+1 offers it again.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.networks import pretrained
from pipeline.networks.blocks import Activated, fan_out
from pipeline.networks.network import Network, Norms, Tap, Unit
from pipeline.params.size import Size

# depth and factor
NETWORKS = {"wrn_16_1": (16, 1), "wrn_16_2": (16, 2), "wrn_40_1": (40, 1), "wrn_40_2": (40, 2)}


class Wide(nn.Module):
    """A pre-activation block: BN, ReLU and a 3x3 convolution, twice, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        changes = inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor, tap: Tap, before: str | None = None) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H / stride, W / stride).

        Args:
            x: raw residual sum of the block before.
            tap: the taps of this pass.
            before: the tap that the first BN's output is, if it is one.
        """
        y: Tensor = self.bn1(x)
        if before is not None:
            y = tap(before, y)
        y = F.relu(y)
        # A changed shape is projected from the activated map, an unchanged one is passed on raw.
        passed: Tensor = x if self.shortcut is None else self.shortcut(y)
        z: Tensor = self.conv2(F.relu(self.bn2(self.conv1(y))))
        return z + passed


class WideStage(nn.Sequential):
    """A unit of pre-activation blocks.

    Args:
        name: the unit's tap.
        before: the tap of the unit before, whose pre-activation the first block computes.
        blocks: the blocks.
    """

    def __init__(self, name: str, before: str, blocks: Iterable[nn.Module]) -> None:
        super().__init__(*blocks)
        self.name = name
        self.before = before

    def forward(self, x: Tensor, tap: Tap) -> Tensor:  # type: ignore[override]  # takes the tap too
        """Run the blocks; the first one's BN and output are offered."""
        first, *others = self
        x = tap(f"{self.name}_block1", first(x, tap, f"{self.before}_pre"))
        for block in others:
            x = block(x, tap)
        return x

    def norms(self) -> Norms:
        """Return the BN that the unit before is read by."""
        first = self[0]
        assert isinstance(first, Wide)
        return {f"{self.before}_pre": first.bn1}


def build(name: str, size: Size, channels: int, classes: int, weights: str) -> Network:
    """Build the network `name`; images of any size.

    Raises:
        ParamsError: weights other than "none".
    """
    pretrained.refuse("wrn", weights)
    depth, factor = NETWORKS[name]
    inputs = 16
    units: dict[str, nn.Module] = {"stem": Unit(nn.Conv2d(channels, inputs, 3, 1, 1, bias=False))}
    before = "stem"
    for k, width in enumerate((16 * factor, 32 * factor, 64 * factor), start=1):
        blocks = []
        for index in range((depth - 4) // 6):
            blocks.append(Wide(inputs, width, 2 if index == 0 and k > 1 else 1))
            inputs = width
        units[f"stage{k}"] = WideStage(f"stage{k}", before, blocks)
        before = f"stage{k}"
    tail = Activated(before, nn.BatchNorm2d(inputs))
    return Network(units, inputs, classes, tail=tail, initialize=_initialize)


def _initialize(module: nn.Module) -> None:
    fan_out(module)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)

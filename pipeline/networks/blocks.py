"""What the network families are built of: stages with taps, a convolution with its BN, initializers.

A block of a `Stage` returns what stands before its last activation and leaves the activation to the stage. So
one place offers `stage<k>_pre`, activates, and offers `stage<k>_block1`, whatever the family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.networks.network import Norms, Tap

Activation = Callable[[Tensor], Tensor]


class Activated(nn.Sequential):
    """A unit or tail that ends in an activation; what stands before it is the tap `<name>_pre`.

    Args:
        name: the tap's name without `_pre`.
        modules: what stands before the activation.
        activation: the activation. It must not work in place, since its input is recorded.
    """

    def __init__(self, name: str, *modules: nn.Module, activation: Activation = F.relu) -> None:
        super().__init__(*modules)
        self.name = name
        self.activation = activation

    def forward(self, x: Tensor, tap: Tap) -> Tensor:  # type: ignore[override]  # takes the tap too
        """Run the modules, offer the pre-activation, activate."""
        for module in self:
            x = module(x)
        return self.activation(tap(f"{self.name}_pre", x))

    def norms(self) -> Norms:
        """Return the BN before the activation, if the last module is one."""
        return _named(f"{self.name}_pre", self)


def convolve(unit: nn.Sequential, x: Tensor, tap: Tap | None, name: str) -> Tensor:
    """Run a convolution with its BN; what stands between them is offered as the tap `name`."""
    convolution, norm = unit
    y: Tensor = convolution(x)
    normed: Tensor = norm(y if tap is None else tap(name, y))
    return normed


class Stage(nn.Sequential):
    """A unit of blocks, with the taps `<name>_pre` and `<name>_block1`.

    Args:
        name: the unit's tap, for instance "stage1".
        blocks: each maps (B, C, H, W) to the map before its last activation.
        activation: stands after every block, not in place; None for blocks that end linearly, which have no
            `<name>_pre`.
        conv: the last block takes a tap and a name too, and offers a convolution inside as `<name>_conv`.
    """

    def __init__(
        self,
        name: str,
        blocks: Iterable[nn.Module],
        activation: Activation | None = F.relu,
        conv: bool = False,
    ) -> None:
        super().__init__(*blocks)
        self.name = name
        self.activation = activation
        self.conv = conv

    def forward(self, x: Tensor, tap: Tap) -> Tensor:  # type: ignore[override]  # takes the tap too
        """Run the blocks; the last one's pre-activation and the first one's output are offered."""
        for index, block in enumerate(self):
            last = index == len(self) - 1
            x = block(x, tap, f"{self.name}_conv") if self.conv and last else block(x)
            if self.activation is not None:
                if last:
                    x = tap(f"{self.name}_pre", x)
                x = self.activation(x)
            if index == 0:
                x = tap(f"{self.name}_block1", x)
        return x

    def norms(self) -> Norms:
        """Return the BN of the last block."""
        return _named(self.name if self.activation is None else f"{self.name}_pre", self)


def _named(tap: str, block: nn.Module) -> Norms:
    """Return the BN that ends a block, by a tap: its last module, or what a block with a shortcut calls its `norm`."""
    while isinstance(block, nn.Sequential) and len(block):
        block = block[-1]
    norm = block if isinstance(block, nn.BatchNorm2d) else getattr(block, "norm", None)
    return {tap: norm} if isinstance(norm, nn.BatchNorm2d) else {}


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return a convolution that keeps the map's size at stride 1, without bias, and its BN."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels (B, C, H, W) of `groups` equal groups."""
    batch, channels, height, width = x.shape
    grouped = x.reshape(batch, groups, channels // groups, height, width)
    # (B, C / groups, groups, H, W): neighbors now come from different groups.
    return grouped.transpose(1, 2).reshape(batch, channels, height, width)


def fan_out(module: nn.Module) -> None:
    """Draw convolutions from N(0, 2 / (kernel area * output channels)); their biases are 0."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def fan_out_small_linear(module: nn.Module) -> None:
    """Initialize as `fan_out` does, and the linear layer from N(0, 0.01^2) with bias 0."""
    fan_out(module)
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0, 0.01)
        nn.init.zeros_(module.bias)

"""Each family against a slow, plain forward pass written from the construction facts alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.networks.network import Network, build
from pipeline.networks.spec import NetworkSpec


class Pile:
    """Parameters in the order in which a pass uses them; each layer takes its own from the top."""

    def __init__(self, network: Network) -> None:
        state = network.state_dict()
        self.tensors = [x for key, x in state.items() if not key.endswith("num_batches_tracked")]

    def conv(self, x: Tensor, stride: int = 1, groups: int = 1, *, bias: bool = False) -> Tensor:
        weight = self.tensors.pop(0)
        offset = self.tensors.pop(0) if bias else None
        return F.conv2d(x, weight, offset, stride, (weight.shape[-1] - 1) // 2, groups=groups)

    def bn(self, x: Tensor) -> Tensor:
        gamma, beta, mean, var = (self.tensors.pop(0)[:, None, None] for _ in range(4))
        return (x - mean) / (var + 1e-5).sqrt() * gamma + beta

    def conv_bn(self, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        return self.bn(self.conv(x, stride, groups))

    def head(self, x: Tensor) -> Tensor:
        weight, bias = self.tensors
        return x.flatten(2).sum(dim=2) / (x.shape[2] * x.shape[3]) @ weight.T + bias


def resnet(pile: Pile, x: Tensor, depth: int, *, bottleneck: bool) -> Tensor:
    x = pile.conv_bn(x).clamp(min=0)
    for stage in range(3):
        for block in range((depth - 2) // (9 if bottleneck else 6)):
            stride = 2 if stage > 0 and block == 0 else 1
            if bottleneck:
                y = pile.conv_bn(pile.conv_bn(x).clamp(min=0), stride).clamp(min=0)
            else:
                y = pile.conv_bn(x, stride).clamp(min=0)
            y = pile.conv_bn(y)
            x = (y + (x if x.shape == y.shape else pile.conv_bn(x, stride))).clamp(min=0)
    return pile.head(x)


def resnet_pad(pile: Pile, x: Tensor, depth: int) -> Tensor:
    x = pile.conv_bn(x).clamp(min=0)
    for stage in range(3):
        for block in range((depth - 2) // 6):
            stride = 2 if stage > 0 and block == 0 else 1
            y = pile.conv_bn(pile.conv_bn(x, stride).clamp(min=0))
            if x.shape != y.shape:
                zeros = x.new_zeros(len(x), x.shape[1] // 2, *y.shape[2:])
                x = torch.cat([zeros, x[:, :, ::2, ::2], zeros], dim=1)
            x = (y + x).clamp(min=0)
    return pile.head(x)


def wrn(pile: Pile, x: Tensor, depth: int, factor: int) -> Tensor:
    x = pile.conv(x)
    for stage in range(3):
        for block in range((depth - 4) // 6):
            stride = 2 if stage > 0 and block == 0 else 1
            width = x.shape[1]
            active = pile.bn(x).clamp(min=0)
            y = pile.conv(pile.bn(pile.conv(active, stride)).clamp(min=0))
            x = y + (x if width == y.shape[1] else pile.conv(active, stride))
    assert x.shape[1] == 64 * factor
    return pile.head(pile.bn(x).clamp(min=0))


def vgg(pile: Pile, x: Tensor, counts: tuple[int, ...]) -> Tensor:
    large = x.shape[2] >= 64
    for stage, count in enumerate(counts):
        for _ in range(count):
            x = pile.bn(pile.conv(x, bias=True)).clamp(min=0)
        if stage < 3 or (stage == 3 and large):
            x = x.unfold(2, 2, 2).unfold(3, 2, 2).amax(dim=(4, 5))
    return pile.head(x)


def mobilenetv2(pile: Pile, x: Tensor) -> Tensor:
    x = pile.conv_bn(x, 2).clamp(min=0)
    for t, c, n, s in ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
                       (6, 160, 3, 2), (6, 320, 1, 1)):  # fmt: skip
        for block in range(n):
            stride = s if block == 0 else 1
            y = pile.conv_bn(x).clamp(min=0)
            assert y.shape[1] == t * x.shape[1]
            y = pile.conv_bn(pile.conv_bn(y, stride, y.shape[1]).clamp(min=0))
            assert y.shape[1] == c // 2
            x = x + y if x.shape == y.shape else y
    return pile.head(pile.conv_bn(x).clamp(min=0))


def interleave(x: Tensor, groups: int) -> Tensor:
    size = x.shape[1] // groups
    return x[:, [group * size + place for place in range(size) for group in range(groups)]]


def shufflenetv1(pile: Pile, x: Tensor) -> Tensor:
    x = pile.conv_bn(x).clamp(min=0)
    for width, count in ((240, 4), (480, 8), (960, 4)):
        for block in range(count):
            stride = 2 if block == 0 else 1
            groups = 1 if x.shape[1] == 24 else 3
            y = interleave(pile.conv_bn(x, 1, groups).clamp(min=0), groups)
            y = pile.conv_bn(pile.conv_bn(y, stride, y.shape[1]).clamp(min=0), 1, 3)
            x = torch.cat([y, F.avg_pool2d(x, 3, 2, 1)], 1) if stride == 2 else x + y
            x = x.clamp(min=0)
        assert x.shape[1] == width
    return pile.head(x)


def shufflenetv2(pile: Pile, x: Tensor) -> Tensor:
    def right(x: Tensor, stride: int) -> Tensor:
        y = pile.conv_bn(x).clamp(min=0)
        return pile.conv_bn(pile.conv_bn(y, stride, y.shape[1])).clamp(min=0)

    x = pile.conv_bn(x).clamp(min=0)
    for width, count in ((116, 4), (232, 8), (464, 4)):
        for block in range(count):
            if block == 0:
                left = pile.conv_bn(pile.conv_bn(x, 2, x.shape[1])).clamp(min=0)
                x = torch.cat([left, right(x, 2)], 1)
            else:
                half = width // 2
                x = torch.cat([x[:, :half], right(x[:, half:], 1)], 1)
            x = interleave(x, 2)
    return pile.head(pile.conv_bn(x).clamp(min=0))


def mobilenetv1(pile: Pile, x: Tensor) -> Tensor:
    x = pile.conv_bn(x, 2).clamp(min=0)
    for stride in (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1):
        x = pile.conv_bn(pile.conv_bn(x, stride, x.shape[1]).clamp(min=0)).clamp(min=0)
    return pile.head(x)


@pytest.mark.parametrize(
    ("family", "name", "size", "reference"),
    [
        ("resnet", "resnet20", 16, lambda pile, x: resnet(pile, x, 20, bottleneck=False)),
        ("resnet_pad", "resnet20_pad", 16, lambda pile, x: resnet_pad(pile, x, 20)),
        ("resnet", "resnet8x4", 16, lambda pile, x: resnet(pile, x, 8, bottleneck=False)),
        ("resnet", "resnet29", 16, lambda pile, x: resnet(pile, x, 29, bottleneck=True)),
        ("wrn", "wrn_16_2", 16, lambda pile, x: wrn(pile, x, 16, 2)),
        ("wrn", "wrn_40_1", 16, lambda pile, x: wrn(pile, x, 40, 1)),
        ("vgg", "vgg8", 16, lambda pile, x: vgg(pile, x, (1, 1, 1, 1, 1))),
        ("vgg", "vgg11", 64, lambda pile, x: vgg(pile, x, (1, 1, 2, 2, 2))),
        ("mobilenetv2", "mobilenetv2_half", 32, mobilenetv2),
        ("shufflenetv1", "shufflenetv1", 16, shufflenetv1),
        ("shufflenetv2", "shufflenetv2", 16, shufflenetv2),
        ("mobilenetv1", "mobilenetv1", 64, mobilenetv1),
    ],
)
def test_a_network_is_its_plain_reference(
    family: str, name: str, size: int, reference: Callable[[Pile, Tensor], Tensor]
) -> None:
    what = NetworkSpec(family=family, network=name, size=size, channels=3, classes=7)
    network = build(what, 0).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):  # so that a BN in a wrong place shows
                for x in (module.weight, module.running_var):
                    x.uniform_(0.5, 1.5, generator=generator)
                for x in (module.bias, module.running_mean):
                    x.normal_(std=0.3, generator=generator)
        image = torch.randn(2, 3, size, size, dtype=torch.float64, generator=generator)
        pile = Pile(network)
        # float64 on both sides: what is left is the order of sums.
        torch.testing.assert_close(network(image), reference(pile, image), rtol=1e-9, atol=1e-9)

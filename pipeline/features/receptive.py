"""Receptive fields: which pixels of the image a place of a teacher's map can see.

The support of a gradient: a pixel is seen where the gradient of the place with respect to it is not zero. Taken of
the trained network, it would also say which ReLUs happen to be off and which weights happen to cancel. So it is
taken of a copy that has no such accidents: the same modules, but weights that are positive and average what they
read, identity norms, means in place of maxima, and images close to zero, where nothing saturates. Then a gradient
of zero means that no path is there. It runs in float64 on the CPU, where a convolution leaves exact zeros outside
its reach and no border underflows.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline import progress, seeding
from pipeline.features.encoding import Feature, taps_of
from pipeline.networks.network import Network
from pipeline.params.size import Size, sides

PROBES = 8  # places of one pass
BRIGHTNESS = 1e-6  # of the images
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)
WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)

Spans = list[tuple[int, int]]  # first and last pixel of each row or column of the map


@dataclass(frozen=True)
class ReceptiveField:
    """What every place of a map sees: place (i, j) the pixels of `rows[i]` and `columns[j]`, without padding.

    Attributes:
        rows: first and last row of the image, for each row of the map.
        columns: first and last column of the image, for each column of the map.
    """

    rows: Spans
    columns: Spans


def receptive_fields(
    network: Network, names: Iterable[str], size: Size, channels: int
) -> dict[str, ReceptiveField]:
    """Return the fields of those of the features `names` that are maps of floats.

    A feature that is made of several places of a tap (for instance `final:halved`) sees what any of them sees.

    Args:
        network: the one whose taps they are; it is not changed.
        names: the features' names; none may need a fitted table.
        size: height and width of the images.
        channels: the images' channels.

    Raises:
        UnknownNameError: a tap or encoding that does not exist.
    """
    features = {name: Feature.parse(name) for name in names}
    even = _without_accidents(network)
    maps = _encoded(even, features, _images("shape", 1, size, channels))
    shapes = {name: (x.shape[-2], x.shape[-1]) for name, x in maps.items()}
    features = {name: features[name] for name in shapes}

    # Each row and each column of a map is one image of a batch: their gradients come in one backward pass.
    spans: dict[str, Spans] = {name: [] for name in shapes}  # of all rows, then of all columns
    most = max((sum(shape) for shape in shapes.values()), default=0)
    with progress.bar("receptive fields", most) as advance:
        for start in range(0, most, PROBES):
            image = _images(start, PROBES, size, channels).requires_grad_()
            for name, x in _encoded(even, features, image).items():
                spans[name] += _spans(image, x, start)
            advance(min(PROBES, most - start))

    return {
        name: ReceptiveField(spans[name][:height], spans[name][height:])
        for name, (height, _) in shapes.items()
    }


def _spans(image: Tensor, x: Tensor, start: int) -> Spans:
    """Return what rows and columns of a map see, from number `start` on, as many as there are images.

    Args:
        image: (B, C, H, W); image b serves row or column `start + b`.
        x: the map that was made of it, (B, ..., h, w).
        start: in the list of h rows and then w columns.
    """
    height, width = x.shape[-2:]
    chosen, served = torch.zeros_like(x), range(start, min(start + len(x), height + width))
    for b, place in enumerate(served):
        if place < height:
            chosen[b, ..., place, :] = 1
        else:
            chosen[b, ..., place - height] = 1
    if not served:
        return []

    # Uneven sums: those of a layer norm's outputs would be constant.
    uneven = chosen * _draw(x.shape, "sum", start)
    (gradient,) = torch.autograd.grad((x * uneven).sum(), image, retain_graph=True)
    seen = gradient.ne(0).any(dim=1)  # (B, H, W)

    spans = []
    for b, place in enumerate(served):
        along = torch.nonzero(seen[b].any(dim=1 if place < height else 0)).flatten().tolist()
        assert along, "a copy without accidents sees something"
        spans.append((along[0], along[-1]))
    return spans


def _encoded(network: Network, features: dict[str, Feature], image: Tensor) -> dict[str, Tensor]:
    """Return those features of images that are maps of floats, (B, ..., H, W)."""
    taps = network.record(image, taps_of(features))
    encoded = {name: feature.encode(taps[feature.tap]) for name, feature in features.items()}
    return {name: x for name, x in encoded.items() if x.ndim >= 3 and x.is_floating_point()}


def _without_accidents(network: Network) -> Network:
    """Return a copy in which every path from a pixel to a place has a positive weight."""
    even = copy.deepcopy(network).cpu().double().eval().requires_grad_(False)
    for number, module in enumerate(even.modules()):
        if isinstance(module, WEIGHTED):
            share = 1 / module.weight[0].numel()
            module.weight.copy_(share * _draw(module.weight.shape, "weight", number))

        if isinstance(module, NORMS):
            if module.weight is not None:
                module.weight.fill_(1)
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.reset_running_stats()

        bias = getattr(module, "bias", None)
        if isinstance(bias, Tensor):
            bias.zero_()

        # The gradient of a maximum goes to one pixel, that of a mean to all.
        for name, child in list(module.named_children()):
            if isinstance(child, nn.MaxPool2d) and child.dilation in (1, (1, 1)):
                pool = nn.AvgPool2d(child.kernel_size, child.stride, child.padding, child.ceil_mode)
                setattr(module, name, pool)
    return even


def _images(key: int | str, number: int, size: Size, channels: int) -> Tensor:
    """Return images (number, channels, H, W), close to zero and positive."""
    return BRIGHTNESS * _draw((number, channels, *sides(size)), "image", key)


def _draw(shape: Iterable[int], *key: int | str) -> Tensor:
    """Return numbers in [0.5, 1.5), which depend on the key alone."""
    return 0.5 + torch.rand(*shape, generator=seeding.generator("receptive", *key), dtype=torch.float64)

"""Mixup (Zhang et al. 2017, arXiv:1710.09412) and CutMix (Yun et al. 2019, arXiv:1905.04899) as views.

A mixed view is a sample's own view and that of a partner in the same slot, so both are cropped, mirrored and so on as
they would be alone. Partner, coefficient and box are functions of slot and sample: a store holds what the teacher says
of the very mixture that the student sees. The partner is any sample of the split, where the authors take one of the
batch: a batch is not the same for a store and for every seed.

Everything is computed in whole numbers, or in float64 and then rounded, so no device mixes another way than the next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import seeding
from pipeline.data.draws import hashed
from pipeline.params.size import Size, sides
from pipeline.params.views import Mixing, Mixup, MixupOrCutMix

if TYPE_CHECKING:
    from pipeline.data.images import Images

_SALT = seeding.derive("mixing")
_WHOLE = 1 << 16  # parts of an image's share
_QUANTILES = 1 << 12


@dataclass(frozen=True)
class Mixture:
    """The labels of mixed samples: each has two.

    Attributes:
        label: of the partners, int64 (B,).
        coefficient: what the samples' own labels count, float32 (B,); the partners' count the rest of 1.
    """

    label: Tensor
    coefficient: Tensor

    def mean(self, loss: Callable[[Tensor], Tensor], label: Tensor) -> Tensor:
        """Return the mean over the batch of a loss of labels, by what each label counts.

        Args:
            loss: gives the losses (B,) of labels int64 (B,).
            label: the samples' own, int64 (B,).
        """
        return (self.coefficient * loss(label) + (1 - self.coefficient) * loss(self.label)).mean()


@dataclass(frozen=True)
class Draw:
    """How samples are mixed.

    Attributes:
        partner: sample indices int64 (B,); of one that is not mixed, its own.
        coefficient: share of the own sample, float32 (B,).
        share: of the own sample in each pixel outside the box, in 65536ths, int64 (B,).
        box: where the partner alone is seen, as (top, bottom, left, right) int64 (B, 4), ends exclusive.
    """

    partner: Tensor
    coefficient: Tensor
    share: Tensor
    box: Tensor

    def to(self, device: torch.device) -> Draw:
        """Return this draw on a device."""
        moved = (x.to(device) for x in (self.partner, self.coefficient, self.share, self.box))
        return Draw(*moved)


class MixingSpace:
    """Mixtures; the id seeds the draws. What each sample shows before it is mixed is not this space's."""

    count: int | None = None

    def __init__(self, params: Mixing) -> None:
        self.params = params
        match params:
            case MixupOrCutMix():
                self.alphas, self.boxed = (params.mixup, params.cutmix), params.switch
            case Mixup():
                self.alphas, self.boxed = (params.alpha, params.alpha), 0.0
            case _:
                self.alphas, self.boxed = (params.alpha, params.alpha), 1.0
        self._tables: dict[torch.device, Tensor] = {}

    def apply(self, image: Tensor, view: Tensor, index: Tensor) -> Tensor:
        """Return the images as they are: `mixed` mixes them, which needs the partners' too."""
        return image

    def draw(self, view: Tensor, index: Tensor, total: int, size: Size) -> Draw:
        """Draw how samples are mixed; no value is read.

        Args:
            view: view ids int64 (B,), or int64 () for all; 0 mixes nothing.
            index: sample indices int64 (B,).
            total: number of samples of the split.
            size: height and width of the images.
        """
        view = view.expand(len(index))
        which, boxed, partner, share, y, x = hashed(index, view, 6, _SALT).unbind(1)
        mixes = (seeding.uniform(which) < self.params.probability) & (view != 0)
        cuts = seeding.uniform(boxed) < self.boxed

        quantile = share & (_QUANTILES - 1)
        table = self._table(index.device)  # (2, quantiles)
        share = torch.where(mixes, table.flatten()[quantile + cuts * _QUANTILES], _WHOLE)

        box, outside = _boxes(share, y, x, *sides(size))
        box = torch.where((mixes & cuts)[:, None], box, 0)
        coefficient = torch.where(mixes & cuts, outside, share.double() / _WHOLE).float()
        return Draw(
            partner=torch.where(mixes, partner % total, index),
            coefficient=coefficient,
            share=torch.where(mixes & ~cuts, share, _WHOLE),
            box=box,
        )

    def _table(self, device: torch.device) -> Tensor:
        """Return shares in 65536ths, int64 (2, quantiles): of mixup, and of CutMix."""
        if device not in self._tables:
            shares = np.stack([_beta(alpha) for alpha in self.alphas])
            self._tables[device] = torch.from_numpy(shares).to(device)
        return self._tables[device]


def mixed(own: Tensor, other: Tensor, draw: Draw) -> Tensor:
    """Return mixtures uint8 (B, C, H, W), rounded to the nearest value.

    Args:
        own: the samples' own views, uint8 (B, C, H, W).
        other: those of their partners.
        draw: how they are mixed.
    """
    height, width = own.shape[2:]
    rows, columns = (torch.arange(side, device=own.device) for side in (height, width))
    top, bottom, left, right = (side[:, None] for side in draw.box.unbind(1))  # each (B, 1)
    down, across = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    inside = down[:, :, None] & across[:, None, :]  # (B, H, W)

    share = torch.where(inside, 0, draw.share[:, None, None]).int()[:, None]  # (B, 1, H, W)
    total = share * own.int() + (_WHOLE - share) * other.int()  # below 2^24
    return ((total + _WHOLE // 2) >> 16).to(torch.uint8)


class MixedImages:
    """Views that are read with those of their partners, and mixed on the device.

    Args:
        images: gives the views before they are mixed.
        mixing: how they are mixed.
        total: number of samples of the split.
        size: height and width of the images.
    """

    def __init__(self, images: Images, mixing: MixingSpace, total: int, size: Size) -> None:
        self.images, self.mixing, self.total, self.size = images, mixing, total, size
        self.ahead = images.ahead

    def begin(self, slot: int, index: Tensor) -> Callable[[], Tensor]:
        """Start on a batch and its partners; see `pipeline.data.images.Images.begin`."""
        if slot == 0:
            return self.images.begin(slot, index)
        draw = self.mixing.draw(torch.tensor(slot), index, self.total, self.size)
        both = self.images.begin(slot, torch.cat((index, draw.partner)))

        def finish() -> Tensor:
            own, other = both().chunk(2)
            return mixed(own, other, draw.to(own.device))

        return finish


def _beta(alpha: float) -> NDArray[np.int64]:
    """Return quantiles of Beta(alpha, alpha) at equal distances, in 65536ths."""
    from scipy.special import betaincinv

    places = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    shares: NDArray[np.int64] = np.rint(betaincinv(alpha, alpha, places) * _WHOLE).astype(np.int64)
    return shares


def _boxes(share: Tensor, y: Tensor, x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return boxes of which an image is left that share, and what is left when they end at its border.

    Args:
        share: in 65536ths, int64 (B,).
        y: draws of the row of the center, int64 (B,).
        x: of its column.
        height: of the images.
        width: of the images.

    Returns:
        (top, bottom, left, right) int64 (B, 4), and the share outside float64 (B,).
    """
    root = ((_WHOLE - share).double() / _WHOLE).sqrt()
    ends = []
    for draw, side in ((y, height), (x, width)):
        half = (side * root).long() // 2  # as the authors round: an odd side loses a pixel
        center = draw % side
        ends += [(center - half).clamp(min=0), (center + half).clamp(max=side)]
    top, bottom, left, right = ends
    area = (bottom - top) * (right - left)
    return torch.stack(ends, dim=1), (height * width - area).double() / (height * width)

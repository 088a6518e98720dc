"""Views: augmentation as a pure, batched function of an integer.

View 0 is the plain image. Which view sample i shows in slot s is a stateless pseudo-random order of its own,
so the store can hold slots and every run, seed and worker agrees on them. Slot 0 is the plain view; slots
1 to S are augmented ones, and an epoch shows one slot. A seed visits all slots before it repeats one.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline import seeding
from pipeline.compute.precision import full_products
from pipeline.data.color import ColorJitterSpace
from pipeline.data.draws import hashed, uniform
from pipeline.data.erasing import RandomErasingSpace
from pipeline.data.mixing import MixingSpace
from pipeline.data.rand_augment import RandAugmentSpace
from pipeline.data.two_views import TwoViewsSpace
from pipeline.errors import ParamsError
from pipeline.params.size import Size, shown, sides
from pipeline.params.views import (
    ColorJitter,
    CropFlip,
    CutMix,
    Mixup,
    MixupOrCutMix,
    Plain,
    RandAugment,
    RandomErasing,
    RandomResizedCrop,
    RotateFlip,
    Slots,
    Stack,
    TwoViews,
    ViewParams,
)

_UNLIMITED = 1 << 31
_ATTEMPTS = 10
_ROUNDS = 8
_FINE = 1 << 16  # parts of a pixel: the precision of Pillow's own places


class ViewSpace(Protocol):
    """A set of views.

    Attributes:
        count: number of views, the plain one included; None when they are unbounded.
    """

    count: int | None

    def apply(self, image: Tensor, view: Tensor, index: Tensor) -> Tensor:
        """Return the views `view` of images; of a space that mixes samples, what is mixed (`pipeline.data.mixing`).

        Args:
            image: uint8 (B, C, H, W).
            view: view ids int64 (B,).
            index: sample indices int64 (B,), for spaces that draw views per sample.

        Returns:
            uint8 (B, C, H, W).
        """
        ...


class PlainSpace:
    """The plain view alone."""

    count: int | None = 1

    def apply(self, image: Tensor, view: Tensor, index: Tensor) -> Tensor:
        """Return the images as they are."""
        return image


class CropFlipSpace:
    """Crops out of the padded image, and their mirror images.

    View id = flip * (2p + 1)^2 + position, where position counts the offsets row by row from the center on.
    """

    def __init__(self, params: CropFlip) -> None:
        self.params = params
        self.padding = params.padding
        self.reflect = params.fill == "reflect"
        self.positions = (2 * self.padding + 1) ** 2
        self.count: int | None = self.positions * (2 if params.flip else 1)

    def apply(self, image: Tensor, view: Tensor, index: Tensor) -> Tensor:
        """Return crops with one gather; see `ViewSpace.apply`."""
        height, width = image.shape[2:]
        check_size(self.params, (height, width), "'crop_flip'")
        side = 2 * self.padding + 1
        position = (view % self.positions + self.positions // 2) % self.positions
        row = position // side - self.padding
        column = position % side - self.padding
        rows = row[:, None] + torch.arange(height, device=image.device)  # (B, H)
        columns = column[:, None] + torch.arange(width, device=image.device)  # (B, W)
        columns = torch.where((view >= self.positions)[:, None], columns.flip(1), columns)

        if self.reflect:
            rows, columns = _mirrored(rows, height), _mirrored(columns, width)
        else:
            image = F.pad(image, (self.padding,) * 4)
            rows, columns = rows + self.padding, columns + self.padding

        # One place a pixel, the same for every channel: four times as fast as indexing rows and columns.
        places = rows[:, :, None] * image.shape[3] + columns[:, None, :]  # (B, H, W)
        places = places.view(len(image), 1, -1).expand(-1, image.shape[1], -1)  # (B, C, H * W)
        return image.flatten(2).gather(2, places).view(*image.shape[:2], height, width)


class RandomResizedCropSpace:
    """Random boxes resized to the full size; the id seeds a counter-based generator with the sample's index.

    Of indexed images the boxes are cut out of the whole photograph (`images.py`), and `apply` is not used.
    The box is drawn as by Szegedy et al. 2014 (arXiv:1409.4842): area and log-ratio uniform, up to ten
    attempts, else the largest centered square. Bilinear within the box; it never shrinks, so there is no aliasing.
    """

    count: int | None = None

    def __init__(self, params: RandomResizedCrop) -> None:
        self.params = params

    def apply(self, image: Tensor, view: Tensor, index: Tensor) -> Tensor:
        """Return resized boxes; see `ViewSpace.apply`."""
        height, width = image.shape[2:]
        heights, widths = torch.full_like(view, height), torch.full_like(view, width)
        boxes, flip = self.boxes(view, index, heights, widths)
        top, left, tall, wide = boxes.float().unbind(1)  # each (B,)

        # Center and half extent of the box in grid_sample's coordinates, which run from -1 to 1.
        scale_x, scale_y = wide / width, tall / height
        shift_x, shift_y = (2 * left + wide) / width - 1, (2 * top + tall) / height - 1
        theta = torch.zeros(len(image), 2, 3, device=image.device)
        theta[:, 0, 0] = torch.where(flip, -scale_x, scale_x)
        theta[:, 1, 1] = scale_y
        theta[:, 0, 2], theta[:, 1, 2] = shift_x, shift_y
        # A product of matrices: in TF32 a place in a large image is off by a part of a pixel.
        with full_products():
            grid = F.affine_grid(theta, list(image.shape), align_corners=False)  # (B, H, W, 2)

        # Between the centers of the box's outermost pixels: nothing outside the box is mixed in.
        low = torch.stack(((2 * left + 1) / width, (2 * top + 1) / height), dim=1) - 1  # (B, 2)
        high = low + 2 * torch.stack(((wide - 1) / width, (tall - 1) / height), dim=1)
        grid = grid.clamp(low[:, None, None], high[:, None, None])

        crop = F.grid_sample(image.float(), grid, padding_mode="border", align_corners=False)
        crop = crop.round().clamp(0, 255).to(torch.uint8)
        return torch.where((view == 0)[:, None, None, None], image, crop)

    def boxes(self, view: Tensor, index: Tensor, height: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        """Return the boxes that views show, as (top, left, height, width) int64 (B, 4), and whether they are mirrored.

        Computed in float64: so no device rounds to another pixel than the next, nor a sample in another batch.

        Args:
            view: view ids int64 (B,).
            index: sample indices int64 (B,).
            height: height of each image, int64 (B,).
            width: as `height`.
        """
        draws = uniform(index, view, 4 * _ATTEMPTS + 1)  # (B, 4 * attempts + 1)
        share, ratio, y, x = draws[:, :-1].double().view(len(draws), 4, _ATTEMPTS).unbind(1)  # (B, attempts)

        low, high = (math.log(bound) for bound in self.params.ratio)
        smallest, largest = self.params.scale
        area = (height * width)[:, None] * (smallest + share * (largest - smallest))
        aspect = (low + ratio * (high - low)).exp()
        wide, tall = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()

        fits = (wide >= 1) & (wide <= width[:, None]) & (tall >= 1) & (tall <= height[:, None])
        first = fits.int().argmax(dim=1, keepdim=True)  # the first attempt that fits
        wide, tall, y, x = (draw.gather(1, first)[:, 0] for draw in (wide, tall, y, x))

        none, side = ~fits.any(dim=1), torch.minimum(height, width).double()
        wide, tall = torch.where(none, side, wide), torch.where(none, side, tall)
        top = torch.where(none, (height - tall) / 2, y * (height - tall + 1))
        left = torch.where(none, (width - wide) / 2, x * (width - wide + 1))

        mirrored = (draws[:, -1] < 0.5) if self.params.flip else torch.zeros_like(view, dtype=torch.bool)
        return torch.stack((top.floor(), left.floor(), tall, wide), dim=1).long(), mirrored


class RotateFlipSpace:
    """Rotations about the center, counter-clockwise, and their mirror images; corners that nothing covers are black.

    View id = flip * (2 steps + 1) + position, where position counts the angles from 0 up to the largest, and then from
    the smallest on. Each pixel shows the one that it comes from, to the bit as torchvision rotates images of Pillow
    (nearest, which letKD's code takes): its places are whole 65536ths of a pixel, so no device rounds to another one.
    """

    def __init__(self, params: RotateFlip) -> None:
        self.params = params
        self.angles = 2 * params.steps + 1
        self.count: int | None = self.angles * (2 if params.flip else 1)

    def apply(self, image: Tensor, view: Tensor, index: Tensor) -> Tensor:
        """Return rotated images with one gather; see `ViewSpace.apply`."""
        height, width = image.shape[2:]
        position = (view % self.angles + self.params.steps) % self.angles - self.params.steps
        angle = position.double() * (math.radians(self.params.degrees) / self.params.steps)  # (B,)
        cosine, sine = angle.cos(), angle.sin()

        # From the center of a shown pixel to the place that it shows: the rotation backwards.
        across, down = (1 - width) / 2, (1 - height) / 2
        left = _fine(cosine * across - sine * down + width / 2)
        top = _fine(sine * across + cosine * down + height / 2)
        cosine, sine = _fine(cosine), _fine(sine)

        column = torch.arange(width, device=image.device)
        columns = torch.where((view >= self.angles)[:, None], column.flip(0), column)[:, None, :]  # (B, 1, W)
        rows = torch.arange(height, device=image.device)[:, None]  # (H, 1)
        x = (left + cosine * columns - sine * rows) // _FINE  # (B, H, W)
        y = (top + sine * columns + cosine * rows) // _FINE

        covered = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        places = torch.where(covered, y * width + x, 0).view(len(image), 1, -1)
        places = places.expand(-1, image.shape[1], -1)  # (B, C, H * W)
        rotated = image.flatten(2).gather(2, places).view(*image.shape[:2], height, width)
        return rotated * covered[:, None]


class StackSpace:
    """Spaces of which each changes what the one before shows.

    Where all of them are finite, an id is a number whose digits are theirs, so every combination is a view. Else the
    id seeds them all; finite ones show any of their views equally often.
    """

    def __init__(self, params: Stack) -> None:
        self.params = params
        self.parts = [(part.space, view_space(part)) for part in params.parts]
        counts = [space.count for _, space in self.parts]
        finite = [count for count in counts if count is not None]
        self.count: int | None = math.prod(finite) if len(finite) == len(counts) else None

    def apply(self, image: Tensor, view: Tensor, index: Tensor) -> Tensor:
        """Return views of views; see `ViewSpace.apply`."""
        return self._applied(0, image, view, index)

    def after_crop(self, image: Tensor, view: Tensor, index: Tensor) -> Tensor:
        """Do all but the first space to images that show its views already; see `ViewSpace.apply`."""
        return self._applied(1, image, view, index)

    def _applied(self, first: int, image: Tensor, view: Tensor, index: Tensor) -> Tensor:
        rest = view
        for name, space in self.parts[first:]:
            own = view
            if space.count is not None and self.count is not None:
                own, rest = rest % space.count, rest // space.count
            elif space.count is not None:
                drawn = hashed(index, view, 1, seeding.derive("stack", name))[:, 0] % space.count
                own = torch.where(view == 0, 0, drawn)
            image = space.apply(image, own, index)
        return image


def cropped(space: ViewSpace) -> RandomResizedCropSpace | None:
    """Return the random box with which the views begin, if they do: it is cut out of the whole photograph."""
    first = space.parts[0][1] if isinstance(space, StackSpace) else space
    return first if isinstance(first, RandomResizedCropSpace) else None


def mixing(space: ViewSpace) -> MixingSpace | None:
    """Return what mixes the views of samples with each other, if anything does: the last of a stack."""
    last = space.parts[-1][1] if isinstance(space, StackSpace) else space
    return last if isinstance(last, MixingSpace) else None


def view_space(params: ViewParams) -> ViewSpace:
    """Return the view space that `params` describe."""
    match params:
        case Stack():
            return StackSpace(params)
        case ColorJitter():
            return ColorJitterSpace(params)
        case RandAugment():
            return RandAugmentSpace(params)
        case RandomErasing():
            return RandomErasingSpace(params)
        case Mixup() | CutMix() | MixupOrCutMix():
            return MixingSpace(params)
        case CropFlip():
            return CropFlipSpace(params)
        case RandomResizedCrop():
            return RandomResizedCropSpace(params)
        case RotateFlip():
            return RotateFlipSpace(params)
        case Plain():
            return PlainSpace()
        case TwoViews():
            return TwoViewsSpace(view_space(params.weak), view_space(params.strong))


def check_size(params: ViewParams, size: Size, what: str) -> None:
    """Refuse images that are too small for a view space.

    Args:
        params: the view space.
        size: height and width of the images, in pixels.
        what: where the views stand in params.yaml, for the error.

    Raises:
        ParamsError: the padding is as large as the images: reflection has no pixels for it, and of images padded with
            zeros some crops would show nothing.
    """
    for part in params.parts if isinstance(params, Stack) else ():
        check_size(part, size, what)
    shortest = min(sides(size))
    if isinstance(params, CropFlip) and params.padding >= shortest:
        raise ParamsError(
            f"params.yaml: {what} pads images of {shown(size)} by {params.padding}, expected less than {shortest}. "
            f"Set padding to {shortest - 1} or less, then: dvc repro params"
        )


def check_channels(params: ViewParams, channels: int, what: str) -> None:
    """Refuse images whose colors a view space would not know how to change.

    Args:
        params: the view space.
        channels: of the images.
        what: where the views stand in params.yaml, for the error.

    Raises:
        ParamsError: they have neither one channel nor three, or are gray and would get another saturation or hue.
    """
    for part in params.parts if isinstance(params, Stack) else ():
        check_channels(part, channels, what)
    if isinstance(params, ColorJitter | RandAugment) and channels not in (1, 3):
        raise ParamsError(
            f"params.yaml: {what} has '{params.space}', which reads images of 1 or 3 channels, and these have "
            f"{channels}. Drop it."
        )
    if isinstance(params, ColorJitter) and channels == 1 and (params.saturation or params.hue):
        raise ParamsError(
            f"params.yaml: {what} changes the saturation or hue of images of 1 channel, which have none. Set "
            "color_jitter to {saturation: 0, hue: 0}, then: dvc repro params"
        )


def num_slots(space: ViewSpace, slots: Slots, what: str) -> int:
    """Resolve a number of slots.

    Args:
        space: the views that there are.
        slots: a number, or "all".
        what: where it stands in params.yaml, for the error.

    Raises:
        ParamsError: "all" of an unbounded space, more slots than views, or half of a weak and a strong view.
    """
    if slots == "all":
        if space.count is None:
            raise ParamsError(
                f"params.yaml: {what} is 'all', but this view space is unbounded. Give a number."
            )
        return space.count
    if space.count is not None and slots > space.count:
        raise ParamsError(f"params.yaml: {what} is {slots}, but this view space has {space.count} views.")
    if isinstance(space, TwoViewsSpace) and slots % 2:
        raise ParamsError(
            f"params.yaml: {what} is {slots}, and slots are weak and strong in turns, expected an even number. Set it "
            f"to {slots + 1}, then: dvc repro params"
        )
    return slots


def view_ids(space: ViewSpace, slot: int, index: Tensor) -> Tensor:
    """Return the view ids int64 (B,) that samples `index` int64 (B,) show in `slot`."""
    if slot == 0:
        return torch.zeros_like(index)
    if isinstance(space, TwoViewsSpace):
        part, own = space.part(slot)
        return space.ids(slot, view_ids(part, own, index))
    if space.count is None:
        return torch.full_like(index, slot)  # the sample's index seeds the draw already
    # Beside another space that has more views, a space begins again when all of its own have been shown.
    return permute(torch.full_like(index, (slot - 1) % space.count), space.count, key=index)


def slot_of(seed: int, epoch: int, slots: int | None) -> int:
    """Return the slot that `epoch` shows: all of 1..slots in a random order, again and again.

    Args:
        seed: the run's.
        epoch: counted from 0.
        slots: number of augmented slots; 0 shows the plain view only, None never repeats a view.
    """
    if slots is None:
        return 1 + seeding.derive(seed, "slot", epoch) % _UNLIMITED
    if slots == 0:
        return 0
    cycle, position = divmod(epoch, slots)
    order = torch.randperm(slots, generator=seeding.generator(seed, "slots", cycle))
    return 1 + int(order[position])


def permute(position: Tensor, size: int, key: Tensor) -> Tensor:
    """Permute 0..size-1 pseudo-randomly, a permutation of its own for every key, without storing any.

    A Feistel network over the next power of four, walked until it lands inside (Black and Rogaway 2002,
    "Ciphers with arbitrary finite domains"). Eight rounds: after four, small sizes are visibly uneven.

    Args:
        position: int64 (B,), in 0..size-1.
        size: number of elements.
        key: int64 (B,).

    Returns:
        int64 (B,), in 0..size-1.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    keys = [seeding.mix(key * _ROUNDS + step + 1) for step in range(_ROUNDS)]
    x = _feistel(position, half, keys)
    while bool((outside := x >= size).any()):
        x = torch.where(outside, _feistel(x, half, keys), x)
    return x


def _feistel(x: Tensor, half: int, keys: list[Tensor]) -> Tensor:
    mask = (1 << half) - 1
    left, right = x >> half, x & mask
    for key in keys:
        left, right = right, left ^ (seeding.mix(right + key) & mask)
    return (left << half) | right


def _mirrored(x: Tensor, size: int) -> Tensor:
    """Reflect coordinates outside 0..size-1 at the border pixels."""
    x = x.abs()
    return size - 1 - (size - 1 - x).abs()


def _fine(x: Tensor) -> Tensor:
    """Round float64 (B,) to whole parts of a pixel: int64 (B, 1, 1)."""
    return (x * _FINE + 0.5).floor().long()[:, None, None]

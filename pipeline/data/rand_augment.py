"""RandAugment (Cubuk et al. 2019, arXiv:1909.13719) as views: some operations in a row, all of one strength.

The fourteen operations and their ranges are torchvision's. What moves pixels goes to the places that Pillow takes,
whole 65536ths of a pixel, and what changes bytes by their value is a table of 256 bytes, so no device gives another
picture. All of it is done to every image of a batch, and what an image's operation does not ask for leaves it as it is:
which operation that is, no step has to read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline import seeding
from pipeline.data import color
from pipeline.data.draws import uniform
from pipeline.params.views import RandAugment

OPERATIONS = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast",
    "sharpness", "posterize", "solarize", "auto_contrast", "equalize",
)  # fmt: skip
STRONGEST = 30
_SALT = seeding.derive("rand_augment")
_FINE = 1 << 16


class RandAugmentSpace:
    """Operations that the id seeds the draw of, and their direction; torchvision draws both likewise."""

    count: int | None = None

    def __init__(self, params: RandAugment) -> None:
        self.params = params
        self.share = params.magnitude / STRONGEST
        self._matrices: dict[tuple[int, int, torch.device], Tensor] = {}

    def apply(self, image: Tensor, view: Tensor, index: Tensor) -> Tensor:
        """Return changed images; see `ViewSpace.apply`."""
        changed = image
        kinds, ways = uniform(index, view, 2 * self.params.operations, _SALT).chunk(2, dim=1)
        for kind, way in zip(kinds.unbind(1), ways.unbind(1), strict=True):
            changed = self.changed(changed, (kind * len(OPERATIONS)).long(), way < 0.5)
        return torch.where((view == 0)[:, None, None, None], image, changed)

    def changed(self, image: Tensor, operation: Tensor, back: Tensor) -> Tensor:
        """Do one operation to each image.

        Args:
            image: uint8 (B, C, H, W).
            operation: place in `OPERATIONS`, int64 (B,).
            back: whether it goes the other way, where it has two: to the left, darker; bool (B,).
        """
        # An operation is one of these, so their order does not matter.
        image = self._moved(image, operation, back)
        factor = torch.where(back, 1 - 0.9 * self.share, 1 + 0.9 * self.share)

        def of(name: str) -> Tensor:
            return torch.where(operation == OPERATIONS.index(name), factor, 1.0)

        table = self._table(image, operation, factor)  # (B, C, 256)
        image = table.gather(2, image.flatten(2).long()).view(image.shape)
        image = color.saturated(image, of("color"))
        return _sharpened(image, of("sharpness"))

    def _moved(self, image: Tensor, operation: Tensor, back: Tensor) -> Tensor:
        """Return sheared, moved and turned images, by one gather; what nothing covers is black."""
        height, width = image.shape[2:]
        place = (height, width, image.device)
        if place not in self._matrices:
            # Once: a step that is captured makes no tensor on the CPU.
            ways = [(name, sign) for name in OPERATIONS for sign in (1.0, -1.0)]
            matrices = [_matrix(name, self.share, sign, height, width) for name, sign in ways]
            self._matrices[place] = torch.tensor(matrices, device=image.device)
        matrix = self._matrices[place][2 * operation + back]  # (B, 6)
        a, b, left, d, e, top = (x[:, None, None] for x in matrix.unbind(1))

        columns = torch.arange(width, device=image.device)
        rows = torch.arange(height, device=image.device)[:, None]
        x, y = (left + a * columns + b * rows) // _FINE, (top + d * columns + e * rows) // _FINE  # (B, H, W)
        covered = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        places = torch.where(covered, y * width + x, 0).view(len(image), 1, -1)
        moved = image.flatten(2).gather(2, places.expand(-1, image.shape[1], -1)).view(image.shape)
        return moved * covered[:, None]

    def _table(self, image: Tensor, operation: Tensor, factor: Tensor) -> Tensor:
        """Return what each byte becomes, uint8 (B, C, 256)."""
        same = torch.arange(256, device=image.device, dtype=torch.uint8)
        table = same.expand(len(image), image.shape[1], 256)[:, :, None]  # as an image of one row
        bits, threshold = 8 - round(4 * self.share), 255 * (STRONGEST - self.params.magnitude) / STRONGEST
        for name, other in (
            ("brightness", color.brightened(table, factor)),
            ("contrast", color.blended(table, color.mean(image), factor)),
            ("posterize", table & (256 - (1 << (8 - bits)))),
            ("solarize", torch.where(table >= threshold, 255 - table, table)),
            ("auto_contrast", _stretched(image)[:, :, None]),
            ("equalize", _equalized(image)[:, :, None]),
        ):
            chosen = (operation == OPERATIONS.index(name))[:, None, None, None]
            table = torch.where(chosen, other, table)
        return table[:, :, 0]


def _matrix(name: str, share: float, sign: float, height: int, width: int) -> Sequence[int]:
    """Return where a pixel of a moved image comes from: x = a x + b y + left, y = d x + e y + top, in 65536ths."""
    a, b, c, d, e, f = 1.0, 0.0, 0.0, 0.0, 1.0, 0.0
    if name == "shear_x":
        b = sign * 0.3 * share
    elif name == "shear_y":
        d = sign * 0.3 * share
    elif name == "translate_x":
        c = -sign * int(150 / 331 * width * share)
    elif name == "translate_y":
        f = -sign * int(150 / 331 * height * share)
    elif name == "rotate":
        # Backwards, from the center of the shown pixel.
        angle = sign * math.radians(30 * share)
        a, b, d, e = math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)
        c = width / 2 - a * width / 2 - b * height / 2
        f = height / 2 - d * width / 2 - e * height / 2

    # Of the centers of pixels.
    parts = (a, b, c + a / 2 + b / 2, d, e, f + d / 2 + e / 2)
    return [math.floor(part * _FINE + 0.5) for part in parts]


def _stretched(image: Tensor) -> Tensor:
    """Return the table that spreads each channel over all bytes, uint8 (B, C, 256); one of a single value stays."""
    flat = image.flatten(2)
    low, high = flat.amin(dim=2, keepdim=True).float(), flat.amax(dim=2, keepdim=True).float()
    single = low == high
    scale = torch.where(single, 1.0, 255 / torch.where(single, 1.0, high - low))
    values = torch.arange(256, device=image.device)
    return ((values - torch.where(single, 0.0, low)) * scale).clamp(0, 255).to(torch.uint8)


def _equalized(image: Tensor) -> Tensor:
    """Return the table that gives each channel a flat histogram, as Pillow does, uint8 (B, C, 256)."""
    batch, channels = image.shape[:2]
    flat = image.flatten(2).long()  # (B, C, H * W)
    start = 256 * torch.arange(batch * channels, device=image.device).view(batch, channels, 1)
    # Counted along one dimension: so no device needs an order for it.
    counts = torch.zeros(batch * channels * 256, dtype=torch.int64, device=image.device)
    counts.scatter_add_(0, (start + flat).flatten(), torch.ones_like(flat).flatten())
    counts = counts.view(batch, channels, 256)

    last = counts.gather(2, flat.amax(dim=2, keepdim=True))  # pixels of the brightest value
    step = (flat.shape[2] - last) // 255  # (B, C, 1)
    below = counts.cumsum(dim=2) - counts
    table = ((below + step // 2) // step.clamp(min=1)).clamp(0, 255)
    values = torch.arange(256, device=image.device)
    # torchvision leaves the first entry at 0, whatever half a step would make of it.
    table = torch.where(values == 0, 0, table)
    return torch.where(step == 0, values, table).to(torch.uint8)


def _sharpened(image: Tensor, factor: Tensor) -> Tensor:
    """Return images (B, C, H, W) whose distance from their blur is multiplied; their border stays as it is."""
    if min(image.shape[2:]) <= 2:
        return image
    whole = image.int()
    height, width = image.shape[2:]
    total = 4 * whole[:, :, 1:-1, 1:-1]
    for y in range(3):
        for x in range(3):
            total = total + whole[:, :, y : y + height - 2, x : x + width - 2]
    blurred = image.clone()
    blurred[:, :, 1:-1, 1:-1] = (total.float() / 13).round().to(torch.uint8)
    return color.blended(image, blurred, factor)

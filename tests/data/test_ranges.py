"""Views of ranges of samples: the same wherever the images lie and whoever reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from device_fixtures import current
from feature_fixtures import CROPS, prepare
from torch import Tensor

from pipeline.data import ranges
from pipeline.data.image_array import ImageArray
from pipeline.data.images import Forward, MappedImages
from pipeline.data.prepared import Split
from pipeline.data.ranges import ReadAheadImages, ResidentRanges, copied, open_ranges
from pipeline.data.views import ViewSpace, view_ids, view_space
from pipeline.params.views import (
    Plain,
    RandomErasing,
    RandomResizedCrop,
    RotateFlip,
    Stack,
    ViewParams,
)

pytestmark = pytest.mark.usefixtures("device")

SPACES = [
    CROPS,
    Plain(space="plain"),
    RandomResizedCrop(space="random_resized_crop"),
    RotateFlip(space="rotate_flip"),
    Stack(
        space="stack", parts=(CROPS, RotateFlip(space="rotate_flip"), RandomErasing(space="random_erasing"))
    ),
]
# In order, with a shorter last batch, back, and slots that come again.
ASKED = [(0, 0, 16), (0, 16, 32), (0, 32, 50), (1, 0, 16), (1, 40, 50), (3, 3, 4), (1, 16, 32), (0, 0, 50)]


@pytest.fixture
def split(tmp_path: Path) -> Split:
    return prepare(tmp_path / "data").split("train")


def pixels(split: Split) -> ImageArray:
    assert isinstance(split.images, ImageArray)
    return split.images


def resident(split: Split, space: ViewSpace) -> ranges.Ranges:
    return ResidentRanges(copied(pixels(split), current().device), space)


def read_ahead(split: Split, space: ViewSpace) -> ranges.Ranges:
    return Forward(ReadAheadImages(pixels(split), space, current().device), len(split))


def opened(split: Split, space: ViewSpace) -> ranges.Ranges:
    return open_ranges(split, space, current().device)


@pytest.mark.parametrize("views", SPACES, ids=lambda views: views.space)
@pytest.mark.parametrize("make", [resident, read_ahead, opened])
def test_views_are_those_of_images_read_batch_by_batch(
    split: Split, views: ViewParams, make: Callable[[Split, ViewSpace], ranges.Ranges]
) -> None:
    space, device = view_space(views), current().device
    made, mapped = make(split, space), MappedImages(pixels(split), space, device)
    for slot, start, stop in ASKED:
        slot = min(slot, 1) if space.count == 1 else slot
        view = made.take(slot, start, stop)
        assert view.device.type == device.type
        assert torch.equal(view, mapped.begin(slot, torch.arange(start, stop))())


def test_the_view_ids_of_a_slot_are_computed_once(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[tuple[int, int]] = []

    def noted(space: ViewSpace, slot: int, index: Tensor) -> Tensor:
        counts.append((slot, len(index)))
        return view_ids(space, slot, index)

    monkeypatch.setattr(ranges, "view_ids", noted)
    made = resident(split, view_space(CROPS))
    for slot in (0, 1, 2):
        for start in range(0, 50, 8):
            made.take(slot, start, min(start + 8, 50))
    assert counts == [(0, 50), (1, 50), (2, 50)]


@pytest.mark.cpu
def test_images_are_copied_block_by_block(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "BLOCK_BYTES", 7 * pixels(split)[0].nbytes)
    assert np.array_equal(copied(pixels(split), torch.device("cpu")).numpy(), pixels(split).pixels)

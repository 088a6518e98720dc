"""A weak and a strong view of each sample: slots in turns, each of its own space, wherever the images lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from device_fixtures import current
from error_fixtures import one_line
from feature_fixtures import CROPS, prepare
from torch import Tensor

from pipeline.data.images import Forward, open_images, stream_images
from pipeline.data.prepared import Split
from pipeline.data.ranges import open_ranges, open_rows
from pipeline.data.two_views import TwoViewsSpace
from pipeline.data.views import num_slots, view_ids, view_space
from pipeline.errors import ParamsError, UnknownNameError
from pipeline.params.plug import Plug
from pipeline.params.views import (
    RandomErasing,
    RotateFlip,
    Stack,
    TwoViews,
    dataset_views,
    weak,
)
from pipeline.params.wording import described

pytestmark = pytest.mark.usefixtures("device")

FINITE = RotateFlip(space="rotate_flip", degrees=90, steps=1)  # 6 views
ERASED = Stack(space="stack", parts=(CROPS, RandomErasing(space="random_erasing", probability=1)))
PAIRS = [
    TwoViews(weak=CROPS, strong=ERASED),
    TwoViews(weak=FINITE, strong=CROPS),
    TwoViews(weak=ERASED, strong=FINITE),
]


def where() -> torch.device:
    return current().device


@pytest.fixture
def split(tmp_path: Path) -> Split:
    return prepare(tmp_path / "data").split("train")


def whole(split: Split, space: Any, slot: int) -> Tensor:
    """Return the views uint8 (N, C, H, W) of a slot, by one batch from the disk."""
    return stream_images(split, space, current().device).begin(slot, torch.arange(len(split)))()


@pytest.mark.parametrize("params", PAIRS, ids=lambda params: f"{params.weak.space}-{params.strong.space}")
@pytest.mark.parametrize(
    "take",
    [
        whole,
        lambda split, space, slot: open_images(split, space, where())[0].begin(
            slot, torch.arange(len(split))
        )(),
        lambda split, space, slot: open_ranges(split, space, where()).take(slot, 0, len(split)),
        lambda split, space, slot: Forward(open_rows(split, space, where()), len(split)).take(
            slot, 0, len(split)
        ),
    ],
    ids=["streamed", "resident", "ranges", "rows"],
)
def test_odd_slots_are_the_weak_spaces_and_even_ones_the_strong_spaces(
    split: Split, params: TwoViews, take: Callable[..., Tensor]
) -> None:
    space, own = view_space(params), {1: view_space(params.weak), 0: view_space(params.strong)}
    every = torch.arange(len(split), device=current().device)
    plain = whole(split, view_space(params.weak), 0)
    assert torch.equal(take(split, space, 0), plain)
    assert not view_ids(space, 0, every).any()
    for slot in range(1, 7):
        pair = (slot + 1) // 2
        expected = whole(split, own[slot % 2], pair)
        assert torch.equal(take(split, space, slot), expected)
        # The ids tell both spaces apart, and are enough to find the views again.
        ids = view_ids(space, slot, every)
        assert torch.equal(ids, 2 * view_ids(own[slot % 2], pair, every) + (slot + 1) % 2)
        assert torch.equal(space.apply(plain, ids, every), expected)


def test_the_smaller_space_begins_again_when_it_has_shown_all_of_its_views(split: Split) -> None:
    params = TwoViews(weak=FINITE, strong=CROPS)
    space, own = view_space(params), view_space(FINITE)
    assert own.count == 6
    assert space.count == 2 * (view_space(CROPS).count or 0)
    assert num_slots(space, "all", "here") == space.count
    index = torch.arange(len(split), device=current().device)
    for pair in range(1, 7):
        assert torch.equal(view_ids(space, 2 * pair - 1, index), view_ids(space, 2 * (pair + 6) - 1, index))
    shown = torch.stack([view_ids(own, slot, index) for slot in range(1, 7)])
    assert all(sorted(column.tolist()) == list(range(6)) for column in shown.T)


@pytest.mark.cpu
def test_an_odd_number_of_slots_is_half_a_pair() -> None:
    space = view_space(PAIRS[1])
    assert num_slots(space, 4, "runs.mlld.slots") == 4
    with pytest.raises(
        ParamsError, match=r"runs\.mlld\.slots is 3, and slots are weak and strong in turns"
    ) as e:
        num_slots(space, 3, "runs.mlld.slots")
    assert "Set it to 4" in str(e.value)
    one_line(e)
    assert view_space(PAIRS[0]).count is None
    with pytest.raises(ParamsError, match="is 'all', but this view space is unbounded"):
        num_slots(view_space(PAIRS[0]), "all", "runs.mlld.slots")


@pytest.mark.cpu
def test_a_data_set_has_one_view_or_two() -> None:
    crop: tuple[Plug, ...] = (Plug.of("crop_flip", padding=1),)
    one = dataset_views(crop, None, "datasets.d")
    both = dataset_views(crop, (*crop, Plug.of("random_erasing")), "datasets.d")
    assert isinstance(both, TwoViews)
    assert weak(both) == weak(one) == one
    assert isinstance(view_space(both), TwoViewsSpace)
    assert described(both).startswith(
        "crop_flip {padding: 1, fill: zero, flip: true}; strong: crop_flip {padding: 1, "
    )
    with pytest.raises(UnknownNameError, match=r"view space of datasets\.d\.strong_views"):
        dataset_views(crop, (Plug.of("crop"),), "datasets.d")

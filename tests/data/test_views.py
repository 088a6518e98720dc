"""Views are pure functions of (slot, sample), and the finite spaces are visited whole."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from device_fixtures import here
from error_fixtures import one_line
from feature_fixtures import crop_flip, random_box
from PIL import Image
from scipy.stats import chi2
from torch import Tensor
from torchvision.transforms import functional as reference

from pipeline import seeding
from pipeline.data.views import check_size, num_slots, permute, slot_of, view_ids, view_space
from pipeline.errors import ParamsError
from pipeline.params.views import (
    ColorJitter,
    CropFlip,
    Plain,
    RandAugment,
    RandomErasing,
    RandomResizedCrop,
    RotateFlip,
    Slots,
    Stack,
    ViewParams,
)

pytestmark = pytest.mark.usefixtures("device")

CROP_FLIP = CropFlip(space="crop_flip", padding=2)
RESIZED = RandomResizedCrop(space="random_resized_crop")
ROTATED = RotateFlip(space="rotate_flip", steps=3)
SPACES: list[ViewParams] = [
    Plain(space="plain"),
    CROP_FLIP,
    CropFlip(space="crop_flip", padding=1, fill="reflect", flip=False),
    CropFlip(space="crop_flip", padding=0),
    ROTATED,
    RESIZED,
    ColorJitter(space="color_jitter", hue=0.1),
    RandAugment(space="rand_augment"),
    RandomErasing(space="random_erasing", fill="noise"),
    Stack(space="stack", parts=(CROP_FLIP, ROTATED)),
    Stack(space="stack", parts=(RESIZED, ROTATED, ColorJitter(space="color_jitter"))),
    Stack(
        space="stack",
        parts=(CROP_FLIP, RandAugment(space="rand_augment"), RandomErasing(space="random_erasing")),
    ),
]


def random_images(count: int, channels: int = 3, size: int = 8, seed: int = 0) -> Tensor:
    shape = (count, channels, size, size)
    return here(torch.randint(0, 256, shape, dtype=torch.uint8, generator=seeding.generator("images", seed)))


def arange(count: int) -> Tensor:
    return here(torch.arange(count))


# Crop and flip.


@pytest.mark.parametrize("fill", ["zero", "reflect"])
@pytest.mark.parametrize(("padding", "flip"), [(0, True), (1, False), (3, True)])
@pytest.mark.parametrize("channels", [1, 3])
def test_crop_flip_pads_crops_and_mirrors(
    fill: Literal["zero", "reflect"], padding: int, flip: bool, channels: int
) -> None:
    space = view_space(CropFlip(space="crop_flip", padding=padding, fill=fill, flip=flip))
    assert space.count == (2 * padding + 1) ** 2 * (1 + flip)
    image = random_images(1, channels, size=5)[0]
    views = arange(space.count)
    found = space.apply(image.expand(space.count, -1, -1, -1), views, torch.zeros_like(views))
    for view in range(space.count):
        np.testing.assert_array_equal(
            found[view].cpu().numpy(), crop_flip(image.cpu().numpy(), view, padding, fill)
        )
    if fill == "zero":  # a wide mirrored border repeats itself
        assert len({one.cpu().numpy().tobytes() for one in found}) == space.count


@pytest.mark.parametrize("fill", ["zero", "reflect"])
def test_crop_flip_of_oblong_images(fill: Literal["zero", "reflect"]) -> None:
    space = view_space(CropFlip(space="crop_flip", padding=2, fill=fill))
    image = random_images(1, size=8)[:, :, :5]
    views = arange(50)
    found = space.apply(image.expand(50, -1, -1, -1), views, views)
    for view in range(50):
        np.testing.assert_array_equal(
            found[view].cpu().numpy(), crop_flip(image[0].cpu().numpy(), view, 2, fill)
        )


@pytest.mark.parametrize("fill", ["zero", "reflect"])
def test_padding_as_large_as_the_images_is_refused(fill: Literal["zero", "reflect"]) -> None:
    fits, large = (CropFlip(space="crop_flip", padding=padding, fill=fill) for padding in (7, 8))
    check_size(fits, 8, "datasets.d.views")
    with pytest.raises(ParamsError) as error:
        check_size(large, 8, "datasets.d.views")
    assert str(error.value) == (
        "params.yaml: datasets.d.views pads images of 8x8 by 8, expected less than 8. "
        "Set padding to 7 or less, then: dvc repro params"
    )
    check_size(fits, (8, 30), "datasets.d.views")
    with pytest.raises(ParamsError) as error:
        check_size(large, (30, 8), "datasets.d.views")
    one_line(error, "pads images of 30x8 by 8, expected less than 8.")
    oblong, views = random_images(3, size=9)[:, :, :, :8], arange(3)
    view_space(fits).apply(oblong, views, views)
    with pytest.raises(ParamsError, match="pads images of 9x8 by 8"):
        view_space(large).apply(oblong, views, views)


@pytest.mark.parametrize(
    "params", [Plain(space="plain"), CropFlip(space="crop_flip", padding=0), ROTATED, RESIZED], ids=str
)
def test_what_pads_nothing_takes_images_of_any_size(params: ViewParams) -> None:
    check_size(params, 1, "datasets.d.views")


# Rotate and flip.


@pytest.mark.parametrize(
    ("degrees", "steps", "height", "width"),
    [
        (20.0, 40, 64, 64),
        (20.0, 5, 8, 8),
        (33.3, 7, 9, 5),
        (20.0, 40, 12, 20),
        (90.0, 2, 6, 7),
        (179.0, 20, 32, 33),
        (20.0, 3, 1, 1),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_rotate_flip_is_torchvisions_rotation_of_pillow_images_to_the_bit(
    degrees: float, steps: int, height: int, width: int, channels: int
) -> None:
    space = view_space(RotateFlip(space="rotate_flip", degrees=degrees, steps=steps))
    angles = [*range(steps + 1), *range(-steps, 0)]
    assert space.count == 2 * len(angles)
    image = random_images(1, channels, size=64)[0, :, :height, :width]
    views = arange(space.count)
    found = space.apply(image.expand(space.count, -1, -1, -1), views, views).cpu().numpy()

    plane = image[0] if channels == 1 else image.permute(1, 2, 0)
    picture = Image.fromarray(plane.contiguous().cpu().numpy())
    for view in range(space.count):
        mirrored, position = divmod(view, len(angles))
        expected = reference.rotate(picture, angles[position] * degrees / steps)
        expected = reference.hflip(expected) if mirrored else expected
        pixels = np.asarray(expected).reshape(height, width, channels).transpose(2, 0, 1)
        np.testing.assert_array_equal(found[view], pixels)


def test_rotate_flip_without_flips_turns_to_both_sides_alike() -> None:
    space = view_space(RotateFlip(space="rotate_flip", degrees=90, steps=1, flip=False))
    assert space.count == 3
    image, views = random_images(1), arange(3)
    found = space.apply(image.expand(3, -1, -1, -1), views, views)
    for view, turns in ((0, 0), (1, 1), (2, -1)):  # counter-clockwise first
        assert torch.equal(found[view], image[0].rot90(turns, (1, 2)))


@pytest.mark.cpu
@pytest.mark.parametrize(("degrees", "steps"), [(20.0, 40), (20.0, 1000), (30.0, 3), (179.0, 1000)])
def test_no_place_of_a_rotation_is_so_near_to_the_next_one_that_devices_could_differ(
    degrees: float, steps: int
) -> None:
    """What is rounded to 65536ths lies further from a half than the last digits of float64 reach, or is no half."""
    angle = np.radians(degrees) / steps * np.arange(-steps, steps + 1)
    for size in (8, 32, 64, 224):
        offset = (1 - size) / 2
        parts = np.stack([
            np.cos(angle), np.sin(angle), offset * (np.cos(angle) - np.sin(angle)) + size / 2
        ]) * 65536  # fmt: skip
        assert np.abs(parts - np.floor(parts) - 0.5).min() > 1e-7


# What every space keeps.


@pytest.mark.parametrize("params", SPACES, ids=str)
def test_view_0_is_the_plain_image(params: ViewParams) -> None:
    images, index = random_images(20), arange(20)
    found = view_space(params).apply(images, torch.zeros_like(index), index)
    assert found.dtype == torch.uint8
    assert torch.equal(found, images)


@pytest.mark.parametrize("params", SPACES, ids=str)
def test_slot_0_shows_the_plain_view(params: ViewParams) -> None:
    assert view_ids(view_space(params), 0, here(torch.tensor([5, 0, 999]))).tolist() == [0, 0, 0]


@pytest.mark.parametrize("params", SPACES, ids=str)
def test_who_else_is_in_the_batch_does_not_matter(params: ViewParams) -> None:
    space, images = view_space(params), random_images(40)
    last = space.count or 7
    for slot in {1, last}:
        whole = space.apply(images, view_ids(space, slot, arange(40)), arange(40))
        order = here(torch.randperm(40, generator=seeding.generator("order", slot)))
        for index in [*order.split(7), here(torch.tensor([3])), here(torch.tensor([9, 9, 2]))]:
            part = space.apply(images[index], view_ids(space, slot, index), index)
            assert torch.equal(part, whole[index])


@pytest.mark.parametrize("params", SPACES[:5], ids=str)
def test_the_slots_of_a_finite_space_show_every_view_once(params: ViewParams) -> None:
    space, index = view_space(params), arange(300)
    assert space.count is not None
    seen = torch.stack([view_ids(space, slot, index) for slot in range(1, space.count + 1)])  # (S, N)
    assert torch.equal(seen.sort(dim=0).values, arange(space.count)[:, None].expand(-1, 300))
    if space.count > 10:
        assert len({tuple(order) for order in seen.T.tolist()}) == 300


# Permutation.


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9, 16, 17, 18, 162, 1000])
def test_permute_is_a_permutation_for_every_key(size: int) -> None:
    for key in (0, 1, 2, 49_999, 2**31):
        found = permute(arange(size), size, here(torch.full((size,), key)))
        assert sorted(found.tolist()) == list(range(size))


@pytest.mark.cpu
@pytest.mark.parametrize("size", [2, 3, 5, 7, 9, 18, 50, 162])
def test_permute_sends_a_position_everywhere_alike(size: int) -> None:
    """Chi-square over 40,000 keys; each p must be above 1e-5, about 1 in 1,000 over all that are looked at."""
    keys = arange(40_000)
    for position in range(min(size, 12)):
        found = permute(torch.full_like(keys, position), size, keys)
        counts = torch.bincount(found, minlength=size).double()
        expected = len(keys) / size
        statistic = float(((counts - expected) ** 2 / expected).sum())
        assert chi2.sf(statistic, size - 1) > 1e-5, (position, counts)


@pytest.mark.cpu
@pytest.mark.parametrize("size", [3, 5, 9, 18, 162])
def test_permute_sends_neighbors_apart_alike(size: int) -> None:
    """Where position 1 goes, seen from where 0 goes: every distance alike, chi-square p above 1e-5."""
    keys = arange(40_000)
    zero, one = (permute(torch.full_like(keys, position), size, keys) for position in (0, 1))
    counts = torch.bincount((one - zero) % size, minlength=size)[1:].double()
    expected = len(keys) / (size - 1)
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert chi2.sf(statistic, size - 2) > 1e-5, counts


# Slots of epochs.


@pytest.mark.cpu
@pytest.mark.parametrize("slots", [1, 2, 18, 162])
def test_a_seed_shows_all_slots_before_it_repeats_one(slots: int) -> None:
    for cycle in range(3):
        epochs = range(cycle * slots, (cycle + 1) * slots)
        assert sorted(slot_of(4, epoch, slots) for epoch in epochs) == list(range(1, slots + 1))


@pytest.mark.cpu
def test_slots_depend_on_seed_and_cycle_and_on_nothing_that_ran_before() -> None:
    orders = [tuple(slot_of(seed, epoch, 18) for epoch in range(18)) for seed in range(5)]
    orders.append(tuple(slot_of(0, epoch, 18) for epoch in range(18, 36)))
    assert len(set(orders)) == 6
    torch.rand(3)
    assert [slot_of(0, epoch, 18) for epoch in (11, 2, 11)] == [orders[0][11], orders[0][2], orders[0][11]]


@pytest.mark.cpu
def test_no_slots_show_the_plain_view_and_no_end_of_slots_never_repeats() -> None:
    assert {slot_of(seed, epoch, 0) for seed in range(3) for epoch in range(3)} == {0}
    endless = [slot_of(seed, epoch, None) for seed in range(3) for epoch in range(200)]
    assert len(set(endless)) == 600
    assert min(endless) >= 1


# Random resized crops.


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("size", [(17, 17), (12, 20), (20, 9)])
def test_random_resized_crop_resizes_the_box_that_its_id_draws(flip: bool, size: tuple[int, int]) -> None:
    """Against an independent draw of the box, and torch's resize of the cut-out box: at most one gray level."""
    count = 150
    params = RandomResizedCrop(space="random_resized_crop", flip=flip)
    images = random_images(count, size=max(size))[:, :, : size[0], : size[1]]
    index, view = arange(count) * 31, arange(count) + 1
    found = view_space(params).apply(images, view, index)
    for row in range(count):
        top, left, tall, wide, mirrored = random_box(
            int(index[row]), int(view[row]), size, params.scale, params.ratio
        )
        box = images[row : row + 1, :, top : top + tall, left : left + wide].float()
        expected = F.interpolate(box, size, mode="bilinear", align_corners=False)[0]
        expected = expected.flip(2) if mirrored and flip else expected
        assert (found[row].float() - expected).abs().max() <= 0.51 + 1e-3, row


def test_random_resized_crop_draws_boxes_within_its_bounds() -> None:
    """Boxes read off two ramps. Rounding to pixels moves a side by half a pixel, and a gray level is 1/3 pixel."""
    size, count = 64, 2000
    params = RandomResizedCrop(space="random_resized_crop", scale=(0.2, 0.5), ratio=(0.5, 2.0))
    ramp = (arange(size) * 3).to(torch.uint8).expand(size, size)
    image = torch.stack((ramp, ramp.T))  # column and row of a pixel, times 3
    index = arange(count)
    found = view_space(params).apply(image.expand(count, -1, -1, -1), torch.ones_like(index), index).float()
    wide = (found[:, 0].amax(dim=(1, 2)) - found[:, 0].amin(dim=(1, 2))) / 3 + 1
    tall = (found[:, 1].amax(dim=(1, 2)) - found[:, 1].amin(dim=(1, 2))) / 3 + 1
    slack = 1.0
    assert ((wide + slack) * (tall + slack) >= 0.2 * size**2).all()
    assert ((wide - slack) * (tall - slack) <= 0.5 * size**2).all()
    assert ((wide + slack) / (tall - slack) >= 0.5).all()
    assert ((wide - slack) / (tall + slack) <= 2.0).all()
    area, ratio = wide * tall / size**2, (wide / tall).log()
    # The mean of a uniform draw, within four standard errors; boxes that do not fit are rare here.
    assert abs(float(area.mean()) - 0.35) < 4 * 0.3 / math.sqrt(12 * count) + 0.01
    assert abs(float(ratio.mean())) < 4 * 2 * math.log(2) / math.sqrt(12 * count)
    flipped = (found[:, 0, 0, 0] > found[:, 0, 0, -1]).float().mean()
    assert abs(float(flipped) - 0.5) < 4 * 0.5 / math.sqrt(count)


def test_random_resized_crop_differs_between_samples_and_ids() -> None:
    space, image = view_space(RESIZED), random_images(1).expand(30, -1, -1, -1)
    index = arange(30)
    one = torch.ones_like(index)
    by_sample, by_id = space.apply(image, one, index), space.apply(image, index + 1, one)
    for found in (by_sample, by_id):
        assert len({x.cpu().numpy().tobytes() for x in found}) >= 28  # small images: two boxes may be equal
    assert torch.equal(space.apply(image, one, index), by_sample)


def test_a_box_that_never_fits_is_the_largest_centered_square() -> None:
    params = RandomResizedCrop(space="random_resized_crop", scale=(1.0, 1.0), ratio=(3.0, 3.5), flip=False)
    image = random_images(4)
    found = view_space(params).apply(image, here(torch.ones(4, dtype=torch.int64)), arange(4))
    assert torch.equal(found, image)


# Numbers of slots.


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("params", "slots", "expected"),
    [(CROP_FLIP, "all", 50), (CROP_FLIP, 50, 50), (RESIZED, 9, 9), (RESIZED, 0, 0)],
)
def test_slots_are_resolved(params: ViewParams, slots: Slots, expected: int) -> None:
    assert num_slots(view_space(params), slots, "here") == expected


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("params", "slots", "text"),
    [
        (
            RESIZED,
            "all",
            "params.yaml: runs.kd.slots is 'all', but this view space is unbounded. Give a number.",
        ),
        (CROP_FLIP, 51, "params.yaml: runs.kd.slots is 51, but this view space has 50 views."),
    ],
)
def test_slots_that_cannot_be_are_told_in_one_line(params: ViewParams, slots: Slots, text: str) -> None:
    with pytest.raises(ParamsError) as caught:
        num_slots(view_space(params), slots, "runs.kd.slots")
    assert str(caught.value) == text

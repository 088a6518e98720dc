"""Mixup and CutMix as views: against plain loops, whoever asks, and in their distribution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from device_fixtures import current, here
from error_fixtures import one_line
from feature_fixtures import CROPS, prepare
from mixing_fixtures import CUTMIX, EITHER, MIXINGS, MIXUP, mixtures
from scipy.stats import beta, chi2
from torch import Tensor

from pipeline import seeding
from pipeline.data.draws import hashed
from pipeline.data.images import open_images, stream_images
from pipeline.data.mixing import MixingSpace, mixed
from pipeline.data.prepared import Split
from pipeline.data.ranges import ResidentRanges, open_ranges, open_rows
from pipeline.data.views import mixing, view_space
from pipeline.errors import ParamsError
from pipeline.params.plug import Plug
from pipeline.params.views import Mixing, Mixup, MixupOrCutMix, Stack, view_params

pytestmark = pytest.mark.usefixtures("device")

SIZES = [(8, 8), (5, 9)]


@pytest.fixture(scope="module")
def split(device: str, tmp_path_factory: pytest.TempPathFactory) -> Split:
    return prepare(tmp_path_factory.mktemp("data") / "data").split("train")


def plain(split: Split) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.stack([split.images[row] for row in range(len(split))])


def drawn(space: MixingSpace, slot: int, count: int, size: tuple[int, int] = (8, 8)) -> Any:
    index = here(torch.arange(count))
    return space.draw(torch.full_like(index, slot), index, count, size)


# ------------------------------------------------------------------ pixels and labels


@pytest.mark.parametrize("params", MIXINGS, ids=lambda params: params.space)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_mixtures_are_those_of_plain_loops(params: Mixing, size: tuple[int, int], channels: int) -> None:
    shape = (60, channels, *size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=seeding.generator("images"))
    space = MixingSpace(params)
    for slot in (0, 1, 7, 2**31):
        draw = drawn(space, slot, 60, size)
        shown = mixed(here(images), here(images)[draw.partner], draw)
        expected = mixtures(images.numpy(), slot, params)
        np.testing.assert_array_equal(shown.cpu().numpy(), expected.pixels)
        np.testing.assert_array_equal(draw.partner.cpu().numpy(), expected.partner)
        np.testing.assert_array_equal(draw.coefficient.cpu().numpy(), expected.coefficient.astype(np.float32))
        assert (slot == 0) == bool((draw.coefficient == 1).all())


@pytest.mark.parametrize("params", MIXINGS, ids=lambda params: params.space)
@pytest.mark.parametrize("stacked", [False, True])
def test_whoever_asks_sees_the_same_mixture(split: Split, params: Mixing, stacked: bool) -> None:
    space = view_space(Stack(space="stack", parts=(CROPS, params)) if stacked else params)
    assert space.count is None
    device, total = current().device, len(split)
    index = torch.arange(total)
    order = torch.randperm(total, generator=seeding.generator("order"))
    for slot in (0, 1, 4):
        own = plain(split)
        if stacked and slot:
            # Each sample shows the crop that it shows in this slot, its partner too.
            crops = view_space(CROPS)
            assert crops.count is not None
            salt = seeding.derive("stack", "crop_flip")
            ids = hashed(index, torch.full_like(index, slot), 1, salt)[:, 0] % crops.count
            own = crops.apply(torch.from_numpy(own), ids, index).numpy()
        expected = mixtures(own, slot, params).pixels

        for images in (
            open_images(split, space, device)[0],
            stream_images(split, space, device),
            open_rows(split, space, device),
        ):
            begun = [(part, images.begin(slot, part)) for part in order.split(7)]
            for part, finish in begun:
                np.testing.assert_array_equal(finish().cpu().numpy(), expected[part.numpy()])
        resident = ResidentRanges(here(torch.from_numpy(plain(split))), space)
        for ranges in (open_ranges(split, space, device), resident):
            for start, stop in ((0, 9), (9, 18), (30, 31), (0, total)):
                shown = ranges.take(slot, start, stop)
                np.testing.assert_array_equal(shown.cpu().numpy(), expected[start:stop])


def test_a_slot_on_the_device_draws_what_ids_do() -> None:
    space, index = MixingSpace(EITHER), here(torch.arange(40))
    one = space.draw(here(torch.tensor(3)), index, 40, 8)
    every = space.draw(torch.full_like(index, 3), index, 40, 8)
    for name in ("partner", "coefficient", "share", "box"):
        assert torch.equal(getattr(one, name), getattr(every, name)), name


# ------------------------------------------------------------------ distribution

SAMPLES = 20_000


def shares(space: MixingSpace, slot: int) -> Tensor:
    draw: Tensor = drawn(space, slot, SAMPLES).coefficient.double().cpu()
    return draw


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 8.0])
def test_coefficients_are_a_beta_distribution(alpha: float) -> None:
    found = shares(MixingSpace(Mixup(space="mixup", alpha=alpha)), 2)
    # Five standard errors of the mean, and of the variance of numbers within [0, 1].
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(float(found.mean()) - 0.5) < 5 * (variance / SAMPLES) ** 0.5
    assert abs(float(found.var()) - variance) < 5 * 0.25 / SAMPLES**0.5

    # Kolmogorov and Smirnov, between the values that there are; 0.1 % of such samples lie farther off.
    edges = (np.unique(np.linspace(0, 65535, 400).astype(int)) + 0.5) / 65536
    below = np.searchsorted(np.sort(found.numpy()), edges) / SAMPLES
    assert np.abs(below - beta.cdf(edges, alpha, alpha)).max() < 1.95 / SAMPLES**0.5


def test_boxes_cover_what_the_beta_distribution_leaves_them() -> None:
    """Of a large image, where rounding does not matter; without the border, which boxes end at, in the middle."""
    index = here(torch.arange(SAMPLES))
    draw = MixingSpace(CUTMIX).draw(torch.full_like(index, 5), index, SAMPLES, 4096)
    top, bottom, left, right = draw.box.double().cpu().unbind(1)
    inner = (top > 0) & (bottom < 4096) & (left > 0) & (right < 4096)
    ratio = ((bottom - top) / (right - left))[inner & (bottom > top)]
    assert float((ratio - 1).abs().max()) < 0.01  # as wide as tall
    area = (bottom - top) * (right - left) / 4096**2
    np.testing.assert_allclose(1 - draw.coefficient.double().cpu().numpy(), area.numpy(), atol=1e-7)
    # A box that is whole has the share that was drawn: P(whole) of a box of side r is (1 - r)^2, r^2 uniform.
    expected = beta.expect(lambda u: (1 - u**0.5) ** 2, (1, 1)) * CUTMIX.probability
    assert abs(float((inner & (area > 0)).double().mean()) - expected) < 5 * (expected / SAMPLES) ** 0.5


def test_partners_are_any_sample_equally_often_and_others_in_each_slot() -> None:
    space = MixingSpace(MIXUP)
    first, second = (drawn(space, slot, SAMPLES).partner.cpu() for slot in (1, 2))
    for partners in (first, second):
        counts = torch.bincount(partners * 50 // SAMPLES, minlength=50).double()
        statistic = float(((counts - SAMPLES / 50) ** 2 / (SAMPLES / 50)).sum())
        assert statistic < chi2.ppf(0.999, 49)
    assert int((first == second).sum()) < 10
    assert int((first == torch.arange(SAMPLES)).sum()) < 10


def test_as_many_are_mixed_as_asked_for_and_in_the_ways_asked_for() -> None:
    params = MixupOrCutMix(space="mixup_or_cutmix", mixup=8, cutmix=1, switch=0.3, probability=0.6)
    draw = drawn(MixingSpace(params), 3, SAMPLES, (64, 64))
    index = here(torch.arange(SAMPLES))
    mixes, cuts = draw.partner != index, draw.box[:, 1] > draw.box[:, 0]
    error = 5 * (0.25 / SAMPLES) ** 0.5
    assert abs(float(mixes.double().mean()) - 0.6) < error
    assert abs(float(cuts[mixes].double().mean()) - 0.3) < error + 0.002  # boxes of no pixel
    assert bool((draw.coefficient[~mixes] == 1).all())
    assert bool((draw.share[cuts] == 1 << 16).all())


# ------------------------------------------------------------------ params.yaml


def named(**views: Any) -> Any:
    return view_params([Plug.of(name, **settings) for name, settings in views.items()], "datasets.d.views")


def test_settings_make_the_space() -> None:
    alone, stacked = named(mixup={"alpha": 0.4}), named(crop_flip={}, mixup_or_cutmix={})
    assert alone == Mixup(space="mixup", alpha=0.4)
    assert mixing(view_space(alone)) is not None
    last = mixing(view_space(stacked))
    assert last is not None
    assert last.params == MixupOrCutMix(space="mixup_or_cutmix")
    assert mixing(view_space(named(crop_flip={}, color_jitter={}))) is None


WRONG: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "first": (
        lambda: named(mixup={}, crop_flip={}),
        ("datasets.d.views has 'mixup' before 'crop_flip', expected it last",),
    ),
    "both": (
        lambda: named(crop_flip={}, mixup={}, cutmix={}),
        ("has both 'mixup' and 'cutmix', expected one", "Name mixup_or_cutmix alone"),
    ),
    "alpha": (lambda: named(mixup={"alpha": 0}), ("datasets.d.views.mixup.alpha",)),
    "probability": (lambda: named(cutmix={"probability": 1.5}), ("datasets.d.views.cutmix.probability",)),
    "switch": (lambda: named(mixup_or_cutmix={"switch": 1}), ("datasets.d.views.mixup_or_cutmix.switch",)),
    "unknown": (lambda: named(mixup={"beta": 1}), ("datasets.d.views.mixup.beta",)),
}


@pytest.mark.cpu
@pytest.mark.parametrize("case", WRONG)
def test_wrong_settings_are_told_in_a_line(case: str) -> None:
    make, parts = WRONG[case]
    with pytest.raises(ParamsError) as error:
        make()
    one_line(error, *parts)

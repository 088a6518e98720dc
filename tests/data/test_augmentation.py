"""Colors, RandAugment, random erasing, and spaces that are stacked: against torchvision and loops over pixels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from device_fixtures import here
from error_fixtures import one_line
from params_fixtures import line_of
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as reference
from torchvision.transforms.autoaugment import RandAugment as Reference
from torchvision.transforms.autoaugment import _apply_op

from pipeline import seeding
from pipeline.data import color
from pipeline.data.draws import uniform
from pipeline.data.erasing import RandomErasingSpace
from pipeline.data.rand_augment import OPERATIONS, RandAugmentSpace
from pipeline.data.views import check_channels, check_size, num_slots, view_ids, view_space
from pipeline.errors import ParamsError
from pipeline.params.plug import Plug, plugs
from pipeline.params.views import ColorJitter, RandAugment, RandomErasing, RotateFlip, Stack, view_params

pytestmark = pytest.mark.usefixtures("device")

NAMES = {
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateX",
    "translate_y": "TranslateY",
    "auto_contrast": "AutoContrast",
}
MOVES = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")


def photographs(count: int, channels: int = 3, height: int = 24, width: int = 20) -> Tensor:
    """Return smooth images with noise, of which no two have the same range, uint8 (N, C, H, W)."""
    generator = seeding.generator("photographs", channels)
    coarse = torch.rand(count, channels, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    low, high = torch.rand(2, count, channels, 1, 1, generator=generator).sort(dim=0).values
    noise = 0.1 * torch.rand(smooth.shape, generator=generator)
    return here(((low + (high - low) * (smooth + noise)).clamp(0, 1) * 255).to(torch.uint8))


def stacked(views: Any, where: str = "datasets.d.views") -> Any:
    return view_params([Plug.of(name, **settings) for name, settings in plugs(views).items()], where)


def near(found: Tensor, expected: Tensor, most: float = 0.002) -> None:
    """At most one gray level, and that of a share of the pixels.

    torchvision rounds f x + (1 - f) y down, which may be x - 1 where x = y; here that is x.
    """
    difference = (found.int() - expected.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() <= most


# ------------------------------------------------------------------ colors


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("ours", "name"),
    [(color.brightened, "brightness"), (color.contrasted, "contrast"), (color.saturated, "saturation")],
)
def test_colors_are_torchvisions(channels: int, ours: Any, name: str) -> None:
    images = photographs(30, channels)
    factors = here(torch.linspace(0, 2.2, 30))
    found = ours(images, factors)
    assert found.dtype == torch.uint8
    expected = [
        getattr(reference, f"adjust_{name}")(image, float(factor))
        for image, factor in zip(images, factors, strict=True)
    ]
    near(found, torch.stack(expected), 0.002 if name == "brightness" else 1.0)


def test_what_is_blended_is_rounded_down_and_alike_pixels_stay() -> None:
    generator = seeding.generator("blended")
    image, other = torch.randint(0, 256, (2, 23, 1, 60, 60), dtype=torch.uint8, generator=generator)
    other[:, :, :20] = image[:, :, :20]
    eighths = torch.arange(23)
    found = color.blended(here(image), here(other), here(eighths / 8)).cpu()
    scaled = 8 * other.long() + eighths.view(-1, 1, 1, 1) * (image.long() - other.long())
    assert torch.equal(found, (scaled // 8).clamp(0, 255).to(torch.uint8))
    found = color.blended(here(image), here(other), here(eighths / 7)).cpu()
    assert torch.equal(found[:, :, :20], image[:, :, :20])


def test_hue_is_torchvisions_to_one_gray_level() -> None:
    """torchvision rounds down what it has divided by 255, and here it is rounded to the nearest."""
    images, shifts = photographs(30), here(torch.linspace(-0.5, 0.5, 30))
    images[0] = images[0, :1]  # gray
    found = color.turned(images, shifts)
    expected = torch.stack([
        reference.adjust_hue(image, float(shift)) for image, shift in zip(images, shifts, strict=True)
    ])  # fmt: skip
    assert (found.int() - expected.int()).abs().max() <= 1
    assert torch.equal(found[0], images[0])
    assert torch.equal(color.turned(images, torch.zeros_like(shifts)), images)


def test_color_jitter_draws_its_factors_within_their_bounds_and_keeps_its_order() -> None:
    params = ColorJitter(space="color_jitter", brightness=0.3, contrast=0.5, saturation=2.0, hue=0.1)
    images, index = photographs(40), here(torch.arange(40)) * 7
    view = here(torch.arange(40)) + 1
    found = view_space(params).apply(images, view, index)
    draws = uniform(index, view, 4, seeding.derive("color_jitter")).cpu().double()
    for row in range(40):
        b, c, s, h = draws[row].tolist()
        expected = reference.adjust_brightness(images[row], 0.7 + b * 0.6)
        expected = reference.adjust_contrast(expected, 0.5 + c)
        expected = reference.adjust_saturation(expected, s * 3)
        expected = reference.adjust_hue(expected, h * 0.2 - 0.1)
        # A gray level of the first grows by what follows it.
        assert (found[row].int() - expected.int()).abs().max() <= 8
        assert (found[row].int() - expected.int()).abs().float().mean() < 0.5


# ------------------------------------------------------------------ RandAugment


@pytest.mark.parametrize("magnitude", [0, 1, 9, 10, 17, 30])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_is_torchvisions(operation: str, channels: int, magnitude: int) -> None:
    """What moves pixels to the bit as of images of Pillow, the rest as of tensors."""
    space = RandAugmentSpace(RandAugment(space="rand_augment", magnitude=magnitude))
    images = photographs(8, channels)
    images[7] = 93  # of a single value
    kind = here(torch.full((8,), OPERATIONS.index(operation)))
    name = NAMES.get(operation, operation.capitalize())
    strengths, signed = Reference()._augmentation_space(31, (24, 20))[name]
    strength = float(strengths[magnitude]) if strengths.ndim else 0.0
    for back in (False, True):
        found = space.changed(images, kind, torch.full_like(kind, back, dtype=torch.bool))
        assert found.dtype == torch.uint8
        way = -strength if back and signed else strength
        for image, one in zip(images, found, strict=True):
            if operation not in MOVES:
                most = 1.0 if operation in ("color", "contrast", "sharpness") else 0.002
                near(one, _apply_op(image, name, way, InterpolationMode.NEAREST, None), most)
                continue
            plane = image[0] if channels == 1 else image.permute(1, 2, 0)
            picture = Image.fromarray(plane.contiguous().cpu().numpy())
            moved = np.asarray(_apply_op(picture, name, way, InterpolationMode.NEAREST, None))
            np.testing.assert_array_equal(
                one.cpu().numpy(), moved.reshape(24, 20, channels).transpose(2, 0, 1)
            )


def test_operations_follow_each_other_and_are_drawn_alike() -> None:
    count, params = 3000, RandAugment(space="rand_augment", operations=2)
    space, index = RandAugmentSpace(params), here(torch.arange(3000))
    view = torch.full_like(index, 5)
    draws = uniform(index, view, 4, seeding.derive("rand_augment"))
    kinds, back = (draws[:, :2] * 14).long(), draws[:, 2:] < 0.5
    for place in range(2):
        shares = torch.bincount(kinds[:, place], minlength=14) / count
        assert (shares - 1 / 14).abs().max() < 4.5 * math.sqrt(1 / 14 / count)
        assert abs(float(back[:, place].float().mean()) - 0.5) < 4 * 0.5 / math.sqrt(count)

    images = photographs(40)
    found = space.apply(images, view[:40], index[:40])
    for row in range(40):
        one = images[row : row + 1]
        for place in range(2):
            one = space.changed(one, kinds[row, place : place + 1], back[row, place : place + 1])
        assert torch.equal(found[row], one[0])


def test_images_too_small_for_a_blur_stay() -> None:
    space = RandAugmentSpace(RandAugment(space="rand_augment"))
    images = photographs(3, height=2, width=9)
    kind = here(torch.full((3,), OPERATIONS.index("sharpness")))
    assert torch.equal(space.changed(images, kind, kind > 0), images)


# ------------------------------------------------------------------ random erasing


def erased_box(
    params: RandomErasing, index: int, view: int, height: int, width: int
) -> tuple[int, ...] | None:
    """Draw a box attempt by attempt, in numbers of Python."""
    keys = torch.tensor([index]), torch.tensor([view])
    draws = uniform(*keys, 41, seeding.derive("random_erasing"))[0].double().tolist()
    if draws[40] >= params.probability:
        return None
    for attempt in range(10):
        share, ratio, y, x = draws[attempt::10][:4]
        area = height * width * (params.scale[0] + share * (params.scale[1] - params.scale[0]))
        low, high = map(math.log, params.ratio)
        aspect = math.exp(low + ratio * (high - low))
        wide, tall = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 1 <= wide < width and 1 <= tall < height:
            return math.floor(y * (height - tall + 1)), math.floor(x * (width - wide + 1)), tall, wide
    return None


@pytest.mark.parametrize("fill", ["black", "noise"])
def test_erasing_leaves_all_but_a_box(fill: Any) -> None:
    params = RandomErasing(space="random_erasing", fill=fill)
    count, height, width = 300, 24, 20
    images = torch.full_like(photographs(count), 77)
    index, view = here(torch.arange(count)) * 3, here(torch.arange(count)) + 1
    found = RandomErasingSpace(params).apply(images, view, index)
    boxes = [erased_box(params, int(index[row]), int(view[row]), height, width) for row in range(count)]
    for row, box in enumerate(boxes):
        expected = images[row].clone()
        if box is not None:
            top, left, tall, wide = box
            within = found[row, :, top : top + tall, left : left + wide]
            assert fill == "noise" or not within.any()
            expected[:, top : top + tall, left : left + wide] = within
        assert torch.equal(found[row], expected), row
    shown = [box for box in boxes if box is not None]
    assert abs(len(shown) / count - 0.5) < 4 * 0.5 / math.sqrt(count)
    areas = [tall * wide / height / width for _, _, tall, wide in shown]
    assert 0.01 < min(areas) < 0.06  # rounding to pixels moves a side by half of one
    assert 0.28 < max(areas) < 0.36
    if fill == "noise":
        noise = found[found != 77].float()
        assert abs(float(noise.mean()) - 127.5) < 2
        assert len(noise.unique()) == 255


# ------------------------------------------------------------------ stacks


def test_a_stack_of_finite_spaces_has_every_combination_once() -> None:
    params = stacked(
        {"crop_flip": {"padding": 1, "flip": False}, "rotate_flip": {"steps": 2, "degrees": 40.0}}
    )
    space = view_space(params)
    crop, turn = (view_space(part) for part in params.parts)
    assert (space.count, crop.count, turn.count) == (90, 9, 10)
    assert num_slots(space, "all", "x") == 90
    image = photographs(1).expand(90, -1, -1, -1)
    views = here(torch.arange(90))
    found = space.apply(image, views, views)
    for view in range(90):
        first, second = here(torch.tensor([view % 9])), here(torch.tensor([view // 9]))
        expected = turn.apply(crop.apply(image[:1], first, first), second, second)
        assert torch.equal(found[view], expected[0])


def test_a_stack_with_an_unbounded_space_draws_its_parts_apart() -> None:
    params = stacked({"crop_flip": {"padding": 2}, "color_jitter": {}, "random_erasing": {}})
    space = view_space(params)
    assert space.count is None
    with pytest.raises(ParamsError) as error:
        num_slots(space, "all", "slots of x")
    one_line(error, "unbounded")
    index = here(torch.arange(2000))
    crop, jitter, erasing = (view_space(part) for part in params.parts)
    images = photographs(50)
    view = view_ids(space, 4, index)
    assert view.tolist() == [4] * 2000
    found = space.apply(images, view[:50], index[:50])

    # The crop that is shown: any of the 50, whichever the color and the box.
    from pipeline.data.draws import hashed

    own = hashed(index, view, 1, seeding.derive("stack", "crop_flip"))[:, 0] % 50
    expected = crop.apply(images, own[:50], index[:50])
    expected = erasing.apply(jitter.apply(expected, view[:50], index[:50]), view[:50], index[:50])
    assert torch.equal(found, expected)
    counts = torch.bincount(own, minlength=50).double()
    assert float(((counts - 40) ** 2 / 40).sum()) < 49 + 5 * math.sqrt(2 * 49)
    draws = [
        uniform(index, view, 1, seeding.derive(name))[:, 0].double().cpu()
        for name in ("color_jitter", "random_erasing", "rand_augment")
    ]
    draws.append(own.double().cpu())
    assert (torch.corrcoef(torch.stack(draws)) - torch.eye(4)).abs().max() < 4.5 / math.sqrt(2000)


def test_one_space_is_itself_and_its_json_what_it_was() -> None:
    params = stacked({"rotate_flip": {"steps": 3}})
    assert params == RotateFlip(space="rotate_flip", steps=3)
    assert params.model_dump(mode="json") == {
        "space": "rotate_flip",
        "degrees": 20.0,
        "steps": 3,
        "flip": True,
    }
    whole = stacked({"rotate_flip": {}, "rand_augment": {"magnitude": 3}})
    assert Stack.model_validate_json(whole.model_dump_json()) == whole


@pytest.mark.parametrize(
    ("views", "words"),
    [
        ({"crop_flip": {}, "plain": {}}, "stacks 'plain', which changes nothing. Drop it."),
        ({"crop_flip": {}, "random_resized_crop": {}}, "'random_resized_crop' after 'crop_flip', expected it first"),
        ({"crop_flip": {}, "colour_jitter": {}}, "Did you mean 'color_jitter'?"),
        ({"color_jitter": {"hue": 0.6}}, "hue' is 0.6. Input should be less than or equal to 0.5."),
        ({"color_jitter": {"contrast": -1}}, "contrast' is -1. Input should be greater than or equal to 0."),
        ({"rand_augment": {"magnitude": 31}}, "magnitude' is 31. Input should be less than or equal to 30."),
        ({"random_erasing": {"probability": 0}}, "probability' is 0. Input should be greater than 0."),
        ({"random_erasing": {"scale": [0.5, 1]}}, "0.001 <= smallest <= largest < 1."),
        ({"random_erasing": {"ratio": [3, 2]}}, "0.01 <= smallest <= largest <= 100."),
    ],
)  # fmt: skip
def test_views_that_cannot_be_are_one_line(views: Any, words: str) -> None:
    line = line_of(lambda: stacked(views))
    assert line.startswith("params.yaml: ") or "view space of datasets.d.views" in line
    assert words in line


def test_parts_of_a_stack_are_checked_against_the_images() -> None:
    large = stacked({"crop_flip": {"padding": 8}, "random_erasing": {}})
    assert "pads images of 8x8 by 8" in line_of(lambda: check_size(large, 8, "datasets.d.views"))
    check_size(large, 9, "datasets.d.views")

    colors = stacked({"crop_flip": {}, "color_jitter": {}})
    check_channels(colors, 3, "datasets.d.views")
    line = line_of(lambda: check_channels(colors, 1, "datasets.d.views"))
    assert line == (
        "params.yaml: datasets.d.views changes the saturation or hue of images of 1 channel, which have none. Set "
        "color_jitter to {saturation: 0, hue: 0}, then: dvc repro params"
    )
    check_channels(stacked({"color_jitter": {"saturation": 0.0}, "rand_augment": {}}), 1, "x")
    assert "images of 1 or 3 channels, and these have 4" in line_of(
        lambda: check_channels(stacked("rand_augment"), 4, "x")
    )

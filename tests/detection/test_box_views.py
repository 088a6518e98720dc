"""Views of images with boxes: the boxes follow the pixels, by a reference that looks for the pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from error_fixtures import one_line
from PIL import Image

from pipeline.data.datasets import shapes
from pipeline.detection.sample import Target
from pipeline.detection.views import BoxSpace, Shown, back, moved, pixels
from pipeline.errors import ParamsError, StillhouseError
from pipeline.params.detection import ScaleFlip, box_views, check_boxless
from pipeline.params.plug import Plug
from pipeline.params.views import Plain


def space(short: tuple[int, ...] = (32, 48), longest: int = 128, *, flip: bool = True) -> BoxSpace:
    return BoxSpace(ScaleFlip(space="scale_flip", short=short, longest=longest, flip=flip))


def target(*boxes: tuple[float, float, float, float]) -> Target:
    edges = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    area = (edges[:, 2] - edges[:, 0]) * (edges[:, 3] - edges[:, 1])
    return Target(edges, torch.arange(len(boxes)), torch.zeros(len(boxes), dtype=torch.bool), area)


def lit(image: torch.Tensor) -> list[int]:
    """Return the edges of what is white in an image."""
    rows, columns = np.nonzero(image[0].numpy() == 255)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_ids_are_scales_and_then_their_mirror_images() -> None:
    views = space()
    assert views.count == 4
    assert [views.shown(view, 64, 96) for view in range(4)] == [
        Shown(32, 48), Shown(48, 72), Shown(32, 48, True), Shown(48, 72, True)
    ]  # fmt: skip
    assert space(flip=False).count == 2
    assert BoxSpace(Plain(space="plain")).count == 1
    assert BoxSpace(Plain(space="plain")).shown(0, 30, 50) == Shown(30, 50)


@pytest.mark.parametrize(
    ("size", "expected"), [((40, 200), (26, 128)), ((200, 40), (128, 26)), ((64, 64), (48, 48))]
)
def test_the_long_side_is_bounded(size: tuple[int, int], expected: tuple[int, int]) -> None:
    shown = space((48,)).shown(0, *size)
    assert (shown.height, shown.width) == expected


@pytest.mark.parametrize("view", range(4))
def test_boxes_cover_the_pixels_that_they_covered(view: int) -> None:
    # Doubled and tripled, so that every edge lies between two pixels still.
    height, width, box = 16, 24, (3, 5, 11, 9)
    drawing = np.zeros((height, width, 3), np.uint8)
    drawing[box[1] : box[3], box[0] : box[2]] = 255
    shown = space((32, 48)).shown(view, height, width)
    # Without a filter, the edges of what is white stay sharp.
    large = Image.fromarray(drawing).resize((shown.width, shown.height), Image.Resampling.NEAREST)
    after = moved(target(box), height, width, shown)
    assert after.boxes.tolist() == [lit(pixels(large, shown))]
    assert after.area.tolist() == [float((pixels(large, shown)[0] == 255).sum())]


def test_pixels_are_resized_and_mirrored_as_torchvision_does() -> None:
    from torchvision.transforms.v2 import functional as F

    image = Image.fromarray(shapes.drawn(shapes.Config(), "train", 0).pixels)
    shown = space().shown(3, image.height, image.width)
    expected = F.pil_to_tensor(F.horizontal_flip(F.resize(image, [shown.height, shown.width])))
    assert torch.equal(pixels(image, shown), expected)
    plain = pixels(image, Shown(image.height, image.width))
    assert torch.equal(plain, F.pil_to_tensor(image))


@pytest.mark.parametrize("view", range(4))
def test_what_is_found_is_moved_back(view: int) -> None:
    before = target((3, 5, 11, 9), (0, 0, 23, 15))
    shown = space().shown(view, 16, 23)
    after = back(moved(before, 16, 23, shown).boxes, 16, 23, shown)
    torch.testing.assert_close(after, before.boxes, atol=1e-5, rtol=0)


def test_an_image_without_boxes_stays_so() -> None:
    shown = space().shown(2, 16, 24)
    assert moved(target(), 16, 24, shown).boxes.shape == (0, 4)


def test_an_image_of_one_pixel_is_shown() -> None:
    image = Image.fromarray(np.array([[[1, 2, 3]]], np.uint8))  # torch warns of memory that it may not write
    assert pixels(image, Shown(1, 1)).tolist() == [[[1]], [[2]], [[3]]]


def test_labels_and_crowds_stay_with_their_boxes() -> None:
    before = target((3, 5, 11, 9), (0, 0, 23, 15))
    after = moved(before, 16, 24, Shown(32, 48, True))
    assert torch.equal(after.labels, before.labels)
    assert torch.equal(after.crowd, before.crowd)


@pytest.mark.parametrize(
    ("views", "parts"),
    [
        ([Plug.of("crop_flip")], ("'crop_flip'", "moves no boxes", "plain or scale_flip")),
        ([Plug.of("scale_flop")], ("Unknown view space of here: 'scale_flop'", "Did you mean 'scale_flip'?")),
        ([Plug.of("plain"), Plug.of("scale_flip")], ("here stacks several spaces",)),
        ([Plug.of("scale_flip", space="x")], ("unknown key 'here.scale_flip.space'",)),
        ([Plug.of("scale_flip", short=[])], ("here.scale_flip.short", "Name one at least")),
        ([Plug.of("scale_flip", short=[64, 64])], ("It has 64 twice",)),
        ([Plug.of("scale_flip", longest=5000)], ("less than or equal to 4096",)),
    ],
)
def test_views_that_cannot_be(views: list[Plug], parts: tuple[str, ...]) -> None:
    with pytest.raises(StillhouseError) as error:
        box_views(views, "here")
    one_line(error, "params.yaml" if "Unknown" not in parts[0] else "Known", *parts)


def test_scales_of_boxes_are_for_images_with_boxes() -> None:
    check_boxless([Plug.of("plain")], "here")
    check_boxless([Plug.of("crop_flip")], "here")
    with pytest.raises(ParamsError) as error:
        check_boxless([Plug.of("scale_flip")], "here")
    one_line(error, "here has 'scale_flip'", "crop_flip")

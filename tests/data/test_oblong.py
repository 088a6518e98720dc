"""Photographs that are not square: sizes in params.yaml, resizing against torchvision, both storages, networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from error_fixtures import one_line
from feature_fixtures import crop_flip, random_box
from PIL import Image
from torchvision.transforms.v2 import functional as reference

from pipeline import plugin
from pipeline.data.datasets import image_folder
from pipeline.data.images import DecodedImages, ResidentImages, open_images
from pipeline.data.preparation import prepare
from pipeline.data.prepared import Prepared
from pipeline.data.raw import image_files
from pipeline.data.views import view_ids, view_space
from pipeline.errors import DataError, ParamsError, ShapeError
from pipeline.evaluation.cost import macs
from pipeline.features.receptive import receptive_fields
from pipeline.networks.network import build, probe
from pipeline.networks.spec import NetworkSpec
from pipeline.params.base import validate
from pipeline.params.size import area, reduced, shown, sides
from pipeline.params.views import CropFlip, RandomResizedCrop, RotateFlip, ViewParams

SIZE, RESIZE = (12, 20), (14, 22)
CPU = torch.device("cpu")


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Return smooth pictures of two classes and several sizes, upright and lying."""
    for number in range(12):
        width, height = 17 + 7 * number % 45, 16 + 11 * number % 38
        draw = np.random.default_rng(number)
        small = Image.fromarray(draw.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        path = tmp_path / "raw" / "ab"[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        small.resize((width, height), Image.Resampling.BICUBIC).save(path)
    return tmp_path / "raw"


def prepared(photographs: Path, out: Path, **settings: Any) -> Prepared:
    config = image_folder.Config(
        path=photographs, split=0.25, **({"size": SIZE, "resize": RESIZE} | settings)
    )
    prepare(image_folder.open_source(config), "image_folder", config, out)
    return Prepared.open(out)


def test_a_square_size_is_a_number_however_it_is_written() -> None:
    assert (reduced(8), reduced((8, 8)), reduced((8, 9))) == (8, 8, (8, 9))
    assert (sides(8), sides((8, 9)), area(8), area((8, 9)), shown(8), shown((8, 9))) == (
        (8, 8), (8, 9), 64, 72, "8x8", "8x9"
    )  # fmt: skip
    square = validate(image_folder.Config, {"path": "p", "size": [8, 8], "resize": [9, 9]}, "x")
    assert (square.size, square.resize) == (8, 9)
    assert validate(image_folder.Config, {"path": "p", "size": [8, 9]}, "x").size == (8, 9)
    spec = NetworkSpec(family="resnet", network="resnet8", size=(8, 8), channels=1, classes=2)
    assert spec.model_dump(mode="json")["size"] == 8
    oblong = spec.model_copy(update={"size": (8, 9)})
    assert NetworkSpec.model_validate_json(oblong.model_dump_json()) == oblong


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"size": [8]}, "'x.size"),
        ({"size": [8, 8, 8]}, "'x.size"),
        ({"size": [8, 0]}, "'x.size"),
        ({"size": 0}, "'x.size"),
        ({"size": [8, 9], "resize": 8}, "'x.resize' is 8. Expected 8x9 or more"),
        ({"size": [8, 9], "resize": [9, 8]}, "Expected 8x9 or more"),
        ({"size": 9, "resize": 8}, "'x.resize' is 8. Expected 9 or more"),
    ],
)
def test_sizes_that_cannot_be_are_one_line(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ParamsError) as error:
        validate(image_folder.Config, {"path": "p", **settings}, "x")
    one_line(error, text)


@pytest.mark.parametrize(
    ("size", "resize"), [(SIZE, RESIZE), (SIZE, SIZE), ((20, 12), (20, 12)), ((9, 5), 16)]
)
def test_an_image_just_covers_a_size_and_its_center_is_cropped(size: Any, resize: Any) -> None:
    for width, height in ((40, 31), (31, 40), (14, 90), (90, 14), (12, 20), (20, 12), (7, 7)):
        pixels = np.random.default_rng(width).integers(0, 256, (height, width), dtype=np.uint8)
        image, (tall, wide) = Image.fromarray(pixels), sides(resize)
        grown = max(tall / height, wide / width)
        # The side that decides is exact, the other is cut down to a whole pixel.
        expected = [tall, int(width * tall / height + 1e-9)] if grown == tall / height else [
            int(height * wide / width + 1e-9), wide
        ]  # fmt: skip
        shown_size = [expected[0], expected[1]]
        reference_image = reference.center_crop(reference.resize(image, shown_size), list(sides(size)))
        found = image_files.plain("x", image, resize, size)
        assert found.size == sides(size)[::-1]
        np.testing.assert_array_equal(np.asarray(found), np.asarray(reference_image))


def test_prepared_arrays_and_their_meta(photographs: Path, tmp_path: Path) -> None:
    copied = prepared(photographs, tmp_path / "copied")
    indexed = prepared(photographs, tmp_path / "indexed", storage="indexed")
    assert copied.meta.size == indexed.meta.size == SIZE
    assert indexed.meta.files is not None
    assert indexed.meta.files.resize == RESIZE
    assert copied.meta.kind["size"] == SIZE
    for name in ("train", "test"):
        for row in range(len(copied.split(name))):
            image = copied.split(name).images[row]
            assert image.shape == (3, *SIZE)
            np.testing.assert_array_equal(image, indexed.split(name).images[row])
    assert copied.meta.mean == indexed.meta.mean

    square = prepared(photographs, tmp_path / "square", size=(8, 8), resize=None)
    plain = prepared(photographs, tmp_path / "plain", size=8, resize=None)
    assert square.meta == plain.meta
    assert '"size": 8' in (tmp_path / "square" / "meta.json").read_text()


@pytest.mark.parametrize(
    "params",
    [
        CropFlip(space="crop_flip", padding=2),
        CropFlip(space="crop_flip", padding=3, fill="reflect"),
        RotateFlip(space="rotate_flip", degrees=30, steps=5),
        RandomResizedCrop(space="random_resized_crop", ratio=(1.0, 2.5)),
    ],
    ids=lambda params: params.space,
)
def test_views_of_copied_and_indexed_photographs(
    photographs: Path, tmp_path: Path, params: ViewParams
) -> None:
    """Copied ones are cut out of the prepared image, and random boxes of indexed ones out of the whole photograph."""
    space = view_space(params)
    index = torch.arange(8)
    shown_views = {}
    for storage in ("copied", "indexed"):
        split = prepared(photographs, tmp_path / storage, storage=storage).split("train")
        images, _ = open_images(split, space, CPU)
        assert isinstance(images, ResidentImages if storage == "copied" else DecodedImages)
        shown_views[storage] = [images.begin(slot, index)() for slot in (0, 1, 2)]
        assert all(x.shape == (8, 3, *SIZE) for x in shown_views[storage])
        plain = torch.stack([torch.from_numpy(split.images[row].copy()) for row in range(8)])
        assert torch.equal(shown_views[storage][0], plain)

    if not isinstance(params, RandomResizedCrop):
        assert all(torch.equal(x, y) for x, y in zip(*shown_views.values(), strict=True))
    if isinstance(params, CropFlip):
        for row, view in enumerate(view_ids(space, 1, index).tolist()):
            expected = crop_flip(plain[row].numpy(), view, params.padding, params.fill)
            np.testing.assert_array_equal(shown_views["copied"][1][row], expected)
    if isinstance(params, RandomResizedCrop):
        config = image_folder.Config(path=photographs, size=SIZE, split=0.25)
        paths = image_folder.open_source(config).train
        assert isinstance(paths, image_files.FileSplit)
        for row in range(8):
            with Image.open(paths.paths[row]) as image:
                box = random_box(row, 2, (image.height, image.width), params.scale, params.ratio)
                top, left, tall, wide, mirrored = box
                part = reference.resized_crop(image, top, left, tall, wide, list(SIZE))
            part = reference.hflip(part) if mirrored else part
            np.testing.assert_array_equal(shown_views["indexed"][2][row], np.asarray(part).transpose(2, 0, 1))


def test_a_file_of_another_size_is_named_width_first(tmp_path: Path) -> None:
    split = image_files.FileSplit(["x.png"], np.zeros(1, np.int64), 1, (12, 20), None)
    with pytest.raises(DataError) as error:
        split.view("x.png", Image.new("L", (12, 20)))
    one_line(error, "x.png is 12x20, expected 20x12.")
    assert split.view("x.png", Image.new("L", (20, 12))).shape == (1, 12, 20)


# ------------------------------------------------------------------ networks

SMALL = {
    "mobilenetv1": "mobilenetv1", "mobilenetv2": "mobilenetv2_half", "resnet": "resnet8",
    "shufflenetv1": "shufflenetv1", "shufflenetv2": "shufflenetv2", "timm": "resnet10t",
    "torchvision_mobilenetv2": "mobilenet_v2", "torchvision_resnet": "resnet18", "vgg": "vgg8", "wrn": "wrn_16_1",
}  # fmt: skip


@pytest.mark.parametrize("family", [name for name in plugin.names("networks") if name in SMALL])
def test_a_network_reads_oblong_images_as_it_reads_its_turned_sides(family: str) -> None:
    """The maps of 32x64 images have the height that 32x32 ones have, and the width that 64x64 ones have."""
    shapes = {}
    for size in ((32, 64), 32, 64):
        spec = NetworkSpec(family=family, network=SMALL[family], size=size, channels=3, classes=4)
        # One network for all: VGG has one pooling more where images are large.
        network = build(spec.model_copy(update={"size": 32}), 0)
        shapes[size] = probe(network, size, 3)
    for tap, shape in shapes[32, 64].items():
        if len(shape) == 3:
            assert shape == (shape[0], shapes[32][tap][1], shapes[64][tap][2])
        else:
            assert shape == shapes[32][tap]


def test_costs_and_refusals_of_oblong_images() -> None:
    spec = NetworkSpec(family="resnet", network="resnet8", size=(16, 32), channels=1, classes=4)
    network = build(spec, 0)
    head = 64 * 4  # of the classifier, which reads one pixel whatever the image is
    assert macs(network, (16, 32), 1) - head == 2 * (macs(network, 16, 1) - head)
    vgg = NetworkSpec(family="vgg", network="vgg8", size=(64, 4), channels=1, classes=4)
    with pytest.raises(ShapeError) as error:
        probe(build(vgg, 0), (64, 4), 1)
    one_line(error, "cannot read 1x64x4 images")


def test_receptive_fields_of_oblong_images_are_those_of_each_side() -> None:
    network = build(NetworkSpec(family="resnet", network="resnet8", size=16, channels=1, classes=4), 0)
    taps = ["stage1", "stage2", "final"]
    oblong, low, wide = (receptive_fields(network, taps, size, 1) for size in ((16, 32), 16, 32))
    for tap in taps:
        assert oblong[tap].rows == low[tap].rows
        assert oblong[tap].columns == wide[tap].columns

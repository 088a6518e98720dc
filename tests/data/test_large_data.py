"""Indexed data: what the index holds, what is decoded from it, and that every reader sees the same pixels."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from device_fixtures import current, here
from feature_fixtures import features_of, run_stage
from mixing_fixtures import EITHER, mixtures
from numpy.typing import NDArray
from PIL import Image, ImageOps
from prepared_fixtures import edit_meta
from torch import Tensor
from torchvision.transforms import functional as reference
from training_fixtures import TIMES, job, weights

from pipeline import seeding
from pipeline.data.datasets import image_folder
from pipeline.data.file_index import Box, FileIndex
from pipeline.data.images import DecodedImages, Forward, MappedImages, open_images, stream_images, views
from pipeline.data.layout import Meta
from pipeline.data.normalize import Normalize
from pipeline.data.preparation import prepare
from pipeline.data.prepared import Prepared, Split
from pipeline.data.ranges import open_ranges
from pipeline.data.views import RandomResizedCropSpace, cropped, view_ids, view_space
from pipeline.errors import DataError, ParamsError
from pipeline.features import manifest as manifests
from pipeline.features.source import CachedSource, OnlineSource
from pipeline.features.store import StoredArray, array_path
from pipeline.features.teacher import Teacher
from pipeline.networks.spec import NetworkSpec
from pipeline.networks.weights import load
from pipeline.params.base import validate
from pipeline.params.recipe import Recipe
from pipeline.params.views import (
    ColorJitter,
    CropFlip,
    Plain,
    RandAugment,
    RandomResizedCrop,
    RotateFlip,
    Stack,
    ViewParams,
)
from pipeline.report.results import Dataset
from pipeline.report.sections import datasets as gallery
from pipeline.training.alone import train
from pipeline.training.setting import Setting
from stages import check_features, extract_features, prepare_data, train_teacher

SIZE, RESIZE = 16, 20
CROPS = RandomResizedCrop(space="random_resized_crop", scale=(0.2, 1.0))
SPACES: list[ViewParams] = [
    CROPS,
    CropFlip(space="crop_flip", padding=2),
    RotateFlip(space="rotate_flip"),
    Plain(space="plain"),
    Stack(space="stack", parts=(CROPS, RotateFlip(space="rotate_flip"), ColorJitter(space="color_jitter"))),
    Stack(space="stack", parts=(CropFlip(space="crop_flip", padding=2), RandAugment(space="rand_augment"))),
]
Pixels = NDArray[np.uint8]


def photograph(path: Path, width: int, height: int, mode: str = "RGB") -> Path:
    """Write a smooth random picture: JPEG keeps noise badly, and a wrong crop of noise looks like a right one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng([width, height, *path.name.encode()])
    small = Image.fromarray(draw.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    small.resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(path)
    return path


def make_folder(root: Path, train: int = 26, val: int = 14, square: int | None = None) -> Path:
    """Write so many files of two classes and varied sizes, in the layout of ImageNet."""
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            width, height = (square, square) if square else (17 + 7 * number % 45, 16 + 11 * number % 38)
            suffix, mode = ("png", "L") if number % 9 == 4 else ("JPEG", "RGB")
            photograph(root / split / "ab"[number % 2] / f"{number:02d}.{suffix}", width, height, mode)
    return root


def indexed(root: Path, out: Path, **settings: Any) -> tuple[Prepared, Meta]:
    given: dict[str, Any] = {"path": root, "size": SIZE, "resize": RESIZE, "storage": "indexed"} | settings
    config = image_folder.Config(**given)
    meta = prepare(image_folder.open_source(config), "image_folder", config, out)
    return Prepared.open(out), meta


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("raw") / "photographs")


@pytest.fixture(scope="module")
def prepared(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return indexed(root, tmp_path_factory.mktemp("prepared") / "photographs")[0]


def files_of(split: Split) -> FileIndex:
    assert isinstance(split.images, FileIndex)
    return split.images


def path_of(split: Split, row: int) -> Path:
    files = files_of(split)
    name: str = files.records["path"][row].decode()
    return files.root / name


def all_views(split: Split, params: ViewParams, slot: int, *, threads: int = 2) -> Tensor:
    """Return the views of all samples, asked for one by one."""
    images = DecodedImages(files_of(split), view_space(params), current().device, threads)
    return torch.cat([images.begin(slot, torch.tensor([row]))() for row in range(len(split))])


# What the index holds.


def test_the_index_lists_every_file_with_its_size_and_hash(prepared: Prepared, root: Path) -> None:
    assert prepared.meta.samples == {"train": 26, "test": 14}
    assert prepared.meta.files is not None
    assert (prepared.meta.files.root, prepared.meta.files.resize) == (str(root), RESIZE)
    for name, folder in (("train", "train"), ("test", "val")):
        split = prepared.split(name)
        paths = [path for label in "ab" for path in sorted((root / folder / label).iterdir())]
        assert [path_of(split, row) for row in range(len(split))] == paths
        assert split.labels.tolist() == ["ab".index(path.parent.name) for path in paths]
        for record, path in zip(files_of(split).records, paths, strict=True):
            with Image.open(path) as image:
                assert (record["width"], record["height"]) == image.size
            assert record["bytes"] == path.stat().st_size
            assert record["hash"].tobytes() == hashlib.blake2b(path.read_bytes(), digest_size=16).digest()
    assert isinstance(files_of(prepared.split("train")).records, np.memmap)


def test_prepared_data_hold_no_pixels(prepared: Prepared) -> None:
    names = {path.name for path in prepared.folder.iterdir()}
    arrays = {f"{split}_{kind}.npy" for split in ("train", "test") for kind in ("files", "labels")}
    assert names == arrays | {"meta.json", "raw.json"}


def test_the_fingerprint_is_that_of_the_content_and_not_of_the_place(
    prepared: Prepared, tmp_path: Path
) -> None:
    root = Path(prepared.meta.files.root) if prepared.meta.files else Path()
    moved = shutil.copytree(root, tmp_path / "elsewhere")
    first = prepared.meta.fingerprint
    assert indexed(moved, tmp_path / "a")[1].fingerprint == first
    assert indexed(moved, tmp_path / "b", resize=SIZE)[1].fingerprint != first
    photograph(moved / "val" / "a" / "00.JPEG", 19, 31)
    changed = indexed(moved, tmp_path / "c")[1].fingerprint
    assert changed["train"] == first["train"]
    assert changed["test"] != first["test"]


def test_a_part_is_held_out_as_of_copied_data(root: Path, tmp_path: Path) -> None:
    one, _ = indexed(root, tmp_path / "one", holdout=0.25)
    other, _ = indexed(root, tmp_path / "other", holdout=0.25, storage="copied")
    for name in ("train", "holdout", "test"):
        assert one.split(name).labels.tolist() == other.split(name).labels.tolist()
        held = np.stack([one.split(name).images[row] for row in range(len(one.split(name)))])
        np.testing.assert_array_equal(held, other.split(name).images)
    assert len(one.split("holdout")) > 0


# Pixels, against Pillow and torchvision.


def read(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def planes(image: Image.Image) -> Pixels:
    return np.array(image).transpose(2, 0, 1)


def test_the_plain_view_is_torchvisions_evaluation_transform(prepared: Prepared) -> None:
    for name in ("train", "test"):
        split = prepared.split(name)
        found = all_views(split, CROPS, 0).numpy()
        for row in range(len(split)):
            image = read(path_of(split, row))
            expected = reference.center_crop(reference.resize(image, [RESIZE]), [SIZE, SIZE])
            np.testing.assert_array_equal(found[row], planes(expected))
            np.testing.assert_array_equal(split.images[row], planes(expected))


def test_a_random_resized_crop_is_cut_out_of_the_whole_photograph(prepared: Prepared) -> None:
    """The box comes from the generator of copied images; cut, resized and mirrored by torchvision."""
    split, space = prepared.split("train"), RandomResizedCropSpace(CROPS)
    mirrored, outside = 0, 0
    for slot in (1, 2, 77):
        found = all_views(split, CROPS, slot).numpy()
        for row in range(len(split)):
            image = read(path_of(split, row))
            one = torch.tensor([row])
            height, width = torch.tensor([image.height]), torch.tensor([image.width])
            boxes, flips = space.boxes(view_ids(space, slot, one), one, height, width)
            top, left, tall, wide = boxes[0].tolist()
            assert 0 <= top <= top + tall <= image.height
            assert 0 <= left <= left + wide <= image.width
            expected = reference.resized_crop(image, top, left, tall, wide, [SIZE, SIZE])
            expected = ImageOps.mirror(expected) if flips[0] else expected
            np.testing.assert_array_equal(found[row], planes(expected))
            mirrored += bool(flips[0])
            short = min(image.size)
            outside += left < (image.width - short) // 2 or top < (image.height - short) // 2
    assert 20 < mirrored < 58  # of 78
    assert outside > 20  # parts that the plain view does not show


def test_boxes_of_oblong_images_keep_to_area_and_ratio() -> None:
    """Against the bounds, for which rounding to whole pixels is allowed half a pixel a side."""
    space = RandomResizedCropSpace(RandomResizedCrop(space="random_resized_crop", scale=(0.1, 0.5)))
    index = torch.arange(3000)
    height, width = torch.full_like(index, 480), torch.full_like(index, 640)
    boxes, _ = space.boxes(torch.ones_like(index), index, height, width)
    tall, wide = boxes[:, 2].double(), boxes[:, 3].double()
    assert (((tall + 0.5) * (wide + 0.5)) >= 0.1 * 480 * 640).all()
    assert (((tall - 0.5) * (wide - 0.5)) <= 0.5 * 480 * 640).all()
    assert ((wide + 0.5) / (tall - 0.5) >= 3 / 4).all()
    assert ((wide - 0.5) / (tall + 0.5) <= 4 / 3).all()
    assert abs(float((tall * wide).mean()) / (480 * 640) - 0.3) < 0.01
    center = boxes[:, 0] + tall / 2
    assert abs(float(center.mean()) - 240) < 6  # four standard errors


def test_a_square_box_is_drawn_as_of_copied_images(tmp_path: Path) -> None:
    """On square images of the prepared size: the same boxes; torch's resize differs from Pillow's by its rounding."""
    root = make_folder(tmp_path / "raw", square=SIZE)
    one, _ = indexed(root, tmp_path / "one", resize=SIZE)
    copied, _ = indexed(root, tmp_path / "two", resize=SIZE, storage="copied")
    index, space = torch.arange(26), view_space(CROPS)
    found = stream_images(one.split("train"), space, current().device).begin(3, index)()
    images = stream_images(copied.split("train"), space, current().device)
    assert isinstance(images, MappedImages)
    # Boxes are no larger than the view, so Pillow's antialiasing has nothing to do.
    assert (found.int() - images.begin(3, index)().int()).abs().max() <= 2


@pytest.mark.parametrize("params", SPACES, ids=lambda params: params.space)
def test_both_storages_have_the_same_plain_images(tmp_path: Path, params: ViewParams) -> None:
    root = make_folder(tmp_path / "raw", square=SIZE)
    one, meta = indexed(root, tmp_path / "one", resize=SIZE)
    other, copied = indexed(root, tmp_path / "two", resize=SIZE, storage="copied")
    assert (meta.mean, meta.std) == (copied.mean, copied.std)
    space, slots = view_space(params), [0] if cropped(view_space(params)) else [0, 1]
    for slot in slots:
        for name in ("train", "test"):
            index = torch.arange(len(one.split(name)))
            found = [
                open_images(data.split(name), space, current().device)[0].begin(slot, index)()
                for data in (one, other)
            ]
            assert torch.equal(*found)
    np.testing.assert_array_equal(one.split("train").images[4], planes(read(path_of(one.split("train"), 4))))


def test_gray_images_are_decoded_to_one_channel(root: Path, tmp_path: Path) -> None:
    split = indexed(root, tmp_path / "gray", channels=1)[0].split("train")
    with Image.open(path_of(split, 3)) as file:
        expected = reference.center_crop(reference.resize(file.convert("L"), [RESIZE]), [SIZE, SIZE])
    assert files_of(split).pixels(3, None).shape == (1, SIZE, SIZE)
    np.testing.assert_array_equal(files_of(split).pixels(3, None)[0], np.array(expected))
    assert files_of(split).pixels(3, Box(1, 2, 5, 6, False)).shape == (1, SIZE, SIZE)


# Who asks, when, in what company, and with how many threads does not matter.


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("params", SPACES, ids=lambda params: params.space)
@pytest.mark.parametrize("threads", [1, 3])
def test_a_view_replays_from_its_id(prepared: Prepared, params: ViewParams, threads: int) -> None:
    split, space = prepared.split("train"), view_space(params)
    for slot in (0, 1):
        expected = all_views(split, params, slot)
        images = DecodedImages(files_of(split), space, current().device, threads)
        order = torch.randperm(26, generator=seeding.generator("order", slot))
        batches = [*torch.split(order, 7), torch.tensor([4, 4, 0])]
        asked = []
        for index, view in views(images, slot, batches):
            asked.append(index)
            assert torch.equal(view, expected[index])
        assert torch.equal(torch.cat(asked), torch.cat(batches))
        forward = Forward(images, 26)
        for start, stop in ((0, 5), (5, 10), (20, 26), (3, 5), (10, 15), (15, 20), (20, 25), (25, 26)):
            assert torch.equal(forward.take(slot, start, stop), expected[start:stop])


@pytest.mark.usefixtures("device")
def test_what_is_stacked_on_a_random_box_changes_the_box_of_the_whole_photograph(prepared: Prepared) -> None:
    split, jitter = prepared.split("train"), ColorJitter(space="color_jitter")
    found = all_views(split, Stack(space="stack", parts=(CROPS, jitter)), 2)
    index = here(torch.arange(len(split)))
    expected = view_space(jitter).apply(all_views(split, CROPS, 2), torch.full_like(index, 2), index)
    assert torch.equal(found, expected)
    assert not torch.equal(found, all_views(split, CROPS, 2))


@pytest.mark.usefixtures("device")
def test_photographs_are_mixed_as_they_are_shown_with_all_that_is_cut_out_of_them(prepared: Prepared) -> None:
    split, device = prepared.split("train"), current().device
    space = view_space(Stack(space="stack", parts=(CROPS, EITHER)))
    batches = torch.randperm(26, generator=seeding.generator("order")).split(7)
    for slot in (0, 3):
        # A random box is drawn alike alone and in a stack.
        expected = mixtures(all_views(split, CROPS, slot).cpu().numpy(), slot, EITHER)
        for images in (open_images(split, space, device)[0], stream_images(split, space, device)):
            for index, view in views(images, slot, batches):
                np.testing.assert_array_equal(view.cpu().numpy(), expected.pixels[index.numpy()])
        taken = open_ranges(split, space, device)
        for start, stop in ((0, 10), (10, 20), (20, 26)):
            np.testing.assert_array_equal(
                taken.take(slot, start, stop).cpu().numpy(), expected.pixels[start:stop]
            )


class Recorder:
    """Images that note when a batch is begun and when it is taken."""

    ahead = 2

    def __init__(self) -> None:
        self.events: list[tuple[str, int, int]] = []

    def begin(self, slot: int, index: Tensor) -> Callable[[], Tensor]:
        first = int(index[0])
        self.events.append(("begin", slot, first))

        def finish() -> Tensor:
            self.events.append(("take", slot, first))
            return index

        return finish


def opened(events: list[tuple[str, int, int]]) -> list[int]:
    """Return how many batches are under way after each event."""
    counts = np.cumsum([1 if kind == "begin" else -1 for kind, _, _ in events])
    return [int(number) for number in counts]


def test_the_next_batches_are_under_way_and_never_more_than_they_should() -> None:
    recorder = Recorder()
    for index, view in views(recorder, 5, torch.split(torch.arange(20), 4)):
        assert torch.equal(index, view)
    starts = [first for kind, _, first in recorder.events if kind == "take"]
    assert starts == [0, 4, 8, 12, 16]
    assert opened(recorder.events)[:4] == [1, 2, 3, 2]
    assert max(opened(recorder.events)) == 3
    assert opened(recorder.events)[-1] == 0

    recorder = Recorder()
    forward = Forward(recorder, 20)
    for start in (0, 4, 8, 12, 16):
        assert forward.take(1, start, start + 4).tolist() == list(range(start, start + 4))
    assert recorder.events.count(("begin", 1, 8)) == 1
    assert opened(recorder.events)[:4] == [1, 2, 3, 2]
    assert max(opened(recorder.events)) == 3
    assert opened(recorder.events)[-1] == 0


@pytest.mark.usefixtures("device")
def test_batches_of_training_show_the_views_of_their_slot(prepared: Prepared) -> None:
    setting = Setting.of(prepared, CROPS, current())
    batches = setting.batches(Recipe(batch_size=8), 5, None)
    normalize = Normalize(prepared.meta.mean, prepared.meta.std, current().device)
    for epoch in (0, 3):
        for shown in batches.epoch(epoch):
            expected = all_views(prepared.split("train"), CROPS, int(shown.slot))[shown.index]
            assert torch.equal(shown.image, normalize(expected))
            rows = shown.index.cpu().numpy()
            assert shown.label.tolist() == prepared.split("train").labels[rows].tolist()


# Training.


class CutOffError(Exception):
    """Stands for a run that is cut off."""


SPEC = NetworkSpec(family="resnet", network="resnet8", size=SIZE, channels=3, classes=2)


def trained(scratch: Path, prepared: Prepared, epochs: int = 3) -> Path:
    recipe = Recipe(epochs=epochs, batch_size=6, learning_rate=0.01, milestones=())
    train(job(scratch, "indexed"), SPEC, recipe, CROPS, prepared, 1)
    return scratch


def history(scratch: Path) -> list[dict[str, str]]:
    with (scratch / "history.csv").open(newline="") as file:
        return [
            {key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(file)
        ]


@pytest.mark.usefixtures("device")
def test_a_training_that_is_cut_off_ends_bit_for_bit_where_it_would_have(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(tmp_path / "whole", prepared)
    monkeypatch.setattr("pipeline.training.loop.CHECKPOINT_SECONDS", -1.0)
    begin, calls = DecodedImages.begin, 0

    def cut_off(self: DecodedImages, slot: int, index: Tensor) -> Callable[[], Tensor]:
        nonlocal calls
        calls += 1
        if calls == 9:  # in the second epoch: one has five batches, and its evaluation one
            raise CutOffError
        return begin(self, slot, index)

    monkeypatch.setattr(DecodedImages, "begin", cut_off)
    with pytest.raises(CutOffError):
        trained(tmp_path / "cut", prepared)
    monkeypatch.setattr(DecodedImages, "begin", begin)
    trained(tmp_path / "cut", prepared)
    one, other = weights(whole), weights(tmp_path / "cut")
    assert all(torch.equal(x, other[name]) for name, x in one.items())
    assert history(whole) == history(tmp_path / "cut")


@pytest.mark.usefixtures("device")
def test_indexed_and_copied_data_train_alike(tmp_path: Path) -> None:
    """Images of the prepared size under crop and flip: storage is no setting of the training."""
    root = make_folder(tmp_path / "raw", square=SIZE)
    found = []
    for storage in ("indexed", "copied"):
        data, _ = indexed(root, tmp_path / storage, resize=SIZE, storage=storage)
        scratch = tmp_path / f"{storage}-training"
        recipe = Recipe(epochs=1, batch_size=6, learning_rate=0.01, milestones=())
        train(job(scratch, storage), SPEC, recipe, SPACES[1], data, 1)
        found.append((weights(scratch), history(scratch)))
    assert found[0][1] == found[1][1]
    assert all(torch.equal(x, found[1][0][name]) for name, x in found[0][0].items())


# Through the stages' commands.


@pytest.fixture
def project(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Prepare, train, extract and check 40 files by the stages' commands."""
    settings = {"path": str(root), "size": SIZE, "resize": RESIZE, "storage": "indexed"}
    blocks = {
        "photographs": {
            "stage": "prepare_data@photographs", "dataset": "photographs", "source": "image_folder",
            "settings": settings,
        },
        "train": {
            "stage": "train_teacher@big", "teacher": "big", "dataset": "photographs", "family": "resnet",
            "network": "resnet8", "weights": "none", "seed": 0, "recipe": {"epochs": 1, "batch_size": 8},
            "anchors": [], "views": CROPS.model_dump(mode="json"),
        },
        "extract": {
            "stage": "extract_features@big", "teacher": "big", "views": CROPS.model_dump(mode="json"),
            "checkpoints": ["last"], "compression": "none",
            "features": {"logits": {"slots": 2, "dtype": "float32"}, "stage2": {"slots": 1, "dtype": "float32"}},
        },
        "check": {"stage": "check_features@big", "teacher": "big"},
    }  # fmt: skip
    for name, block in blocks.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(block))
    where, data = ("--device", current().device), ("--data", tmp_path / "data")
    kept = ("--weights", tmp_path / "teacher" / "weights")
    commands: list[tuple[Callable[..., Any], tuple[object, ...]]] = [
        (prepare_data.main, (tmp_path / "photographs.json", "--out", tmp_path / "data")),
        (train_teacher.main, (tmp_path / "train.json", *data, "--out", tmp_path / "teacher", *where)),
        (extract_features.main, (tmp_path / "extract.json", *data, *kept, "--out", tmp_path / "big.zarr",
                                 "--batch-size", 7, *where)),
        (check_features.main, (tmp_path / "check.json", *data, *kept, "--store", tmp_path / "big.zarr", "--out",
                               tmp_path / "check_out.json", "--summary", tmp_path / "summary.json", *where)),
    ]  # fmt: skip
    for main, arguments in commands:
        assert run_stage(monkeypatch, main, *arguments) == 0, main
    return tmp_path


@pytest.mark.usefixtures("device")
def test_the_stages_run_on_indexed_data(project: Path) -> None:
    data = Prepared.open(project / "data")
    teacher = Teacher(load(project / "teacher" / "weights")[0], current())
    manifest = manifests.read(project / "big.zarr", "dvc repro")
    assert manifest.data == data.meta.fingerprint
    assert json.loads((project / "check_out.json").read_text())["largest_error"] < 1e-4

    # Features of the store, and of the teacher on reference pixels.
    split, space = data.split("train"), RandomResizedCropSpace(CROPS)
    normalize = Normalize(data.meta.mean, data.meta.std, current().device)
    for slot in (0, 1, 2):
        images = []
        for row in range(len(split)):
            image, one = read(path_of(split, row)), torch.tensor([row])
            if slot == 0:
                shown = reference.center_crop(reference.resize(image, [RESIZE]), [SIZE, SIZE])
            else:
                sides = torch.tensor([image.height]), torch.tensor([image.width])
                boxes, flips = space.boxes(view_ids(space, slot, one), one, *sides)
                shown = reference.resized_crop(image, *boxes[0].tolist(), [SIZE, SIZE])
                shown = ImageOps.mirror(shown) if flips[0] else shown
            images.append(torch.from_numpy(planes(shown)))
        label = here(torch.zeros(len(images), dtype=torch.int64))
        shown = here(torch.stack(images))
        live = teacher.features(normalize(shown), ["logits"], label)["logits"].cpu().numpy()
        stored = StoredArray(array_path(project / "big.zarr", "last", "train", "logits"))
        # Float32 sums of batches of another size.
        np.testing.assert_allclose(stored.read(slot, np.arange(26)), live, rtol=1e-4, atol=1e-5)

    # Cached and online features of training's own batches.
    stores = dict.fromkeys(("logits", "stage2"), project / "big.zarr")
    cached = CachedSource(stores, ["last"], 1, current().device)
    online = OnlineSource({"last": teacher}, ["logits", "stage2"])
    for shown in Setting.of(data, CROPS, current()).batches(Recipe(batch_size=8), 0, 1).epoch(4):
        batch = ("last", int(shown.slot), shown.index.cpu(), shown.image, shown.label)
        found = [features_of(source, *batch) for source in (cached, online)]
        for name in ("logits", "stage2"):
            torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-4, atol=1e-5)


def move(folder: Path, root: str) -> None:
    """Say in indexed data that their files lie elsewhere."""
    files = Prepared.open(folder).meta.files
    assert files is not None
    edit_meta(folder, files={"root": root, "resize": files.resize})


def test_a_file_that_changes_stops_every_stage_in_one_line(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every reader compares what it reads with the index."""
    raw = shutil.copytree(Prepared.open(project / "data").split("train").images.root, project / "raw")
    move(project / "data", str(raw))
    photograph(raw / "train" / "b" / "11.JPEG", 30, 30)
    data, kept = ("--data", project / "data"), ("--weights", project / "teacher" / "weights")
    commands: list[tuple[Callable[..., Any], tuple[object, ...]]] = [
        (train_teacher.main, (project / "train.json", *data, "--out", project / "again")),
        (extract_features.main, (project / "extract.json", *data, *kept, "--out", project / "again.zarr")),
        (check_features.main, (project / "check.json", *data, *kept, "--store", project / "big.zarr", "--out",
                               project / "out.json", "--summary", project / "again.json")),
    ]  # fmt: skip
    for main, arguments in commands:
        capsys.readouterr()
        assert run_stage(monkeypatch, main, *arguments, "--device", current().device) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {raw / 'train' / 'b' / '11.JPEG'} has ")
        assert line.endswith("dvc repro --force --single-item prepare_data@photographs")
    assert not (project / "again").exists()


# Bad files.


def _shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _write_text(path: Path) -> None:
    path.write_text("no image")


def _sixteen_bits(path: Path) -> None:
    Image.fromarray(np.full((20, 20), 4000, np.uint16)).save(path, "PNG")


@pytest.mark.parametrize(
    ("place", "damage", "text"),
    [
        ("train/b/03.JPEG", Path.unlink, "does not exist, but"),
        ("train/b/03.JPEG", _shorten, "bytes that are not those of the file"),
        ("train/b/03.JPEG", _write_text, "has 8 bytes that are not those of the file"),
        ("", shutil.rmtree, "only lists the images there. Put the raw files"),
    ],
)
def test_a_file_that_is_gone_or_another_is_named_when_it_is_read(
    tmp_path: Path, place: str, damage: Callable[[Path], object], text: str
) -> None:
    raw = make_folder(tmp_path / "raw", 8, 4)
    data, _ = indexed(raw, tmp_path / "photographs")
    damage(raw / place)
    again = Prepared.open(tmp_path / "photographs")  # labels and names need no raw files
    images = stream_images(again.split("train"), view_space(CROPS), current().device)
    with pytest.raises(DataError) as error:
        images.begin(1, torch.arange(8))()
    line = str(error.value)
    assert "\n" not in line
    assert str(raw / place) in line
    assert text in line
    expected = "run the same command again." if not place else "dvc repro --force --single-item prepare_data"
    assert line.endswith(expected)
    assert len(data.split("train")) == 8


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (_write_text, "(no image)"),
        (_shorten, "Cannot read the image"),
        (_sixteen_bits, "expected 8 bits a channel"),
    ],
)
def test_a_bad_file_is_named_when_it_is_prepared(
    tmp_path: Path, damage: Callable[[Path], None], text: str
) -> None:
    raw = make_folder(tmp_path / "raw", 8, 4)
    damage(raw / "train" / "b" / "03.JPEG")
    with pytest.raises(DataError) as error:
        indexed(raw, tmp_path / "out")
    line = str(error.value)
    assert "\n" not in line
    assert str(raw / "train" / "b" / "03.JPEG") in line
    assert text in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_file_that_was_cut_off_is_named_when_it_is_listed(tmp_path: Path, split: str) -> None:
    """Also with mean and std given: every file is decoded once, so that no training finds it hours later."""
    raw = make_folder(tmp_path / "raw", 8, 4)
    _shorten(raw / split / "b" / "03.JPEG")
    with pytest.raises(DataError, match=r"03\.JPEG.*dvc repro$"):
        indexed(raw, tmp_path / "out", mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (Path.unlink, "does not exist"),
        (_write_text, "does not begin as an npy file"),
        (lambda path: np.save(path, np.zeros(26)), "begins with {'descr': '<f8', 'fortran_order': False"),
        (lambda path: np.save(path, np.load(path)[:-1]), "'shape': (25,), }, expected"),
    ],
)
def test_a_damaged_index_is_told(prepared: Prepared, tmp_path: Path, damage: Any, text: str) -> None:
    folder = shutil.copytree(prepared.folder, tmp_path / "photographs")
    damage(folder / "train_files.npy")
    with pytest.raises(Exception, match=r"dvc repro .*prepare_data") as error:
        Prepared.open(folder)
    assert text in str(error.value)


def test_the_short_side_covers_the_crop() -> None:
    with pytest.raises(ParamsError, match=r"'x\.resize' is 10\. Expected 16 or more"):
        validate(image_folder.Config, {"path": "a", "size": 16, "resize": 10}, "x")


# The report.


def test_the_report_shows_indexed_images_where_they_are(prepared: Prepared, tmp_path: Path) -> None:
    assert gallery._gallery(Dataset("photographs", prepared, CROPS)).count("<img") == 2
    folder = shutil.copytree(prepared.folder, tmp_path / "photographs")
    move(folder, "nowhere")
    shown = gallery._gallery(Dataset("photographs", Prepared.open(folder), CROPS))
    assert "nowhere, which is not on this machine" in shown
    assert "<img" not in shown

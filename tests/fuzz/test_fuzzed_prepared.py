"""Prepared data with any damage to any of their files: everybody reads what was prepared, or one line says why not."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from error_fixtures import one_line
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.data.dataset import ArraySplit, DatasetConfig, Source
from pipeline.data.datasets import image_folder
from pipeline.data.file_index import FileIndex
from pipeline.data.image_array import ImageArray
from pipeline.data.images import Images, MappedImages, open_images, stream_images
from pipeline.data.preparation import prepare
from pipeline.data.prepared import Prepared, Split
from pipeline.data.ranges import ReadAheadImages, copied, open_ranges
from pipeline.data.raw import record
from pipeline.data.views import view_space
from pipeline.errors import StillhouseError
from pipeline.params.views import RandomResizedCrop

CPU = torch.device("cpu")
SPACE = view_space(RandomResizedCrop(space="random_resized_crop"))
SLOT = 1  # of random boxes: for indexed images they depend on the sizes that are listed
HEAD = 128  # bytes of a small npy file before its array
Reader = Callable[[Split], torch.Tensor]


def begun(images: Images, number: int) -> torch.Tensor:
    return images.begin(SLOT, torch.arange(number))()


def ahead(split: Split) -> torch.Tensor:
    assert isinstance(split.images, ImageArray)
    return begun(ReadAheadImages(split.images, SPACE, CPU), len(split))


def on_device(split: Split) -> torch.Tensor:
    assert isinstance(split.images, ImageArray)
    return copied(split.images, CPU)


def mapped(split: Split) -> torch.Tensor:
    assert isinstance(split.images, ImageArray)
    return begun(MappedImages(split.images, SPACE, CPU), len(split))


READERS: dict[str, Reader] = {
    "one by one": lambda split: torch.from_numpy(np.stack([split.images[row] for row in range(len(split))])),
    "whole": lambda split: begun(open_images(split, SPACE, CPU)[0], len(split)),
    "stream": lambda split: begun(stream_images(split, SPACE, CPU), len(split)),
    "ranges": lambda split: open_ranges(split, SPACE, CPU).take(SLOT, 0, len(split)),
}
OF_ARRAYS: dict[str, Reader] = {"ahead": ahead, "copied": on_device, "mapped": mapped}


def copied_data(folder: Path) -> None:
    draw = np.random.default_rng(0)
    splits = [
        ArraySplit(draw.integers(0, 256, (number, 2, 4, 4), np.uint8), np.arange(number, dtype=np.int64) % 2)
        for number in (7, 4)
    ]
    source = Source(["cat", "dog"], 2, 4, *splits)
    prepare(source, "made", DatasetConfig(holdout=0.3), folder, made_by="prepare_data@made")


def indexed_data(folder: Path) -> None:
    draw = np.random.default_rng(0)
    for number, place in enumerate(("train/a/1", "train/a/22", "train/b/1", "val/a/1", "val/b/1")):
        path = folder.parent / "raw" / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (6 + number, 9 - number, 3), np.uint8)).save(path)
    config = image_folder.Config(path=folder.parent / "raw", size=5, storage="indexed")
    prepare(image_folder.open_source(config), "image_folder", config, folder, made_by="prepare_data@made")


def content(folder: Path, readers: dict[str, Reader]) -> Iterator[object]:
    """Give all that readers see: of a split its labels, its classes, and its images by each reader."""
    data = Prepared.open(folder)
    yield data.meta
    for name in sorted(data.splits):
        split = data.split(name)
        yield name, split.labels.tolist(), split.classes, split.fingerprint
        for reader in readers.values():
            yield reader(split).tolist()


class World:
    """Prepared data, and what everybody reads of them undamaged."""

    def __init__(self, folder: Path, make: Callable[[Path], None]) -> None:
        self.folder = folder / "made"
        make(self.folder)
        whole = isinstance(Prepared.open(self.folder).split("train").images, FileIndex)
        self.readers = READERS if whole else READERS | OF_ARRAYS
        self.expected = list(content(self.folder, self.readers))

        self.files = {path.name: path.read_bytes() for path in sorted(self.folder.iterdir())}
        self.names = sorted(self.files.keys() - {record.FILE})  # which nobody reads with the images

    def holds(self, files: dict[str, bytes | None]) -> None:
        """Check that data with other files are read as they were, or refused in one line."""
        with TemporaryDirectory() as folder:
            copy = shutil.copytree(self.folder, Path(folder) / "made")
            for name, changed in files.items():
                (copy / name).unlink()
                if changed is not None:
                    (copy / name).write_bytes(changed)
            assert self.read(copy) in ("refused", self.expected)

    def read(self, folder: Path) -> object:
        """Return what everybody reads, or that it is refused in one line."""
        try:
            return list(content(folder, self.readers))
        except StillhouseError as error:
            one_line(
                error,
                "dvc repro",
                quoted=[path.read_bytes().decode("latin-1") for path in sorted(folder.iterdir())],
            )
        return "refused"


@pytest.fixture(scope="module", params=[copied_data, indexed_data])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("prepared"), request.param)


few = settings(max_examples=max(1, settings().max_examples // 2))


@pytest.mark.parametrize("part", ["head", "body"])
@few
@given(data=st.data())
def test_flipped_bits_are_found_or_change_nothing(world: World, part: str, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(world.names))
    changed = bytearray(world.files[name])
    # Apart, since what is wrong with a header hides what is wrong behind it.
    first, last = (0, HEAD - 1) if part == "head" else (HEAD, len(changed) - 1)
    for place in data.draw(st.lists(st.integers(first, last), min_size=1, max_size=3, unique=True)):
        changed[place] ^= 1 << data.draw(st.integers(0, 7))
    world.holds({name: bytes(changed)})


@few
@given(data=st.data())
def test_a_file_that_is_cut_grown_or_gone_is_found(world: World, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(world.names))
    kept = world.files[name][: data.draw(st.integers(0, len(world.files[name])))]
    grown = world.files[name] + data.draw(st.binary(max_size=9))
    world.holds({name: data.draw(st.sampled_from([kept, grown, None]))})


@few
@given(data=st.data())
def test_files_that_are_exchanged_are_found(world: World, data: st.DataObject) -> None:
    one, other = data.draw(st.sampled_from(world.names)), data.draw(st.sampled_from(world.names))
    back = data.draw(st.booleans())
    world.holds({one: world.files[other]} | ({other: world.files[one]} if back else {}))


@few
@given(data=st.data())
def test_bytes_that_change_places_are_found(world: World, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(world.names))
    # Of a pixel, a label, a hash, an image, a record.
    changed, size = bytearray(world.files[name]), data.draw(st.sampled_from([1, 8, 16, 32, 39]))
    behind = st.integers(HEAD, max(HEAD, len(changed) - size))
    one, other = data.draw(behind), data.draw(behind)
    changed[one : one + size], changed[other : other + size] = (
        changed[other : other + size],
        changed[one : one + size],
    )
    world.holds({name: bytes(changed)})


@few
@given(data=st.data())
def test_a_header_that_promises_something_else_is_found(world: World, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([name for name in world.names if name.endswith(".npy")]))
    descr = data.draw(
        st.sampled_from(["<i8", ">i8", "|u1", "|O", "<U9", "<f8", "|V1", [("path", "|S999999")], "(", 0])
    )
    shape = data.draw(st.lists(st.integers(-1, 1 << 70), max_size=5).map(tuple))
    text = f"{{'descr': {descr!r}, 'fortran_order': {data.draw(st.booleans())}, 'shape': {shape!r}, }}"
    text = data.draw(st.sampled_from([text, text * 9, "(" * 5000, "\\d", "1if 1else 0", "x = " + text]))
    header = (text + "\n").encode()
    start = b"\x93NUMPY" + data.draw(st.sampled_from([b"\1\0", b"\2\0", b"\3\0", b"\4\0"]))
    world.holds({name: start + len(header).to_bytes(2, "little") + header + world.files[name][HEAD:]})

"""Prepared data as everybody reads them: what is not what was prepared is one line, whoever reads it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from error_fixtures import one_line
from PIL import Image
from prepared_fixtures import edit_meta, flip, write

from pipeline.artifacts import advice
from pipeline.artifacts.publish import read_json
from pipeline.data.datasets import image_folder
from pipeline.data.image_array import ImageArray
from pipeline.data.images import MappedImages, open_images, stream_images
from pipeline.data.layout import image_hashes
from pipeline.data.preparation import prepare
from pipeline.data.prepared import Prepared, Split
from pipeline.data.ranges import ReadAheadImages, copied, open_ranges, open_rows
from pipeline.data.views import PlainSpace
from pipeline.errors import DamagedArtifactError, MissingArtifactError, StaleArtifactError, UnknownNameError

CPU = torch.device("cpu")
NUMBER = {"train": 40, "test": 20}
SHAPE = (2, 5, 5)
ROW = 3


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    draw, folder = np.random.default_rng(0), tmp_path / "some"
    splits = {
        name: (draw.integers(0, 256, (number, *SHAPE), np.uint8), np.arange(number) % 4)
        for name, number in NUMBER.items()
    }
    made_by = "prepare_data@some"
    write(
        folder, splits, made_by=made_by, source="made", classes=tuple("abcd"), mean=(0.5, 0.4), std=(0.2, 0.3)
    )
    return folder


@pytest.fixture
def indexed(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for place in ("train/a/1", "train/a/2", "train/b/1", "val/a/1", "val/b/1"):
        path = tmp_path / "raw" / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (6, 8, 3), np.uint8)).save(path)
    config = image_folder.Config(path=tmp_path / "raw", size=5, storage="indexed")
    source = image_folder.open_source(config)
    prepare(source, "image_folder", config, tmp_path / "files", made_by="prepare_data@files")
    return tmp_path / "files"


def test_an_unknown_split_names_those_that_exist(prepared: Path) -> None:
    with pytest.raises(UnknownNameError) as error:
        Prepared.open(prepared).split("tset")
    one_line(error, "Did you mean 'test'?", "test, train")


# What is wrong when the data are opened.


def save(name: str, array: Any) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / name, array)


def cut(name: str, content: bytes | int) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(
        content if isinstance(content, bytes) else (folder / name).read_bytes()[:content]
    )


@pytest.mark.parametrize(
    ("damage", "kind", "text"),
    [
        (
            shutil.rmtree,
            MissingArtifactError,
            "meta.json does not exist. Make it with: dvc repro prepare_data@some",
        ),
        (
            lambda f: (f / "train_images.npy").unlink(),
            MissingArtifactError,
            "train_images.npy does not exist",
        ),
        (
            lambda f: (f / "train_hashes.npy").unlink(),
            MissingArtifactError,
            "train_hashes.npy does not exist",
        ),
        (cut("meta.json", b"{"), DamagedArtifactError, "not valid json"),
        (cut("meta.json", b"[]"), StaleArtifactError, "version None"),
        (lambda f: edit_meta(f, schema_version=1), StaleArtifactError, "version 1, expected 2"),
        (lambda f: edit_meta(f, size="5"), DamagedArtifactError, "size: "),
        (
            lambda f: edit_meta(f, size=6),
            DamagedArtifactError,
            "expected {'descr': '|u1', 'fortran_order': False",
        ),
        (lambda f: edit_meta(f, size=1 << 60), DamagedArtifactError, "'shape': (20, 2, 1152921504606846976"),
        (
            lambda f: edit_meta(f, fingerprint={}),
            DamagedArtifactError,
            "do not have the hash that meta.json gives",
        ),
        (cut("test_labels.npy", b"x"), DamagedArtifactError, "test_labels.npy does not begin as an npy"),
        (cut("test_labels.npy", b""), DamagedArtifactError, "test_labels.npy does not begin as an npy"),
        (
            cut("test_labels.npy", b"PK\x03\x04"),
            DamagedArtifactError,
            "test_labels.npy does not begin as an npy",
        ),
        (save("test_labels.npy", np.zeros(20)), DamagedArtifactError, "begins with {'descr': '<f8'"),
        (
            cut("train_images.npy", -1),
            DamagedArtifactError,
            "train_images.npy has 2,127 bytes, expected 2,128",
        ),
        (
            save("train_images.npy", np.zeros((40, 2, 5, 5), np.uint8, "F")),
            DamagedArtifactError,
            "order': True",
        ),
    ],
)
def test_damage_is_one_line_with_the_next_command(
    prepared: Path, damage: Callable[[Path], object], kind: type[Exception], text: str
) -> None:
    damage(prepared)
    with pytest.raises(kind) as error:
        Prepared.open(prepared)
    again = "repro" if kind is MissingArtifactError else "repro --force --single-item"
    one_line(error, text, f"dvc {again} prepare_data@some")


@pytest.mark.parametrize(
    ("key", "value"),
    [("mean", [0.5, 0.41]), ("std", [0.2, 0.31]), ("size", 6), ("channels", 3), ("made_by", "prepare_data@other"),
     ("classes", ["a", "b", "d", "c"]), ("source", "digits"), ("files", {"root": "a", "resize": 5})],
)  # fmt: skip
def test_meta_that_is_not_what_was_written_is_refused_when_it_is_opened(
    prepared: Path, key: str, value: Any
) -> None:
    edit_meta(prepared, sealed=False, **{key: value})
    with pytest.raises(DamagedArtifactError) as error:
        Prepared.open(prepared)
    one_line(error, "meta.json is not what was written", "--force --single-item prepare_data@some")


def test_class_names_belong_to_the_fingerprint(prepared: Path) -> None:
    edit_meta(prepared, classes=["a", "b", "d", "c"])
    with pytest.raises(DamagedArtifactError, match="do not have the hash"):
        Prepared.open(prepared)


@pytest.mark.parametrize("name", ["train_labels.npy", "train_hashes.npy", "test_labels.npy"])
def test_one_bit_of_labels_and_hashes_is_found_when_they_are_opened(prepared: Path, name: str) -> None:
    flip(prepared / name, -8)
    with pytest.raises(DamagedArtifactError) as error:
        Prepared.open(prepared)
    one_line(error, str(prepared / name), "dvc repro --force --single-item prepare_data@some")


@pytest.mark.parametrize("field", ["path", "bytes", "height", "width", "hash"])
def test_one_bit_of_a_list_of_files_is_found_when_it_is_opened(indexed: Path, field: str) -> None:
    Prepared.open(indexed)
    records = np.load(indexed / "train_files.npy")
    if field == "path":
        records["path"][1] = b"a/1.png"
    else:
        records[field][1] ^= 1
    np.save(indexed / "train_files.npy", records)
    with pytest.raises(DamagedArtifactError) as error:
        Prepared.open(indexed)
    one_line(error, str(indexed / "train_files.npy"), "dvc repro --force --single-item prepare_data@files")


def test_what_needs_labels_and_names_alone_reads_no_image(prepared: Path, indexed: Path) -> None:
    flip(prepared / "train_images.npy", -1)
    assert Prepared.open(prepared).split("train").labels.tolist() == [0, 1, 2, 3] * 10
    shutil.rmtree(indexed.parent / "raw")
    assert Prepared.open(indexed).split("train").labels.tolist() == [0, 0, 1]


# What is wrong with an image, whoever reads it.


def array(split: Split) -> ImageArray:
    assert isinstance(split.images, ImageArray)
    return split.images


READERS: dict[str, Callable[[Split], object]] = {
    "one": lambda split: split.images[ROW],
    "all": lambda split: open_images(split, PlainSpace(), CPU),
    "stream": lambda split: stream_images(split, PlainSpace(), CPU).begin(0, torch.arange(8))(),
    "rows": lambda split: open_rows(split, PlainSpace(), CPU).begin(0, torch.tensor([ROW]))(),
    "mapped": lambda split: MappedImages(array(split), PlainSpace(), CPU).begin(0, torch.tensor([1, ROW]))(),
    "ahead": lambda split: ReadAheadImages(array(split), PlainSpace(), CPU).begin(
        0, torch.tensor([ROW, 1])
    )(),
    "ranges": lambda split: open_ranges(split, PlainSpace(), CPU).take(0, 2, 5),
    "copied": lambda split: copied(array(split), CPU),
}


@pytest.mark.parametrize("reader", READERS)
def test_an_image_that_is_not_the_one_prepared_is_named_by_whoever_reads_it(
    prepared: Path, reader: str
) -> None:
    path = prepared / "train_images.npy"
    flip(path, path.stat().st_size - (NUMBER["train"] - ROW) * 50)  # its first pixel
    split = Prepared.open(prepared).split("train")
    with pytest.raises(DamagedArtifactError) as error:
        READERS[reader](split)
    again = "Make it again with: dvc repro --force --single-item prepare_data@some"
    assert str(error.value) == f"{path}: image {ROW} is not the one that was prepared. {again}"
    # Whoever reads others meets nothing.
    assert split.images[ROW + 1].shape == SHAPE


def test_images_are_not_mixed_up(prepared: Path) -> None:
    path = prepared / "train_images.npy"
    images = np.load(path)
    np.save(path, images[::-1])
    with pytest.raises(DamagedArtifactError, match="image 0 is not"):
        open_images(Prepared.open(prepared).split("train"), PlainSpace(), CPU)


def test_the_hashes_of_images_are_those_of_one_after_the_other() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 2, 4, 4), np.uint8)
    for row in range(3):
        assert image_hashes(images)[row].tobytes() == image_hashes(images[row : row + 1].copy()).tobytes()
    assert np.array_equal(
        image_hashes(images.transpose(0, 1, 3, 2)), image_hashes(images.swapaxes(2, 3).copy())
    )


def test_a_row_counts_from_the_end_and_none_is_beyond(prepared: Path) -> None:
    images = Prepared.open(prepared).split("train").images
    assert np.array_equal(images[-1], images[NUMBER["train"] - 1])
    with pytest.raises(IndexError):
        images[NUMBER["train"]]


def test_the_seal_is_that_of_what_was_written(prepared: Path) -> None:
    meta = Prepared.open(prepared).meta
    assert meta == meta.sealed()
    assert read_json(prepared / "meta.json", "")["seal"] == meta.seal
    assert advice.forced("dvc repro prepare_data@some") == "dvc repro --force --single-item prepare_data@some"

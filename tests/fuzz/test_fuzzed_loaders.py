"""Raw files that are damaged, odd or hostile: they are read as they were meant, or refused in one line."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import tarfile
import tempfile
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from error_fixtures import one_line
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from raw_fixtures import idx, python2_pickle

from pipeline.data.datasets import fashion_mnist, image_folder, tiny_imagenet
from pipeline.data.preparation import prepare
from pipeline.data.prepared import Prepared
from pipeline.data.raw import cifar_batches, download, image_files, record
from pipeline.errors import StillhouseError

WIDTH, HEIGHT = 9, 7
FORMATS = ("bmp", "gif", "jpeg", "png", "ppm", "tiff", "webp")


def outcome(task: Callable[[], Any], quoted: Collection[str] = ()) -> Any:
    """Return what `task` gives, or the one line that it is refused with; any other error fails the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of what it has read all the same
        try:
            return task()
        except StillhouseError as error:
            return one_line(error, quoted=quoted)


# --- Damage of bytes ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cut:
    """The first `share` of the bytes, less some."""

    share: float
    less: int

    def of(self, content: bytes) -> bytes:
        return content[: max(0, int(self.share * len(content)) - self.less)]


@dataclass(frozen=True)
class Flip:
    """One bit, at a share of the bytes, is the other."""

    share: float
    bit: int

    def of(self, content: bytes) -> bytes:
        place = int(self.share * len(content))
        return content[:place] + bytes([content[place] ^ (1 << self.bit)]) + content[place + 1 :]


@dataclass(frozen=True)
class Insert:
    """Other bytes stand at a share of the bytes."""

    share: float
    bytes: bytes

    def of(self, content: bytes) -> bytes:
        place = int(self.share * len(content))
        return content[:place] + self.bytes + content[place + len(self.bytes) :]


SHARES = st.floats(0, 1, exclude_max=True)
CUTS = st.one_of(st.builds(Cut, SHARES, st.just(0)), st.builds(Cut, st.just(1.0), st.integers(1, 20)))
FLIPS = st.builds(Flip, SHARES, st.integers(0, 7))
DAMAGE = st.one_of(CUTS, FLIPS, st.builds(Insert, SHARES, st.binary(min_size=1, max_size=8)))


# --- Images -------------------------------------------------------------------------------------------------


@cache
def picture(kind: str, mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(
        content, kind, **({"lossless": True} if kind == "webp" else {})
    )
    return content.getvalue()


def pixels_of(content: bytes) -> NDArray[np.uint8]:
    return np.array(image_files.decode("x", content, 3))


def pixels_of_pillow(content: bytes) -> NDArray[np.uint8]:
    return np.array(Image.open(io.BytesIO(content)).convert("RGBA").convert("RGB"))


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=settings().max_examples // 2)
@given(damage=CUTS)
def test_a_truncated_image_is_refused_or_whole(kind: str, damage: Cut) -> None:
    found = outcome(lambda: pixels_of(damage.of(picture(kind))))
    assert isinstance(found, str) or np.array_equal(found, pixels_of(picture(kind)))


@settings(max_examples=settings().max_examples * 2)
@given(mode=st.sampled_from(["1", "L", "P", "RGB", "RGBA"]), damage=DAMAGE)
def test_a_damaged_png_is_refused_or_as_it_was(mode: str, damage: Any) -> None:
    found = outcome(lambda: pixels_of(damage.of(picture("png", mode))))
    assert isinstance(found, str) or np.array_equal(found, pixels_of(picture("png", mode)))


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=settings().max_examples // 2)
@given(damage=DAMAGE)
def test_other_damaged_images_are_refused_or_what_pillow_sees(kind: str, damage: Any) -> None:
    """They hold no checksum, so that a flipped bit may be another picture; it is Pillow's, and of bounded size."""
    content = damage.of(picture(kind))
    found = outcome(lambda: pixels_of(content))
    if not isinstance(found, str):
        assert found.shape[2] == 3
        assert found.shape[0] * found.shape[1] <= image_files.MOST_PIXELS
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            np.testing.assert_array_equal(found, pixels_of_pillow(content))


# --- Folders ------------------------------------------------------------------------------------------------

ODD = [
    "a",
    "A",
    "a ",
    "caf\u00e9",
    "cafe\u0301",
    ".hidden",
    "x.png",
    "n\nl",
    "train",
    "-",
    "\u2028",
    "\u200b",
]
PRINTABLE, ALL = (
    st.characters(exclude_characters="/\0", exclude_categories=kinds) for kinds in (["C", "Z"], ["Cs"])
)
CLASS_NAMES = st.one_of(*[st.text(PRINTABLE, min_size=1, max_size=4)] * 3, st.sampled_from(ODD))
NAMES = st.one_of(st.text(ALL, min_size=1, max_size=4), st.sampled_from(ODD))
SUFFIXES = st.sampled_from([".png", ".png", ".png", ".PNG", ".gif", ".txt", "", ".tif", ".jpg"])
KINDS = st.sampled_from(
    ["image"] * 16 + ["text", "folder", "pipe", "broken", "loop", "inside", "outside", "damaged"]
)
FILES = st.lists(st.tuples(NAMES, SUFFIXES, KINDS), min_size=1, max_size=4)
CLASSES = st.dictionaries(CLASS_NAMES, FILES, min_size=1, max_size=3)


def plant(path: Path, kind: str, root: Path) -> None:
    """Put an entry of a kind there, unless its name is taken or none."""
    if path.name in (".", "..") or len(os.fsencode(path.name)) > 255 or os.path.lexists(path):
        return
    match kind:
        case "image" | "damaged":
            path.write_bytes(picture("png")[: -1 if kind == "damaged" else None])
        case "text":
            path.write_text("text")
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "broken":
            path.symlink_to("nowhere")
        case "loop":
            path.symlink_to(path.name)
        case "inside":
            path.symlink_to(root / "one.png")
        case "outside":
            path.symlink_to(root.parent / "one.png")


def counted(folder: Path) -> list[Path]:
    """Return what a data set of folders is, told another way: the files of images in folders that are not hidden."""
    found = []
    for one in sorted(folder.iterdir(), key=lambda path: path.name):
        for path in sorted(one.iterdir(), key=lambda path: path.name):
            hidden = one.name.startswith(".") or path.name.startswith(".")
            if path.suffix.lower() in (".png", ".gif", ".tif", ".jpg") and not hidden:
                found.append(path)
    return found


@given(
    train=CLASSES,
    other=CLASSES,
    same=st.sampled_from([True, True, True, False]),
    storage=st.sampled_from(["copied", "indexed"]),
    links=st.sampled_from(["inside", "anywhere"]),
    damaged=st.sampled_from(["refuse", "skip"]),
)
def test_a_folder_is_what_it_holds_or_refused(
    train: dict[str, Any], other: dict[str, Any], same: bool, storage: str, links: str, damaged: str
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch).resolve() / "raw"
        for split, classes in (("train", train), ("val", train if same else other)):
            for name, files in classes.items():
                if name in (".", "..") or len(os.fsencode(name)) > 255:
                    continue
                (root / split / name).mkdir(parents=True)
                for file, suffix, kind in files:
                    plant(root / split / name / f"{file}{suffix}", kind, root)
        for place in (root, root.parent):
            place.mkdir(exist_ok=True)
            (place / "one.png").write_bytes(picture("png"))
        before = sorted(str(path) for path in root.rglob("*"))
        names = {path.name for path in root.rglob("*")}

        given_settings: Any = {
            "path": root,
            "size": 7,
            "storage": storage,
            "links": links,
            "damaged": damaged,
        }
        config = image_folder.Config(**given_settings)
        out = Path(scratch) / "out"
        meta = outcome(lambda: prepare(image_folder.open_source(config), "image_folder", config, out), names)
        assert sorted(str(path) for path in root.rglob("*")) == before
        if isinstance(meta, str):
            assert not out.exists()
            return

        assert damaged == "skip" or not record.read(out).skipped
        for split, folder in (("train", root / "train"), ("test", root / "val")):
            kept = [
                path for path in counted(folder) if path.is_file() and path.read_bytes() == picture("png")
            ]
            assert all(links == "anywhere" or path.resolve().is_relative_to(root) for path in counted(folder))
            data = Prepared.open(out).split(split)
            assert len(data) == len(kept)
            assert [meta.classes[label] for label in data.labels] == [path.parent.name for path in kept]
            assert all(np.array_equal(data.images[row], data.images[0]) for row in range(len(data)))
        assert record.change(out, meta, config) is None


# --- idx files ----------------------------------------------------------------------------------------------


DIGITS = np.random.default_rng(4).integers(0, 256, (12, 28, 28), dtype=np.uint8)
LABELS = (np.arange(12) % 10).astype(np.uint8)


@settings(max_examples=settings().max_examples * 2)
@given(packed=st.booleans(), of_labels=st.booleans(), damage=DAMAGE)
def test_a_damaged_idx_file_is_refused_or_as_it_was(packed: bool, of_labels: bool, damage: Any) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for prefix in ("train", "t10k"):
            for name, array in (("images-idx3", DIGITS), ("labels-idx1", LABELS)):
                content = gzip.compress(idx(array), mtime=0) if packed else idx(array)
                if prefix == "train" and of_labels == (name == "labels-idx1"):
                    content = damage.of(content)
                (folder / f"{prefix}-{name}-ubyte{'.gz' if packed else ''}").write_bytes(content)
        config = fashion_mnist.Config(path=folder, download=False)
        found = outcome(lambda: fashion_mnist.open_source(config).train)
    if isinstance(found, str):
        return

    if packed:  # with a checksum
        np.testing.assert_array_equal(found.array[:, 0], DIGITS)
        np.testing.assert_array_equal(found.labels, LABELS)
    elif of_labels:
        assert found.labels.tolist() == list(damage.of(idx(LABELS))[8:])
        assert found.labels.max() < 10
    else:
        assert found.array.tobytes() == damage.of(idx(DIGITS))[16:]


# --- CIFAR's batches and archives ---------------------------------------------------------------------------


@cache
def batch() -> bytes:
    data = np.random.default_rng(5).integers(0, 256, (4, 3072), dtype=np.uint8)
    return python2_pickle({"batch_label": "x", "labels": [0, 1, 1, 0], "data": data})


@cache
def names_of_classes() -> bytes:
    return python2_pickle({"label_names": ["one", "two"]})


def published(first: bytes, names: bytes) -> Any:
    """Return the tables of a publisher whose checksums are those of the damaged files."""

    def md5(content: bytes) -> str:
        return hashlib.md5(content, usedforsecurity=False).hexdigest()

    return SimpleNamespace(
        base_folder="batches",
        url="http://nowhere",
        filename="batches.tar.gz",
        tgz_md5="",
        train_list=[["first", md5(first)]],
        test_list=[["second", md5(batch())]],
        meta={"filename": "names", "key": "label_names", "md5": md5(names)},
    )


@settings(max_examples=settings().max_examples * 3)
@given(
    of_names=st.booleans(),
    damage=st.one_of(DAMAGE, st.builds(Insert, st.floats(0, 0.01), st.binary(max_size=12))),
)
def test_a_damaged_batch_whose_checksum_is_said_to_be_right_is_refused_or_arrays(
    of_names: bool, damage: Any
) -> None:
    """The checksums are the real guard; behind it nothing but arrays, lists, numbers and strings is ever built."""
    first, names = batch(), names_of_classes()
    first, names = (first, damage.of(names)) if of_names else (damage.of(first), names)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "batches"
        folder.mkdir()
        for name, content in (("first", first), ("second", batch()), ("names", names)):
            (folder / name).write_bytes(content)
        found = outcome(
            lambda: cifar_batches.read(published(first, names), Path(scratch), "labels", download=False)
        )
        refused = outcome(
            lambda: cifar_batches.read(
                published(batch(), names_of_classes()), Path(scratch), "labels", download=False
            )
        )
    assert (first, names) == (batch(), names_of_classes()) or isinstance(refused, str)
    if not isinstance(found, str):
        classes, train, _ = found
        assert all(isinstance(name, str) for name in classes)
        assert train.array.shape == (len(train.labels), 3, 32, 32)
        assert train.array.dtype == np.uint8
        assert set(train.labels.tolist()) <= set(range(len(classes)))


def archive_of(members: list[tuple[str, str, str]]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name, kind, target in members:
            info = tarfile.TarInfo(name)
            info.type = {"link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "device": tarfile.CHRTYPE,
                         "pipe": tarfile.FIFOTYPE, "folder": tarfile.DIRTYPE}.get(kind, tarfile.REGTYPE)  # fmt: skip
            info.linkname = target
            info.size = 4 if kind == "file" else 0
            tar.addfile(info, io.BytesIO(b"evil") if kind == "file" else None)
    return content.getvalue()


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def extracted(archive: bytes) -> tuple[Any, dict[str, bytes]]:
    """Return the outcome of extracting, and the files that are there then; nothing else may have changed."""
    with tempfile.TemporaryDirectory() as scratch:
        inner = Path(scratch) / "inner"
        inner.mkdir()
        (inner / "a.tar.gz").write_bytes(archive)
        (Path(scratch) / "victim").write_bytes(b"good")
        found = outcome(lambda: download.extract(inner / "a.tar.gz", "batches"))
        assert (Path(scratch) / "victim").read_bytes() == b"good"
        assert names_in(Path(scratch)) == {"inner", "victim"}
        assert names_in(inner) == ({"a.tar.gz"} if isinstance(found, str) else {"a.tar.gz", "batches"})
        paths = sorted((inner / "batches").rglob("*"))
        assert all(path.resolve().is_relative_to(inner) for path in paths)
        assert all(path.is_file() or path.is_dir() or path.is_symlink() for path in paths)
        return found, {str(path.relative_to(inner)): path.read_bytes() for path in paths if path.is_file()}


WHOLE = archive_of([("batches", "folder", ""), ("batches/one", "file", ""), ("batches/two", "file", "")])
OUTSIDE = ["../victim", "../../victim", "batches/../../victim", "/tmp/evil-of-a-test"]
PLACES = st.sampled_from(["batches", "batches/one", "x", *OUTSIDE])
MEMBERS = st.lists(
    st.tuples(PLACES, st.sampled_from(["file", "link", "hard", "device", "pipe", "folder"]), PLACES),
    max_size=4,
)


@given(damage=DAMAGE)
def test_a_damaged_archive_is_refused_or_as_it_was(damage: Any) -> None:
    found, files = extracted(damage.of(WHOLE))
    assert isinstance(found, str) or files == {"batches/one": b"evil", "batches/two": b"evil"}


@given(members=MEMBERS)
def test_no_archive_writes_outside_its_folder(members: list[tuple[str, str, str]]) -> None:
    extracted(archive_of([*members, ("batches/last", "file", "")]))
    assert not Path("/tmp/evil-of-a-test").exists()


# --- Tiny-ImageNet's lists ----------------------------------------------------------------------------------


@cache
def tiny() -> Path:
    root = Path(tempfile.mkdtemp())
    for wnid in ("n01", "n02"):
        (root / "train" / wnid / "images").mkdir(parents=True)
        (root / "train" / wnid / "images" / "0.JPEG").write_bytes(picture("jpeg"))
    (root / "val" / "images").mkdir(parents=True)
    for number in range(2):
        (root / "val" / "images" / f"val_{number}.JPEG").write_bytes(picture("jpeg"))
    (root / "wnids.txt").write_text("n02\nn01\n")
    (root / "words.txt").write_text("n01\tgoldfish, carp\nn02\tcrane\n")
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn02\t0\nval_1.JPEG\tn01\t0\n")
    return root


@pytest.fixture(scope="module", autouse=True)
def _removed() -> Any:
    yield
    shutil.rmtree(tiny())
    tiny.cache_clear()


@given(file=st.sampled_from(["wnids.txt", "words.txt", "val/val_annotations.txt"]), damage=DAMAGE)
def test_a_damaged_list_is_refused_or_says_the_same_of_every_image(file: str, damage: Any) -> None:
    root, config = tiny(), tiny_imagenet.Config(path=tiny())
    content = (root / file).read_bytes()
    try:
        (root / file).write_bytes(damage.of(content))
        found = outcome(lambda: tiny_imagenet.open_source(config))
    finally:
        (root / file).write_bytes(content)
    if not isinstance(found, str):
        assert [name.split()[0] for name in found.classes] == ["n01", "n02"]
        assert found.train.labels.tolist() == [0, 1]
        # An id that became another one that exists is another annotation, which nothing contradicts.
        assert found.test.labels.tolist() == [1, 0] or file == "val/val_annotations.txt"

"""Raw files as users have them: links, pipes, odd names, damage, other places, and changes after they were prepared."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from error_fixtures import one_line
from feature_fixtures import run_stage
from PIL import Image

from pipeline.data.datasets import cifar, fashion_mnist, image_folder, tiny_imagenet
from pipeline.data.layout import Meta
from pipeline.data.preparation import prepare
from pipeline.data.prepared import Prepared
from pipeline.data.raw import cifar_batches, download, image_files, record, regular
from pipeline.data.raw.listing import SUFFIXES, described
from pipeline.errors import DataError
from stages import params as params_stage
from stages import plan as plan_stage
from stages import prepare_data

SIZE = 6


def write_image(path: Path, seed: int = 0, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder of two classes, with 3 + 2 and 1 + 1 images."""
    names = ("train/a/1", "train/a/2", "train/a/3", "train/b/1", "train/b/2", "val/a/1", "val/b/1")
    for seed, name in enumerate(names):
        write_image(tmp_path / "raw" / f"{name}.png", seed)
    return tmp_path / "raw"


def config_of(path: Path | str, **settings: Any) -> image_folder.Config:
    return image_folder.Config(path=Path(path), size=SIZE, **settings)


def made(path: Path | str, out: Path, **settings: Any) -> Meta:
    config = config_of(path, **settings)
    return prepare(image_folder.open_source(config), "image_folder", config, out)


def refused(path: Path | str, *parts: str, **settings: Any) -> None:
    with pytest.raises(DataError) as error:
        made(path, Path(path).parent / "refused", **settings)
    one_line(error, *parts, quoted={one.name for one in Path(path).rglob("*")})


# --- Links --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["train", "val", "train/b", "val/a", "train/a/2.png"])
@pytest.mark.parametrize("storage", ["copied", "indexed"])
def test_a_link_that_leads_out_of_the_folder_is_refused_unless_asked_for(
    root: Path, tmp_path: Path, place: str, storage: str
) -> None:
    expected = made(root, tmp_path / "one", storage=storage)
    outside = tmp_path / "outside"
    shutil.move(root / place, outside)
    (root / place).symlink_to(outside)
    refused(
        root, f"{root / place} is a link to {outside}, outside {root}", "links: anywhere", storage=storage
    )
    again = made(root, tmp_path / "two", storage=storage, links="anywhere")
    assert again.fingerprint == expected.fingerprint


def test_a_link_within_the_folder_counts_and_the_folder_may_be_one_itself(root: Path, tmp_path: Path) -> None:
    (root / "train" / "b" / "9.png").symlink_to(root / "train" / "b" / "1.png")
    (root / "train" / "c").symlink_to("a")
    (root / "val" / "c").symlink_to("../train/a")
    (tmp_path / "elsewhere").symlink_to(root)
    meta = made(tmp_path / "elsewhere", tmp_path / "out")
    assert (meta.classes, meta.samples) == (("a", "b", "c"), {"train": 9, "test": 5})


# --- What is no file ----------------------------------------------------------------------------------------


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's path may have 108 bytes
        try:
            one.bind(path.name)
        finally:
            os.chdir(here)


NO_FILES: dict[str, Callable[[Path], object]] = {
    "is a folder": Path.mkdir,
    "is a named pipe": os.mkfifo,
    "is a socket": _socket,
    "is a device": lambda path: path.symlink_to("/dev/zero"),
    "is a broken link, to nowhere.png": lambda path: path.symlink_to("nowhere.png"),
    "is a link that leads back to itself": lambda path: path.symlink_to(path.name),
}


@pytest.mark.parametrize("text", NO_FILES)
def test_what_is_no_file_is_never_opened(root: Path, text: str) -> None:
    NO_FILES[text](root / "train" / "b" / "x.png")
    refused(root, f"{root / 'train' / 'b' / 'x.png'} {text}", "dvc repro", links="anywhere")


@pytest.mark.parametrize("text", NO_FILES)
def test_an_indexed_file_that_became_something_else_is_named(root: Path, tmp_path: Path, text: str) -> None:
    made(root, tmp_path / "out", storage="indexed")
    (root / "train" / "a" / "1.png").unlink()
    NO_FILES[text](root / "train" / "a" / "1.png")
    with pytest.raises(DataError, match=f"1.png {text}.*dvc repro --force --single-item prepare_data$"):
        Prepared.open(tmp_path / "out").split("train").images[0]


@pytest.mark.parametrize("text", NO_FILES)
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte.gz"])
def test_an_idx_file_that_is_none_is_never_opened(tmp_path: Path, text: str, name: str) -> None:
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(b"")
    NO_FILES[text](tmp_path / name)
    with pytest.raises(DataError, match=text):
        fashion_mnist.listed(fashion_mnist.Config(path=tmp_path, download=False))
    with pytest.raises(DataError, match=text):
        fashion_mnist._read_idx(tmp_path / name, 1)


@pytest.mark.parametrize("text", NO_FILES)
def test_an_archive_or_batch_that_is_no_file_is_never_opened(tmp_path: Path, text: str) -> None:
    """Their checksums would be waited for."""
    NO_FILES[text](tmp_path / "x.tar.gz")
    for task in (
        lambda: download.fetch("http://nowhere", tmp_path / "x.tar.gz", "0" * 32, download=True),
        lambda: download.extract(tmp_path / "x.tar.gz", "x"),
        lambda: cifar_batches._load(tmp_path, "x.tar.gz", "0" * 32),
    ):
        with pytest.raises(DataError, match=text):
            task()


def test_a_class_that_is_a_broken_link_is_no_class_that_is_missing(root: Path) -> None:
    (root / "train" / "c").symlink_to("nowhere")
    refused(root, f"{root / 'train' / 'c'} is a broken link, to nowhere")


def test_a_file_is_read_up_to_a_limit(tmp_path: Path) -> None:
    with (tmp_path / "x.png").open("wb") as file:
        file.truncate(2**31)  # a hole: it takes no disk
    with pytest.raises(DataError, match="has more than 1,073,741,824 bytes"):
        image_files.read(str(tmp_path / "x.png"))
    (tmp_path / "y").write_bytes(b"12345")
    assert regular.read(tmp_path / "y", limit=5) == b"12345"
    assert regular.read("/proc/self/cmdline") == Path("/proc/self/cmdline").read_bytes()  # of size 0
    with pytest.raises(DataError, match="has more than 4 bytes"):
        regular.read(tmp_path / "y", limit=4)


# --- What counts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_is_read_in_any_case(root: Path, tmp_path: Path, suffix: str) -> None:
    # Pillow does not know all of the names that files of these formats have.
    kind = {".jfif": "JPEG", ".jpe": "JPEG", ".pbm": "PPM", ".pgm": "PPM", ".pnm": "PPM"}.get(suffix)
    path = write_image(root / "train" / "b" / f"0{suffix.upper()}", 9, **({"format": kind} if kind else {}))
    assert made(root, tmp_path / "out").samples["train"] == 6
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(Prepared.open(tmp_path / "out").split("train").images[3], expected)


@pytest.mark.parametrize("suffix", [".gif", ".tif", ".webp", ".png"])
def test_of_several_frames_the_first_counts(root: Path, tmp_path: Path, suffix: str) -> None:
    first, second = (Image.new("RGB", (SIZE, SIZE), color) for color in ("red", "blue"))
    lossless = {"lossless": True} if suffix == ".webp" else {}
    first.save(root / "train" / "b" / f"0{suffix}", save_all=True, append_images=[second], **lossless)
    made(root, tmp_path / "out")
    image = Prepared.open(tmp_path / "out").split("train").images[3]
    assert image.reshape(3, -1).mean(axis=1).tolist() == [255, 0, 0]


def test_a_format_that_is_not_of_the_list_is_no_image(root: Path) -> None:
    """Pillow would hand an EPS to Ghostscript, whatever its suffix."""
    write_image(root / "train" / "b" / "0.eps").rename(root / "train" / "b" / "0.png")
    refused(root, "0.png (no image)")


def test_what_is_left_out_is_counted_by_kind(root: Path) -> None:
    for name in ("train/a/n.txt", "train/a/m.TXT", "train/b/plain", "train/b/.hidden.png", "val/.cache/1.png",
                 "train/loose.png", "train/a/deep/1.png", "test/a/1.png", "notes.md"):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    source = image_folder.open_source(config_of(root, test="val"))
    assert source.listed is not None
    assert source.listed.count == 7
    assert described(source.listed.left_out) == (
        "2 files .txt, 1 file beside the folders of classes, 1 file beside train and val, 1 file without a suffix, "
        "1 folder beside train and val, 1 folder in folders of images, 1 hidden file, 1 hidden folder"
    )


def test_a_class_that_holds_images_too_deep_says_what_it_holds(root: Path) -> None:
    (root / "val" / "b" / "deep").mkdir()
    (root / "val" / "b" / "1.png").rename(root / "val" / "b" / "deep" / "1.png")
    refused(root, "val/b holds no images, but 1 folder in folders of images")


# --- Damage -------------------------------------------------------------------------------------------------


def test_an_image_of_too_many_pixels_is_refused_before_they_are_decoded(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_files, "MOST_PIXELS", SIZE * SIZE - 1)
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    refused(root, "it is 6x6, more than 35 pixels")


def test_a_long_strip_that_would_be_resized_to_gigabytes_is_refused(root: Path) -> None:
    Image.new("L", (1, 60_000)).save(root / "train" / "a" / "1.png")
    refused(root, "is 1x60000, which with its short side resized to 256", resize=256)
    refused(root, "is 1x60000, which with its short side resized to 256", resize=256, storage="indexed")


def test_no_flipped_bit_of_a_png_is_another_picture() -> None:
    """Of images of two colors Pillow overlooks some."""
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert("1").save(file, "PNG")
    content = file.getvalue()
    for place in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        with pytest.raises(DataError, match="Cannot read the image x"):
            image_files.decode("x", bytes(flipped), 3)


def test_a_color_space_that_pillow_cannot_convert_is_one_line(root: Path) -> None:
    Image.new("LAB", (SIZE, SIZE)).save(root / "train" / "a" / "1.tif")
    refused(root, "Cannot read the image", "1.tif", channels=1)


@pytest.mark.parametrize("storage", ["copied", "indexed"])
def test_damaged_files_are_skipped_where_that_is_asked_for(root: Path, tmp_path: Path, storage: str) -> None:
    expected = made(root, tmp_path / "one", storage=storage, holdout=0.4)
    (root / "train" / "a" / "2b.png").write_bytes(b"no image")
    content = write_image(root / "val" / "b" / "2.png").read_bytes()
    (root / "val" / "b" / "2.png").write_bytes(content[:60] + bytes([content[60] ^ 1]) + content[61:])
    refused(root, "2b.png (no image)", "damaged: skip", storage=storage)
    found = made(root, tmp_path / "two", storage=storage, holdout=0.4, damaged="skip")
    assert (found.fingerprint, found.mean) == (expected.fingerprint, expected.mean)
    assert record.read(tmp_path / "two").skipped == ("train/a/2b.png", "val/b/2.png")


def test_a_class_of_damaged_files_alone_is_refused(root: Path) -> None:
    (root / "val" / "b" / "1.png").write_bytes(b"no image")
    refused(root, "All 1 images of the class 'b' are damaged", "val/b/1.png", damaged="skip")


def test_the_command_names_what_is_left_out_and_skipped(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "train" / "a" / "bad\n.png").write_bytes(b"no image")
    (root / "train" / "a" / "notes.txt").write_text("")
    settings = {"path": str(root), "size": SIZE, "damaged": "skip"}
    _run(monkeypatch, tmp_path, settings)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == [
        f"left out of {root}: 1 file .txt",
        "skipped, because it is damaged: train/a/bad\\n.png",
        "8 raw files were listed as they lie there now; after a change: "
        "dvc repro --force --single-item prepare_data@photos",
    ]


def _run(monkeypatch: pytest.MonkeyPatch, folder: Path, settings: dict[str, Any], *options: object) -> int:
    block = {
        "stage": "prepare_data@photos",
        "dataset": "photos",
        "source": "image_folder",
        "settings": settings,
    }
    (folder / "block.json").write_text(json.dumps(block))
    return run_stage(monkeypatch, prepare_data.main, folder / "block.json", "--out", folder / "out", *options)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    root = tmp_path / "tiny"
    picture = Image.new("RGB", (64, 64), "red")
    for name in ("train/n01/images/1.JPEG", "train/n02/images/1.JPEG", "val/images/1.JPEG"):
        (root / name).parent.mkdir(parents=True)
        picture.save(root / name)
    texts = {
        "wnids.txt": "n01\nn02\n",
        "words.txt": "n01\tone\nn02\ttwo\n",
        "val/val_annotations.txt": "1.JPEG\tn02\n",
    }
    for name, text in texts.items():
        (root / name).write_text(text)
    return root


def test_tiny_imagenet_counts_skips_and_follows_as_folders_do(tiny: Path, tmp_path: Path) -> None:
    (tiny / "train" / "n01" / "images" / "notes.txt").write_text("")
    (tiny / "train" / "n01" / "images" / "2.JPEG").write_bytes(b"no image")
    config = tiny_imagenet.Config(path=tiny, damaged="skip")
    source = tiny_imagenet.open_source(config)
    assert source.listed is not None
    assert described(source.listed.left_out) == "1 file .txt"
    assert prepare(source, "tiny_imagenet", config, tmp_path / "out").samples == {"train": 2, "test": 1}
    assert record.read(tmp_path / "out").skipped == ("train/n01/images/2.JPEG",)

    shutil.move(tiny / "val" / "images", tmp_path / "outside")
    (tiny / "val" / "images").symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match=r"val/images is a link to .*links: anywhere"):
        tiny_imagenet.open_source(config)
    tiny_imagenet.open_source(tiny_imagenet.Config(path=tiny, links="anywhere"))


@pytest.mark.parametrize(
    ("file", "content", "text"),
    [
        ("wnids.txt", b"n01\nn02\nn01\n", "lists 'n01', expected ids of letters and digits, each once"),
        ("wnids.txt", b"n01\n../n02\n", "lists '../n02', expected ids"),
        ("wnids.txt", b"", "is empty"),
        ("words.txt", b"n01\t\xff\nn02\ttwo\n", "is no text in UTF-8 \\(invalid start byte at byte 4\\)"),
        ("words.txt", b"n01\to\x1bne\nn02\ttwo\n", "control character"),
        ("val/val_annotations.txt", b"1.JPEG\tn02\n1.JPEG\tn01\n", "gives 1.JPEG two classes"),
    ],
)
def test_a_damaged_list_of_tiny_imagenet_is_named(tiny: Path, file: str, content: bytes, text: str) -> None:
    (tiny / file).write_bytes(content)
    with pytest.raises(DataError, match=text) as error:
        tiny_imagenet.open_source(tiny_imagenet.Config(path=tiny))
    assert Path(file).name in str(error.value)


# --- Names --------------------------------------------------------------------------------------------------


NFC, NFD = "caf\u00e9", unicodedata.normalize("NFD", "caf\u00e9")


@pytest.mark.parametrize(
    ("one", "other", "text"),
    [
        (NFC, NFD, "'cafe\\u0301' and 'caf\\xe9', the same text in two Unicode forms"),
        ("cat", "cat ", "'cat' and 'cat ', which differ by blanks at the ends alone"),
    ],
)
def test_classes_that_look_alike_are_refused(root: Path, one: str, other: str, text: str) -> None:
    for name in (one, other):
        shutil.copytree(root / "train" / "a", root / "train" / name)
    refused(root, f"{root / 'train'} holds the classes {text}", "dvc repro")


def test_classes_may_differ_by_case_alone(root: Path) -> None:
    """Letters are classes: EMNIST has `a` and `A`."""
    for split in ("train", "val"):
        shutil.copytree(root / split / "a", root / split / "A")
    assert sorted(image_folder.open_source(config_of(root)).classes) == ["A", "a", "b"]


@pytest.mark.parametrize(("one", "other"), [(NFC, NFD), ("Dog", "dog"), ("dog", "dog ")])
def test_a_class_of_two_names_in_train_and_val_says_how_they_differ(root: Path, one: str, other: str) -> None:
    (root / "train" / "b").rename(root / "train" / one)
    (root / "val" / "b").rename(root / "val" / other)
    refused(root, f"{other!a} and {one!a}, ", "Rename one as the other")


@pytest.mark.parametrize("place", ["train", "train/a"])
def test_a_name_that_is_not_utf_8_is_refused(root: Path, place: str) -> None:
    os.mkdir(os.fsencode(root / place) + b"/caf\xe9.png")  # noqa: PTH102 - the name is bytes
    refused(root, "caf\\udce9.png is not UTF-8")


def test_control_characters_are_refused_of_a_class_and_not_of_a_file(root: Path, tmp_path: Path) -> None:
    write_image(root / "train" / "a" / "new\nline\x1b.png")
    assert made(root, tmp_path / "out").samples["train"] == 6
    write_image(root / "train" / "x\ny" / "1.png")
    refused(root, "'x\\ny' holds the control character '\\n'")


def test_a_long_name_is_read(root: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_image(root / split / ("c" * 255) / ("i" * 251 + ".png"))
    assert made(root, tmp_path / "out", storage="indexed").classes[2] == "c" * 255
    assert Prepared.open(tmp_path / "out").split("train").images[5].shape == (3, SIZE, SIZE)


# --- Places -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["copied", "indexed"])
def test_relative_paths_start_from_the_folder_that_the_machine_names(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: str
) -> None:
    """In a copy of the project, as `dvc exp run --temp` makes it, what is stored is what the project stores."""
    monkeypatch.chdir(tmp_path)
    made("raw", tmp_path / "one", storage=storage)
    (tmp_path / "copy").mkdir()
    monkeypatch.chdir(tmp_path / "copy")
    refused(
        "raw", "raw/train does not exist", f"start from {tmp_path / 'copy'}; STILLHOUSE_RAW names another"
    )
    monkeypatch.setenv("STILLHOUSE_RAW", str(tmp_path))
    made("raw", tmp_path / "two", storage=storage)
    for path in sorted((tmp_path / "one").iterdir()):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    split = Prepared.open(tmp_path / "two").split("train")
    assert split.images[0].shape == (3, SIZE, SIZE)


@pytest.mark.parametrize("download", [True, False])
def test_missing_files_that_could_be_downloaded_name_the_variable_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, download: bool
) -> None:
    monkeypatch.setattr(
        "pipeline.data.raw.download._retrieve", lambda *_: (_ for _ in ()).throw(OSError("none"))
    )
    monkeypatch.chdir(tmp_path)
    for module in (cifar, fashion_mnist):
        with pytest.raises(
            DataError, match=r"dvc repro\. Relative paths .* STILLHOUSE_RAW names another folder"
        ):
            module.open_source(module.Config(download=download))


def test_the_command_takes_the_folder_as_an_option(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STILLHOUSE_RAW", "")  # restored afterwards: the command sets it
    assert _run(monkeypatch, tmp_path, {"path": "raw", "size": SIZE}, "--raw", tmp_path) == 0
    assert _run(monkeypatch, tmp_path, {"path": "raw", "size": SIZE}, "--raw", "here") == 1
    assert "STILLHOUSE_RAW is 'here', expected an absolute folder" in capsys.readouterr().err


def test_the_home_folder_may_be_written_short(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert made("~/raw", tmp_path / "out", storage="indexed").files is not None
    assert Prepared.open(tmp_path / "out").split("train").images[0].shape == (3, SIZE, SIZE)
    refused("~nobody-of-that-name/raw", "The home folder of '~nobody-of-that-name/raw' is not known")
    monkeypatch.setenv("STILLHOUSE_RAW", "~")
    assert made("raw", tmp_path / "again").samples["train"] == 5


# --- Changes ------------------------------------------------------------------------------------------------


def _new_class(root: Path) -> None:
    for split in ("train", "val"):
        write_image(root / split / "c" / "1.png")


CHANGES: dict[str, Callable[[Path], object]] = {
    "added": lambda root: write_image(root / "train" / "a" / "9.png"),
    "removed": lambda root: (
        (root / "val" / "a" / "1.png").unlink() or write_image(root / "val" / "a" / "2.png")
    ),
    "renamed": lambda root: (root / "train" / "b" / "2.png").rename(root / "train" / "b" / "02.png"),
    "moved": lambda root: (root / "train" / "b" / "2.png").rename(root / "train" / "a" / "4.png"),
    "edited": lambda root: os.truncate(root / "train" / "b" / "2.png", 99),
    "class": _new_class,
    "class renamed": lambda root: [(root / s / "b").rename(root / s / "bb") for s in ("train", "val")],
}


@pytest.mark.parametrize("storage", ["copied", "indexed"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_raw_files_is_told(root: Path, tmp_path: Path, change: str, storage: str) -> None:
    meta, config = made(root, tmp_path / "out", storage=storage), config_of(root, storage=storage)
    (root / "train" / "a" / "notes.txt").write_text("does not count")
    assert record.change(tmp_path / "out", meta, config) is None
    CHANGES[change](root)
    line = record.change(tmp_path / "out", meta, config)
    assert line is not None
    assert str(root) in line
    assert "dvc repro --force --single-item prepare_data, then: dvc repro" in line


def test_raw_files_that_cannot_be_listed_any_more_are_told_and_absent_ones_are_not(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta, config = made(root, tmp_path / "out"), config_of(root)
    shutil.move(root / "val", tmp_path / "val")
    line = record.change(tmp_path / "out", meta, config)
    assert line is not None
    assert "have changed" in line
    shutil.move(tmp_path / "val", root / "val")

    def closed(path: object) -> Any:
        raise PermissionError(13, "Permission denied", path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", closed)
        line = record.change(tmp_path / "out", meta, config)
    assert line is not None
    assert "cannot be listed (Permission denied" in line

    shutil.rmtree(root)
    assert record.change(tmp_path / "out", meta, config) is None  # data that were pulled
    (tmp_path / "out" / "raw.json").write_text("{")
    line = record.change(tmp_path / "out", meta, config)
    assert line is not None
    assert "raw.json is damaged" in line


@pytest.mark.parametrize(("stage", "arguments"), [(params_stage, ["--out", "checked"]), (plan_stage, [])])
def test_the_check_of_params_and_the_plan_warn_of_changed_raw_files(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stage: Any,
    arguments: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    made(root, tmp_path / "data" / "prepared" / "photos")
    (tmp_path / "params.yaml").write_text(
        f"seeds: [0]\ndatasets: {{photos: {{source: {{image_folder: {{path: raw, size: {SIZE}}}}}}}}}\ndistill: []\n"
    )
    for change, count in ((lambda _: None, 0), (CHANGES["renamed"], 1)):
        change(root)
        capsys.readouterr()
        assert run_stage(monkeypatch, stage.main, *arguments) == 0
        lines = capsys.readouterr().err.splitlines()
        assert [line.startswith("warning: raw holds other raw files") for line in lines] == [True] * count


@pytest.mark.parametrize(("stage", "arguments"), [(params_stage, ["--out", "checked"]), (plan_stage, [])])
@pytest.mark.parametrize("prepared", [True, False])
def test_weights_of_a_class_that_is_not_there_are_told_before_anything_is_trained(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stage: Any,
    arguments: list[str],
    prepared: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    if prepared:
        made(root, tmp_path / "data" / "prepared" / "photos")
        shutil.rmtree(root)  # as where the data were pulled

    def line(name: str) -> str:
        (tmp_path / "params.yaml").write_text(
            f"""seeds: [0]
datasets: {{photos: {{source: {{image_folder: {{path: raw, size: {SIZE}}}}}}}}}
students: {{small: {{dataset: photos, network: resnet8, recipe: {{short: {{class_weights: {{{name}: 2.0}}}}}}}}}}
recipes: {{short: {{epochs: 1, milestones: []}}}}
distill: []
"""
        )
        capsys.readouterr()
        code = run_stage(monkeypatch, stage.main, *arguments)
        told = capsys.readouterr().err
        assert bool(code) == bool(told)
        return told

    told = line("cat")
    assert told.count("\n") == 1
    assert (
        "params.yaml: students.small.recipe: Unknown class of class_weights of data set 'photos': 'cat'."
        in told
    )
    assert "Known: a, b." in told
    if stage is params_stage:  # a plan reads the prepared data
        assert not line("a")
    if not prepared:
        shutil.rmtree(root)
        if stage is params_stage:  # nobody knows
            assert not line("cat")

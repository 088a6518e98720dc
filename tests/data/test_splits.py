"""Own photographs: which of them test, whatever says so, and which formats and orientations they come in."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from error_fixtures import one_line
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.dataset import ArraySplit, DatasetConfig, Source
from pipeline.data.datasets import image_csv, image_folder
from pipeline.data.layout import AS_STORED, Decoding, Files, Meta
from pipeline.data.preparation import prepare
from pipeline.data.prepared import Prepared
from pipeline.data.raw import image_files, record, splits
from pipeline.data.raw.image_files import FileSplit
from pipeline.errors import DataError, ParamsError
from pipeline.params.base import validate

SIZE = 6


def write_image(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Return a folder of two classes without splits, of 10 and 5 images."""
    for seed in range(15):
        write_image(tmp_path / "raw" / ("a" if seed < 10 else "b") / f"{seed}.png", seed)
    return tmp_path / "raw"


def folder(path: Path, **settings: Any) -> image_folder.Config:
    return image_folder.Config(path=path, size=SIZE, **settings)


def parts(config: image_folder.Config | image_csv.Config) -> tuple[list[str], list[str]]:
    """Return the names of the training and of the test images, below the folder."""
    source = (image_csv if isinstance(config, image_csv.Config) else image_folder).open_source(config)
    assert isinstance(source.train, FileSplit)
    assert isinstance(source.test, FileSplit)
    for split in (source.train, source.test):
        # A label is that of the folder that the image is in.
        assert [source.classes[label] for label in split.labels] == [Path(x).parent.name for x in split.paths]
    train, test = (
        [str(Path(x).relative_to(config.path)) for x in split.paths] for split in (source.train, source.test)
    )
    return train, test


# --- Folders of splits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", splits.TEST)
def test_the_only_folder_of_a_usual_name_is_the_test_split(tmp_path: Path, name: str) -> None:
    write_image(tmp_path / "train" / "a" / "1.png")
    write_image(tmp_path / name / "a" / "2.png")
    assert parts(folder(tmp_path)) == (["train/a/1.png"], [f"{name}/a/2.png"])


def test_of_several_test_splits_the_settings_name_one(tmp_path: Path) -> None:
    for name in ("train", "valid", "test", "own"):
        write_image(tmp_path / name / "a" / f"{name}.png")
    with pytest.raises(DataError) as error:
        image_folder.open_source(folder(tmp_path))
    one_line(
        error,
        "has valid and test, expected one",
        "set test: test, or",
        "holdout_split: valid",
        "then: dvc repro",
    )
    for name in ("valid", "test", "own"):
        assert parts(folder(tmp_path, test=name))[1] == [f"{name}/a/{name}.png"]
    with pytest.raises(DataError) as error:
        image_folder.open_source(folder(tmp_path, test="none"))
    one_line(error, "none does not exist")


@pytest.mark.parametrize("storage", ["copied", "indexed"])
@pytest.mark.parametrize("kind", ["folder", "csv"])
def test_one_of_several_splits_may_choose_the_epoch(tmp_path: Path, kind: str, storage: str) -> None:
    raw, rows = tmp_path / "raw", ["path,label,split"]
    for seed, split in enumerate(("train", "train", "val", "val", "val", "test", "own")):
        for name in ("a", "b"):
            path = write_image(raw / split / name / f"{seed}.png", 2 * seed + (name == "b"))
            rows.append(f"{path.relative_to(raw)},{name},{split}")
    (raw / "labels.csv").write_text("\n".join(rows))

    def made(out: str, **settings: Any) -> Prepared:
        module: Any = image_folder if kind == "folder" else image_csv
        own = {} if kind == "folder" else {"labels": Path("labels.csv")}
        config = module.Config(path=raw, size=SIZE, storage=storage, **own, **settings)
        prepare(module.open_source(config), f"image_{kind}", config, tmp_path / out)
        return Prepared.open(tmp_path / out)

    if kind == "csv":  # whose splits must be known
        rows = [row for row in rows if not row.endswith("own")]
        (raw / "labels.csv").write_text("\n".join(rows))
    chosen = made("chosen", holdout_split="val")
    assert chosen.meta.samples == {"train": 4, "holdout": 6, "test": 2}
    assert chosen.split("holdout").labels.tolist() == [0, 0, 0, 1, 1, 1]

    # The very images that test where that split is the test split, and nothing of it in the others.
    as_test, other = made("as_test", test="val"), made("other", test="test")
    assert chosen.meta.fingerprint["holdout"] == as_test.meta.fingerprint["test"]
    assert chosen.meta.fingerprint["test"] == other.meta.fingerprint["test"]
    assert chosen.meta.fingerprint["train"] == other.meta.fingerprint["train"]
    assert (chosen.meta.mean, chosen.meta.std) == (other.meta.mean, other.meta.std)
    turned = made("turned", test="val", holdout_split="test")
    assert turned.meta.samples == {"train": 4, "holdout": 2, "test": 6}

    (raw / "val" / "a" / "2.png").write_bytes(b"no image")
    assert made("skipped", holdout_split="val", damaged="skip").meta.samples["holdout"] == 5


def test_a_split_to_choose_by_must_be_there_and_be_another_one(tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "val/a", "val/b"):
        write_image(tmp_path / name / "1.png")
    for settings, text in (
        ({"holdout_split": "test"}, f"{tmp_path / 'test'} does not exist"),
        ({"holdout_split": "val"}, f"{tmp_path / 'test'} does not exist"),
    ):
        with pytest.raises(DataError) as error:
            image_folder.open_source(folder(tmp_path, **settings))
        one_line(error, text)
    write_image(tmp_path / "test" / "a" / "1.png")
    with pytest.raises(DataError) as error:
        image_folder.open_source(folder(tmp_path, holdout_split="test"))
    one_line(error, f"{tmp_path / 'test' / 'b'} does not exist")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"holdout_split": "val", "split": 0.2}, "It has holdout_split and split"),
        ({"holdout_split": "val", "holdout": 0.2}, "It has holdout_split and holdout"),
        ({"holdout_split": "val", "test": "val"}, "It has holdout_split: val, which is another split"),
        ({"holdout_split": "train"}, "It has holdout_split: train, which is another split"),
        ({"holdout_split": "../val"}, "'x.holdout_split' is '../val'"),
        ({"test": "val", "split": 0.2}, "It has test and split"),
        ({"test": "train"}, "It has test: train"),
        ({"test": "../val"}, "'x.test' is '../val'"),
        ({"split_seed": 1}, "It has split_seed and no split"),
        ({"split": 0}, "'x.split' is 0"),
        ({"split": 1.0}, "'x.split' is 1.0"),
        ({"split": 0.2, "split_seed": -1}, "'x.split_seed' is -1"),
        ({"deep": "keep"}, "'x.deep' is 'keep'"),
    ],
)
def test_settings_that_cannot_be_are_one_line(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ParamsError) as error:
        validate(image_folder.Config, {"path": "p", "size": 8, **settings}, "x")
    one_line(error, text)


# --- A share of each class ----------------------------------------------------------------------------------


def test_a_share_of_each_class_is_what_the_hashes_of_names_choose(classes: Path) -> None:
    for seed in (0, 7):
        train, test = parts(folder(classes, split=0.2, split_seed=seed))
        for name, number in (("a", 2), ("b", 1)):
            files = sorted(str(path.relative_to(classes)) for path in (classes / name).iterdir())
            ranks = {x: hashlib.blake2b(f"{seed}:{x}".encode(), digest_size=8).digest() for x in files}
            expected = sorted(sorted(files, key=lambda x: ranks[x])[:number])
            assert [x for x in test if x.startswith(name)] == expected
            assert [x for x in train if x.startswith(name)] == [x for x in files if x not in expected]
    assert parts(folder(classes, split=0.2)) != parts(folder(classes, split=0.2, split_seed=7))


def test_an_image_more_moves_one_other_of_its_class_at_most() -> None:
    names = [f"a/{number}.png" for number in range(200)]
    labels = np.zeros(len(names) + 1, dtype=np.int64)

    def testing(of: list[str]) -> set[str]:
        mask = splits.divided(of, labels[: len(of)], ["a"], 0.3, 0)
        return {name for name, tested in zip(of, mask, strict=True) if tested}

    before, moved = testing(names), 0
    for number in range(50):
        new = f"a/new{number}.png"
        after = testing([*names, new])
        moved += len((after ^ before) - {new})
        assert len((after ^ before) - {new}) <= 1
        assert len(after) == 60
    assert 0 < moved < 50  # those that push another out are fewer than those that do not


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_both_sides_have_an_image_of_each_class(classes: Path, share: float) -> None:
    for side in parts(folder(classes, split=share)):
        assert {name.split("/")[0] for name in side} == {"a", "b"}


def test_a_class_of_one_image_and_splits_that_are_there_are_refused(classes: Path, tmp_path: Path) -> None:
    write_image(classes / "c" / "1.png")
    with pytest.raises(DataError) as error:
        image_folder.open_source(folder(classes, split=0.2))
    one_line(error, "The class 'c' has 1 image, expected 2 or more")

    for name in ("train", "test"):
        write_image(tmp_path / "other" / name / "a" / "1.png")
    with pytest.raises(DataError) as error:
        image_folder.open_source(folder(tmp_path / "other", split=0.2))
    one_line(error, "holds train and test, which are splits already", "Drop split")

    with pytest.raises(DataError) as error:
        image_folder.open_source(folder(classes))
    one_line(error, "train does not exist", "set split: 0.2")


def test_a_set_that_is_divided_is_prepared_and_its_files_are_remembered(
    classes: Path, tmp_path: Path
) -> None:
    config = folder(classes, split=0.2)
    meta = prepare(image_folder.open_source(config), "image_folder", config, tmp_path / "out")
    assert meta.samples == {"train": 12, "test": 3}
    assert record.change(tmp_path / "out", meta, config) is None
    write_image(classes / "a" / "new.png")
    assert "holds other raw files" in (record.change(tmp_path / "out", meta, config) or "")


# --- A CSV file ---------------------------------------------------------------------------------------------


def table(root: Path, text: str | bytes, **settings: Any) -> image_csv.Config:
    (root / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return image_csv.Config(path=root, labels=Path("labels.csv"), size=SIZE, **settings)


def test_a_csv_file_says_labels_and_splits(classes: Path) -> None:
    text = (
        '\ufeffnote,label,split,path\r\n"x, y",b,train,b/10.png\r\n\r\n,a,train,./a//1.png\r\n,a,test,a/2.png\r\n'
        ",a,train,a/0.png\r\n,b,test,b/11.png\r\n,b,val,b/12.png\r\n"
    )
    assert parts(table(classes, text, test="test")) == (
        ["a/0.png", "a/1.png", "b/10.png"],
        ["a/2.png", "b/11.png"],
    )
    source = image_csv.open_source(table(classes, text, test="test"))
    assert source.listed is not None
    assert (source.listed.count, source.listed.left_out) == (6, {("row", "of split val"): 1})
    with pytest.raises(DataError) as error:
        image_csv.open_source(table(classes, text))
    one_line(error, "has val and test, expected one test split")


def test_a_csv_file_without_splits_is_divided_as_a_folder_is(classes: Path) -> None:
    names = sorted(str(path.relative_to(classes)) for path in classes.rglob("*.png"))
    rows = [f"{name},{Path(name).parent}\n" for name in names]
    expected = parts(folder(classes, split=0.3, split_seed=2))
    for ordered in (rows, rows[::-1]):
        assert parts(table(classes, f"path,label\n{''.join(ordered)}", split=0.3, split_seed=2)) == expected


def test_a_csv_file_is_prepared_and_another_label_is_noticed(classes: Path, tmp_path: Path) -> None:
    names = sorted(str(path.relative_to(classes)) for path in classes.rglob("*.png"))
    text = "path,label\n" + "".join(f"{name},{Path(name).parent}\n" for name in names)
    config = table(classes, text, split=0.2, storage="indexed")
    meta = prepare(image_csv.open_source(config), "image_csv", config, tmp_path / "out")
    assert (meta.classes, meta.samples) == (("a", "b"), {"train": 12, "test": 3})
    assert record.change(tmp_path / "out", meta, config) is None
    table(classes, text.replace("10.png,b", "10.png,a"))  # of the same size
    assert "holds other raw files" in (record.change(tmp_path / "out", meta, config) or "")


GOOD = "path,label,split\na/0.png,a,train\na/1.png,a,val\nb/10.png,b,train\nb/11.png,b,val\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1: it is empty, expected a column 'path' too"),
        ("path;label\na;b\n", "line 1: it has the columns 'path;label', expected a column 'path'"),
        ("path,class\n", "line 1: it has the columns 'path, class', expected a column 'label'"),
        ("path,label,path\n", "line 1: it has the column 'path' twice"),
        ("path,label,split\n", "has no rows"),
        ("path,label\na/0.png,a\n", "has no column 'split'"),
        (GOOD + "a/2.png,a\n", "line 6: it has 2 cells, expected 3"),
        (GOOD + ",a,train\n", "line 6: it has no path"),
        (GOOD + "a/2.png, ,train\n", "line 6: it has no label"),
        (GOOD + "a/77.png,a,train\n", "line 6: it has the path 'a/77.png', which does not exist"),
        (
            GOOD + "a/../a/0.png,a,train\n",
            "line 6: it has the path 'a/0.png', as line 2 has, expected each once",
        ),
        (GOOD + "../x.png,a,train\n", "line 6: it has the path '../x.png', expected one that starts from"),
        (GOOD + "a/..,a,train\n", "line 6: it has the path '.', expected one that starts from"),
        (
            GOOD + "labels.csv/x,a,train\n",
            "line 6: it has the path 'labels.csv/x', which cannot be read (Not a directory)",
        ),
        (
            GOOD + "/etc/passwd,a,train\n",
            "line 6: it has the path '/etc/passwd', expected one that starts from",
        ),
        (GOOD + "a/\0.png,a,train\n", "line 6: it has the path"),
        (GOOD + "a/2.png,a,trian\n", "line 6: it has the split 'trian', expected one of train, val, valid"),
        (GOOD + "a/2.png,c,val\n", "line 6: it has the label 'c', of which no row is of split train"),
        (GOOD + "a/2.png,c,train\n", "has no row of the test split for the class 'c'"),
        (GOOD + "a/2.png,a ,train\n", "which differ by blanks at the ends alone"),
        (GOOD + 'a/2.png,"a\nb",train\n', "Rename the label in line 7"),
        (GOOD + '"a/2.png"x,a,train\n', "line 6: it cannot be read"),
        (GOOD.encode() + b"a/2.png,\xff,train\n", "line 6: it is no text in UTF-8"),
        (GOOD.replace("val", "train"), "has no row of split val"),
        (GOOD + "a,a,train\n", "a is a folder, expected a file"),
    ],
)
def test_a_row_that_does_not_fit_is_named_by_its_line(classes: Path, text: str | bytes, says: str) -> None:
    parts(table(classes, GOOD))
    with pytest.raises(DataError) as error:
        image_csv.open_source(table(classes, text))
    one_line(error, says, "labels.csv" if "a folder" not in says else "", quoted=["a\nb"])


def test_a_csv_file_that_is_missing_or_has_splits_already_is_one_line(classes: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        image_csv.open_source(image_csv.Config(path=classes, labels=Path("none.csv"), size=SIZE))
    one_line(error, "none.csv does not exist, expected a CSV file")
    with pytest.raises(DataError) as error:
        image_csv.open_source(table(classes, GOOD, split=0.2))
    one_line(error, "has a column 'split', and split is 0.2")
    with pytest.raises(DataError) as error:
        image_csv.open_source(image_csv.Config(path=tmp_path / "none", labels=Path("l.csv"), size=SIZE))
    one_line(error, "none does not exist, expected the images of a CSV file")


def test_links_of_a_csv_file_stay_in_the_folder_unless_asked_for(classes: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "out" / "a" / "0.png")
    (classes / "a").rename(classes / "old")
    (classes / "a").symlink_to(tmp_path / "out" / "a")
    text = GOOD.replace("a/1", "old/1").replace("old/1.png,a", "old/1.png,a")
    with pytest.raises(DataError) as error:
        image_csv.open_source(table(classes, text))
    one_line(error, "a/0.png is a link to", "links: anywhere")
    assert image_csv.open_source(table(classes, text, links="anywhere")).classes == ["a", "b"]


# --- Formats ------------------------------------------------------------------------------------------------

EXACT = {".tif": "TIFF", ".gif": "GIF", ".ppm": "PPM", ".png": "PNG", ".bmp": "BMP"}


@pytest.mark.parametrize("suffix", [*EXACT, ".jfif", ".webp"])
def test_a_format_decodes_to_the_pixels_that_were_written(suffix: str) -> None:
    gray = np.arange(0, 256, 7, dtype=np.uint8)[:36].reshape(6, 6)
    file = io.BytesIO()
    kind = EXACT.get(suffix) or {".jfif": "JPEG", ".webp": "WEBP"}[suffix]
    Image.fromarray(gray).save(file, kind, **({"lossless": True} if kind == "WEBP" else {}))
    for channels in (1, 3):
        pixels = image_files.array(image_files.decode(f"x{suffix}", file.getvalue(), channels)).astype(int)
        # JPEG and the palette of a GIF lose nothing to speak of in a gray ramp.
        np.testing.assert_allclose(
            pixels, np.broadcast_to(gray, (channels, 6, 6)), atol=8 if kind == "JPEG" else 0
        )


def _sixteen(kind: str) -> tuple[bytes, NDArray[np.uint16]]:
    values = np.random.default_rng(0).integers(0, 1 << 16, (5, 7)).astype(np.uint16)
    if kind == "PGM":
        return b"P5 7 5 65535\n" + values.astype(">u2").tobytes(), values
    file = io.BytesIO()
    Image.fromarray(values).save(file, kind)
    return file.getvalue(), values


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PGM"])
def test_sixteen_bits_are_refused_or_their_higher_eight_are_kept(kind: str) -> None:
    content, values = _sixteen(kind)
    with pytest.raises(DataError) as error:
        image_files.decode("x", content, 1)
    one_line(error, "expected 8 bits a channel. Convert the file, or set deep: scale")
    for channels in (1, 3):
        image = image_files.decode("x", content, channels, decoding=Decoding(deep="scale"))
        np.testing.assert_array_equal(
            image_files.array(image), np.broadcast_to(values // 256, (channels, 5, 7))
        )


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_without_a_known_range_are_never_scaled(dtype: type) -> None:
    file = io.BytesIO()
    Image.fromarray(np.ones((4, 4), dtype)).save(file, "TIFF")
    with pytest.raises(DataError) as error:
        image_files.decode("x", file.getvalue(), 1, decoding=Decoding(deep="scale"))
    assert "deep: scale" not in one_line(
        error, "expected 8 bits a channel. Convert the file, then: dvc repro"
    )


# By the EXIF standard: which corner of what is shown the first row and the first column of what is stored are.
UPRIGHT: dict[int, Any] = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.T,
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].T,
    8: np.rot90,
}


@pytest.mark.parametrize("value", UPRIGHT)
def test_an_orientation_is_applied_where_that_is_asked_for(value: int) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (4, 9), dtype=np.uint8)
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = value
    Image.fromarray(stored).save(file, "PNG", exif=exif)
    for orientation, expected in (("ignore", stored), ("apply", UPRIGHT[value](stored))):
        decoding = Decoding.model_validate({"orientation": orientation})
        image = image_files.decode("x", file.getvalue(), 1, decoding=decoding)
        np.testing.assert_array_equal(image_files.array(image)[0], expected)


def test_indexed_images_are_decoded_as_copied_ones_are(tmp_path: Path) -> None:
    """Deep and turned: an index lists the upright size, and its readers decode as its writer did."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in range(8):
        path = tmp_path / "raw" / ("a" if number < 4 else "b") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        deep = np.random.default_rng(number).integers(0, 1 << 16, (8, 12)).astype(np.uint16)
        Image.fromarray(deep).save(path, exif=exif)
    metas: dict[str, Meta] = {}
    for storage in ("copied", "indexed"):
        config = folder(
            tmp_path / "raw",
            split=0.5,
            channels=1,
            storage=storage,
            deep="scale",
            orientation="apply",
            resize=7,
        )
        metas[storage] = prepare(image_folder.open_source(config), "image_folder", config, tmp_path / storage)
    copied, indexed = (Prepared.open(tmp_path / name).split("train").images for name in metas)
    for row in range(4):
        np.testing.assert_array_equal(copied[row], indexed[row])
    assert metas["copied"].mean == metas["indexed"].mean
    records = np.load(tmp_path / "indexed" / "train_files.npy")
    assert {(int(x["height"]), int(x["width"])) for x in records} == {(12, 8)}


def test_how_files_are_decoded_is_in_an_index_only_where_it_is_not_the_default() -> None:
    assert Files(root="x", resize=4).model_dump(mode="json") == {"root": "x", "resize": 4}
    assert Files(root="x", resize=4).marks == (4,)
    assert AS_STORED.marks == ()
    turned = Files(root="x", resize=4, decoding=Decoding(orientation="apply"))
    assert turned.marks == (4, "orientation=apply")
    assert Files.model_validate(turned.model_dump(mode="json")) == turned


def test_blanks_behind_the_commas_of_a_csv_are_no_part_of_a_label(tmp_path: Path) -> None:
    names = [f"{name}/{number}.png" for name in ("a", "b") for number in (1, 2)]
    for name in names:
        write_image(tmp_path / name)
    rows = [f'{name}, "{name[0]}, it is", train' for name in names[::2]]
    rows += [f'{name},"{name[0]}, it is",val' for name in names[1::2]]
    (tmp_path / "labels.csv").write_text("\n".join(["path, label, split", *rows]))
    source = image_csv.open_source(image_csv.Config(path=tmp_path, size=SIZE, labels=Path("labels.csv")))
    assert source.classes == ["a, it is", "b, it is"]
    assert source.test.labels.tolist() == [0, 1]


def test_one_class_is_refused(tmp_path: Path) -> None:
    for number in range(4):
        write_image(tmp_path / "raw" / "a" / f"{number}.png", number)
    config = folder(tmp_path / "raw", split=0.5)
    with pytest.raises(DataError) as error:
        prepare(image_folder.open_source(config), "image_folder", config, tmp_path / "out")
    one_line(error, "has one class, 'a', expected two or more")
    assert not (tmp_path / "out").exists()


def test_no_class_is_refused(tmp_path: Path) -> None:
    nothing = ArraySplit(np.zeros((0, 1, 4, 4), np.uint8), np.zeros(0, np.int64))
    with pytest.raises(DataError) as error:
        prepare(Source([], 1, 4, nothing, nothing), "own", DatasetConfig(), tmp_path / "out")
    one_line(error, "has no class, expected two or more")

"""Data sets, from raw files to the reader of prepared data; nothing here reaches the network."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from error_fixtures import one_line
from numpy.typing import NDArray
from PIL import Image
from raw_fixtures import idx, python2_pickle

from pipeline import plugin
from pipeline.artifacts.publish import scratch
from pipeline.data.annotated import AnnotatedConfig
from pipeline.data.dataset import ArraySplit, DatasetConfig, Source
from pipeline.data.datasets import cifar, digits, fashion_mnist, image_folder, tiny_imagenet
from pipeline.data.image_array import ImageArray
from pipeline.data.images import ResidentImages, open_images
from pipeline.data.layout import Meta
from pipeline.data.preparation import held_out, prepare
from pipeline.data.prepared import Prepared
from pipeline.data.raw import download, image_files
from pipeline.data.views import PlainSpace
from pipeline.errors import (
    DataError,
    MachineError,
    ParamsError,
)
from pipeline.params.base import validate
from pipeline.params.tasks import CLASSIFICATION, DETECTION, task_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def random_source(num: int = 40, size: int = 5, channels: int = 2, classes: int = 4) -> Source:
    draw = np.random.default_rng(0)

    def split(number: int) -> ArraySplit:
        images = draw.integers(0, 256, (number, channels, size, size), dtype=np.uint8)
        return ArraySplit(images, draw.permutation(np.arange(number) % classes).astype(np.int64))

    return Source([f"c{i}" for i in range(classes)], channels, size, split(num), split(num // 2))


# --- The contract -------------------------------------------------------------------------------------------


SOURCES = {
    task: [name for name in plugin.names("datasets") if task_of(plugin.load("datasets", name)) == task]
    for task in (CLASSIFICATION, DETECTION)
}


@pytest.mark.parametrize("name", SOURCES[DETECTION])
def test_a_plugin_of_boxes_has_config_and_open_source(name: str) -> None:
    module = plugin.load("datasets", name)
    assert issubclass(module.Config, AnnotatedConfig)
    assert callable(module.open_source)
    assert not hasattr(module, "image")
    assert module.__doc__
    with pytest.raises(ParamsError, match=r"unknown key 'here\.maen'.*'mean'"):
        validate(module.Config, {"maen": [0.5, 0.5, 0.5], "path": "x"}, "here")


@pytest.mark.parametrize("name", SOURCES[CLASSIFICATION])
def test_a_plugin_has_config_and_open_source(name: str) -> None:
    module = plugin.load("datasets", name)
    assert issubclass(module.Config, DatasetConfig)
    assert callable(module.image)
    assert callable(module.open_source)
    assert module.__doc__
    with pytest.raises(ParamsError, match=r"unknown key 'here\.holdot'.*'holdout'"):
        validate(module.Config, {"holdot": 0.1, "path": "x", "size": 8, "labels": "y"}, "here")


# What each source is opened with here: the fixture of its raw files, and settings.
OPENED: dict[str, tuple[str | None, list[dict[str, Any]]]] = {
    "cifar": ("batches", [{"classes": 10}, {"classes": 100}]),
    "digits": (None, [{}]),
    "fashion_mnist": ("fashion", [{}]),
    "image_csv": ("table", [{"size": 6, "labels": Path("labels.csv")}]),
    "image_folder": ("folder", [{"size": 6}, {"size": 5, "channels": 1, "storage": "indexed"}]),
    "tiny_imagenet": ("tiny", [{}]),
}


@pytest.mark.parametrize("name", SOURCES[CLASSIFICATION])
def test_facts_of_images_are_known_without_files_and_are_those_of_prepared_data(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    module, (raw, cases) = plugin.load("datasets", name), OPENED[name]
    for number, settings in enumerate(cases):
        facts = module.image(module.Config(**settings, **({"path": tmp_path / "nowhere"} if raw else {})))
        config = module.Config(**settings, **({"path": request.getfixturevalue(raw)} if raw else {}))
        meta = prepare(module.open_source(config), name, config, tmp_path / str(number))
        assert (facts.size, facts.channels) == (meta.size, meta.channels)
        assert facts.classes in (None, len(meta.classes))
        # Only where the files are the classes may the settings be silent about them.
        assert (facts.classes is None) == (name in ("image_csv", "image_folder", "tiny_imagenet"))


# --- Writer -------------------------------------------------------------------------------------------------


def test_prepared_arrays_are_those_of_the_source(tmp_path: Path) -> None:
    source = random_source()
    meta = prepare(source, "made", DatasetConfig(), tmp_path / "out")
    data = Prepared.open(tmp_path / "out")
    assert data.meta == meta
    assert meta.samples == {"train": 40, "test": 20}
    for name, raw in (("train", source.train), ("test", source.test)):
        split = data.split(name)
        assert isinstance(split.images, ImageArray)
        assert isinstance(split.images.pixels, np.memmap)
        assert not split.images.pixels.flags.writeable
        np.testing.assert_array_equal(split.images, raw.images(0, len(raw.labels)))
        np.testing.assert_array_equal(split.labels, raw.labels)
        images, labels = open_images(split, PlainSpace(), torch.device("cpu"))
        assert isinstance(images, ResidentImages)
        assert (images.images.dtype, labels.dtype) == (torch.uint8, torch.int64)
        np.testing.assert_array_equal(images.images.numpy(), split.images)
        np.testing.assert_array_equal(labels.numpy(), split.labels)


@pytest.mark.parametrize("holdout", [0.0, 0.3])
def test_result_does_not_depend_on_the_block_size(tmp_path: Path, holdout: float) -> None:
    source, config = random_source(), DatasetConfig(holdout=holdout)
    metas = [prepare(source, "made", config, tmp_path / str(b), block_bytes=b) for b in (1, 150, 701, 10**6)]
    assert all(meta == metas[0] for meta in metas)
    for file in (tmp_path / "1").iterdir():
        assert file.read_bytes() == (tmp_path / "1000000" / file.name).read_bytes()


def test_measured_normalization_is_that_of_the_training_images(tmp_path: Path) -> None:
    source = random_source()
    meta = prepare(source, "made", DatasetConfig(holdout=0.2), tmp_path / "out")
    images = np.array(Prepared.open(tmp_path / "out").split("train").images, np.float64) / 255
    # The sums are exact, so only the float64 reference rounds.
    np.testing.assert_allclose(meta.mean, images.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(meta.std, images.std((0, 2, 3)), rtol=1e-12)


def test_normalization_is_the_configs_then_the_published(tmp_path: Path) -> None:
    plain = random_source()
    source = Source(plain.classes, 2, 5, plain.train, plain.test, mean=(0.1, 0.2), std=(0.3, 0.4))
    meta = prepare(source, "made", DatasetConfig(), tmp_path / "out")
    assert (meta.mean, meta.std) == ((0.1, 0.2), (0.3, 0.4))
    meta = prepare(source, "made", DatasetConfig(mean=(0.0, 0.0)), tmp_path / "out")
    assert (meta.mean, meta.std) == ((0.0, 0.0), (0.3, 0.4))
    with pytest.raises(ParamsError) as error:
        prepare(source, "made", DatasetConfig(std=(1.0,)), tmp_path / "out")
    one_line(error, "'std' has 1 values", "2 channels")


def test_fingerprint_covers_images_labels_and_class_names(tmp_path: Path) -> None:
    def fingerprint(change: Callable[[NDArray[np.uint8], NDArray[np.int64], list[str]], object]) -> str:
        source = random_source()
        assert isinstance(source.train, ArraySplit)
        images, labels, classes = source.train.array.copy(), source.train.labels.copy(), list(source.classes)
        change(images, labels, classes)
        changed = Source(classes, 2, 5, ArraySplit(images, labels), source.test)
        return prepare(changed, "made", DatasetConfig(), tmp_path / "out").fingerprint["train"]

    def set_pixel(images: NDArray[np.uint8], *_: object) -> None:
        images[-1, -1, -1, -1] ^= 1

    def swap_labels(_: object, labels: NDArray[np.int64], *__: object) -> None:
        labels[:] = labels[::-1]

    def rename(_: object, __: object, classes: list[str]) -> None:
        classes[0] = "other"

    found = {fingerprint(change) for change in (lambda *_: None, set_pixel, swap_labels, rename)}
    assert len(found) == 4
    assert fingerprint(lambda *_: None) in found


def test_holdout_is_disjoint_stratified_and_seeded(tmp_path: Path) -> None:
    source = random_source(num=80)
    labels = source.train.labels
    mask = held_out(labels, 0.25, seed=0)
    np.testing.assert_array_equal(np.bincount(labels[mask]), np.full(4, 5))
    np.testing.assert_array_equal(mask, held_out(labels, 0.25, seed=0))
    assert not np.array_equal(mask, held_out(labels, 0.25, seed=1))
    # A larger share keeps what the smaller one held out.
    assert held_out(labels, 0.5, seed=0)[mask].all()

    plain = prepare(source, "made", DatasetConfig(), tmp_path / "plain")
    meta = prepare(source, "made", DatasetConfig(holdout=0.25), tmp_path / "held", block_bytes=300)
    assert meta.samples == {"train": 60, "holdout": 20, "test": 40}
    assert meta.fingerprint["test"] == plain.fingerprint["test"]
    assert meta.fingerprint["train"] != plain.fingerprint["train"]
    data = Prepared.open(tmp_path / "held")
    images = source.train.images(0, 80)
    np.testing.assert_array_equal(data.split("train").images, images[~mask])
    np.testing.assert_array_equal(data.split("holdout").images, images[mask])
    np.testing.assert_array_equal(data.split("holdout").labels, labels[mask])


def test_holdout_takes_at_least_one_and_never_all() -> None:
    labels = np.array([0, 0, 1, 1, 1], dtype=np.int64)
    for share in (0.01, 0.99):
        counts = np.bincount(labels[held_out(labels, share, seed=0)], minlength=2)
        assert counts.tolist() == ([1, 1] if share < 0.5 else [1, 2])


def test_holdout_of_a_class_with_one_sample_is_refused(tmp_path: Path) -> None:
    train = ArraySplit(np.zeros((3, 1, 2, 2), np.uint8), np.array([0, 0, 1], dtype=np.int64))
    source = Source(["a", "b"], 1, 2, train, train)
    with pytest.raises(DataError) as error:
        prepare(source, "made", DatasetConfig(holdout=0.5), tmp_path / "out")
    one_line(error, "Class 'b' of 'made' has 1 training samples", "holdout: 0.0")


def test_a_source_whose_parts_do_not_fit_is_refused(tmp_path: Path) -> None:
    plain = random_source()
    empty = ArraySplit(np.zeros((0, 2, 5, 5), np.uint8), np.zeros(0, np.int64))
    constant = ArraySplit(np.zeros((4, 2, 5, 5), np.uint8), np.arange(4))
    cases = {
        "has no test samples": Source(plain.classes, 2, 5, plain.train, empty),
        "expected [0, 2]": Source(plain.classes[:3], 2, 5, plain.train, plain.test),
        "has 0 training samples": Source([*plain.classes, "e"], 2, 5, plain.train, plain.test),
        "expected uint8 (40, 2, 6, 6)": Source(plain.classes, 2, 6, plain.train, plain.test),
        "one constant value": Source(plain.classes, 2, 5, constant, plain.test),
    }
    for text, source in cases.items():
        with pytest.raises(DataError) as error:
            prepare(source, "made", DatasetConfig(), tmp_path / "out")
        one_line(error, text)
        assert not (tmp_path / "out").exists()


def test_a_full_disk_is_told_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(MachineError) as error:
        prepare(random_source(), "made", DatasetConfig(), tmp_path / "out")
    one_line(error, "MB free")


# --- Digits -------------------------------------------------------------------------------------------------


def test_digits_are_split_as_documented(tmp_path: Path) -> None:
    source = digits.open_source(digits.Config())
    meta = prepare(source, "digits", digits.Config(), tmp_path / "out")
    assert meta.samples == {"train": 1437, "test": 360}
    assert (meta.channels, meta.size, meta.classes) == (1, 8, tuple("0123456789"))
    images = source.train.images(0, 1437)
    assert images.dtype == np.uint8
    assert (images.min(), images.max()) == (0, 255)
    counts = np.bincount(source.test.labels)
    assert counts.min() >= 34
    assert counts.max() <= 38
    # The split and the scaling are part of what a published result means.
    assert meta.fingerprint["test"] == "08825375028c46d7f1bbee63d9fa8488"


def test_digits_keep_a_stratified_part() -> None:
    whole, part = (
        digits.open_source(digits.Config(samples=samples, test_share=0.5)) for samples in (1797, 360)
    )
    splits = [part.train, part.test]
    assert [len(split.labels) for split in splits] == [180, 180]
    assert all(set(np.bincount(split.labels)) <= {17, 18, 19} for split in splits)
    rows = [{split.images(row, row + 1).tobytes() for row in range(180)} for split in splits]
    assert not rows[0] & rows[1]
    every = {
        split.images(row, row + 1).tobytes()
        for split in (whole.train, whole.test)
        for row in range(len(split.labels))
    }
    assert rows[0] | rows[1] <= every


@pytest.mark.parametrize(
    "settings", [{"samples": 15}, {"test_share": 0.005}, {"test_share": 0.996}, {"samples": 1798}]
)
def test_digits_of_too_few_samples_or_too_many_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ParamsError, match=r"expected at least 10, one a class|less than or equal to 1797"):
        validate(digits.Config, settings, "datasets.toy", "params.yaml")


# --- Fashion-MNIST ------------------------------------------------------------------------------------------


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    folder = tmp_path / "fashion"
    folder.mkdir()
    draw = np.random.default_rng(1)
    for prefix, number in (("train", 30), ("t10k", 10)):
        images = draw.integers(0, 256, (number, 28, 28), dtype=np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        labels = (np.arange(number) % 10).astype(np.uint8)
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels))
    return folder


def test_fashion_mnist_reads_plain_and_packed_idx_files(fashion: Path, tmp_path: Path) -> None:
    config = fashion_mnist.Config(path=fashion)
    meta = prepare(fashion_mnist.open_source(config), "fashion_mnist", config, tmp_path / "out")
    assert meta.samples == {"train": 30, "test": 10}
    assert meta.classes[9] == "Ankle boot"
    expected = np.random.default_rng(1).integers(0, 256, (30, 28, 28), dtype=np.uint8)
    train = Prepared.open(tmp_path / "out").split("train")
    np.testing.assert_array_equal(np.array(train.images)[:, 0], expected)
    np.testing.assert_array_equal(train.labels, np.arange(30) % 10)


@pytest.mark.parametrize(
    ("file", "content", "text"),
    [
        ("train-images-idx3-ubyte", idx(np.zeros((30, 28, 27), np.uint8)), "(28, 27), expected (28, 28)"),
        ("train-images-idx3-ubyte", idx(np.zeros((29, 28, 28), np.uint8)), "29 images, but "),
        ("train-images-idx3-ubyte", idx(np.zeros((30, 28, 28), np.uint8))[:-1], "holds 23519 values"),
        ("train-images-idx3-ubyte", b"<html>", "is no idx file"),
        ("t10k-images-idx3-ubyte.gz", b"<html>", "cannot be unpacked"),
        ("t10k-images-idx3-ubyte.gz", gzip.compress(bytes(999), mtime=0)[:-9], "cannot be unpacked"),
    ],
)
def test_a_damaged_idx_file_is_named(fashion: Path, file: str, content: bytes, text: str) -> None:
    (fashion / file).write_bytes(content)
    with pytest.raises(DataError) as error:
        fashion_mnist.open_source(fashion_mnist.Config(path=fashion))
    one_line(error, str(fashion / file), text)


def test_a_missing_idx_file_says_where_to_put_it(fashion: Path) -> None:
    missing = fashion / "t10k-images-idx3-ubyte.gz"
    missing.unlink()
    with pytest.raises(DataError) as error:
        fashion_mnist.open_source(fashion_mnist.Config(path=fashion, download=False))
    one_line(error, f"{missing} does not exist", "http", "download: true")
    with pytest.raises(DataError) as error:
        fashion_mnist.open_source(fashion_mnist.Config(path=fashion))
    one_line(error, "Cannot download http", "no network in tests", str(missing))


# --- Downloads ----------------------------------------------------------------------------------------------


URLOPEN = urllib.request.urlopen


class _Response(io.BytesIO):
    headers: dict[str, str] = {}


class _Labels(BaseHTTPRequestHandler):
    """A server that calls a packed file an encoded one, as Apache does by its suffix."""

    content = gzip.compress(bytes(5000), mtime=0)

    def do_GET(self) -> None:  # the name that the base class calls
        self.send_response(200)
        self.send_header("Content-Encoding", "x-gzip")
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, *_: Any) -> None:
        pass


def test_a_packed_file_stays_packed_whatever_the_server_calls_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", URLOPEN)
    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), _Labels) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url, md5 = f"http://127.0.0.1:{server.server_port}/a.tar.gz", hashlib.md5(_Labels.content).hexdigest()
        path = download.fetch(url, tmp_path / "a.tar.gz", md5, download=True)
        server.shutdown()
    assert path.read_bytes() == _Labels.content
    assert list(tmp_path.iterdir()) == [path]


def test_a_download_is_kept_only_with_the_right_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: _Response(b"content"))
    path, right = tmp_path / "raw" / "file", hashlib.md5(b"content").hexdigest()
    with pytest.raises(DataError) as error:
        download.fetch("http://x/file", path, "0" * 32, download=True)
    one_line(error, f"md5 {right}", f"expected {'0' * 32}", str(path))
    assert list(path.parent.iterdir()) == []

    assert download.fetch("http://x/file", path, right, download=True) == path
    assert path.read_bytes() == b"content"
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(DataError) as error:  # one that lies there is never replaced without a word
        download.fetch("http://x/file", path, "0" * 32, download=True)
    one_line(error, f"{path} has md5 {right}, expected {'0' * 32}", "Delete it")


# --- CIFAR --------------------------------------------------------------------------------------------------


CIFAR = {
    10: (torchvision.datasets.CIFAR10, "labels"),
    100: (torchvision.datasets.CIFAR100, "fine_labels"),
}


def write_cifar(raw: Path, num_classes: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write batches of the official form; torchvision's tables get the checksums of these."""
    official, key = CIFAR[num_classes]
    folder = raw / official.base_folder
    folder.mkdir(parents=True)
    draw = np.random.default_rng(2)

    def write(name: str, content: dict[str, Any]) -> str:
        (folder / name).write_bytes(python2_pickle(content))
        return download.md5(folder / name)

    def batch(name: str) -> list[str]:
        labels = draw.permutation(num_classes).tolist()
        data = draw.integers(0, 256, (num_classes, 3072), dtype=np.uint8)
        return [name, write(name, {"batch_label": name, key: labels, "data": data, "filenames": ["a.png"]})]

    for table in ("train_list", "test_list"):
        monkeypatch.setattr(official, table, [batch(name) for name, _ in getattr(official, table)])
    names = {official.meta["key"]: [f"class {i}" for i in range(num_classes)]}
    checksum = write(official.meta["filename"], names)
    monkeypatch.setattr(official, "meta", official.meta | {"md5": checksum})
    return folder


@pytest.fixture
def batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write both data sets into one folder, as users may."""
    for num_classes in CIFAR:
        write_cifar(tmp_path / "raw", num_classes, monkeypatch)
    return tmp_path / "raw"


@pytest.fixture(params=CIFAR)
def official(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return torchvision's class of a data set whose batches lie in `raw`."""
    write_cifar(tmp_path / "raw", request.param, monkeypatch)
    return CIFAR[request.param][0]


def cifar_config(official: Any, raw: Path, **settings: Any) -> cifar.Config:
    classes: Any = next(number for number, (one, _) in CIFAR.items() if one is official)
    return cifar.Config(classes=classes, path=raw, **settings)


def test_cifar_is_the_papers_data_set_unless_the_classes_are_named() -> None:
    assert cifar.Config().classes == 100
    with pytest.raises(ParamsError, match=r"'here\.classes' is 20\. Input should be 10 or 100"):
        validate(cifar.Config, {"classes": 20}, "here")


def test_cifar_gives_what_torchvision_reads(official: Any, tmp_path: Path) -> None:
    config = cifar_config(official, tmp_path / "raw", download=False)
    source = cifar.open_source(config)
    meta = prepare(source, "cifar", config, tmp_path / "out")
    assert (meta.mean, meta.std) == (source.mean, source.std)
    assert meta.mean == pytest.approx((0.5, 0.485, 0.44), abs=0.01)
    assert meta.std == pytest.approx((0.26, 0.25, 0.27), abs=0.02)
    data = Prepared.open(tmp_path / "out")
    for split, train in (("train", True), ("test", False)):
        expected = official(tmp_path / "raw", train=train)
        np.testing.assert_array_equal(data.split(split).images, expected.data.transpose(0, 3, 1, 2))
        np.testing.assert_array_equal(data.split(split).labels, expected.targets)
        assert list(meta.classes) == expected.classes


def test_cifar_is_extracted_from_its_archive(
    official: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "raw" / official.base_folder
    archive = folder.parent / official.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(folder)
    config = cifar_config(official, folder.parent)
    with pytest.raises(DataError) as error:
        cifar.open_source(config)
    one_line(error, f"{archive} has md5 {download.md5(archive)}, expected {official.tgz_md5}", "Delete it")
    assert list(folder.parent.iterdir()) == [archive]

    monkeypatch.setattr(official, "tgz_md5", download.md5(archive))
    cifar.open_source(config)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert sorted(path.name for path in folder.parent.iterdir()) == sorted([archive.name, folder.name])

    shutil.rmtree(folder)
    archive.write_bytes(b"no archive")
    monkeypatch.setattr(official, "tgz_md5", download.md5(archive))
    with pytest.raises(DataError) as error:
        cifar.open_source(config)
    one_line(error, f"{archive} cannot be extracted")
    assert not folder.exists()


def test_cifar_refuses_wrong_checksums_and_missing_files(official: Any, tmp_path: Path) -> None:
    folder = tmp_path / "raw" / official.base_folder
    config = cifar_config(official, folder.parent)
    batch = sorted(folder.glob("*te*t*"))[0]
    content = batch.read_bytes()
    batch.write_bytes(content[:-1] + b"!")
    with pytest.raises(DataError) as error:
        cifar.open_source(config)
    one_line(error, f"{batch} has md5 ", "expected ", f"Delete {folder}")
    batch.unlink()
    with pytest.raises(DataError) as error:
        cifar.open_source(config)
    one_line(error, f"{batch} does not exist", f"Delete {folder}")
    shutil.rmtree(folder)
    with pytest.raises(DataError) as error:
        cifar.open_source(config)
    one_line(error, "Cannot download https", "no network in tests")
    with pytest.raises(DataError) as error:
        cifar.open_source(cifar_config(official, folder.parent, download=False))
    one_line(error, "download is false", str(folder.parent))


def test_cifar_never_unpickles_anything_else(
    official: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "raw" / official.base_folder
    batch = folder / official.test_list[0][0]
    batch.write_bytes(b"cos\nsystem\n(S'touch " + str(folder / "owned").encode() + b"'\ntR.")
    monkeypatch.setattr(official, "test_list", [[batch.name, download.md5(batch)]])
    with pytest.raises(DataError) as error:
        cifar.open_source(cifar_config(official, folder.parent))
    one_line(error, f"{batch} is no CIFAR batch", "os.system")
    assert not (folder / "owned").exists()
    batch.write_bytes(pickle.dumps([1]))
    monkeypatch.setattr(official, "test_list", [[batch.name, download.md5(batch)]])
    with pytest.raises(DataError) as error:
        cifar.open_source(cifar_config(official, folder.parent))
    one_line(error, str(batch))


# --- Folders ------------------------------------------------------------------------------------------------


def write_image(path: Path, size: tuple[int, int] = (6, 6), mode: str = "RGB", seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for index, file in enumerate(("a/1.png", "a/2.PNG", "a/3.jpg", "b/1.JPEG", "b/2.bmp", "b/3.webp")):
        write_image(root / "train" / file, seed=index)
    for file in ("a/1.png", "b/1.png"):
        write_image(root / "val" / file, seed=9)
    (root / "train" / "a" / "notes.txt").write_text("not an image")
    (root / "train" / "a" / "._1.png").write_text("a hidden file of another system")
    return root


@pytest.fixture
def table(folder: Path) -> Path:
    """Return a folder whose images a CSV file labels."""
    files = sorted(path.relative_to(folder) for path in folder.rglob("*/*/[0-9]*"))
    rows = "".join(f"{file},{file.parts[1]},{file.parts[0]}\n" for file in files)
    (folder / "labels.csv").write_text(f"path,label,split\n{rows}")
    return folder


def folder_config(root: Path, size: int = 6, **settings: Any) -> image_folder.Config:
    return image_folder.Config(path=root, size=size, **settings)


def test_image_folder_reads_every_suffix_in_any_case(folder: Path, tmp_path: Path) -> None:
    config = folder_config(folder)
    meta = prepare(
        image_folder.open_source(config), "image_folder", config, tmp_path / "out", block_bytes=200
    )
    assert (meta.classes, meta.samples) == (("a", "b"), {"train": 6, "test": 2})
    train = Prepared.open(tmp_path / "out").split("train")
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    for row, file in enumerate(("a/1.png", "a/2.PNG", "a/3.jpg", "b/1.JPEG", "b/2.bmp", "b/3.webp")):
        with Image.open(folder / "train" / file) as image:
            expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        np.testing.assert_array_equal(train.images[row], expected)


def test_images_are_decoded_only_when_asked_for(folder: Path) -> None:
    (folder / "train" / "b" / "2.bmp").write_bytes(b"broken")
    train = image_folder.open_source(folder_config(folder)).train
    assert train.images(0, 4).shape == (4, 3, 6, 6)
    with pytest.raises(DataError, match=r"2\.bmp"):
        train.images(4, 5)


def test_threads_decode_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = image_folder.open_source(folder_config(folder)).train
    plain = train.images(0, 6)
    monkeypatch.setattr(image_files, "_WORTH_A_THREAD", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    np.testing.assert_array_equal(train.images(0, 6), plain)


def test_another_size_is_resized_by_the_short_side_and_cropped(tmp_path: Path) -> None:
    # Columns of one gray each: halved, neighbors average; cropped, the outer ones go.
    columns = np.repeat(np.arange(0, 160, 10, dtype=np.uint8), 8).reshape(16, 8).T  # 8 high, 16 wide
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        Image.fromarray(columns).save(tmp_path / split / "a" / "x.png")
    source = image_folder.open_source(folder_config(tmp_path, size=4, channels=1))
    image = source.train.images(0, 1)[0, 0].astype(int)
    assert image.shape == (4, 4)
    # Pillow's bilinear filter rounds to whole values: 1 of 255.
    np.testing.assert_allclose(image, np.tile([45, 65, 85, 105], (4, 1)), atol=1)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_eight_bit_mode_becomes_gray_or_color(tmp_path: Path, mode: str, channels: int) -> None:
    suffix = "jpg" if mode == "CMYK" else "png"
    for split in ("train", "val"):
        write_image(tmp_path / split / "a" / f"x.{suffix}", mode=mode)
    source = image_folder.open_source(folder_config(tmp_path, channels=channels))
    with Image.open(tmp_path / "train" / "a" / f"x.{suffix}") as image:
        expected = np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(6, 6, channels)
    np.testing.assert_array_equal(source.train.images(0, 1)[0], expected.transpose(2, 0, 1))


def test_a_palette_with_transparency_gives_its_colors_without_a_warning(tmp_path: Path) -> None:
    for split in ("train", "val"):
        path = write_image(tmp_path / split / "a" / "x.png", mode="P")
        with Image.open(path) as image:
            image.load()
        image.save(path, transparency=bytes(range(200)))
    assert image_folder.open_source(folder_config(tmp_path)).train.images(0, 1).shape == (1, 3, 6, 6)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _empty(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


def _sixteen_bits(path: Path) -> None:
    Image.fromarray(np.full((6, 6), 4000, np.uint16)).save(path)


def _dangle(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.png")


@pytest.mark.parametrize(
    ("place", "damage", "text"),
    [
        ("", shutil.rmtree, "does not exist, expected a folder for each class"),
        ("val", shutil.rmtree, "does not exist, expected a folder for each class"),
        ("train", _empty, "holds no folders"),
        ("train/b", _empty, "holds no images"),
        ("val/b", _empty, "holds no images"),
        ("val/b", shutil.rmtree, "expected images of every training class"),
        ("train/b", shutil.rmtree, "is a class that"),
        ("train/a/1.png", lambda path: path.write_text("no image"), "Cannot read the image"),
        ("train/a/1.png", _dangle, "is a broken link, to nowhere.png"),
        ("val/b/1.png", _truncate, "Cannot read the image"),
        ("train/a/3.jpg", _truncate, "Cannot read the image"),
        ("val/b/1.png", _sixteen_bits, "expected 8 bits a channel"),
    ],
)
def test_a_folder_error_is_one_line_and_leaves_nothing(
    folder: Path, tmp_path: Path, place: str, damage: Callable[[Path], object], text: str
) -> None:
    damage(folder / place)
    out = tmp_path / "out"
    config = folder_config(folder)
    with pytest.raises(DataError) as error:
        prepare(image_folder.open_source(config), "image_folder", config, out)
    one_line(error, text, Path(place).name)
    assert not out.exists()


# --- Tiny-ImageNet ------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    root = tmp_path / "tiny"
    ids = ["n02", "n01"]
    for wnid in ids:
        for number in range(2):
            mode = "L" if number else "RGB"
            write_image(root / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", (64, 64), mode, number)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
    (root / "wnids.txt").write_text("n02\nn01\n")
    (root / "words.txt").write_text("n00\tentity\nn01\tgoldfish, Carassius auratus\nn02\tcrane\n")
    for number in range(4):
        write_image(root / "val" / "images" / f"val_{number}.JPEG", (64, 64), seed=number)
    lines = [f"val_{number}.JPEG\t{ids[number % 2]}\t0\t32\t44\t62" for number in range(4)]
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return root


def test_tiny_imagenet_reads_the_official_layout(tiny: Path, tmp_path: Path) -> None:
    config = tiny_imagenet.Config(path=tiny)
    meta = prepare(tiny_imagenet.open_source(config), "tiny_imagenet", config, tmp_path / "out")
    assert meta.classes == ("n01 goldfish", "n02 crane")
    assert (meta.channels, meta.size, meta.samples) == (3, 64, {"train": 4, "test": 4})
    assert meta.mean == (0.4802, 0.4481, 0.3975)
    data = Prepared.open(tmp_path / "out")
    assert data.split("train").labels.tolist() == [0, 0, 1, 1]
    assert data.split("test").labels.tolist() == [1, 0, 1, 0]
    with Image.open(tiny / "val" / "images" / "val_2.JPEG") as image:
        np.testing.assert_array_equal(data.split("test").images[2], np.asarray(image).transpose(2, 0, 1))


def annotate(tiny: Path, counts: dict[str, int]) -> dict[str, list[str]]:
    """Put so many validation images of each class there, mixed, and return their file names by class."""
    shutil.rmtree(tiny / "val" / "images")
    wnids = [wnid for wnid, count in counts.items() for _ in range(count)]
    np.random.default_rng(0).shuffle(wnids)
    names: dict[str, list[str]] = {wnid: [] for wnid in counts}
    for number, wnid in enumerate(wnids):
        names[wnid].append(f"val_{number}.JPEG")
        write_image(tiny / "val" / "images" / f"val_{number}.JPEG", (64, 64), seed=number)
    lines = [f"{name}\t{wnid}\t0\t32\t44\t62" for wnid, own in names.items() for name in own]
    (tiny / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return names


def test_half_of_tiny_imagenet_tests_with_the_second_25_of_each_class(tiny: Path, tmp_path: Path) -> None:
    names = annotate(tiny, {"n02": 50, "n01": 50})
    config = tiny_imagenet.Config(path=tiny, test="half")
    source = tiny_imagenet.open_source(config)
    meta = prepare(source, "tiny_imagenet", config, tmp_path / "out")
    assert meta.samples == {"train": 4, "test": 50}

    # "val_10.JPEG" comes before "val_2.JPEG".
    expected = sorted(
        (name, label) for label, wnid in enumerate(("n01", "n02")) for name in sorted(names[wnid])[25:]
    )
    split = Prepared.open(tmp_path / "out").split("test")
    assert split.labels.tolist() == [label for _, label in expected]
    assert np.bincount(split.labels).tolist() == [25, 25]
    for row, (name, _) in enumerate(expected):
        with Image.open(tiny / "val" / "images" / name) as image:
            np.testing.assert_array_equal(split.images[row], np.asarray(image).transpose(2, 0, 1))

    official = tiny_imagenet.Config(path=tiny)
    assert (
        prepare(tiny_imagenet.open_source(official), "tiny_imagenet", official, tmp_path / "all").samples[
            "test"
        ]
        == 100
    )


def test_a_class_of_tiny_imagenet_with_too_few_images_for_a_half_is_named(tiny: Path) -> None:
    annotate(tiny, {"n02": 49, "n01": 50})
    with pytest.raises(DataError) as error:
        tiny_imagenet.open_source(tiny_imagenet.Config(path=tiny, test="half"))
    one_line(error, "val_annotations.txt has 49 images of class 'n02 crane', and 'test: half' needs 50")
    assert "set test: official" in str(error.value)
    tiny_imagenet.open_source(tiny_imagenet.Config(path=tiny))


@pytest.mark.parametrize(
    ("place", "damage", "text"),
    [
        ("", shutil.rmtree, "wnids.txt does not exist"),
        ("words.txt", lambda path: path.write_text("n02\tcrane\n"), "has no line for n01"),
        ("train/n01", shutil.rmtree, "expected images of a class that wnids.txt lists"),
        ("train/n03", lambda path: path.mkdir(), "wnids.txt does not list"),
        ("val/val_annotations.txt", lambda path: path.unlink(), "does not exist"),
        ("val/val_annotations.txt", lambda path: path.write_text("val_0.JPEG\tn07\t0\n"), "val_0.JPEG n07"),
        ("val/images/val_3.JPEG", lambda path: path.unlink(), "is annotated in"),
        ("val/images/val_9.JPEG", write_image, "is not annotated in"),
        ("train/n01/images/n01_0.JPEG", lambda path: write_image(path, (64, 63)), "64x63, expected 64x64"),
        ("val/images/val_0.JPEG", _truncate, "Cannot read the image"),
    ],
)
def test_a_tiny_imagenet_error_is_one_line_and_leaves_nothing(
    tiny: Path, tmp_path: Path, place: str, damage: Callable[[Path], object], text: str
) -> None:
    damage(tiny / place)
    config = tiny_imagenet.Config(path=tiny)
    with pytest.raises(DataError) as error:
        prepare(tiny_imagenet.open_source(config), "tiny_imagenet", config, tmp_path / "out")
    one_line(error, text, Path(place).name)
    assert not (tmp_path / "out").exists()


# --- Command ------------------------------------------------------------------------------------------------


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "stages.prepare_data", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture
def blocks(tmp_path: Path, folder: Path) -> Path:
    entries: dict[str, dict[str, Any]] = {
        "digits": {"source": "digits", "settings": {"holdout": 0.1}},
        "plain": {"source": "digits", "settings": {}},
        "wrong_source": {"source": "digit", "settings": {}},
        "wrong_key": {"source": "digits", "settings": {"holdot": 0.1}},
        "wrong_entry": {"sorce": "digits", "settings": {}},
        "wrong_value": {"source": "digits", "settings": {"holdout": 1.5}},
        "photos": {"source": "image_folder", "settings": {"path": str(folder), "size": 6}},
        "away": {"source": "image_folder", "settings": {"path": str(folder / "away"), "size": 6}},
    }
    for name, entry in entries.items():
        block = {"stage": f"prepare_data@{name}", "dataset": name} | entry
        (tmp_path / f"{name}.json").write_text(json.dumps(block))
    return tmp_path


def test_the_command_prepares_and_says_so(blocks: Path, tmp_path: Path) -> None:
    out = tmp_path / "data" / "digits"
    done = run(blocks / "digits.json", "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert "train 1292, holdout 145, test 360" in done.stdout
    data = Prepared.open(out)
    assert isinstance(data.meta, Meta)
    assert (data.meta.source, data.meta.made_by) == ("digits", "prepare_data@digits")
    first = data.meta.fingerprint
    assert run(blocks / "digits.json", "--out", out).returncode == 0
    assert Prepared.open(out).meta.fingerprint == first
    assert not scratch(out).exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("digit", "digit.json does not exist. Make it with: dvc repro params"),
        ("wrong_source", "Unknown dataset 'digit'. Did you mean 'digits'?"),
        ("wrong_key", "unknown key 'datasets.wrong_key.source.digits.holdot'. Did you mean 'holdout'?"),
        ("wrong_entry", "unknown key 'sorce'. Did you mean 'source'?"),
        ("wrong_value", "'datasets.wrong_value.source.digits.holdout' is 1.5"),
        ("away", "away/train does not exist"),
    ],
)
def test_a_users_mistake_is_one_line(blocks: Path, tmp_path: Path, name: str, text: str) -> None:
    done = run(blocks / f"{name}.json", "--out", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert text in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_source_that_fails_leaves_no_stale_data(blocks: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(blocks / "photos.json", "--out", out).returncode == 0
    (folder / "train" / "a" / "1.png").write_text("broken")
    done = run(blocks / "photos.json", "--out", out)
    assert done.returncode == 1
    assert str(folder / "train" / "a" / "1.png") in done.stderr
    assert done.stderr.count("\n") == 1
    assert not out.exists()


def test_raw_files_that_are_mended_are_read_again(blocks: Path, folder: Path, tmp_path: Path) -> None:
    """DVC does not look at them: by `dvc repro` it would fetch what it made of others before."""
    (folder / "train" / "a" / "1.png").write_text("broken")
    done = run(blocks / "photos.json", "--out", tmp_path / "out")
    assert done.stderr.endswith(", then: dvc repro --force --single-item prepare_data@photos\n")


def test_a_folder_of_something_else_is_not_replaced(blocks: Path, folder: Path) -> None:
    done = run(blocks / "plain.json", "--out", folder)
    assert done.returncode == 1
    assert "holds no prepared data" in done.stderr
    assert (folder / "train" / "a" / "1.png").exists()


def test_usage_errors_exit_with_two() -> None:
    done = run("digits")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; sys.argv = ['prepare_data', '--help']\n"
        "from stages import command, prepare_data\n"
        "try: command.run(prepare_data.main)\n"
        "except SystemExit as done: assert not done.code\n"
        "print('heavy:', sorted({'torch', 'numpy', 'PIL', 'pydantic'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--out" in done.stdout
    assert done.stdout.endswith("heavy: []\n")


def test_digits_are_enlarged_and_colored_without_another_value() -> None:
    module = plugin.load("datasets", "digits")
    plain, large = (
        module.open_source(module.Config(**settings)) for settings in ({}, {"size": 32, "channels": 3})
    )
    assert (large.size, large.channels) == (32, 3)
    for split in ("train", "test"):
        small, big = (getattr(source, split).array for source in (plain, large))
        assert big.shape == (len(small), 3, 32, 32)
        for channel in range(3):
            np.testing.assert_array_equal(big[:, channel, ::4, ::4], small[:, 0])
            np.testing.assert_array_equal(big[:, channel, 3::4, 2::4], small[:, 0])
    facts = module.image(module.Config(size=32, channels=3))
    assert (facts.size, facts.channels, facts.classes) == (32, 3, 10)

"""Tables on disk, the fit of moments, the encodings, and the stage that fits."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from error_fixtures import one_line
from feature_fixtures import Small, attention, pooled, run_stage, small_store
from numpy.typing import NDArray

from pipeline import plugin
from pipeline.artifacts import advice
from pipeline.compute import precision as precisions
from pipeline.compute.machine import Machine
from pipeline.data.normalize import Normalize
from pipeline.errors import (
    DamagedArtifactError,
    MissingArtifactError,
    ParamsError,
    ShapeError,
    UnknownNameError,
)
from pipeline.features import store
from pipeline.features.encoding import Feature, encodings_of, tables_of, taps_of
from pipeline.features.store import StoredArray
from pipeline.tables import table
from pipeline.tables.fits import moments
from pipeline.tables.table import FitContext, Fitted
from stages import command, fit_table

Array = NDArray[Any]


@dataclass
class ArrayStream:
    """A stream over an array (N, ...), `size` samples at a time."""

    values: Array
    size: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        for start in range(0, len(self.values), self.size):
            block = self.values[start : start + self.size]
            yield block, np.zeros(len(block), np.int64)


# Moments.


@pytest.mark.parametrize("size", [1, 7, 32, 1000])
@pytest.mark.parametrize("shape", [(93, 5), (93, 5, 3, 2)])
def test_moments_are_numpys_whatever_the_blocks(shape: tuple[int, ...], size: int) -> None:
    """To 1e-12 of float64, also far from zero, where sums of squares would cancel."""
    draw = np.random.default_rng(0)
    values = draw.normal(size=shape).astype(np.float32)
    values[:, 1] += 1000
    values[:, 2] = 3.5
    fitted = moments.fit(
        ArrayStream(values, size), moments.Config(feature="stage3"), FitContext(num_classes=2)
    )
    channels = np.moveaxis(values.astype(np.float64), 1, 0).reshape(5, -1)
    np.testing.assert_allclose(fitted.arrays["mean"], channels.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(fitted.arrays["std"], channels.std(axis=1), rtol=1e-10)
    assert fitted.arrays["mean"].dtype == fitted.arrays["std"].dtype == np.float64
    assert fitted.arrays["std"][2] == 0
    assert fitted.quality == {"channels": 5.0, "constant_channels": 1.0}


# On disk.

HINT = "dvc repro fit_table@resnet20-words"
FITTED = Fitted({"mean": np.arange(3.0), "words": np.arange(4, dtype=np.uint16)}, {"channels": 3.0})


def test_a_table_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    origin = {"teacher": "resnet20", "config": {"clusters": 4}}
    table.save(tmp_path / "words.npz", FITTED, origin)
    arrays, found = table.load(tmp_path / "words.npz", HINT)
    assert found == origin
    assert list(arrays) == list(FITTED.arrays)
    for name, array in FITTED.arrays.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].dtype == array.dtype


def test_a_table_is_npz_without_pickle_and_the_same_bytes_every_time(tmp_path: Path) -> None:
    table.save(tmp_path / "a.npz", FITTED, {"b": 1, "a": 2})
    table.save(tmp_path / "b.npz", FITTED, {"a": 2, "b": 1})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert {info.date_time[0] for info in archive.infolist()} == {1980}  # no clock in the file
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        assert all(archive[name].dtype.kind != "O" for name in archive.files)
    with pytest.raises(ValueError, match="pickle"):
        table.save(tmp_path / "c.npz", Fitted({"mean": np.array([{}])}, {}), {})


def test_a_table_that_is_not_there_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifactError, match=HINT) as caught:
        table.load(tmp_path / "words.npz", HINT)
    assert str(tmp_path / "words.npz") in str(caught.value)


def write_damaged(path: Path, kind: str) -> None:
    table.save(path, FITTED, {})
    content = path.read_bytes()
    match kind:
        case "text":
            path.write_text("no table")
        case "empty":
            path.write_bytes(b"")
        case "truncated":
            path.write_bytes(content[: len(content) // 2])
        case "flipped byte":
            start = content.index(np.arange(3.0).tobytes())
            path.write_bytes(content[:start] + b"\x01" + content[start + 1 :])
        case "npz of something else":
            np.savez(path, mean=np.zeros(3))
        case "npy":
            with path.open("wb") as file:
                np.save(file, np.zeros(3))
        case "pickled":
            np.savez(path, origin=np.array([{}]))


@pytest.mark.parametrize(
    "kind", ["text", "empty", "truncated", "flipped byte", "npz of something else", "npy", "pickled"]
)
def test_a_damaged_table_is_reported_in_one_line(tmp_path: Path, kind: str) -> None:
    write_damaged(tmp_path / "words.npz", kind)
    with pytest.raises(DamagedArtifactError) as caught:
        table.load(tmp_path / "words.npz", HINT)
    one_line(caught)
    assert str(caught.value).startswith(f"{tmp_path / 'words.npz'} ")
    assert str(caught.value).endswith(advice.again(HINT))


# Encodings.


def maps(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_encodings_are_their_loops() -> None:
    """To 1e-6."""
    x = maps(3, 5, 4, 2)
    np.testing.assert_allclose(Feature.parse("stage3:attention").encode(x), attention(x.numpy()), rtol=1e-6)
    np.testing.assert_allclose(
        Feature.parse("stage3:pooled").encode(x), pooled(x.numpy()), rtol=1e-6, atol=1e-6
    )
    assert Feature.parse("stage3").encode(x) is x


TABLE = {
    "centers": torch.randn(8, 5, generator=torch.Generator().manual_seed(1)),
    "temperature": torch.tensor(1.0),
    "mean": torch.zeros(5),
    "scalings": torch.eye(5),
    "per_class": torch.tensor(2),
}


@pytest.mark.parametrize("name", plugin.names("encodings"))
def test_an_encoding_codes_each_sample_alone(name: str) -> None:
    reads = getattr(plugin.load("encodings", name), "READS", ())
    feature = Feature("stage3", (name,), "words" if "table" in reads else None)
    x, label = maps(4, 5, 4, 4), torch.tensor([0, 3, 1, 2])
    codes = feature.encode(x, {"words": TABLE}, label)
    assert len(codes) == 4
    alone = [feature.encode(x[i : i + 1], {"words": TABLE}, label[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(torch.cat(alone), codes)


TABLE_READERS = [
    name for name in plugin.names("encodings") if hasattr(plugin.load("encodings", name), "ARRAYS")
]


@pytest.mark.parametrize("name", TABLE_READERS)
def test_an_encoding_has_a_table_to_plan_with(name: str) -> None:
    """Its code has the shape and the type that a fitted table gives."""
    module = plugin.load("encodings", name)
    small_table = module.stand_in(5, 4)
    assert set(module.ARRAYS) == small_table.keys()
    x, label = maps(4, 5, 4, 4), torch.tensor([0, 3, 1, 2])
    feature = Feature("stage3", (name,), "words")
    planned, fitted = (feature.encode(x, {"words": t}, label) for t in (small_table, TABLE))
    assert (planned.shape, planned.dtype) == (fitted.shape, fitted.dtype)


@pytest.mark.parametrize(
    ("name", "feature"),
    [
        ("stage3", Feature("stage3")),
        ("stage3_block1_pre:attention", Feature("stage3_block1_pre", ("attention",))),
        ("stage3:nearest@words-256", Feature("stage3", ("nearest",), "words-256")),
        ("final:halved:subclass@x4.1", Feature("final", ("halved", "subclass"), "x4.1")),
    ],
)
def test_features_are_read_from_their_names(name: str, feature: Feature) -> None:
    assert Feature.parse(name) == feature


@pytest.mark.parametrize("name", ["", ":attention", "stage3:", "a b", "stage3:x@", "a\n", "a::b"])
def test_what_is_no_feature_is_reported(name: str) -> None:
    with pytest.raises(ParamsError, match="Expected a tap, tap:encoding or tap:encoding@table"):
        Feature.parse(name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("stage3@words", "a plain tap reads no table: drop @words"),
        ("stage3:attention@words", "its last encoding 'attention' reads no table: drop @words"),
        ("stage3:halved:nearest", "its last encoding 'nearest' reads a table: add @table"),
        ("stage3:nearest:halved@words", "an encoding that reads a table comes last"),
    ],
)
def test_a_table_is_named_where_one_is_read_and_nowhere_else(name: str, reason: str) -> None:
    with pytest.raises(ParamsError, match=re.escape(reason)):
        Feature.parse(name)


def test_taps_tables_and_encodings_of_features_are_named_once() -> None:
    names = ["stage3", "stage3:attention", "logits", "final:halved:nearest@words", "final:halved:top4@words"]
    assert taps_of(names) == {"stage3", "logits", "final"}
    assert tables_of(names) == ("words",)
    assert encodings_of(names) == ("attention", "halved", "nearest", "top4")


def test_what_an_encoding_cannot_do_is_reported() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown encoding 'attentoin'. Did you mean 'attention'"):
        Feature.parse("stage3:attentoin")
    for encoding in ("attention", "pooled"):
        with pytest.raises(
            ShapeError, match=rf"'{encoding}' reads 3 axes, and tap 'logits' has shape \(10,\)"
        ):
            Feature.parse(f"logits:{encoding}").encode(maps(2, 10))
    with pytest.raises(UnknownNameError, match=r"Unknown table 'words'.*Known: digits"):
        Feature.parse("stage3:nearest@words").encode(maps(2, 3, 4, 4), {"digits": {}})
    with pytest.raises(UnknownNameError, match="Known: none"):
        Feature.parse("stage3:nearest@words").encode(maps(2, 3, 4, 4))


# Normalization.


def test_normalized_images_are_numpys() -> None:
    """To 1e-5, of float64."""
    mean, std = (0.4914, 0.48, 0.44), (0.2, 0.0625, 1.0)
    image = np.random.default_rng(0).integers(0, 256, (4, 3, 5, 5), np.uint8)
    given = torch.from_numpy(image.copy())
    found = Normalize(mean, std, torch.device("cpu"))(given)
    shape = (1, 3, 1, 1)
    expected = (image / 255 - np.reshape(mean, shape)) / np.reshape(std, shape)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(given, image)


# The stage.


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small_store(tmp_path_factory.mktemp("small"))


def fit_arguments(
    small: Small, folder: Path, feature: str, name: str = "moments", **config: object
) -> list[object]:
    stored = small.manifest.features.get(feature)
    block = {
        "stage": "fit_table@small-center",
        "teacher": "small",
        "dataset": small.prepared.folder.name,
        "name": "center",
        "table": name,
        "config": {"feature": feature, **config},
        "source": {
            "weights": small.manifest.weights["last"],
            "digest": "" if stored is None else stored.digest["last/train"],
            "data": small.manifest.data,
        },
    }
    folder.mkdir(exist_ok=True)
    (folder / "fit.json").write_text(json.dumps(block))
    return [
        folder / "fit.json",
        *("--prepared", small.prepared.folder.parent),
        *("--store", small.path),
        *("--out", folder / "tables" / "center.npz"),
        *("--metrics", folder / "center.json"),
    ]


def test_the_stage_fits_the_plain_training_samples(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """To 1e-10 of numpy on what the store holds."""
    arguments = [*fit_arguments(small, tmp_path, "stage3"), "--device", device]
    assert run_stage(monkeypatch, fit_table.main, *arguments) == 0
    arrays, origin = table.load(tmp_path / "tables" / "center.npz", HINT)
    plain = StoredArray(store.array_path(small.path, "last", "train", "stage3")).all()[0].astype(np.float64)
    channels = np.moveaxis(plain, 1, 0).reshape(plain.shape[1], -1)
    np.testing.assert_allclose(arrays["mean"], channels.mean(axis=1), rtol=1e-10)
    np.testing.assert_allclose(arrays["std"], channels.std(axis=1), rtol=1e-10)
    assert origin["teacher"] == "small"
    assert (origin["made_by"], origin["feature"]) == ("fit_table@small-center", "stage3")
    assert origin["digest"] == small.manifest.features["stage3"].digest["last/train"]
    assert json.loads((tmp_path / "center.json").read_text())["channels"] == plain.shape[1]
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == ["center.npz"]


def test_a_device_that_cannot_be_used_costs_no_table(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = fit_arguments(small, tmp_path, "stage3")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "center.npz").write_text("kept")
    assert run_stage(monkeypatch, fit_table.main, *arguments, "--device", "abacus") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --device 'abacus' cannot be used")
    assert (tmp_path / "tables" / "center.npz").read_text() == "kept"


def test_a_cpu_fits_by_its_own_engine_and_needs_no_torch(small: Small, tmp_path: Path) -> None:
    """In a process of its own: here torch is imported already."""
    arguments = [*map(str, fit_arguments(small, tmp_path, "stage3")), "--device", "cpu"]
    code = (
        "import sys; from stages import command, fit_table; from pipeline.tables.fits import moments\n"
        "moments._on_device = None\n"
        f"sys.argv = ['fit_table', *{arguments!r}]\n"
        "try: command.run(fit_table.main)\n"
        "finally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()[-1]) == (0, "False"), done.stderr


@pytest.mark.parametrize("gpu", [True, False])
def test_auto_asks_torch_only_where_there_may_be_a_gpu(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    machines: list[str] = []

    def machine(name: str) -> Machine:
        machines.append(name)
        return Machine(torch.device("cuda", 1))

    monkeypatch.setattr("pipeline.compute.machine.machine", machine)
    monkeypatch.setattr(command, "may_have_gpu", lambda: gpu)
    with precisions.using("tf32"):
        with command.fitting("auto") as device:
            assert device == ("cuda:1" if gpu else None)
            assert torch.backends.cuda.matmul.allow_tf32 != gpu  # products are IEEE float32
        assert torch.backends.cuda.matmul.allow_tf32
    assert machines == ["auto"] * gpu


def test_the_stage_refuses_a_feature_that_is_not_stored(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = fit_arguments(small, tmp_path, "stage4")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "center.npz").write_text("stale")
    assert run_stage(monkeypatch, fit_table.main, *arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "does not hold teacher feature 'stage4'" in line
    assert not (tmp_path / "tables" / "center.npz").exists()


def test_a_table_of_subclasses_is_fitted_by_one_stage(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its space is, bit for bit, that of the table `lda` of as many components."""
    found = {}
    for name, config in (("lda", {}), ("subclasses", {"per_class": 2})):
        arguments = fit_arguments(small, tmp_path / name, "stage3", name, components=4, **config)
        assert run_stage(monkeypatch, fit_table.main, *arguments) == 0
        found[name], origin = table.load(tmp_path / name / "tables" / "center.npz", HINT)
        assert origin["weights"] == small.manifest.weights["last"]
    for key in ("mean", "scalings"):
        np.testing.assert_array_equal(found["subclasses"][key], found["lda"][key])
    assert found["subclasses"]["centers"].shape == (20, 4)


@pytest.mark.parametrize(
    ("name", "feature", "config", "told"),
    [
        ("kmeans", "logits", {}, "Feature 'logits' has shape (10,)"),
        ("kmeans", "stage3", {"clusters": 201}, "has 200 pixels, fewer than 'clusters: 201'"),
        ("lda", "stage3", {"components": 10}, "more than the 9 directions"),
        ("subclasses", "stage3", {"components": 10}, "more than the 9 directions"),
        ("kernels", "stage1:pooled", {}, "is fitted to a map"),
    ],
)
def test_the_stage_reports_what_cannot_be_fitted(
    small: Small,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    feature: str,
    config: dict[str, object],
    told: str,
) -> None:
    arguments = fit_arguments(small, tmp_path / "fit", feature, name, **config)
    assert run_stage(monkeypatch, fit_table.main, *arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_a_feature_that_was_stored_anew_is_refused(
    small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The inputs name the bytes that the table is to be fitted to."""
    arguments = fit_arguments(small, tmp_path, "stage3")
    inputs = tmp_path / "fit.json"
    block = json.loads(inputs.read_text())
    block["source"]["digest"] = "0" * 32
    inputs.write_text(json.dumps(block))
    assert run_stage(monkeypatch, fit_table.main, *arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("holds another 'stage3' than this table was resolved with. Run: dvc repro")


def test_a_table_that_nobody_asks_for_is_an_empty_file(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = fit_arguments(small, tmp_path, "stage3")
    (tmp_path / "fit.json").write_text("null")
    assert run_stage(monkeypatch, fit_table.main, *arguments) == 0
    assert (tmp_path / "tables" / "center.npz").read_bytes() == b""
    assert json.loads((tmp_path / "center.json").read_text()) == {}

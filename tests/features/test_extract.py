"""Extraction and its gate: the store holds what the teacher gives, whatever happens on the way."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from device_fixtures import current
from feature_fixtures import (
    CROPS,
    REQUESTED,
    SHARD_BYTES,
    CutOffError,
    Small,
    contents,
    crop_flip,
    cut_off,
    cut_off_bar,
    extract_block,
    extraction,
    features,
    make_array,
    network,
    no_progress,
    prepare,
    run_stage,
    save_teacher,
    shard_ranges,
    sign,
    small_store,
)
from numpy.typing import NDArray
from prepared_fixtures import edit_meta

from pipeline import progress
from pipeline.artifacts import arrays
from pipeline.artifacts.publish import scratch
from pipeline.data.image_array import ImageArray
from pipeline.data.layout import image_hashes
from pipeline.data.normalize import Normalize
from pipeline.data.prepared import Prepared
from pipeline.data.views import view_ids, view_space
from pipeline.errors import UnknownNameError
from pipeline.features import check, difference, extract, store, verification
from pipeline.features import layout as layouts
from pipeline.features import manifest as manifests
from pipeline.features.check import Live
from pipeline.features.difference import Difference
from pipeline.features.layout import Layout
from pipeline.features.shards import PIECE, Progress, ShardWriter, drop_damaged_pieces, read_piece
from pipeline.features.store import StoredArray, array_path
from pipeline.features.teacher import Teacher
from pipeline.params.views import Plain, RandomResizedCrop, RotateFlip, ViewParams
from stages import check_features, extract_features

pytestmark = pytest.mark.usefixtures("device")

Array = NDArray[Any]

TRAIN = 50


@pytest.fixture(autouse=True)
def many_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut arrays into many chunks and shards, though they are small; in the stages too."""
    monkeypatch.setattr(layouts, "CHUNK_BYTES", 300)
    monkeypatch.setattr(extract, "Extraction", partial(extract.Extraction, shard_bytes=SHARD_BYTES))


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return prepare(tmp_path / "data" / "random")


def stored(path: Path, checkpoint: str, split: str, name: str) -> Array:
    return StoredArray(array_path(path, checkpoint, split, name)).all()


def array_files(path: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(path).items() if "/c/" in name}


# What is stored.


@pytest.mark.parametrize("shard_bytes", [1500, 30_000, 1 << 20])
def test_the_store_holds_what_the_teacher_gives_on_views_made_by_hand(
    tmp_path: Path, prepared: Prepared, shard_bytes: int
) -> None:
    """float32 to 1e-5; float16 to 1e-3; both of the value and of the root mean square."""
    networks, spec = {"last": network(0)[0], "anchor_050": network(1)[0]}, network(0)[1]
    path = tmp_path / "t.zarr"
    manifest = extraction(prepared, networks, spec, shard_bytes=shard_bytes).run(path, no_progress)
    assert manifests.read(path, "dvc repro") == manifest
    assert not (path / "progress.json").exists()
    shown = stored(path, "view", "", "train")
    assert shown.shape == (4, TRAIN)
    for checkpoint, one in networks.items():
        for split, data in prepared.splits.items():
            for slot in range(4 if split == "train" else 1):
                views = shown[slot] if split == "train" else np.zeros(len(data), int)
                images = np.stack([crop_flip(data.images[i], int(v), 1, "zero") for i, v in enumerate(views)])
                for name, expected in features(one, images, prepared.meta, REQUESTED).items():
                    slots, dtype = REQUESTED[name]
                    found = stored(path, checkpoint, split, name)
                    assert found.shape == (1 + (slots if split == "train" else 0), *expected.shape)
                    assert found.dtype == dtype
                    if slot < len(found):
                        rtol = 1e-3 if dtype == "float16" else 1e-5
                        atol = rtol * np.sqrt(np.square(expected).mean())
                        np.testing.assert_allclose(found[slot], expected, rtol=rtol, atol=atol)
    shards = [name for name in array_files(path) if name.startswith("last/train/stage3/")]
    assert (len(shards) > 10) == (shard_bytes == 1500)


@pytest.mark.cpu
@pytest.mark.parametrize(
    "views",
    [
        CROPS,
        Plain(space="plain"),
        RandomResizedCrop(space="random_resized_crop"),
        RotateFlip(space="rotate_flip"),
    ],
    ids=str,
)
def test_the_store_says_which_view_each_slot_shows(
    tmp_path: Path, prepared: Prepared, views: ViewParams
) -> None:
    slots = 1 if views.space == "plain" else 5
    one, spec = network()
    made = extraction(prepared, {"last": one}, spec, views=views, requested={"logits": (slots, "float32")})
    made.run(tmp_path / "t.zarr", no_progress)
    found, space = stored(tmp_path / "t.zarr", "view", "", "train"), view_space(views)
    assert found.dtype == np.int32
    for slot in range(slots + 1):
        np.testing.assert_array_equal(found[slot], view_ids(space, slot, torch.arange(TRAIN)).numpy())


@pytest.mark.cpu
def test_progress_counts_every_sample_that_the_teacher_sees(tmp_path: Path, prepared: Prepared) -> None:
    networks, spec = {"last": network(0)[0], "best": network(1)[0]}, network(0)[1]
    made, seen = extraction(prepared, networks, spec), []
    made.run(tmp_path / "t.zarr", lambda units=1, note="": seen.append(units))
    assert sum(seen) == made.num_forwards() == 2 * (4 * TRAIN + 12)


def test_the_batch_size_changes_neither_layout_nor_content(tmp_path: Path, prepared: Prepared) -> None:
    """Values to 1e-5 relative; float kernels may sum in another order."""
    one, spec = network()
    for size in (7, 64):
        extraction(prepared, {"last": one}, spec, batch_size=size).run(tmp_path / f"{size}.zarr", no_progress)
    files = [
        {name: len(content) for name, content in array_files(tmp_path / f"{size}.zarr").items()}
        for size in (7, 64)
    ]
    assert files[0] == files[1]
    for name, (_, dtype) in REQUESTED.items():
        a, b = (stored(tmp_path / f"{size}.zarr", "last", "train", name) for size in (7, 64))
        rtol = 2e-3 if dtype == "float16" else 1e-5
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-5)


@pytest.mark.cpu
def test_what_the_teacher_lacks_is_listed(prepared: Prepared) -> None:
    one, spec = network()
    with pytest.raises(UnknownNameError, match=r"Unknown tap 'stage9'.* Known: .*stage3"):
        extraction(prepared, {"last": one}, spec, requested={"stage9": (0, "float32")})
    with pytest.raises(UnknownNameError, match=r"Unknown encoding 'polled'. Did you mean 'pooled'"):
        extraction(prepared, {"last": one}, spec, requested={"stage3:polled": (0, "float32")})


# Shards and digests.


def written(path: Path, values: Array, sizes: list[int]) -> str:
    """Write `values` (slots, N, ...) through a shard writer in pieces of `sizes` samples, again and again."""
    layout = Layout.plan(values.shape, values.dtype.name, SHARD_BYTES)
    store.create(path, {"last": {"train": {"a": layout}}}, "none")
    array = StoredArray(array_path(path, "last", "train", "a"))
    writer = ShardWriter(array, layout, "a")
    for slot in range(len(values)):
        start = step = 0
        while start < values.shape[1]:
            piece = values[slot, start : start + sizes[step % len(sizes)]]
            writer.add(slot, start, piece)
            start, step = start + len(piece), step + 1
    np.testing.assert_array_equal(array.all(), values)
    return writer.digest()


@pytest.mark.cpu
@pytest.mark.parametrize("shape", [(3, 41, 30), (5, 41, 4), (1, 41, 500), (3, 41)])
def test_a_digest_stands_for_the_content(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    digest = written(tmp_path / "a.zarr", values, [41])
    assert written(tmp_path / "b.zarr", values, [1, 16, 5]) == digest
    for place in ((0,) * len(shape), tuple(-1 for _ in shape)):
        other = values.copy()
        other[place] = np.nextafter(other[place], np.float32(9))
        assert written(tmp_path / f"{place}.zarr", other, [41]) != digest


@pytest.mark.cpu
def test_the_shards_are_those_of_the_layout(tmp_path: Path) -> None:
    values = np.zeros((5, 41, 4), np.float32)  # zeros are written as everything else is
    written(tmp_path / "a.zarr", values, [41])
    layout = Layout.plan(values.shape, "float32", SHARD_BYTES)
    assert len(array_files(tmp_path / "a.zarr")) == len(list(shard_ranges(layout))) == 3


@pytest.mark.cpu
def test_a_digest_changes_with_the_data_of_its_split_alone(tmp_path: Path) -> None:
    one, spec = network()
    found = []
    for name in ("a", "b"):
        prepared = prepare(tmp_path / name)
        if name == "b":
            images = np.array(prepared.splits["train"].images)
            images[17, 0, 3, 3] ^= 255
            train = prepared.splits["train"]
            changed = ImageArray(train.folder, train.made_by, images, image_hashes(images))
            prepared.splits["train"] = replace(train, images=changed)
        made = extraction(prepared, {"last": one}, spec).run(tmp_path / f"{name}.zarr", no_progress)
        found.append(made.features)
    for name in REQUESTED:
        assert found[0][name].digest["last/train"] != found[1][name].digest["last/train"]
        assert found[0][name].digest["last/test"] == found[1][name].digest["last/test"]


# An interrupted run.


@pytest.mark.parametrize(
    ("after", "compression"),
    [(1, "none"), (3, "zstd"), (9, "none"), (17, "none"), (18, "none"), (24, "zstd")],
)
def test_an_interrupted_run_resumes_to_the_same_bytes(
    tmp_path: Path, prepared: Prepared, after: int, compression: str
) -> None:
    networks, spec = {"last": network(0)[0], "anchor_050": network(1)[0]}, network(0)[1]
    made = extraction(prepared, networks, spec, compression=compression)
    whole = made.run(tmp_path / "whole.zarr", no_progress)
    path = tmp_path / "cut.zarr"
    with pytest.raises(CutOffError):
        made.run(path, cut_off(after))
    if after > 1:
        assert json.loads((path / "progress.json").read_text())
    with pytest.raises(CutOffError):
        made.run(path, cut_off(after + 5))
    assert made.run(path, no_progress) == whole
    assert contents(path) == contents(tmp_path / "whole.zarr")


@pytest.mark.cpu
def test_a_run_that_resumes_computes_only_what_is_missing(
    tmp_path: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, spec = network()
    made = extraction(prepared, {"last": one}, spec)
    with pytest.raises(CutOffError):
        made.run(tmp_path / "t.zarr", cut_off(14))  # in the last of four slots of four batches
    forwards = []
    live = Teacher.features

    def counted(self: Teacher, image: torch.Tensor, *what: Any) -> Any:
        forwards.append(len(image))
        return live(self, image, *what)

    monkeypatch.setattr(Teacher, "features", counted)
    made.run(tmp_path / "t.zarr", no_progress)
    assert len(forwards) < 8  # of 17


@pytest.mark.cpu
@pytest.mark.parametrize("after", [1, 4, 9])
def test_a_shard_whose_record_is_lost_is_written_again(
    tmp_path: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    one, spec = network()
    made = extraction(prepared, {"last": one}, spec)
    whole = made.run(tmp_path / "whole.zarr", no_progress)
    calls, save = cut_off(after), Progress.save

    def lost(self: Progress, writers: Mapping[str, ShardWriter]) -> None:
        calls()
        save(self, writers)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "save", lost)
        with pytest.raises(CutOffError):
            made.run(tmp_path / "cut.zarr", no_progress)
    assert made.run(tmp_path / "cut.zarr", no_progress) == whole
    assert contents(tmp_path / "cut.zarr") == contents(tmp_path / "whole.zarr")


def rewrite_progress(path: Path, change: Callable[[dict[str, dict[str, str]]], object]) -> None:
    content = json.loads((path / "progress.json").read_text())
    change(content)
    (path / "progress.json").write_text(json.dumps(content))


def recorded(path: Path) -> tuple[str, str]:
    """Return an array of which several shards are recorded, and the first position of the second one."""
    for key, hashes in json.loads((path / "progress.json").read_text()).items():
        if len(hashes) > 2:
            return key, sorted(hashes, key=int)[1]
    raise AssertionError("nothing is recorded")


def shard_files(path: Path) -> list[Path]:
    """Return the shards of the array of `recorded`."""
    folder = array_path(path, *recorded(path)[0].split("/"))
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.name != "zarr.json")


def spoil(path: Path, how: str) -> None:
    """Damage what an interrupted extraction has left."""
    key, begin = recorded(path)
    shards = shard_files(path)
    match how:
        case "a shard is another one":
            shards[1].write_bytes(shards[0].read_bytes())
        case "a shard is cut":
            shards[1].write_bytes(shards[1].read_bytes()[:-3])
        case "a shard is gone":
            shards[1].unlink()
        case "a shard that is not recorded is cut":
            rewrite_progress(path, lambda said: said[key].pop(begin))
            shards[1].write_bytes(shards[1].read_bytes()[:-3])
        case "a digit of a hash":
            rewrite_progress(path, lambda said: said[key].update({begin: said[key][begin][::-1]}))
        case "a digit of a position":
            rewrite_progress(path, lambda said: said[key].update({str(int(begin) + 1): said[key].pop(begin)}))
        case "a position that is no number":
            rewrite_progress(path, lambda said: said[key].update({"1:": said[key].pop(begin)}))
        case "a record of another form":
            rewrite_progress(path, lambda said: said.update({key: 3}))
        case "a record that is no text":
            (path / "progress.json").write_bytes(b"\xff\xfe")
        case "the metadata of an array":
            file = shards[0].parents[shards[0].relative_to(path).parts[::-1].index("c")] / "zarr.json"
            file.write_text(file.read_text().replace('"float', '"gloat').replace('"crc32c"', '"crc32d"'))
        case "the metadata of a group":
            (path / "last/zarr.json").write_bytes(b"{")
        case "its identity":
            (path / "identity").write_bytes(b"\xff")


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("a shard is another one", "1 shards"),
        ("a shard is cut", "1 shards"),
        ("a shard is gone", "1 shards"),
        ("a shard that is not recorded is cut", ""),
        ("a digit of a hash", "1 shards"),
        ("a digit of a position", "1 shards"),
        ("a position that is no number", ""),
        ("a record of another form", ""),
        ("a record that is no text", ""),
        ("the metadata of an array", ""),
        ("the metadata of a group", ""),
        ("its identity", ""),
    ],
)
def test_what_is_kept_of_an_interrupted_run_is_whole(
    tmp_path: Path,
    prepared: Prepared,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    how: str,
    told: str,
) -> None:
    one, spec = network()
    made = extraction(prepared, {"last": one}, spec)
    for name in ("whole.zarr", "cut.zarr"):
        (tmp_path / name).mkdir()
    whole = extract.fill(tmp_path / "whole.zarr", made, "a", "whole")
    with monkeypatch.context() as patch:
        patch.setattr(progress, "bar", cut_off_bar(14))
        with pytest.raises(CutOffError):
            extract.fill(tmp_path / "cut.zarr", made, "a", "cut")
    spoil(tmp_path / "cut.zarr", how)
    assert extract.fill(tmp_path / "cut.zarr", made, "a", "cut") == whole
    assert contents(tmp_path / "cut.zarr") == contents(tmp_path / "whole.zarr")
    verification.verify(tmp_path / "cut.zarr", whole)
    said = capsys.readouterr().err
    assert said.startswith(told)
    assert said.count("\n") == bool(told)


@pytest.mark.cpu
def test_damaged_pieces_of_shards_are_computed_again(tmp_path: Path) -> None:
    values = {name: np.arange(6, dtype=np.float16) for name in ("a.0-3.npz", "a.3-9.npz")}
    for name, array in values.items():
        arrays.write(tmp_path / name, {PIECE: array})
    content = bytearray((tmp_path / "a.0-3.npz").read_bytes())
    content[content.index(values["a.0-3.npz"].tobytes()) + 3] ^= 1
    (tmp_path / "a.0-3.npz").write_bytes(content)
    drop_damaged_pieces(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.3-9.npz"]
    np.testing.assert_array_equal(read_piece(tmp_path / "a.3-9.npz"), values["a.3-9.npz"])
    drop_damaged_pieces(tmp_path / "none")


# The stage.


class Stage:
    """The two stages over one teacher."""

    def __init__(self, folder: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.data, self.monkeypatch = folder, prepared.folder, monkeypatch
        self.weights, self.out = folder / "weights", folder / "features" / "small.zarr"
        one, spec = network(0)
        save_teacher(self.weights, {"last": one}, spec)

    def extract(self, features: Mapping[str, Mapping[str, Any]], *options: object, **block: Any) -> int:
        path = extract_block(self.folder / "extract.json", features, **block)
        arguments = (path, "--data", self.data, "--weights", self.weights, "--out", self.out)
        return run_stage(
            self.monkeypatch, extract_features.main, *arguments, "--device", current().device, *options
        )

    def check(self, **places: Path) -> int:
        block = self.folder / "check.json"
        block.write_text(json.dumps({"stage": "check_features@small", "teacher": "small"}))
        places = {"data": self.data, "weights": self.weights, "store": self.out} | places
        arguments = [part for key, value in places.items() for part in (f"--{key}", value)]
        outs = ("--out", self.folder / "error.json", "--summary", self.folder / "summary.json")
        return run_stage(
            self.monkeypatch, check_features.main, block, *arguments, *outs, "--device", current().device
        )


@pytest.fixture
def stage(tmp_path: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, prepared, monkeypatch)


BLOCK: dict[str, dict[str, Any]] = {
    "logits": {"slots": 2, "dtype": "float32"},
    "stage3:attention": {"slots": 0},
    "stage1": {"slots": 1},
}


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def test_the_stage_publishes_a_store_that_its_gate_accepts(stage: Stage, prepared: Prepared) -> None:
    assert stage.extract(BLOCK) == 0
    assert sorted(path.name for path in stage.out.parent.iterdir()) == ["small.zarr"]
    assert not {"identity", "progress.json"} & contents(stage.out).keys()
    manifest = manifests.read(stage.out, "dvc repro")
    assert (manifest.teacher, manifest.data) == ("small", prepared.meta.fingerprint)
    assert {name: stored.slots for name, stored in manifest.features.items()} == {
        "logits": 2,
        "stage3:attention": 0,
        "stage1": 1,
    }
    assert stage.check() == 0
    metrics = json.loads((stage.folder / "error.json").read_text())
    assert metrics["precision"] == "float32"
    assert 0 < metrics["largest_share"] <= 1
    assert 0 < metrics["largest_error"] < 1e-3
    arrays = {f"last/{split}/{name}" for split in ("train", "test") for name in BLOCK}
    assert metrics["error"].keys() == metrics["share"].keys() == arrays  # every array was looked at
    assert metrics["bytes"] == sum(len(content) for content in contents(stage.out).values())
    summary = json.loads((stage.folder / "summary.json").read_text())
    assert summary["made_by"] == "check_features@small"
    assert summary["features"].keys() == BLOCK.keys()
    assert summary["features"]["stage1"]["shape"] == [16, 8, 8]
    assert "field" not in summary["features"]["logits"]
    assert summary["features"]["stage1"]["field"]["rows"][:4] == [[0, 3], [0, 4], [0, 5], [0, 6]]
    assert len(summary["features"]["stage3:attention"]["field"]["columns"]) == 2


@pytest.mark.cpu
def test_all_slots_of_a_finite_space_are_stored(stage: Stage) -> None:
    assert stage.extract({"logits": {}}) == 0
    shown = stored(stage.out, "view", "", "train")
    assert shown.shape == (19, TRAIN)
    np.testing.assert_array_equal(np.sort(shown[1:], axis=0), np.arange(18)[:, None].repeat(TRAIN, 1))


def test_the_stage_resumes_where_it_was_interrupted(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stage.extract(BLOCK, "--batch-size", 8) == 0
    whole = contents(stage.out)
    with monkeypatch.context() as patch:
        patch.setattr(progress, "bar", cut_off_bar(12))
        with pytest.raises(CutOffError):
            extract_features.main(
                stage.folder / "extract.json",
                stage.data,
                stage.weights,
                stage.out,
                str(current().device),
                batch_size=8,
            )
    assert not stage.out.exists()
    begun = json.loads((scratch(stage.out) / "progress.json").read_text())
    assert begun["last/train/logits"]
    opened: list[dict[str, int]] = []
    of = Progress.of

    def noted(self: Progress, key: str) -> dict[int, str]:
        opened.append({key: len(of(self, key))})
        return of(self, key)

    monkeypatch.setattr(Progress, "of", noted)
    assert stage.extract(BLOCK, "--batch-size", 8) == 0
    assert {"last/train/logits": len(begun["last/train/logits"])} in opened
    assert contents(stage.out) == whole


@pytest.mark.cpu
@pytest.mark.parametrize("changed", ["nothing", "compression", "code", "weights", "slots"])
def test_what_was_begun_from_something_else_is_not_gone_on_from(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    extract_block(stage.folder / "extract.json", BLOCK)
    with monkeypatch.context() as patch:
        patch.setattr(progress, "bar", cut_off_bar(20))
        if changed == "code":
            patch.setattr("pipeline.artifacts.closure.digest", lambda modules: "other code")
        with pytest.raises(CutOffError):
            extract_features.main(
                stage.folder / "extract.json",
                stage.data,
                stage.weights,
                stage.out,
                str(current().device),
                batch_size=8,
            )
    assert (scratch(stage.out) / "progress.json").exists()
    if changed == "weights":
        save_teacher(stage.weights, {"last": network(7)[0]}, network(7)[1])
    compression = "zstd" if changed == "compression" else "none"
    features = BLOCK | ({"stage1": {"slots": 2}} if changed == "slots" else {})
    opened, of = {}, Progress.of

    def noted(self: Progress, key: str) -> dict[int, str]:
        opened.setdefault(key, len(of(self, key)))  # how much was there when the run began
        return of(self, key)

    monkeypatch.setattr(Progress, "of", noted)
    assert stage.extract(features, "--batch-size", 8, compression=compression) == 0
    assert (max(opened.values()) > 0) == (changed == "nothing")
    codecs = (array_path(stage.out, "last", "train", "stage1") / "zarr.json").read_text()
    assert ("zstd" in codecs) == (changed == "compression")


@pytest.mark.parametrize(
    ("factor", "dtype", "advice"),
    [
        (1e9, "float16", "Set the teacher's features.logits.dtype to float32"),
        (float("inf"), "float32", "The teacher has diverged"),
    ],
)
def test_values_that_a_dtype_cannot_hold_are_reported_and_nothing_is_published(
    stage: Stage, capsys: pytest.CaptureFixture[str], factor: float, dtype: str, advice: str
) -> None:
    one, spec = network(0)
    one.classifier.weight.data *= factor
    save_teacher(stage.weights, {"last": one}, spec)
    stage.out.mkdir(parents=True)  # a stale store must not survive
    assert stage.extract({"logits": {"slots": 0, "dtype": dtype}}) == 1
    text = error_line(capsys)
    assert f"Feature 'logits' has values that {dtype} cannot hold" in text
    assert advice in text
    assert not stage.out.exists()
    if dtype == "float16":  # the advice helps
        assert stage.extract({"logits": {"slots": 0, "dtype": "float32"}}) == 0


@pytest.mark.cpu
@pytest.mark.parametrize(("given", "samples"), [(None, 256), ("auto", 256), ("30", 30)])
def test_the_batch_is_a_number_or_is_left_to_the_machine(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, given: str | None, samples: int
) -> None:
    """As an option and as a variable, which is how it reaches a stage through DVC."""
    seen: list[int] = []
    run = extract.Extraction.func.run  # type: ignore[attr-defined]  # many_shards has made it a partial

    def noted(self: Any, *rest: Any) -> Any:
        seen.append(self.samples)
        return run(self, *rest)

    monkeypatch.setattr(extract.Extraction.func, "run", noted)  # type: ignore[attr-defined]
    options = () if given is None else ("--batch-size", given)
    assert stage.extract({"logits": {"slots": 0}}, *options) == 0
    if given is not None:
        monkeypatch.setenv("STILLHOUSE_BATCH_SIZE", given)
        assert stage.extract({"logits": {"slots": 0}}) == 0
    assert seen == [samples] * (1 if given is None else 2)


@pytest.mark.cpu
@pytest.mark.parametrize("given", ["0", "-3", "1.5", "many"])
def test_a_batch_that_is_no_number_is_refused(
    stage: Stage, capsys: pytest.CaptureFixture[str], given: str
) -> None:
    assert stage.extract({"logits": {"slots": 0}}, f"--batch-size={given}") == 2
    assert f"'{given}' is no number of images. Give auto, or 1 or more." in capsys.readouterr().err


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("features", "block", "parts"),
    [
        ({"stage9": {}}, {}, ["Unknown tap 'stage9'", "stage3", "logits"]),
        ({"stage3:polled": {}}, {}, ["Unknown encoding 'polled'", "'pooled'", "attention, halved"]),
        ({"stage 3": {}}, {}, ["'stage 3' names no feature"]),
        ({"logits:attention": {}}, {}, ["Encoding 'attention'", "tap 'logits' has shape (10,)"]),
        ({"stage3:attention@words": {}}, {}, ["'attention' reads no table: drop @words"]),
        ({"stage3:nearest@words": {}}, {}, ["Unknown table 'words'"]),
        ({"logits": {"slots": 19}}, {}, ["teachers.small.features.logits.slots is 19", "18 views"]),
        (
            {"logits": {}},
            {"views": {"space": "random_resized_crop"}},
            ["teachers.small.features.logits.slots is 'all'", "is unbounded"],
        ),
        ({"logits": {}}, {"checkpoints": ["anchor_050"]}, ["anchor_050.safetensors does not exist"]),
    ],
    ids=str,
)
def test_what_cannot_be_extracted_is_reported_in_one_line(
    stage: Stage,
    capsys: pytest.CaptureFixture[str],
    features: dict[str, Any],
    block: dict[str, Any],
    parts: list[str],
) -> None:
    assert stage.extract(features, **block) == 1
    text = error_line(capsys)
    for part in parts:
        assert part in text
    assert not stage.out.exists()


# The gate.


@pytest.fixture(scope="module")
def small(device: str, tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small_store(tmp_path_factory.mktemp("gate"))


def differences(small: Small, path: Path, *, rows: int = 1500, mean: float = 0.0) -> dict[str, Difference]:
    """Compare the checkpoint "last" of the store `path`, and return the worst difference of each array.

    `mean` is added to the normalization's.
    """
    meta = small.prepared.meta
    normalize = Normalize([m + mean for m in meta.mean], meta.std, current().device)
    live = Live.of(small.networks["last"], small.manifest.precision, current().device, normalize)
    found = check.compare(
        path, small.manifest, live, "last", small.prepared.splits, view_space(CROPS), rows=rows
    )
    arrays = {one.array for one in found}
    return {array: difference.worst(one for one in found if one.array == array) for array in arrays}


def copied(small: Small, path: Path, name: str, values: Array) -> Path:
    """Copy the store of `small` with other values of last/train/`name`."""
    for relative, content in contents(small.path).items():
        (path / relative).parent.mkdir(parents=True, exist_ok=True)
        (path / relative).write_bytes(content)
    layout = Layout.plan(values.shape, values.dtype.name, SHARD_BYTES)
    array = StoredArray(array_path(path, "last", "train", name))
    for slots, rows in shard_ranges(layout):
        array.write(slots.start, rows.start, values[slots.start : slots.stop, rows.start : rows.stop])
    return path


def test_the_gate_accepts_a_good_store(small: Small) -> None:
    found = differences(small, small.path)
    assert found.keys() == {f"last/{split}/{name}" for split in ("train", "test") for name in REQUESTED}
    assert all(one.share <= 1 for one in found.values())


@pytest.mark.parametrize("name", ["logits", "stage2:attention"])
def test_a_value_that_was_altered_is_found(small: Small, tmp_path: Path, name: str) -> None:
    values = stored(small.path, "last", "train", name)
    slot = len(values) - 1
    values[slot, 31].reshape(-1)[2] *= 1.1
    path = copied(small, tmp_path / "small.zarr", name, values)
    found = differences(small, path)
    most = found.pop(f"last/train/{name}")
    assert most.share > 1
    assert (most.slot, most.sample) == (slot, 31)
    assert all(other.share <= 1 for other in found.values())


def test_a_value_that_is_no_number_is_found(small: Small, tmp_path: Path) -> None:
    values = stored(small.path, "last", "train", "logits")
    values[1, 3, 0] = np.nan
    path = copied(small, tmp_path / "small.zarr", "logits", values)
    most = differences(small, path)["last/train/logits"]
    assert (most.error, most.slot, most.sample) == (float("inf"), 1, 3)


@pytest.mark.parametrize("axis", [0, 1])
def test_slots_and_samples_that_were_shifted_are_found(small: Small, tmp_path: Path, axis: int) -> None:
    values = np.roll(stored(small.path, "last", "train", "logits"), 1, axis=axis)
    path = copied(small, tmp_path / "small.zarr", "logits", values)
    assert differences(small, path, rows=16)["last/train/logits"].share > 1


def test_another_normalization_is_found(small: Small) -> None:
    found = differences(small, small.path, rows=16, mean=0.02)
    assert all(one.share > 1 for one in found.values())


def test_every_feature_is_looked_at_however_few_its_slots(small: Small) -> None:
    """One row of each split is enough to look at the plain view of a feature that has no other."""
    assert len(differences(small, small.path, rows=1)) == 2 * len(REQUESTED)


@pytest.mark.cpu
@pytest.mark.parametrize("size", [20, 1 << 20])
def test_slots_that_are_computed_at_once_are_compared_one_by_one(
    small: Small, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """As on a GPU: the same errors, to the rounding of another batch."""
    forwards: list[int] = []
    features = Live.features

    def noted(self: Live, image: torch.Tensor, *rest: Any) -> Any:
        forwards.append(len(image))
        return features(self, image, *rest)

    monkeypatch.setattr(Live, "features", noted)
    expected, single = differences(small, small.path, rows=40), len(forwards)
    monkeypatch.setattr(check.batch_size, "bounded", lambda *given: size)
    found, joined = differences(small, small.path, rows=40), forwards[single:]
    assert sum(joined) == sum(forwards[:single])
    assert len(joined) < single
    assert found.keys() == expected.keys()
    for array, one in found.items():
        # Errors of float32 itself are of the order of its rounding, and so is their change.
        assert one.error == pytest.approx(expected[array].error, abs=1e-5), array
        assert one.share <= 1


@pytest.mark.cpu
def test_draws_of_other_features_are_not_joined() -> None:
    draws = [(0, torch.arange(5), {"a"}), (2, torch.arange(3), {"a"}), (0, torch.arange(4), {"b"})]
    joined = [([slot for slot, _ in pairs], names) for pairs, names in check._batches(draws, 100)]
    assert joined == [([0, 2], {"a"}), ([0], {"b"})]
    assert [len(pairs) for pairs, _ in check._batches(draws, 1)] == [1, 1, 1]
    assert list(check._batches([], 1)) == []


@pytest.mark.cpu
def test_relative_error_is_its_formula() -> None:
    """To 1e-6; rows of any rank."""
    draw = np.random.default_rng(0)
    for shape in ((6,), (6, 5), (6, 2, 3, 3)):
        live = draw.normal(size=shape)
        off = live + draw.normal(size=shape) * 1e-2
        expected = np.abs(off - live) / (np.abs(live) + np.sqrt((live**2).mean()))
        found = difference.relative_error(torch.from_numpy(off), torch.from_numpy(live))
        np.testing.assert_allclose(found, expected.reshape(6, -1).max(axis=1), rtol=1e-6)
    assert difference.relative_error(torch.zeros(3, 2), torch.zeros(3, 2)).tolist() == [0, 0, 0]


def test_the_gate_fails_with_the_array_and_the_command(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stage.extract(BLOCK) == 0
    (stage.folder / "error.json").write_text("stale")
    array = StoredArray(array_path(stage.out, "last", "test", "logits"))
    array.write(0, 0, 1.01 * array.all())
    sign(stage.out, "last", "test", "logits")
    assert stage.check() == 1
    text = error_line(capsys)
    assert "last/test/logits" in text
    assert "differs from the live teacher by" in text
    assert "expected at most" in text
    assert text.endswith("Make it again with: dvc repro --force --single-item extract_features@small")
    assert not (stage.folder / "error.json").exists()
    assert not (stage.folder / "summary.json").exists()


@pytest.mark.cpu
def test_the_gate_refuses_what_the_store_was_not_made_from(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stage.extract({"logits": {"slots": 1}}) == 0
    other, spec = network(9)
    weights = save_teacher(stage.folder / "other seed", {"last": other}, spec)
    data = prepare(stage.folder / "other data", seed=1).folder
    gray = prepare(stage.folder / "gray").folder
    edit_meta(gray, std=[0.5, 0.5])
    for field, places in {
        "weights": {"weights": weights},
        "data": {"data": data},
        "std": {"data": gray},
    }.items():
        assert stage.check(**places) == 1
        text = error_line(capsys)
        assert f"was made with other {field}" in text
        assert text.endswith("Make it again with: dvc repro --force --single-item extract_features@small")
    assert stage.check(weights=save_teacher(stage.folder / "none", {}, spec)) == 1
    assert "last.safetensors does not exist" in error_line(capsys)
    assert stage.check() == 0


# The summary.


@pytest.mark.cpu
@pytest.mark.parametrize("shape", [(2, 37, 6), (2, 37, 6, 3, 2), (1, 37, 4, 4)])
def test_the_summary_is_numpys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    """To 1e-6, in blocks of a few samples, of the plain slot alone."""
    values = np.maximum(np.random.default_rng(0).normal(1, 2, size=shape), 0).astype(np.float16)
    values[0, :, 1] = 0
    values[0, :, 3] = 2
    make_array(tmp_path / "t.zarr", values, 500)
    monkeypatch.setattr(check, "BLOCK_BYTES", 5 * values[0, 0].nbytes)
    found = check.summarize(tmp_path / "t.zarr", "last", "a")
    plain = values[0].astype(np.float64)
    expected = {
        "mean": plain.mean(),
        "std": plain.std(),
        "min": plain.min(),
        "max": plain.max(),
        "zeros": (plain == 0).mean(),
        "channels": shape[2],
        "dead_channels": 2,
    }
    assert found == pytest.approx(expected, rel=1e-6)

"""The store on disk: how arrays are cut, that what is read is what was written, and that damage is reported."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from error_fixtures import one_line
from feature_fixtures import Small, contents, make_array, rewrite_manifest, shard_ranges, small_store

from pipeline.errors import DamagedArtifactError, MissingArtifactError, StaleArtifactError, StillhouseError
from pipeline.features import contents as holds
from pipeline.features import layout as layouts
from pipeline.features import manifest as manifests
from pipeline.features import store, verification
from pipeline.features.contents import Contents
from pipeline.features.layout import Layout
from pipeline.features.manifest import Manifest
from pipeline.features.ranges import StoredRanges
from pipeline.features.source import CachedSource
from pipeline.features.store import StoredArray
from pipeline.features.stream import PlainStream

LAYOUTS = [
    ((1, 50, 10), "float32", 1 << 20),
    ((163, 1437, 10), "float32", 1 << 20),
    ((5, 100, 64, 8, 8), "float16", 1 << 16),
    ((3, 7, 3), "uint16", 100),
    ((4, 10, 256, 8, 8), "float32", 1 << 17),
    ((2, 9), "int32", 1 << 20),
    ((2, 100_000), "int32", 1 << 16),
    ((3, 10_001, 100), "float16", 1 << 19),
]


@pytest.fixture
def values() -> np.ndarray[Any, Any]:
    """Three slots of 41 samples, one slot of zeros alone."""
    values = np.random.default_rng(0).normal(size=(3, 41, 6, 4)).astype(np.float32)
    values[1] = 0
    return values


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let samples of these tests, 96 bytes, go four to a chunk."""
    monkeypatch.setattr(layouts, "CHUNK_BYTES", 400)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small_store(tmp_path_factory.mktemp("made"))


# Layout.


@pytest.mark.parametrize(("shape", "dtype", "shard_bytes"), LAYOUTS, ids=str)
def test_shards_follow_each_other_as_ranges_of_slot_and_sample(
    shape: tuple[int, ...], dtype: str, shard_bytes: int
) -> None:
    layout = Layout.plan(shape, dtype, shard_bytes)
    samples, position = shape[1], 0
    for slots, rows in shard_ranges(layout):
        linear = [slot * samples + row for slot in (slots[0], slots[-1]) for row in (rows[0], rows[-1])]
        assert min(linear) == position
        assert max(linear) + 1 - position == len(slots) * len(rows)  # nothing of another shard in between
        position = max(linear) + 1
    assert position == shape[0] * samples


@pytest.mark.parametrize(("shape", "dtype", "shard_bytes"), LAYOUTS, ids=str)
def test_chunks_hold_whole_samples_and_shards_whole_chunks(
    shape: tuple[int, ...], dtype: str, shard_bytes: int
) -> None:
    layout = Layout.plan(shape, dtype, shard_bytes)
    sample_bytes = int(np.prod(shape[2:], dtype=int)) * np.dtype(dtype).itemsize
    assert layout.chunk * sample_bytes <= max(layouts.CHUNK_BYTES, sample_bytes)
    assert layout.chunk == shape[1] or (layout.chunk + 1) * sample_bytes > layouts.CHUNK_BYTES
    assert layout.shard[1] % layout.chunk == 0
    padding = layout.chunk * sample_bytes
    assert layout.shard[0] * layout.shard[1] * sample_bytes <= max(shard_bytes, padding)


def test_small_arrays_are_one_shard_and_large_ones_are_cut_by_slots_then_by_samples() -> None:
    assert Layout.plan((163, 50, 10), "float32").shard == (163, 50)
    assert Layout.plan((163, 50_000, 100), "float16").shard[0] == 6  # whole slots of 10 MB in 64 MiB
    assert Layout.plan((163, 50_000, 100), "float16").shard[1] >= 50_000
    assert Layout.plan((2, 50_000, 256, 8, 8), "float16").shard == (1, 2048)  # maps of 32 KiB, part of a slot


# Reading and writing.


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("shard_bytes", [1, 1000, 5000, 1 << 20])
def test_what_is_read_is_what_was_written(
    tmp_path: Path, values: np.ndarray[Any, Any], shard_bytes: int, compression: str
) -> None:
    folder = make_array(tmp_path / "a.zarr", values, shard_bytes, compression)
    array = StoredArray(folder)
    assert (array.shape, array.dtype, array.nbytes) == (values.shape, values.dtype, values.nbytes)
    np.testing.assert_array_equal(array.all(), values)
    draw = np.random.default_rng(1)
    for slot in range(3):
        index = draw.integers(0, 41, 60)  # in any order, and some twice
        np.testing.assert_array_equal(array.read(slot, index), values[slot, index])
        np.testing.assert_array_equal(array.range(slot, 3, 30), values[slot, 3:30])
        blocks = dict(array.blocks(slot, 16))
        assert list(blocks) == [0, 16, 32]
        np.testing.assert_array_equal(np.concatenate(list(blocks.values())), values[slot])
    first, second = array.begin(0, np.array([40, 0, 40])), array.begin(2, np.array([7]))
    np.testing.assert_array_equal(array.finish(second), values[2, [7]])
    np.testing.assert_array_equal(array.finish(first), values[0, [40, 0, 40]])


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_zarr_python_reads_the_same(tmp_path: Path, values: np.ndarray[Any, Any], compression: str) -> None:
    make_array(tmp_path / "a.zarr", values, 1000, compression)
    group = zarr.open_group(tmp_path / "a.zarr", mode="r", zarr_format=3)
    np.testing.assert_array_equal(group["last/train/a"][:], values)


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_chunks_and_shard_indices_have_checksums(
    tmp_path: Path, values: np.ndarray[Any, Any], compression: str
) -> None:
    folder = make_array(tmp_path / "a.zarr", values, compression=compression)
    metadata = json.loads((folder / "zarr.json").read_text())
    assert metadata["zarr_format"] == 3
    (sharding,) = metadata["codecs"]
    assert sharding["name"] == "sharding_indexed"
    inner = [codec["name"] for codec in sharding["configuration"]["codecs"]]
    assert inner == (["bytes", "zstd", "crc32c"] if compression == "zstd" else ["bytes", "crc32c"])
    assert sharding["configuration"]["index_codecs"][-1]["name"] == "crc32c"


def test_a_feature_with_an_encoding_has_a_plain_folder_name(tmp_path: Path) -> None:
    path = store.array_path(tmp_path / "t.zarr", "last", "train", "stage3:attention")
    assert path == tmp_path / "t.zarr" / "last" / "train" / "stage3.attention"


@pytest.mark.usefixtures("small_chunks")
def test_creating_again_leaves_what_is_there(tmp_path: Path, values: np.ndarray[Any, Any]) -> None:
    folder = make_array(tmp_path / "a.zarr", values, 1000)
    before = contents(tmp_path / "a.zarr")
    layout = Layout.plan(values.shape, "float32", 1000)
    store.create(tmp_path / "a.zarr", {"last": {"train": {"a": layout}}}, "none")
    assert contents(tmp_path / "a.zarr") == before
    (folder / "zarr.json").unlink()  # as if cut off between the folder and its metadata
    store.create(tmp_path / "a.zarr", {"last": {"train": {"a": layout}}}, "none")
    assert contents(tmp_path / "a.zarr") == before


# Damage.


def damage(shard: Path, kind: str) -> None:
    content = shard.read_bytes()
    match kind:
        case "flipped bit in the first chunk":
            shard.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        case "flipped bit in the index":
            shard.write_bytes(content[:-6] + bytes([content[-6] ^ 128]) + content[-5:])
        case "truncated by a byte":
            shard.write_bytes(content[:-1])
        case "truncated to half":
            shard.write_bytes(content[: len(content) // 2])
        case "empty":
            shard.write_bytes(b"")
        case "missing":
            shard.unlink()


@pytest.mark.usefixtures("small_chunks")
def signed(path: Path) -> None:
    """Let a store say which stage made it; its folder has another name."""
    holding = Contents(made_by="extract_features@t1", teacher="t1", weights={}, data={}, features={})
    store.set_manifest(path, holding)


@pytest.mark.parametrize("slot", [0, 1])
@pytest.mark.parametrize(
    "kind",
    [
        "flipped bit in the first chunk",
        "flipped bit in the index",
        "truncated by a byte",
        "truncated to half",
        "empty",
        "missing",
    ],
)
def test_a_damaged_shard_is_named(tmp_path: Path, values: np.ndarray[Any, Any], kind: str, slot: int) -> None:
    """Slot 1 is zeros alone, which zarr would rather not write: a shard that is missing must not read as zeros."""
    folder = make_array(tmp_path / "store.zarr", values, 1000)
    signed(tmp_path / "store.zarr")
    shards = sorted((folder / "c" / str(slot)).rglob("0/0/0"), key=str)
    assert len(shards) == 1
    damage(shards[0], kind)
    array, index = StoredArray(folder), np.array([0, 1])
    readers = {
        "read": lambda: array.read(slot, index),
        "range": lambda: array.range(slot, 0, 2),
        "all": array.all,
        "finish": lambda: array.finish(array.begin(slot, index)),
        "blocks": lambda: list(array.blocks(slot, 5)),
    }
    for read in readers.values():
        with pytest.raises(DamagedArtifactError) as caught:
            read()
        text = one_line(caught)
        assert str(folder) in text
        assert str(shards[0]) in text
        assert "dvc repro --force --single-item extract_features@t1" in text
    other = 2
    np.testing.assert_array_equal(array.read(other, index), values[other, index])


@pytest.mark.parametrize("metadata", [None, "{", "{}"])
def test_an_array_without_metadata_is_named(
    tmp_path: Path, values: np.ndarray[Any, Any], metadata: str | None
) -> None:
    folder = make_array(tmp_path / "store.zarr", values)
    signed(tmp_path / "store.zarr")
    if metadata is None:
        (folder / "zarr.json").unlink()
    else:
        (folder / "zarr.json").write_text(metadata)
    with pytest.raises(DamagedArtifactError) as caught:
        StoredArray(folder)
    text = one_line(caught)
    assert str(folder) in text
    assert "Delete it, then: dvc repro extract_features@t1; or make it anew with: " in text
    assert "dvc repro --force --single-item extract_features@t1" in text
    assert "tensorstore_spec" not in text


def test_an_array_of_an_unfinished_store_names_no_stage(tmp_path: Path, values: np.ndarray[Any, Any]) -> None:
    folder = make_array(tmp_path / "store.zarr", values)
    (folder / "zarr.json").unlink()
    with pytest.raises(DamagedArtifactError) as caught:
        StoredArray(folder)
    assert one_line(caught).endswith("Delete it, then: dvc repro")


# Manifest.


def test_the_manifest_comes_back_as_it_was_written(made: Small) -> None:
    assert manifests.read(made.path, "dvc repro") == made.manifest


def test_a_reader_of_features_sees_a_part_of_the_manifest(made: Small) -> None:
    found = holds.read(made.path, "dvc repro")
    assert found.model_dump() == {name: getattr(made.manifest, name) for name in Contents.model_fields} | {
        "features": {name: feature.model_dump() for name, feature in made.manifest.features.items()}
    }
    assert found.hint == "dvc repro extract_features@small"


def copy_root(made: Small, path: Path) -> Path:
    path.mkdir()
    (path / "zarr.json").write_bytes((made.path / "zarr.json").read_bytes())
    return path


def test_there_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifactError) as caught:
        manifests.read(tmp_path / "t1.zarr", "dvc repro extract_features@t1")
    assert one_line(caught).endswith("Make it with: dvc repro extract_features@t1")


def test_a_store_of_another_layout_is_refused(tmp_path: Path, made: Small) -> None:
    path = copy_root(made, tmp_path / "t1.zarr")
    rewrite_manifest(path, lambda said: said.update(schema_version=99))
    with pytest.raises(StaleArtifactError) as caught:
        manifests.read(path, "dvc repro extract_features@t1")
    text = one_line(caught)
    assert f"schema version 99, expected {holds.SCHEMA}" in text
    assert "dvc repro --force --single-item extract_features@t1" in text


@pytest.mark.parametrize("content", ["[]", "{}", '{"attributes": {}}'])
def test_a_group_without_a_manifest_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "zarr.json").write_text(content)
    with pytest.raises(StaleArtifactError, match="schema version None"):
        manifests.read(tmp_path, "dvc repro")


@pytest.mark.parametrize("update", [{"mean": "gray"}, {"color": 1}])
def test_a_manifest_of_another_form_is_damaged(tmp_path: Path, made: Small, update: dict[str, Any]) -> None:
    path = copy_root(made, tmp_path / "t1.zarr")
    rewrite_manifest(path, lambda said: said.update(update))
    with pytest.raises(DamagedArtifactError) as caught:
        manifests.read(path, "dvc repro extract_features@t1")
    text = one_line(caught)
    assert next(iter(update)) in text
    assert "params.yaml" not in text
    assert text.endswith("Make it again with: dvc repro --force --single-item extract_features@t1")


def test_what_a_store_was_made_from_is_required(made: Small) -> None:
    found: Manifest = made.manifest
    holds.require(made.path, found, data=found.data, mean=found.mean, weights={"last": "0" * 32})
    with pytest.raises(StaleArtifactError) as caught:
        holds.require(made.path, found, weights={"last": "0" * 32, "anchor_050": "1" * 32})
    text = one_line(caught)
    assert "other weights" in text
    assert f"found {{'anchor_050': '{'0' * 32}'}}" in text
    assert f"expected {{'anchor_050': '{'1' * 32}'}}" in text
    assert "extract_features@small" in text
    with pytest.raises(StaleArtifactError, match=r"other mean: found \(0.4, 0.5\), expected \(0.5, 0.5\)"):
        holds.require(made.path, found, mean=(0.5, 0.5))
    with pytest.raises(StaleArtifactError, match=r"found \{'holdout': None\}"):
        holds.require(made.path, found, data={"holdout": "2" * 32})


# Whole shards of other content.


@pytest.fixture
def stored(tmp_path: Path, made: Small) -> Small:
    """A copy of a store that a test may damage."""
    shutil.copytree(made.path, tmp_path / "small.zarr")
    return replace(made, path=tmp_path / "small.zarr")


def shards_of(path: Path, checkpoint: str, split: str, name: str) -> list[Path]:
    folder = store.array_path(path, checkpoint, split, name)
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.name != "zarr.json")


def exchanged(stored: Small, how: str) -> None:
    """Put another shard, whole and with valid checksums, in the place of one of last/train/logits."""
    first, second = shards_of(stored.path, "last", "train", "logits")[:2]
    match how:
        case "of another slot":
            first.write_bytes(second.read_bytes())
        case "of another checkpoint":
            (other, *_) = shards_of(stored.path, "anchor_050", "train", "logits")
            first.write_bytes(other.read_bytes())
        case "and its hash":
            first.write_bytes(second.read_bytes())
            folder = store.array_path(stored.path, "last", "train", "logits")
            hashes = json.loads((folder / "zarr.json").read_text())["attributes"][store.SHARDS]
            store.set_shards(folder, [hashes[1], *hashes[1:]])
        case "with the whole array":
            folders = (
                store.array_path(stored.path, key, "train", "logits") for key in ("last", "anchor_050")
            )
            mine, other = folders
            shutil.rmtree(mine)
            shutil.copytree(other, mine)


HOW = ["of another slot", "of another checkpoint", "and its hash", "with the whole array"]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("resident", [0, 1 << 30])
def test_a_shard_of_other_content_is_never_given(stored: Small, how: str, resident: int) -> None:
    exchanged(stored, how)
    cpu, labels = torch.device("cpu"), stored.prepared.split("train").labels
    index = torch.arange(len(labels))

    def train() -> object:
        source = CachedSource({"logits": stored.path}, ["last"], 3, cpu, resident)
        return [source.begin("last", slot, index)() for slot in range(4)]

    readers: dict[str, Callable[[], object]] = {
        "training": train,
        "a fit": lambda: list(PlainStream(stored.path, "logits", labels)),
        "a pass": lambda: StoredRanges(
            StoredArray.of(stored.path, "last", "train", "logits"), 0, cpu
        ).take(0, 5),
        "all": StoredArray.of(stored.path, "last", "train", "logits").all if how.startswith("of") else train,
        "the gate": lambda: verification.verify(stored.path, stored.manifest),
    }  # fmt: skip
    for read in readers.values():
        with pytest.raises(DamagedArtifactError) as caught:
            read()
        text = one_line(caught)
        assert str(store.array_path(stored.path, "last", "train", "logits")) in text
        assert "dvc repro --force --single-item extract_features@small" in text


def test_the_gate_looks_at_every_shard(stored: Small) -> None:
    verification.verify(stored.path, stored.manifest)
    shards = [path for path in stored.path.rglob("*") if path.is_file() and path.name != "zarr.json"]
    views = [path for path in shards if path.is_relative_to(stored.path / "view")]
    assert views
    for path in [*views, *shards[:: len(shards) // 7]]:
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(DamagedArtifactError):
            verification.verify(stored.path, stored.manifest)
        path.write_bytes(content)
    verification.verify(stored.path, stored.manifest)


def test_what_has_been_compared_is_not_compared_again(stored: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a slot: later batches cost what they did."""
    array = StoredArray.of(stored.path, "last", "train", "logits")
    hashed = []
    real = store.shard_hash
    monkeypatch.setattr(store, "shard_hash", lambda values: hashed.append(1) or real(values))
    array.read(1, np.arange(3))
    first = len(hashed)
    assert 0 < first < array.layout.num_shards
    array.read(1, np.arange(5))
    list(array.blocks(1, 4))
    assert len(hashed) == first
    array.verify()
    assert len(hashed) == array.layout.num_shards
    array.all()
    assert len(hashed) == array.layout.num_shards


def test_zarr_python_opens_a_finished_store(made: Small) -> None:
    """Without a warning: pytest makes each an error."""
    group = zarr.open_group(made.path, mode="r", zarr_format=3)
    array = StoredArray.of(made.path, "last", "train", "logits")
    np.testing.assert_array_equal(group["last/train/logits"][:], array.all())
    assert len(group["last/train/logits"].attrs[store.SHARDS]) == array.layout.num_shards


@pytest.mark.parametrize("place", ["manifest", "array", "shard"])
def test_what_the_system_refuses_is_not_called_damaged(stored: Small, place: str) -> None:
    """A link to itself is refused to everybody, root included."""
    folder = store.array_path(stored.path, "last", "train", "logits")
    shard = shards_of(stored.path, "last", "train", "logits")[0]
    path = {"manifest": stored.path / "zarr.json", "array": folder / "zarr.json", "shard": shard}[place]
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(OSError, match="symbolic links") as caught:
        StoredArray.of(stored.path, "last", "train", "logits").all()
    assert not isinstance(caught.value, StillhouseError)
    assert caught.value.errno == errno.ELOOP
    assert caught.value.filename == str(path)

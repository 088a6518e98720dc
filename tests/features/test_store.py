"""The store on disk: how arrays are cut, that what is read is what was written, and that damage is reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from feature_fixtures import Small, contents, make_array, shard_ranges, small_store

from pipeline.errors import DamagedArtifactError, MissingArtifactError, StaleArtifactError, StillhouseError
from pipeline.features import contents as holds
from pipeline.features import manifest as manifests
from pipeline.features import store
from pipeline.features.contents import Contents
from pipeline.features.manifest import Manifest
from pipeline.features.store import Layout, StoredArray

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


def one_line(error: pytest.ExceptionInfo[StillhouseError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.fixture
def values() -> np.ndarray[Any, Any]:
    """Three slots of 41 samples, one slot of zeros alone."""
    values = np.random.default_rng(0).normal(size=(3, 41, 6, 4)).astype(np.float32)
    values[1] = 0
    return values


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let samples of these tests, 96 bytes, go four to a chunk."""
    monkeypatch.setattr(store, "CHUNK_BYTES", 400)


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
    assert layout.chunk * sample_bytes <= max(store.CHUNK_BYTES, sample_bytes)
    assert layout.chunk == shape[1] or (layout.chunk + 1) * sample_bytes > store.CHUNK_BYTES
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


def edit_attributes(path: Path, **update: Any) -> None:
    content = json.loads((path / "zarr.json").read_text())
    content["attributes"] |= update
    path.mkdir(exist_ok=True)
    (path / "zarr.json").write_text(json.dumps(content))


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
    edit_attributes(path, schema_version=99)
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
    edit_attributes(path, **update)
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

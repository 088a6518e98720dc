"""Cached and online sources give the same features for the same views."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from device_fixtures import current, here
from feature_fixtures import REQUESTED, Small, features_of, small_store
from torch import Tensor

from pipeline.data.normalize import Normalize
from pipeline.data.views import view_ids, view_space
from pipeline.errors import DamagedArtifactError, ParamsError
from pipeline.features import contents, store
from pipeline.features.source import CachedSource, OnlineSource
from pipeline.features.store import StoredArray
from pipeline.features.stream import PlainStream
from pipeline.features.teacher import Teacher
from pipeline.networks.network import Taps

pytestmark = pytest.mark.usefixtures("device")

RESIDENT = {"resident": 1 << 30, "batch by batch": 0, "mixed": 20_000}


@pytest.fixture(scope="module")
def small(device: str, tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small_store(tmp_path_factory.mktemp("small"))


def cached(small: Small, names: Iterable[str], slots: int, **options: Any) -> CachedSource:
    options = {"checkpoints": ["last", "anchor_050"]} | options
    stores = dict.fromkeys(names, small.path)
    return CachedSource(stores, options.pop("checkpoints"), slots, current().device, **options)


def shown(small: Small, slot: int, index: Tensor) -> Tensor:
    """Return the normalized views that a student sees."""
    space, meta = view_space(small.manifest.views), small.prepared.meta
    image, index = (
        here(torch.from_numpy(small.prepared.splits["train"].images.rows(index.numpy()))),
        here(index),
    )
    view = space.apply(image, view_ids(space, slot, index), index)
    return Normalize(meta.mean, meta.std, current().device)(view)


def assert_alike(found: Taps, live: Taps) -> None:
    """float32 to 1e-5; float16 to 1e-3 of the value and of the root mean square."""
    assert list(found) == list(live)
    for name, x in found.items():
        half = REQUESTED[name][1] == "float16"
        tolerance = 1e-3 if half else 1e-5
        spread = float(live[name].square().mean().sqrt())
        assert x.dtype == torch.float32
        torch.testing.assert_close(x, live[name], rtol=tolerance, atol=tolerance * spread)


@pytest.mark.parametrize("resident_bytes", RESIDENT.values(), ids=RESIDENT)
@pytest.mark.parametrize("checkpoint", ["last", "anchor_050"])
@pytest.mark.parametrize(
    ("names", "slots"),
    [(("stage1:pooled", "logits"), 3), (("stage3", "logits"), 1), (("stage2:attention", "stage3"), 0)],
    ids=str,
)
def test_cached_is_what_online_gives(
    small: Small, names: tuple[str, ...], slots: int, checkpoint: str, resident_bytes: int
) -> None:
    source = cached(small, names, slots, resident_bytes=resident_bytes)
    teachers = {name: Teacher(one, current()) for name, one in small.networks.items()}
    online = OnlineSource(teachers, names)
    draw = torch.Generator().manual_seed(0)
    begun = []
    for slot in range(slots + 1):  # all are begun before any is taken
        index = torch.randint(0, 50, (23,), generator=draw)
        image = shown(small, slot, index)
        begun.append((slot, index, image, source.begin(checkpoint, slot, index)))
    for slot, index, image, wait in begun:
        batch = (here(torch.tensor(slot)), here(index), image, here(torch.zeros_like(index)))
        found, live = (one.features(checkpoint, *batch, wait()) for one in (source, online))
        assert_alike(found, live)


def test_the_sources_would_differ_on_another_slot_sample_or_checkpoint(small: Small) -> None:
    """The comparison above can fail."""
    source, index = cached(small, ["logits"], 3), torch.arange(20)
    image = shown(small, 2, index)
    live = OnlineSource({"last": Teacher(small.networks["last"], current())}, ["logits"])
    expected = features_of(live, "last", 2, index, image)
    assert_alike(features_of(source, "last", 2, index, image), expected)
    for wrong in (("last", 1, index), ("last", 2, index.flip(0)), ("anchor_050", 2, index)):
        with pytest.raises(AssertionError):
            assert_alike(features_of(source, *wrong, image), expected)


@pytest.mark.cpu
def test_features_of_the_same_bytes_keep_their_own_shapes(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies on the device once is known by its hash, and the hash of dead maps may be that of others."""
    read = contents.read

    def alike(path: Path, hint: str) -> contents.Contents:
        held = read(path, hint)
        digests = dict.fromkeys(next(iter(held.features.values())).digest, "the same")
        same = {name: one.model_copy(update={"digest": digests}) for name, one in held.features.items()}
        return held.model_copy(update={"features": same})

    def trusted(path: Path, checkpoint: str, split: str, name: str, hint: str) -> StoredArray:
        return StoredArray(store.array_path(path, checkpoint, split, name))

    index = torch.arange(5)
    names = ["logits", "stage1:pooled"]
    expected = features_of(cached(small, names, 3), "last", 1, index, shown(small, 1, index))
    monkeypatch.setattr(contents, "read", alike)
    monkeypatch.setattr(StoredArray, "of", trusted)
    found = features_of(cached(small, names, 3), "last", 1, index, shown(small, 1, index))
    assert all(torch.equal(found[name], expected[name]) for name in names)


@pytest.mark.cpu
def test_a_source_without_features_gives_none(small: Small) -> None:
    index = torch.arange(3)
    image = shown(small, 0, index)
    assert features_of(cached(small, [], 3), "last", 0, index, image) == {}
    assert features_of(OnlineSource({}, []), "last", 0, index, image) == {}


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("names", "slots", "checkpoints", "parts"),
    [
        (
            ["stage1"],
            0,
            ["last"],
            [
                "does not hold teacher feature 'stage1'",
                "it holds logits, stage1:pooled, stage2:attention, stage3",
                "teachers.small.features",
            ],
        ),
        (
            ["logits", "stage3"],
            2,
            ["last"],
            [
                "holds 1 view slots of 'stage3', expected 2",
                "teachers.small.features.stage3.slots",
                "source: online",
            ],
        ),
        (
            ["logits"],
            3,
            ["last", "anchor_025"],
            [
                "does not hold checkpoint 'anchor_025'",
                "it holds anchor_050, last",
                "teachers.small.checkpoints",
            ],
        ),
    ],
)
def test_what_the_store_lacks_is_reported_with_its_line_and_the_command(
    small: Small, names: list[str], slots: int, checkpoints: list[str], parts: list[str]
) -> None:
    with pytest.raises(ParamsError) as caught:
        cached(small, names, slots, checkpoints=checkpoints)
    text = str(caught.value)
    assert "\n" not in text
    for part in [*parts, str(small.path), "in params.yaml, then: dvc repro extract_features@small"]:
        assert part in text


@pytest.mark.cpu
@pytest.mark.parametrize("resident_bytes", [0, 1 << 30])
def test_a_damaged_chunk_is_reported_when_it_is_read(tmp_path: Path, resident_bytes: int) -> None:
    small = small_store(tmp_path)
    shard = small.path / "last/train/logits/c/0/0/0"
    shard.write_bytes(b"\x00" + shard.read_bytes()[1:-1])
    index = torch.arange(4)

    def take() -> Taps:
        source = cached(small, ["logits"], 3, resident_bytes=resident_bytes)
        return features_of(source, "last", 0, index, shown(small, 0, index))

    with pytest.raises(DamagedArtifactError, match="last/train/logits has a damaged chunk"):
        take()


@pytest.mark.cpu
def test_a_stream_gives_the_plain_samples_with_their_labels(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.features import stream

    monkeypatch.setattr(stream, "BLOCK_BYTES", 3 * 64 * 2 * 2 * 2 * 7)
    labels = small.prepared.splits["train"].labels
    plain = StoredArray(store.array_path(small.path, "last", "train", "stage3")).all()[0]
    streamed = PlainStream(small.path, "stage3", labels)
    assert streamed.shape == plain.shape
    for _ in range(2):  # as often as wanted
        blocks = list(streamed)
        assert len(blocks) > 1
        assert all(block.dtype == np.float32 for block, _ in blocks)
        np.testing.assert_array_equal(
            np.concatenate([block for block, _ in blocks]), plain.astype(np.float32)
        )
        np.testing.assert_array_equal(np.concatenate([label for _, label in blocks]), labels)

"""From the device into shards: in order, bounded, and never past an error."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from device_fixtures import current, here
from feature_fixtures import (
    REQUESTED,
    SHARD_BYTES,
    CutOffError,
    contents,
    cut_off,
    extraction,
    network,
    no_progress,
    prepare,
)
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.compute.machine import Machine
from pipeline.data.normalize import Normalize
from pipeline.data.prepared import Prepared
from pipeline.data.ranges import ResidentRanges
from pipeline.errors import ParamsError
from pipeline.features import extract, store
from pipeline.features import layout as layouts
from pipeline.features.extract import Extraction
from pipeline.features.layout import Layout
from pipeline.features.outbox import Outbox
from pipeline.features.shards import ShardWriter
from pipeline.features.store import StoredArray, array_path
from pipeline.features.teacher import Teacher

pytestmark = pytest.mark.usefixtures("device")

Array = NDArray[Any]
META = torch.device("meta")
WAIT = 60.0  # seconds, of a test that would else never end


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "CHUNK_BYTES", 300)


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return prepare(tmp_path / "data")


def values(number: int) -> dict[str, torch.Tensor]:
    return {"a": here(torch.full((3, 2), float(number)))}


# The thread.


def test_batches_are_written_in_their_order_by_one_thread() -> None:
    written: list[tuple[int, int, float]] = []
    threads: set[int] = set()

    def write(slot: int, start: int, arrays: Mapping[str, Array]) -> None:
        threads.add(threading.get_ident())
        assert arrays["a"].shape == (3, 2)
        written.append((slot, start, float(arrays["a"].mean())))

    with Outbox(current().device, write) as outbox:
        for number in range(20):
            outbox.put(number // 7, number % 7, values(number))
    assert written == [(number // 7, number % 7, number) for number in range(20)]
    assert len(threads) == 1
    assert threading.get_ident() not in threads


@pytest.mark.parametrize("depth", [1, 3])
def test_no_more_batches_are_under_way_than_it_has_room_for(depth: int) -> None:
    """The writer stands still: the caller hands over `depth` batches, and is held at the next."""
    going, held = threading.Event(), threading.Event()
    taken: list[int] = []

    def write(slot: int, start: int, arrays: Mapping[str, Array]) -> None:
        assert going.wait(WAIT)

    def fill() -> None:
        with Outbox(device, write, depth=depth) as outbox:
            for number in range(2 * depth + 2):
                if number == depth:
                    held.set()
                outbox.put(0, number, values(number))
                taken.append(number)

    device = current().device
    caller = threading.Thread(target=fill)
    caller.start()
    assert held.wait(WAIT)
    caller.join(0.2)  # the time in which it would go on, if it could
    assert taken == list(range(depth))
    going.set()
    caller.join(WAIT)
    assert taken == list(range(2 * depth + 2))


@pytest.mark.parametrize("number", [0, 4, 9])
def test_an_error_of_the_writer_is_the_callers_and_ends_the_writing(number: int) -> None:
    written: list[int] = []

    def write(slot: int, start: int, arrays: Mapping[str, Array]) -> None:
        if start == number:
            raise ParamsError("no room")
        written.append(start)

    def fill() -> None:
        with Outbox(current().device, write, depth=3) as outbox:
            for start in range(10):
                outbox.put(0, start, values(start))

    with pytest.raises(ParamsError, match="no room"):
        fill()
    assert written == list(range(number))


def test_what_was_handed_over_is_written_when_the_caller_fails() -> None:
    """And the caller's own error is the one that is raised."""
    written: list[int] = []

    def write(slot: int, start: int, arrays: Mapping[str, Array]) -> None:
        if start == 3:
            raise ParamsError("no room")
        written.append(start)

    def fill(count: int) -> None:
        with Outbox(current().device, write, depth=8) as outbox:
            for start in range(count):
                outbox.put(0, start, values(start))
            raise CutOffError

    with pytest.raises(CutOffError):
        fill(3)
    assert written == [0, 1, 2]
    with pytest.raises(CutOffError):
        fill(4)


@pytest.mark.parametrize("threads", [1, 3])
def test_shards_are_written_by_several_threads_and_no_more_at_a_time(threads: int) -> None:
    lock, running, most = threading.Lock(), [0], [0]
    together = threading.Barrier(threads)
    done: list[int] = []

    def shard(number: int) -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        together.wait(WAIT)  # so many are at work at once, else it breaks
        with lock:
            running[0] -= 1
            done.append(number)

    outbox: Outbox

    def write(slot: int, start: int, arrays: Mapping[str, Array]) -> None:
        outbox.later(partial(shard, start))

    with Outbox(current().device, write, threads=threads) as outbox:
        for start in range(4 * threads):
            outbox.put(0, start, values(start))
    assert sorted(done) == list(range(4 * threads))
    assert most == [threads]


def test_an_error_of_a_shard_is_the_callers() -> None:
    def shard() -> None:
        raise ParamsError("no room")

    outbox: Outbox
    with (
        pytest.raises(ParamsError, match="no room"),
        Outbox(current().device, lambda slot, start, arrays: outbox.later(shard), threads=2) as outbox,
    ):
        outbox.put(0, 0, values(0))


# The store.


def by_hand(made: Extraction, path: Path) -> None:
    """Fill a store by a plain loop: one batch after the other, whole arrays in memory, numpy's casts."""
    network, device = made.teachers["last"], current().device
    store.create(path, {"last": {split: made._layouts(split) for split in made.splits}}, made.compression)
    made._write_views(path)
    for split, data in made.splits.items():
        arrays: dict[str, list[list[Array]]] = {}
        slots = 1 + (made._slots() if split == "train" else 0)
        for slot in range(slots):
            for start in range(0, len(data), made.samples):
                index = torch.arange(start, min(start + made.samples, len(data)))
                view = extract.open_ranges(data, made.space, device).take(slot, start, start + len(index))
                names = [name for name, f in made.manifest.features.items() if slot <= f.slots]
                label = torch.from_numpy(data.labels[index.numpy()]).to(device)
                for name, x in network.features(made.normalize(view), names, label).items():
                    kept = x.cpu().numpy().astype(made.manifest.features[name].dtype)
                    arrays.setdefault(name, [[] for _ in range(slots)])[slot].append(kept)
        for name, rows in arrays.items():
            layout = made._layouts(split)[name]
            writer = ShardWriter(StoredArray(array_path(path, "last", split, name)), layout, name)
            for slot, row in enumerate(rows[: layout.shape[0]]):
                writer.add(slot, 0, np.concatenate(row))


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize(("batch_size", "shard_bytes"), [(16, SHARD_BYTES), (7, 1 << 20), (64, 900)])
def test_a_store_is_that_of_a_plain_loop_byte_for_byte(
    tmp_path: Path,
    prepared: Prepared,
    monkeypatch: pytest.MonkeyPatch,
    threads: int,
    batch_size: int,
    shard_bytes: int,
) -> None:
    one, spec = network()
    options = {"batch_size": batch_size, "shard_bytes": shard_bytes, "compression": "zstd"}
    made = extraction(prepared, {"last": one}, spec, **options)
    by_hand(made, tmp_path / "plain.zarr")
    monkeypatch.setattr(extract, "Outbox", partial(Outbox, threads=threads))
    made.run(tmp_path / "made.zarr", no_progress)
    plain = {name: data for name, data in contents(tmp_path / "plain.zarr").items() if "/c/" in name}
    assert plain == {name: data for name, data in contents(tmp_path / "made.zarr").items() if "/c/" in name}
    assert len(plain) > 8


@pytest.mark.parametrize("after", [3, 9, 17])
def test_a_run_of_several_threads_resumes_to_the_same_bytes(
    tmp_path: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    one, spec = network()
    made = extraction(prepared, {"last": one}, spec)
    whole = made.run(tmp_path / "whole.zarr", no_progress)
    monkeypatch.setattr(extract, "Outbox", partial(Outbox, depth=2, threads=3))
    with pytest.raises(CutOffError):
        made.run(tmp_path / "cut.zarr", cut_off(after))
    assert made.run(tmp_path / "cut.zarr", no_progress) == whole
    assert contents(tmp_path / "cut.zarr") == contents(tmp_path / "whole.zarr")


def test_a_batch_that_is_missing_is_never_written_as_a_shard(tmp_path: Path) -> None:
    layout = Layout.plan((1, 40, 4), "float32", 1 << 20)
    store.create(tmp_path / "t.zarr", {"last": {"train": {"a": layout}}}, "none")
    writer = ShardWriter(StoredArray(array_path(tmp_path / "t.zarr", "last", "train", "a")), layout, "a")
    writer.add(0, 0, np.zeros((10, 4), np.float32))
    with pytest.raises(AssertionError, match="a: samples before 40 are missing"):
        writer.add(0, 20, np.zeros((20, 4), np.float32))
    assert writer.hashes == {}


def test_a_cast_where_the_teacher_runs_gives_numpys_bits(prepared: Prepared) -> None:
    """Subnormal numbers and overflow included."""
    one, spec = network()
    made = extraction(prepared, {"last": one}, spec, requested={"logits": (1, "float16")})
    x = torch.cat([torch.randn(4000) * 10.0**e for e in range(-9, 6)]).view(-1, 10)
    with np.errstate(over="ignore"):
        expected = x.numpy().astype(np.float16)
        found = made._cast("logits", here(x)).cpu().numpy().astype(np.float16)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(here(x).to(torch.float16).cpu().numpy(), expected)
    assert np.isinf(expected).any()
    assert (np.abs(expected[expected != 0]) < np.finfo(np.float16).tiny).any()
    assert made._cast("logits", x.to("meta")).dtype == torch.float16
    maps = torch.empty(2, 3, 4, 4, device="meta").to(memory_format=torch.channels_last)
    assert made._cast("logits", maps).is_contiguous()


class KeepsToItsDevice(TorchDispatchMode):
    """Refuses what leaves a tensor on the CPU."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        for x in tree_leaves(found):
            assert not isinstance(x, Tensor) or x.device == META, f"{func} leaves a tensor on the {x.device}"
        return found


@pytest.mark.cpu
def test_a_batch_is_computed_without_the_cpu(prepared: Prepared) -> None:
    """On the meta device, which has no values to wait for; the view ids of its slot are there."""
    one, spec = network()
    made = extraction(prepared, {"last": one}, spec)
    images = torch.zeros((50, 2, 8, 8), dtype=torch.uint8, device=META)
    ranges = ResidentRanges(images, made.space)
    ranges._slot, ranges._ids = 2, torch.zeros(50, dtype=torch.int64, device=META)
    made = replace(
        made,
        teachers={"last": Teacher(one, Machine(META))},
        normalize=Normalize(prepared.meta.mean, prepared.meta.std, META),
    )
    made._views["train"] = ranges, torch.zeros(50, dtype=torch.int64, device=META)
    part = made._parts({split: made._layouts(split) for split in made.splits})[0]
    with KeepsToItsDevice():
        features = made._features(part, 2, 16, 48, set(REQUESTED))
    assert {name: str(x.dtype) for name, x in features.items()} == {
        name: f"torch.{dtype}" for name, (_, dtype) in REQUESTED.items()
    }


# The batch.


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("kind", "size", "features", "expected"),
    [
        ("cpu", 32, {"logits": (100,)}, 256),
        ("cpu", 224, {"stage1": (256, 56, 56)}, 256),
        ("cuda", 32, {"logits": (100,)}, 1024),
        ("cuda", 224, {"logits": (1000,)}, 222),  # 32 MiB of images
        ("cuda", 32, {"logits": (100,), "stage3": (256, 8, 8)}, 1024),
        ("cuda", 32, {"stage1": (128, 32, 32)}, 256),  # 64 MiB of maps
        ("cuda", 32, {"stage1": (1 << 30,)}, 1),
    ],
)
def test_the_batch_that_nobody_asked_for(
    prepared: Prepared, kind: str, size: int, features: dict[str, tuple[int, ...]], expected: int
) -> None:
    one, spec = network()
    made = extraction(prepared, {"last": one}, spec, requested={"logits": (0, "float16")}, batch_size=None)
    kept = made.manifest.features["logits"]
    manifest = made.manifest.model_copy(
        update={
            "network": spec.model_copy(update={"size": size, "channels": 3}),
            "features": {name: kept.model_copy(update={"shape": shape}) for name, shape in features.items()},
        }
    )
    teacher: Any = SimpleNamespace(machine=SimpleNamespace(device=torch.device(kind)))
    made = replace(made, manifest=manifest, teachers={"last": teacher})
    assert made.samples == expected
    assert replace(made, batch_size=30).samples == 30


def test_a_store_of_the_usual_batch_is_made_in_one(tmp_path: Path, prepared: Prepared) -> None:
    one, spec = network()
    made, seen = extraction(prepared, {"last": one}, spec, batch_size=None), []
    made.run(tmp_path / "t.zarr", lambda units=1, note="": seen.append(units))
    assert seen == [50] * (1 + REQUESTED["logits"][0]) + [12]

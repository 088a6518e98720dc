"""Reading the store: random batches and streams, next to a memory map and to zarr-python on the same data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from pipeline import progress
from pipeline.benchmark.material import Bench
from pipeline.benchmark.record import Record, record
from pipeline.benchmark.timing import interleaved, timed
from pipeline.features import store
from pipeline.features.layout import Layout
from pipeline.features.shards import ShardWriter
from pipeline.features.store import StoredArray

Array = NDArray[Any]

SHAPE, DTYPE = (128, 8, 8), "float16"
SAMPLE_BYTES = 128 * 8 * 8 * 2  # 16 kB
BATCH, BATCHES = 128, 20  # of one timed run of random batches
BLOCK = 2048  # samples of a stream's block: 32 MB
SLOW = 256  # samples of one timed run of zarr-python


def read(bench: Bench) -> list[Record]:
    """Time random batches, an epoch's order and a stream, on two slots of samples of 16 kB."""
    samples = bench.scale.stored
    array, mapped = _make(bench.folder / "read", samples)
    python: Any = zarr.open_array(array.path, mode="r")
    draw = np.random.default_rng(1)

    slow, batches = min(SLOW, samples), BATCHES if samples >= BATCH * BATCHES else 1
    size = min(BATCH, samples)

    def random(fetch: Callable[[int, Array], object], batches: int) -> Callable[[], None]:
        def work() -> None:
            for _ in range(batches):
                fetch(int(draw.integers(2)), draw.integers(0, samples, size))

        return work

    def stream(fetch: Callable[[int, int], object], total: int) -> Callable[[], None]:
        def work() -> None:
            for start in range(0, total, BLOCK):
                fetch(start, min(start + BLOCK, total))

        return work

    def epoch() -> None:
        """Read slot 1 in random order, one batch ahead, as training does."""
        rows = np.array_split(draw.permutation(samples), max(1, samples // size))
        waiting = array.begin(1, rows[0])
        for index in rows[1:]:
            following = array.begin(1, index)
            array.finish(waiting)
            waiting = following
        array.finish(waiting)

    gigabytes = samples * SAMPLE_BYTES / 1e9
    slow_batches = max(1, slow // size)
    fetch_python = python.oindex

    runs = {
        "random": timed(random(array.read, batches), batches * size),
        "random_map": timed(random(lambda slot, rows: mapped[slot, rows], batches), batches * size),
        "random_zarr": timed(
            random(lambda slot, rows: fetch_python[slot, rows], slow_batches), slow_batches * size
        ),
        "epoch": timed(epoch, gigabytes),
        "stream": timed(stream(lambda start, stop: array.range(1, start, stop), samples), gigabytes),
        # Without the copy, nothing would be read of a map.
        "stream_map": timed(stream(lambda start, stop: mapped[1, start:stop].copy(), samples), gigabytes),
        "stream_zarr": timed(
            stream(lambda start, stop: python[1, start:stop], slow), slow * SAMPLE_BYTES / 1e9
        ),
    }

    rates = interleaved("reading", runs, bench.scale.rounds)
    return [
        record("read/random", rates.median("random"), "samples/s", at_least=20_000),
        record("read/random/memory_map", rates.median("random_map"), "samples/s"),
        record("read/random/zarr_python", rates.median("random_zarr"), "samples/s"),
        record("read/epoch", rates.median("epoch"), "GB/s", at_least=0.5),
        record("read/stream", rates.median("stream"), "GB/s", at_least=0.5),
        record("read/stream/memory_map", rates.median("stream_map"), "GB/s"),
        record("read/stream/zarr_python", rates.median("stream_zarr"), "GB/s"),
    ]


def _make(folder: Path, samples: int) -> tuple[StoredArray, Array]:
    """Write the same random values (2, samples, ...) to a store and to an npy file, and open both."""
    layout = Layout.plan((2, samples, *SHAPE), DTYPE)
    store.create(folder / "read.zarr", {"last": {"train": {"map": layout}}}, "none")
    array = StoredArray(store.array_path(folder / "read.zarr", "last", "train", "map"))
    writer = ShardWriter(array, layout, "map")

    path = folder / "read.npy"
    mapped = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=layout.shape)
    draw = np.random.default_rng(0)
    with progress.bar("store to read", 2 * samples) as advance:
        for slot in range(2):
            for start in range(0, samples, BLOCK):
                stop = min(start + BLOCK, samples)
                block = draw.random((stop - start, *SHAPE), np.float32).astype(np.float16)
                writer.add(slot, start, block)
                mapped[slot, start:stop] = block
                advance(stop - start)
    mapped.flush()
    return array, np.load(path, mmap_mode="r")

"""The feature store: one zarr v3 group a teacher, every array sharded, a checksum on every chunk.

zarr is the layout; tensorstore writes and reads it (25 times as fast as zarr-python on random batches). An
array is `<checkpoint>/<split>/<feature>` of shape (1 + slots, N, ...): slot 0 is the plain view. Each shard is
a contiguous range of (slot, sample) in row-major order: whole slots when they are small, part of one slot when
they are large. So a writer fills shard after shard, each is written once, and files are few.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from pipeline.artifacts import advice
from pipeline.errors import DamagedArtifactError
from pipeline.features import contents
from pipeline.features.contents import Contents

Array = NDArray[Any]

SHARD_BYTES = 64 << 20
CHUNK_BYTES = 16 << 10  # samples smaller than this share a chunk


@dataclass(frozen=True)
class Layout:
    """How one array is cut.

    Attributes:
        shape: (1 + slots, N, ...).
        dtype: numpy's name.
        shard: slots and samples of a shard.
        chunk: samples of a chunk; a chunk is the least that a reader fetches.
    """

    shape: tuple[int, ...]
    dtype: str
    shard: tuple[int, int]
    chunk: int

    @classmethod
    def plan(cls, shape: tuple[int, ...], dtype: str, shard_bytes: int = SHARD_BYTES) -> Layout:
        """Choose shards of about `shard_bytes` for an array."""
        slots, samples = shape[:2]
        sample_bytes = max(1, int(np.prod(shape[2:])) * np.dtype(dtype).itemsize)

        chunk = max(1, min(samples, CHUNK_BYTES // sample_bytes))
        per_shard = max(1, shard_bytes // (sample_bytes * chunk)) * chunk  # whole chunks
        if per_shard < samples:
            return cls(shape, dtype, (1, per_shard), chunk)

        # Shards hold whole chunks, so the last chunk of a slot is padded.
        whole = -(-samples // chunk) * chunk
        return cls(shape, dtype, (min(slots, per_shard // whole), whole), chunk)

    def metadata(self, compression: str) -> dict[str, Any]:
        """Return the array's zarr v3 metadata as tensorstore takes them."""
        inner = [{"name": "bytes", "configuration": {"endian": "little"}}]
        if compression == "zstd":
            inner.append({"name": "zstd", "configuration": {"level": 1}})

        checksum = {"name": "crc32c"}
        sharding = {
            "chunk_shape": [1, self.chunk, *self.shape[2:]],
            "codecs": [*inner, checksum],
            "index_codecs": [inner[0], checksum],
        }

        return {
            "shape": list(self.shape),
            "data_type": self.dtype,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [*self.shard, *self.shape[2:]]},
            },
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        }


def create(store: Path, checkpoints: dict[str, dict[str, dict[str, Layout]]], compression: str) -> None:
    """Create the groups and the empty arrays of a store.

    Args:
        store: its folder.
        checkpoints: layouts by checkpoint, split and feature name.
        compression: "none" or "zstd".
    """
    import zarr  # half a second, and readers do without it

    root = zarr.open_group(store, mode="a", zarr_format=3)
    for checkpoint, splits in checkpoints.items():
        for split, features in splits.items():
            root.require_group(f"{checkpoint}/{split}")
            for name, layout in features.items():
                path = array_path(store, checkpoint, split, name)
                if not (path / "zarr.json").exists():  # an interrupted run may leave the folder without it
                    _open(path, create=True, metadata=layout.metadata(compression))


def set_manifest(store: Path, manifest: Contents) -> None:
    """Write all that a store says of itself into the root group's attributes."""
    import zarr

    zarr.open_group(store, mode="a", zarr_format=3).attrs.update(manifest.model_dump(mode="json"))


def array_path(store: Path, checkpoint: str, split: str, name: str) -> Path:
    """Return the folder of one array; a feature "stage3:attention" is `stage3.attention` on disk."""
    return store / checkpoint / split / name.replace(":", ".").replace("@", ".")


class StoredArray:
    """One array of a store, opened for reading or for writing whole shards.

    Args:
        path: the array's folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._array = _open(path, open=True)
        self.shape: tuple[int, ...] = tuple(self._array.shape)
        self.dtype = np.dtype(self._array.dtype.numpy_dtype)

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return int(np.prod(self.shape) * self.dtype.itemsize)

    def read(self, slot: int, index: Array) -> Array:
        """Read samples `index` int64 (B,) of a slot, in that order: (B, ...).

        Raises:
            DamagedArtifactError: a chunk does not pass its checksum, or is not there.
        """
        return self._fetch(self._array[slot, index])

    def range(self, slot: int, start: int, stop: int) -> Array:
        """Read samples [start, stop) of a slot: (n, ...); damaged chunks as in `read`."""
        return self._fetch(self._array[slot, start:stop])

    def all(self) -> Array:
        """Read the whole array, (1 + slots, N, ...); damaged chunks as in `read`."""
        return self._fetch(self._array)

    def begin(self, slot: int, index: Array) -> Any:
        """Start reading as `read` does; returns the future that `finish` waits for."""
        return self._array[slot, index].read()

    def begin_range(self, slot: int, start: int, stop: int) -> Any:
        """Start reading as `range` does; returns the future that `finish` waits for."""
        return self._array[slot, start:stop].read()

    def finish(self, future: Any) -> Array:
        """Wait for what `begin` or `begin_range` started; damaged chunks as in `read`."""
        try:
            return np.asarray(future.result())
        except ValueError as error:
            raise self._damaged(error) from None

    def blocks(self, slot: int, size: int) -> Iterator[tuple[int, Array]]:
        """Stream a slot: (first sample, samples (n, ...)), `size` of them at a time."""
        for start in range(0, self.shape[1], size):
            yield start, self.range(slot, start, min(start + size, self.shape[1]))

    def write(self, slot: int, start: int, values: Array) -> None:
        """Write whole shards: `values` (slots, n, ...) from (slot, start) on."""
        slots, samples = values.shape[:2]
        self._array[slot : slot + slots, start : start + samples].write(values).result()

    def _fetch(self, view: Any) -> Array:
        return self.finish(view.read())

    def _damaged(self, error: Exception) -> DamagedArtifactError:
        return DamagedArtifactError(
            f"{self.path} has a damaged chunk: {_reason(error)}. {_remedy(self.path)}"
        )


def _open(path: Path, **options: Any) -> Any:
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": str(path.absolute())},
        "metadata": options.pop("metadata", {}),
        # Chunks of zeros are written too, so that a missing one is an error and never reads as zeros.
        "store_data_equal_to_fill_value": True,
        "fill_missing_data_reads": False,
    }
    try:
        return ts.open(spec, **options).result()
    except ValueError as error:
        raise DamagedArtifactError(
            f"{path} cannot be opened as an array: {_reason(error)}. {_remedy(path)}"
        ) from None


def _reason(error: Exception) -> str:
    """Return what tensorstore says in one line, without its sources and specs."""
    return " ".join(re.split(r"\[(?:source|tensorstore_spec)", str(error))[0].split())


def _remedy(path: Path) -> str:
    """Return what to do about a damaged array: its store says which stage makes it."""
    known = contents.store_of(path)
    if known is None:
        return advice.again("dvc repro")
    made_by = f"dvc repro {known[1]}"
    # Deleted, it comes from the cache: a teacher need not compute it anew.
    return f"Delete it, then: {made_by}; or make it anew with: {advice.forced(made_by)}"

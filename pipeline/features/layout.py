"""How one array of a store is cut into shards, and the hash that stands for its content.

Each shard is a contiguous range of (slot, sample) in row-major order: whole slots when they are small, part of one slot
when they are large. A position counts samples over all slots: slot * N + sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts import hashing

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

    @property
    def positions(self) -> int:
        """Number of samples over all slots."""
        return self.shape[0] * self.shape[1]

    @property
    def num_shards(self) -> int:
        """Number of shards of the whole array."""
        slots, samples = self.shape[:2]
        return -(-slots // self.shard[0]) * -(-samples // self.shard[1])

    def shards(self, first: int, stop: int) -> Iterator[tuple[int, int]]:
        """Give the shards that positions [first, stop) lie in: first position, and the one after the last."""
        slots, samples = self.shape[:2]
        rows, width = self.shard
        while first < stop:
            slot, start = divmod(first, samples)
            if width >= samples:  # shards of whole slots
                slot = slot // rows * rows
                begin, end = slot * samples, min(slot + rows, slots) * samples
            else:
                # Shards within a slot, of which the last may be shorter.
                start = start // width * width
                begin, end = slot * samples + start, slot * samples + min(start + width, samples)
            yield begin, end
            first = end

    def digest(self, hashes: Sequence[Any]) -> str:
        """Return the hash of the whole content from those of all shards, in their order."""
        # The layout belongs to it: cut otherwise, the same content has other shards.
        return hashing.content_hash([self.shape, self.dtype, self.shard, hashes])


def shard_hash(values: NDArray[Any]) -> str:
    """Return the hash of a shard's content: `values` (n, ...), contiguous."""
    return hashlib.blake2b(values.data, digest_size=16).hexdigest()

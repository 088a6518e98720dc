"""Streams of stored features: what a fit goes through."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.features.store import StoredArray

BLOCK_BYTES = 32 << 20


class PlainStream:
    """The plain training samples of a stored feature, block by block, as often as wanted.

    Args:
        store: the store.
        feature: a stored feature's name.
        labels: int64 (N,).
        checkpoint: of the teacher.
    """

    def __init__(
        self, store: Path, feature: str, labels: NDArray[np.int64], checkpoint: str = "last"
    ) -> None:
        self._array = StoredArray.of(store, checkpoint, "train", feature)
        self._labels = labels
        self.shape: tuple[int, ...] = self._array.shape[1:]

    def __iter__(self) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
        """Give blocks: floats as float32 (n, ...), and labels int64 (n,)."""
        sample_bytes = max(1, int(np.prod(self.shape[1:])) * self._array.dtype.itemsize)
        # At least one sample, however large it is.
        for start, block in self._array.blocks(0, max(1, BLOCK_BYTES // sample_bytes)):
            values = block.astype(np.float32) if block.dtype.kind == "f" else block
            yield values, self._labels[start : start + len(block)]

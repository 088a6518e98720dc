"""The pixels of a stored map, as rows: what the fits of tables go through.

Rows come in blocks of a fixed size, whatever the blocks of the stream: so a fit's sums, and the rounding of its
products, do not depend on how the store was read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DivergedError, ParamsError
from pipeline.tables.table import Stream

Array = NDArray[Any]
Map = Callable[[Array], Array]

BLOCK_BYTES = 16 << 20
BLOCK_MULTIPLE = 256  # rows that scikit-learn's kernels take at a time
HELD_BYTES = 256 << 20  # rows up to this size are kept in memory and read once


class Block(NamedTuple):
    """Some pixels.

    Attributes:
        x: float32 (n, C).
        label: class of each pixel's image, int64 (n,).
        pixel: number of each pixel, int64 (n,): sample * H * W + row * W + column.
    """

    x: Array
    label: Array
    pixel: Array


class Points(Protocol):
    """Rows that can be gone through again and again: pixels in the store, or blocks of them in memory."""

    def __iter__(self) -> Iterator[Block]:
        """Give the blocks, always the same."""
        ...


@dataclass(frozen=True)
class Pixels:
    """All pixels of a stream of maps (N, C, H, W).

    Attributes:
        stream: the samples.
        feature: name of the feature, for messages.
        samples: which samples are used, bool (N,); None is all of them.
        mapped: what every pixel goes through, (n, C) to (n, D), and D; None is nothing.
    """

    stream: Stream
    feature: str
    samples: Array | None = None
    mapped: tuple[Map, int] | None = None

    @classmethod
    def of(cls, stream: Stream, feature: str) -> Pixels:
        """Return the pixels of a stream.

        Raises:
            ParamsError: the feature is no map.
        """
        if len(stream.shape) != 4:
            raise ParamsError(
                f"Feature '{feature}' has shape {tuple(stream.shape[1:])}, and a table of pixels is fitted to a map "
                "(C, H, W). Choose a stored map as 'feature' of the table's settings in params.yaml, then: dvc repro"
            )
        return cls(stream, feature)

    @property
    def channels(self) -> int:
        """Number of channels of the map."""
        return int(self.stream.shape[1])

    @property
    def num_samples(self) -> int:
        """Number of samples that are used."""
        return self.stream.shape[0] if self.samples is None else int(self.samples.sum())

    def __len__(self) -> int:
        """Return the number of pixels."""
        return self.num_samples * self.stream.shape[2] * self.stream.shape[3]

    @property
    def width(self) -> int:
        """Width of a row: channels, or what they are mapped to."""
        return self.channels if self.mapped is None else self.mapped[1]

    def map(self, function: Map, width: int) -> Pixels:
        """Return the same pixels, each gone through `function`, (n, C) to (n, width)."""
        return replace(self, mapped=(function, width))

    def __iter__(self) -> Iterator[Block]:
        """Give blocks of a fixed number of pixels; the last one has the rest.

        Raises:
            ParamsError: the feature holds integers.
            DivergedError: it holds values that are not finite.
        """
        for x, label, pixel in blocked(self._rows(), self.channels):
            yield Block(x if self.mapped is None else self.mapped[0](x), label, pixel)

    def _rows(self) -> Iterator[Block]:
        start, area = 0, self.stream.shape[2] * self.stream.shape[3]
        for values, label in self.stream:
            sample = np.arange(start, start + len(values))
            start += len(values)
            if self.samples is not None:
                chosen = self.samples[sample]
                values, label, sample = values[chosen], label[chosen], sample[chosen]

            x = np.moveaxis(values, 1, -1).reshape(-1, self.channels)  # (n H W, C)
            self._check(x, sample)
            pixel = (sample[:, None] * area + np.arange(area)).reshape(-1)
            yield Block(x.astype(np.float32, copy=False), np.repeat(label, area), pixel)

    def _check(self, x: Array, sample: Array) -> None:
        self.require_floats(x.dtype)
        finite = np.isfinite(x).all(axis=1)
        if not finite.all():
            # From the row back to its image, which has H * W of them.
            raise self.not_finite(int(sample[int(finite.argmin()) // (len(x) // len(sample))]))

    def require_floats(self, dtype: np.dtype[Any]) -> None:
        """Check that the map holds floats.

        Raises:
            ParamsError: it does not.
        """
        if dtype.kind != "f":
            raise ParamsError(
                f"Feature '{self.feature}' holds {dtype.name}; a table is fitted to a map of floats. Choose another "
                "'feature' in the table's settings in params.yaml, then: dvc repro"
            )

    def not_finite(self, sample: int) -> DivergedError:
        """Return the error of a sample whose map is not finite."""
        return DivergedError(
            f"Feature '{self.feature}' of sample {sample} is not finite. If it overflows float16, set its dtype to "
            "float32 in teachers.*.features in params.yaml; else train the teacher again; then: dvc repro"
        )


def blocked(blocks: Iterable[Block], width: int) -> Iterator[Block]:
    """Cut blocks anew: a fixed number of rows, the most of `width` float32 that fit `BLOCK_BYTES`."""
    size = max(1, BLOCK_BYTES // (4 * width * BLOCK_MULTIPLE)) * BLOCK_MULTIPLE
    waiting: list[Block] = []  # rows that do not fill a block yet
    count = 0
    for block in blocks:
        start = 0
        while count + len(block.x) - start >= size:
            stop = start + size - count
            yield joined([*waiting, _cut(block, start, stop)])
            waiting, count, start = [], 0, stop
        if start < len(block.x):
            waiting.append(_cut(block, start, len(block.x)))
            count += len(block.x) - start

    if count:
        yield joined(waiting)


def joined(blocks: Sequence[Block]) -> Block:
    """Return one block of all rows of `blocks`, of which there is at least one."""
    if len(blocks) == 1:
        return Block(*(np.ascontiguousarray(part) for part in blocks[0]))
    return Block(*(np.concatenate(parts) for parts in zip(*blocks, strict=True)))


def in_memory(points: Points, count: int, width: int, budget: int | None = None) -> Points:
    """Return the points in memory where they fit a budget, and as they are where they do not.

    Args:
        points: the rows.
        count: number of rows.
        width: values in a row.
        budget: bytes; None is `HELD_BYTES`.
    """
    return list(points) if row_bytes(width) * count <= (HELD_BYTES if budget is None else budget) else points


def row_bytes(width: int) -> int:
    """Return what one row takes in memory: float32 values, label and number."""
    return 4 * width + 16


def _cut(block: Block, start: int, stop: int) -> Block:
    return Block(*(part[start:stop] for part in block))

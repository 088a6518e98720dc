"""Shards of a store's arrays: filled in order, hashed, and remembered, so that an interrupted run resumes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.artifacts import arrays, publish
from pipeline.compute.distributed import ALONE, Ranks
from pipeline.errors import DamagedArtifactError, ParamsError
from pipeline.features.layout import Layout, shard_hash
from pipeline.features.store import StoredArray

Array = NDArray[Any]
Later = Callable[[Callable[[], None]], None]

PIECE = "values"  # the array in a piece's file
AGAIN = "the same command again"  # which drops a damaged piece and computes it anew


def at_once(work: Callable[[], None]) -> None:
    """Do what could be done later."""
    work()


class ShardWriter:
    """Fills a range of one array in (slot, sample) order and writes each shard when it is full.

    Positions count samples over all slots: slot * N + sample.

    Args:
        array: the array, open for writing.
        layout: how it is cut.
        name: the feature's name, for errors.
        hashes: the hash of each shard that is written already, by its first position.
        span: first position of the range and the one after its last; None is the whole array.
        pieces: path, without its end, of files for the parts of shards that reach out of the range.
        later: is given the work of writing a full shard, and does it or has it done.
    """

    def __init__(
        self,
        array: StoredArray,
        layout: Layout,
        name: str,
        hashes: dict[int, str] | None = None,
        span: tuple[int, int] | None = None,
        pieces: Path | None = None,
        later: Later = at_once,
    ) -> None:
        self.array, self.layout, self.name = array, layout, name
        self.hashes = {} if hashes is None else hashes
        self.pieces, self.later = pieces, later
        whole = layout.positions
        # A feature with fewer slots than the others may end before the range does.
        self.span = (0, whole) if span is None else (min(span[0], whole), min(span[1], whole))
        self._memory = np.empty((0, *layout.shape[2:]), layout.dtype)  # of the part that is being filled
        self._filled = 0
        self._free: list[Array] = []  # of shards that are written; fresh pages are slow

    def wants(self, first: int, stop: int) -> bool:
        """Say whether something of the positions [first, stop) is still to be written."""
        return any(True for _ in self._pending(first, stop))

    def add(self, slot: int, start: int, values: Array) -> None:
        """Take samples of a slot, which follow those taken before, and write what becomes full.

        Args:
            slot: their slot.
            start: index of the first.
            values: (n, ...), cast to the array's type; those that are written already are passed over.
        """
        first = slot * self.layout.shape[1] + start
        for shard, part in list(self._pending(first, first + len(values))):
            self._take(part, first, values)
            if part[1] <= first + len(values):
                self._full(shard, part)

    def write(self, begin: int, values: Array) -> None:
        """Write the shard that begins at a position: `values` (n, ...), contiguous."""
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ParamsError(
                f"Feature '{self.name}' has values that {values.dtype} cannot hold. {self._cure()}"
            )
        slot, start = divmod(begin, self.layout.shape[1])
        # Whole slots, or part of one: then there is one row.
        rows = -(-len(values) // self.layout.shape[1])
        self.array.write(slot, start, values.reshape(rows, -1, *values.shape[1:]))
        self.hashes[begin] = shard_hash(values)

    def join(self, spans: list[tuple[int, int]]) -> None:
        """Write the shards across the edges of `spans`, which cover the array, from their pieces."""
        for begin, end in self.layout.shards(0, self.layout.positions):
            if begin not in self.hashes:
                cuts = [(max(begin, first), min(end, stop)) for first, stop in spans]
                pieces = [read_piece(self.piece(*cut)) for cut in cuts if cut[0] < cut[1]]
                self.write(begin, np.concatenate(pieces))

    def digest(self) -> str:
        """Return the hash of the whole content."""
        return self.layout.digest(self.ordered())

    def ordered(self) -> list[str]:
        """Return the hashes of the shards in their order."""
        return [self.hashes[begin] for begin in sorted(self.hashes)]

    def piece(self, begin: int, end: int) -> Path:
        """Return the file of positions [begin, end) of a shard that is not this range's alone."""
        assert self.pieces is not None
        return self.pieces.with_name(f"{self.pieces.name}.{begin}-{end}.npz")

    def _take(self, part: tuple[int, int], first: int, values: Array) -> None:
        """Copy the share of a batch, whose first position is `first`, in the part [begin, end) of a shard."""
        begin, end = part
        if len(self._memory) < end - begin:
            self._memory = self._free.pop() if self._free else self._memory
        if len(self._memory) < end - begin:
            self._memory = np.empty((end - begin, *self.layout.shape[2:]), self.layout.dtype)

        # The batch may begin before the part and end after it.
        share = values[max(begin, first) - first : end - first]
        place = max(first - begin, 0)
        with np.errstate(over="ignore"):  # an overflow is an error when the shard is written
            self._memory[place : place + len(share)] = share
        self._filled += len(share)

    def _full(self, shard: tuple[int, int], part: tuple[int, int]) -> None:
        """Write the part of a shard that has been filled."""
        begin, end = part
        # Else what the memory held before would be written.
        assert self._filled == end - begin, f"{self.name}: samples before {end} are missing"
        self._filled = 0

        # A shard that reaches into another rank's range waits as a piece: two writers lose data.
        if part == shard:
            memory, self._memory = self._memory, np.empty((0, *self.layout.shape[2:]), self.layout.dtype)
            self.later(partial(self._write, begin, end - begin, memory))
        else:
            with publish.writing(self.piece(begin, end)) as path:
                arrays.write(path, {PIECE: self._memory[: end - begin]})

    def _write(self, begin: int, count: int, memory: Array) -> None:
        """Write the shard that begins at a position, the first `count` samples in a piece of memory."""
        self.write(begin, memory[:count])
        self._free.append(memory)

    def _pending(self, first: int, stop: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        """Give the shards of [first, stop) that are to be written, each with its part in this range."""
        for begin, end in self.layout.shards(max(first, self.span[0]), min(stop, self.span[1])):
            # Whole shards are known by their hashes, parts of shards by their pieces.
            part = max(begin, self.span[0]), min(end, self.span[1])
            if begin not in self.hashes and (part == (begin, end) or not self.piece(*part).exists()):
                yield (begin, end), part

    def _cure(self) -> str:
        if self.layout.dtype == "float16":
            return f"Set the teacher's features.{self.name}.dtype to float32 in params.yaml, then: dvc repro"
        return (
            "The teacher has diverged: train it with a smaller learning_rate in params.yaml, then: dvc repro"
        )


def read_piece(path: Path) -> Array:
    """Read a part of a shard, (n, ...)."""
    return arrays.read(path, AGAIN, (PIECE,))[PIECE]


def drop_damaged_pieces(folder: Path) -> None:
    """Remove parts of shards that an interrupted run has left and that cannot be read: they are computed again."""
    for path in folder.glob("*.npz"):
        try:
            read_piece(path)
        except DamagedArtifactError:
            publish.remove(path)


class Progress:
    """What of a store is written: the hashes of its shards, by array and first position.

    Each rank keeps a file of its own and reads all of them, so a run may resume with another number of ranks.

    Args:
        folder: the store's.
        ranks: the processes that write.
    """

    def __init__(self, folder: Path, ranks: Ranks = ALONE) -> None:
        self.folder, self.ranks = folder, ranks
        self.path = folder / ("progress.json" if ranks.first else f"progress.{ranks.rank}.json")
        self._state: dict[str, dict[int, str]] = {}
        for path in self.files():
            for key, hashes in _recorded(path).items():
                self._state.setdefault(key, {}).update(hashes)

    def files(self) -> list[Path]:
        """Return the files of all ranks."""
        return sorted(self.folder.glob("progress*.json"))

    def of(self, key: str) -> dict[int, str]:
        """Return the hashes of an array's shards by their first positions."""
        return dict(self._state.get(key, {}))

    def verify(self, opened: Mapping[str, StoredArray]) -> int:
        """Forget shards that are not what was recorded, so that they are written again, and return their number.

        A bit of a record or of a shard may have changed since the interrupted run. Each shard is read by one rank.

        Args:
            opened: the store's arrays, by their names in the records.
        """
        recorded, self._state, damaged = self._state, {}, 0
        for key, array in opened.items():
            # All ranks have read the same files, so they go through the same shards.
            hashes = recorded.get(key, {})
            begins = sorted(hashes)
            own = begins[self.ranks.rank :: self.ranks.size]
            alike = array.same({begin: hashes[begin] for begin in own})
            kept = self.ranks.total(torch.tensor([float(begin in alike) for begin in begins])).tolist()
            self._state[key] = {
                begin: hashes[begin] for begin, whole in zip(begins, kept, strict=True) if whole
            }
            damaged += len(begins) - len(self._state[key])
            if self.ranks.first:
                array.drop(self._state[key])

        # One file for all ranks: what another number of them has left would bring back what is forgotten.
        if self.ranks.first and recorded:
            self._write()
            for path in self.files():
                if path != self.path:
                    publish.remove(path)
        self.ranks.wait()
        return damaged

    def save(self, writers: Mapping[str, ShardWriter]) -> None:
        """Record what `writers` have written."""
        for key, writer in writers.items():
            self._state[key] = dict(writer.hashes)  # at one moment: other threads write further shards
        self._write()

    def _write(self) -> None:
        publish.write_json(self.path, self._state)


def _recorded(path: Path) -> dict[str, dict[int, str]]:
    """Return what a file of progress says; nothing where it cannot be read, and all is computed again."""
    try:
        content = json.loads(path.read_text())
        return {key: {int(begin): str(hashed) for begin, hashed in of.items()} for key, of in content.items()}
    except (ValueError, AttributeError):
        return {}

"""The feature store: one zarr v3 group a teacher, every array sharded, a checksum on every chunk.

zarr is the layout; tensorstore writes and reads it (25 times as fast as zarr-python on random batches). An
array is `<checkpoint>/<split>/<feature>` of shape (1 + slots, N, ...): slot 0 is the plain view. A writer fills shard
after shard (`pipeline.features.layout`), each is written once, and files are few.

Checksums of chunks do not tell whether a shard is this array's: one of another store or slot has valid ones too. So an
array's attributes list the hashes of its shards, the manifest's digest is a hash over that list, and whoever reads an
array by it (`StoredArray.of`) reads nothing of a slot before the bytes of its shards have been hashed. That costs one
pass over each slot that is read, at about 1 GB/s a thread.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from pipeline.artifacts import advice, publish
from pipeline.artifacts.hashing import content_hash
from pipeline.artifacts.system import system_error
from pipeline.errors import DamagedArtifactError
from pipeline.features import contents
from pipeline.features.contents import Contents
from pipeline.features.layout import Layout, shard_hash

Array = NDArray[Any]

SHARDS = "shards"  # attribute of an array: the hashes of its shards, in their order
THREADS = min(4, os.cpu_count() or 1)  # that hash shards


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

    attributes = manifest.model_dump(mode="json")
    attributes[contents.DIGEST] = content_hash(attributes)
    zarr.open_group(store, mode="a", zarr_format=3).attrs.update(attributes)


def set_shards(array: Path, hashes: Sequence[str]) -> None:
    """Write the hashes of an array's shards, in their order, into its attributes."""
    path = array / "zarr.json"
    content = publish.read_json(path, "dvc repro") | {"attributes": {SHARDS: list(hashes)}}
    with publish.writing(path) as part:
        part.write_text(json.dumps(content, sort_keys=True, separators=(",", ":")))


def array_path(store: Path, checkpoint: str, split: str, name: str) -> Path:
    """Return the folder of one array; a feature "stage3:attention" is `stage3.attention` on disk."""
    return store / checkpoint / split / name.replace(":", ".").replace("@", ".")


class StoredArray:
    """One array of a store, opened for reading or for writing whole shards.

    Args:
        path: the array's folder.
        digest: what the store's manifest says of its content. Slots are read only when their shards have proved to be
            those that the digest stands for; None trusts the shards as they are.

    Raises:
        DamagedArtifactError: it cannot be opened, or is not the array of the digest.
        OSError: the system refuses to open it.
    """

    def __init__(self, path: Path, digest: str | None = None) -> None:
        self.path, self.digest = path, digest
        self._array = _open(path, open=True)
        self.shape: tuple[int, ...] = tuple(self._array.shape)
        self.dtype = np.dtype(self._array.dtype.numpy_dtype)

        shard, chunk = (
            getattr(self._array.chunk_layout, kind).shape for kind in ("write_chunk", "read_chunk")
        )
        self.layout = Layout(self.shape, self.dtype.name, (shard[0], shard[1]), chunk[1])
        self._unproved: dict[
            int, str
        ] = {}  # hashes of shards whose bytes have not been compared, by first position
        if digest is not None:
            self._unproved = self._listed(digest)

    @classmethod
    def of(cls, store: Path, checkpoint: str, split: str, name: str, hint: str = "dvc repro") -> Self:
        """Open a feature's array by what the store's manifest says of it.

        Raises:
            MissingArtifactError: there is no store.
            ParamsError: it does not hold the feature.
            DamagedArtifactError: what it holds is not what it says.
        """
        holding = contents.read(store, hint)
        contents.check_stored(store, holding, name, [checkpoint], 0)
        digest = holding.features[name].digest.get(f"{checkpoint}/{split}")
        if digest is None:
            raise DamagedArtifactError(
                f"{store} says nothing of '{name}' in {checkpoint}/{split}. {advice.again(holding.hint)}"
            )
        return cls(array_path(store, checkpoint, split, name), digest)

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return int(np.prod(self.shape) * self.dtype.itemsize)

    def read(self, slot: int, index: Array) -> Array:
        """Read samples `index` int64 (B,) of a slot, in that order: (B, ...).

        Raises:
            DamagedArtifactError: a chunk does not pass its checksum, or is not there, or a shard is not this array's.
        """
        return self.finish(self.begin(slot, index))

    def range(self, slot: int, start: int, stop: int) -> Array:
        """Read samples [start, stop) of a slot: (n, ...); damage as in `read`."""
        return self.finish(self.begin_range(slot, start, stop))

    def all(self) -> Array:
        """Read the whole array, (1 + slots, N, ...); damage as in `read`."""
        values = np.ascontiguousarray(self.finish(self._array.read()))
        rows = values.reshape(-1, *self.shape[2:])
        _each(lambda shard: self._prove(shard, rows[slice(*shard)]), self._waiting(0, self.layout.positions))
        return values

    def begin(self, slot: int, index: Array) -> Any:
        """Start reading as `read` does; returns the future that `finish` waits for."""
        self._prove_positions(slot * self.shape[1], (slot + 1) * self.shape[1])
        return self._array[slot, index].read()

    def begin_range(self, slot: int, start: int, stop: int) -> Any:
        """Start reading as `range` does; returns the future that `finish` waits for."""
        self._prove_positions(slot * self.shape[1] + start, slot * self.shape[1] + stop)
        return self._array[slot, start:stop].read()

    def finish(self, future: Any) -> Array:
        """Wait for what `begin` or `begin_range` started; damaged chunks as in `read`."""
        try:
            return np.asarray(future.result())
        except (ValueError, OSError) as error:
            raise self._refused(error) from None

    def blocks(self, slot: int, size: int) -> Iterator[tuple[int, Array]]:
        """Stream a slot: (first sample, samples (n, ...)), `size` of them at a time."""
        for start in range(0, self.shape[1], size):
            yield start, self.range(slot, start, min(start + size, self.shape[1]))

    def shard(self, begin: int, end: int) -> Array:
        """Read a shard by its first position and the one after its last, whatever it holds: (n, ...), contiguous."""
        first, last = divmod(begin, self.shape[1]), divmod(end - 1, self.shape[1])
        view = self._array[first[0] : last[0] + 1, first[1] : last[1] + 1]
        return np.ascontiguousarray(self.finish(view.read())).reshape(-1, *self.shape[2:])

    def write(self, slot: int, start: int, values: Array) -> None:
        """Write whole shards: `values` (slots, n, ...) from (slot, start) on."""
        slots, samples = values.shape[:2]
        self._array[slot : slot + slots, start : start + samples].write(values).result()

    def verify(self, advance: Callable[[], object] = lambda: None) -> None:
        """Compare all shards with their hashes; damage as in `read`.

        Args:
            advance: called after each shard.
        """
        self._prove_all(self._waiting(0, self.layout.positions), advance)

    def same(self, hashes: dict[int, str]) -> dict[int, str]:
        """Return those of the shards, by first position, that can be read and have these hashes."""
        shards = [shard for shard in self.layout.shards(0, self.layout.positions) if shard[0] in hashes]
        alike: dict[int, str] = {}

        def compare(shard: tuple[int, int]) -> None:
            try:
                if shard_hash(self.shard(*shard)) == hashes[shard[0]]:
                    alike[shard[0]] = hashes[shard[0]]
            except DamagedArtifactError:
                pass  # it is not among those that are alike

        _each(compare, shards)
        return alike

    def drop(self, kept: Collection[int] = ()) -> None:
        """Remove the files of all shards but those that begin at `kept`: tensorstore writes over no damaged one."""
        rows, width = self.layout.shard
        for begin, _ in self.layout.shards(0, self.layout.positions):
            if begin not in kept:
                slot, start = divmod(begin, self.shape[1])
                rest = ["0"] * (len(self.shape) - 2)  # shards are cut along the first two axes alone
                publish.remove(self.path.joinpath("c", str(slot // rows), str(start // width), *rest))

    def _listed(self, digest: str) -> dict[int, str]:
        """Return the hashes that the array lists, by first position; the list must be the one of the digest."""
        attributes = self._array.spec().to_json()["metadata"].get("attributes", {})
        hashes = attributes.get(SHARDS, [])
        if self.layout.digest(hashes) != digest:
            raise DamagedArtifactError(
                f"{self.path} is not the array that its store says it holds: its shape, its type or the "
                f"hashes of its shards are others. {_remedy(self.path)}"
            )
        begins = (begin for begin, _ in self.layout.shards(0, self.layout.positions))
        return dict(zip(begins, hashes, strict=True))

    def _waiting(self, first: int, stop: int) -> list[tuple[int, int]]:
        """Return the shards of positions [first, stop) that are still to be compared."""
        if not self._unproved:
            return []
        return [shard for shard in self.layout.shards(first, stop) if shard[0] in self._unproved]

    def _prove_positions(self, first: int, stop: int) -> None:
        """Compare the shards of positions [first, stop), unless that has been done."""
        if self._unproved:
            self._prove_all(self._waiting(first, stop))

    def _prove_all(self, shards: list[tuple[int, int]], advance: Callable[[], object] = lambda: None) -> None:
        def prove(shard: tuple[int, int]) -> None:
            self._prove(shard, self.shard(*shard))
            advance()

        _each(prove, shards)

    def _prove(self, shard: tuple[int, int], values: Array) -> None:
        """Compare a shard's content with its hash."""
        if shard_hash(values) != self._unproved[shard[0]]:
            slot, start = divmod(shard[0], self.shape[1])
            raise DamagedArtifactError(
                f"{self.path} has a shard of other content than was written, that of slot {slot}, sample {start}. "
                f"{_remedy(self.path)}"
            )
        del self._unproved[shard[0]]

    def _refused(self, error: Exception) -> OSError:
        """Return what to raise where tensorstore cannot read: the system's own error, or damage."""
        return system_error(error, self.path) or DamagedArtifactError(
            f"{self.path} has a damaged chunk: {_reason(error)}. {_remedy(self.path)}"
        )


def _each(work: Callable[[tuple[int, int]], None], shards: list[tuple[int, int]]) -> None:
    """Do some work for each shard, in threads; the first error ends it."""
    if len(shards) < 2:
        for shard in shards:
            work(shard)
        return

    pool = ThreadPoolExecutor(THREADS, "hashes")
    try:
        for _ in pool.map(work, shards):
            pass
    finally:
        pool.shutdown(cancel_futures=True)


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
    except (ValueError, OSError, NotImplementedError) as error:
        raise system_error(error, path) or DamagedArtifactError(
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

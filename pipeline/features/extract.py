"""Extraction: run the teacher over every view slot once and fill the store, shard after shard.

Memory is one shard a feature, whatever the number of samples. A run that is cut off goes on where the last
whole shard ended, and the store comes out the same.

Several ranks divide the batches of each split: every rank writes the shards that lie in its range, for two writers
into one shard lose data. A shard across the edge of a range is put together at the end from the pieces that its
ranks leave beside the arrays. Batches are those of one process, so the store is, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import artifact, progress
from pipeline.distributed import ALONE, Ranks, Tally
from pipeline.errors import ParamsError
from pipeline.features import store
from pipeline.features.manifest import Manifest, StoredFeature
from pipeline.features.store import Layout, StoredArray
from pipeline.features.teacher import Teacher
from pipeline.images import Forward, stream_images
from pipeline.normalise import Normalise
from pipeline.prepared import Split
from pipeline.progress import Advance
from pipeline.views import ViewSpace, view_ids

Array = NDArray[Any]
PIECES = "pieces"  # folder of the parts of shards that lie across the edges of ranks


class ShardWriter:
    """Fills a range of one array in (slot, sample) order and writes each shard when it is full.

    Positions count samples over all slots: slot * N + sample.

    Args:
        array: the array, open for writing.
        layout: how it is cut.
        name: the feature's name, for errors.
        hashes: of the shards that are written already, by their first position.
        span: first position of the range and the one after its last; None is the whole array.
        pieces: path, without its end, of files for the parts of shards that reach out of the range.
    """

    def __init__(
        self,
        array: StoredArray,
        layout: Layout,
        name: str,
        hashes: dict[int, str] | None = None,
        span: tuple[int, int] | None = None,
        pieces: Path | None = None,
    ) -> None:
        self.array, self.layout, self.name = array, layout, name
        self.hashes = {} if hashes is None else hashes
        self.pieces = pieces
        whole = layout.shape[0] * layout.shape[1]
        self.span = (0, whole) if span is None else (min(span[0], whole), min(span[1], whole))
        self._parts: list[Array] = []

    def wants(self, first: int, stop: int) -> bool:
        """Say whether something of the positions [first, stop) is still to be written."""
        return any(True for _ in self._pending(first, stop))

    def add(self, slot: int, start: int, values: Array) -> bool:
        """Take samples of a slot, which follow those taken before; say whether a shard was written.

        Args:
            slot: their slot.
            start: index of the first.
            values: (n, ...); those that are written already are passed over.
        """
        first = slot * self.layout.shape[1] + start
        wrote = False
        for shard, (begin, end) in list(self._pending(first, first + len(values))):
            self._parts.append(values[max(begin, first) - first : end - first])
            if end <= first + len(values):
                held, self._parts = np.concatenate(self._parts), []
                if (begin, end) == shard:
                    self.write(begin, held)
                    wrote = True
                else:
                    with artifact.writing(self.piece(begin, end)) as part, part.open("wb") as file:
                        np.save(file, held, allow_pickle=False)
        return wrote

    def write(self, begin: int, values: Array) -> None:
        """Write the shard that begins at a position: `values` (n, ...)."""
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ParamsError(
                f"Feature '{self.name}' has values that {values.dtype} cannot hold. {self._cure()}"
            )
        values = np.ascontiguousarray(values)  # a copy only where the network's memory format is another
        slot, start = divmod(begin, self.layout.shape[1])
        rows = -(-len(values) // self.layout.shape[1])
        self.array.write(slot, start, values.reshape(rows, -1, *values.shape[1:]))
        self.hashes[begin] = hashlib.blake2b(values.data, digest_size=16).hexdigest()

    def join(self, spans: list[tuple[int, int]]) -> None:
        """Write the shards across the edges of `spans`, which cover the array, from their pieces."""
        for begin, end in self.shards(0, self.layout.shape[0] * self.layout.shape[1]):
            if begin not in self.hashes:
                cuts = [(max(begin, first), min(end, stop)) for first, stop in spans]
                pieces = [np.load(self.piece(*cut), allow_pickle=False) for cut in cuts if cut[0] < cut[1]]
                self.write(begin, np.concatenate(pieces))

    def digest(self) -> str:
        """Return the hash of the whole content."""
        hashes = [self.hashes[begin] for begin in sorted(self.hashes)]
        return artifact.content_hash([self.layout.shape, self.layout.dtype, self.layout.shard, hashes])

    def shards(self, first: int, stop: int) -> Iterator[tuple[int, int]]:
        """Give the shards that positions [first, stop) lie in: first position, and the one after the last."""
        slots, samples = self.layout.shape[:2]
        rows, width = self.layout.shard
        while first < stop:
            slot, start = divmod(first, samples)
            if width >= samples:
                slot = slot // rows * rows
                begin, end = slot * samples, min(slot + rows, slots) * samples
            else:
                start = start // width * width
                begin, end = slot * samples + start, slot * samples + min(start + width, samples)
            yield begin, end
            first = end

    def piece(self, begin: int, end: int) -> Path:
        """Return the file of positions [begin, end) of a shard that is not this range's alone."""
        assert self.pieces is not None
        return self.pieces.with_name(f"{self.pieces.name}.{begin}-{end}.npy")

    def _pending(self, first: int, stop: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        """Give the shards of [first, stop) that are to be written, each with its part in this range."""
        for begin, end in self.shards(max(first, self.span[0]), min(stop, self.span[1])):
            part = max(begin, self.span[0]), min(end, self.span[1])
            if begin not in self.hashes and (part == (begin, end) or not self.piece(*part).exists()):
                yield (begin, end), part

    def _cure(self) -> str:
        if self.layout.dtype == "float16":
            return f"Set extract.features.{self.name}.dtype to float32 in params.yaml, then: dvc repro"
        return (
            "The teacher has diverged: train it with a smaller learning_rate in params.yaml, then: dvc repro"
        )


@dataclass
class Extraction:
    """What to extract, and with what.

    Attributes:
        manifest: of the store to make; its digests are still empty.
        teachers: by checkpoint.
        splits: prepared data by split; augmented slots are made of "train" alone.
        space: the views of those slots.
        normalise: what the teacher's images go through.
        batch_size: samples of one forward pass.
        shard_bytes: size of a shard.
        compression: of the chunks.
        ranks: the processes that share the work.
    """

    manifest: Manifest
    teachers: Mapping[str, Teacher]
    splits: Mapping[str, Split]
    space: ViewSpace
    normalise: Normalise
    batch_size: int = 256
    shard_bytes: int = store.SHARD_BYTES
    compression: str = "none"
    ranks: Ranks = ALONE
    _views: dict[str, Forward] = field(default_factory=dict, init=False, repr=False)  # by split

    def num_forwards(self) -> int:
        """Return the number of samples that the teacher will see."""
        train = (1 + self._slots()) * len(self.splits["train"])
        rest = sum(len(split) for name, split in self.splits.items() if name != "train")
        return len(self.teachers) * (train + rest)

    def run(self, folder: Path, advance: Advance) -> Manifest:
        """Fill the store in `folder`, or what is missing of it, and return its whole manifest."""
        layouts = {split: self._layouts(split) for split in self.splits}
        if self.ranks.first:
            store.create(folder, dict.fromkeys(self.teachers, layouts), self.compression)
            self._write_views(folder)
        self.ranks.wait()
        log = Progress(folder, self.ranks)
        self.ranks.wait()  # all have read before one writes
        tally = Tally(self.ranks, advance, self.num_forwards())
        for checkpoint in self.teachers:
            for split in self.splits:
                self._fill(folder, log, checkpoint, split, layouts[split], tally)
        tally.wait()
        return self.ranks.agree(self._finish(folder, layouts) if self.ranks.first else self.manifest)

    def _fill(
        self,
        folder: Path,
        log: Progress,
        checkpoint: str,
        split: str,
        layouts: Mapping[str, Layout],
        advance: Advance,
    ) -> None:
        """Compute the batches of this rank."""
        slots = max(layout.shape[0] for layout in layouts.values())
        batches = self._batches(slots, len(self.splits[split]), self.ranks.rank)
        span = self._span(slots, len(self.splits[split]), self.ranks.rank)
        writers = self._writers(folder, log, checkpoint, split, layouts, span)
        data, teacher, total = self.splits[split], self.teachers[checkpoint], len(self.splits[split])
        for slot, start in batches:
            stop = min(start + self.batch_size, total)
            first, last = slot * total + start, slot * total + stop
            pending = {name for name, writer in writers.items() if writer.wants(first, last)}
            if pending:
                values = self._features(teacher, data, slot, start, stop, pending)
                wrote = [writers[name].add(slot, start, self._cast(name, values[name])) for name in pending]
                if any(wrote):
                    log.save({f"{checkpoint}/{split}/{name}": w for name, w in writers.items()})
            advance(stop - start)

    def _finish(self, folder: Path, layouts: Mapping[str, Mapping[str, Layout]]) -> Manifest:
        """Put the last shards together and write the manifest; the records of progress are dropped."""
        log = Progress(folder, self.ranks)
        features = dict(self.manifest.features)
        for checkpoint in self.teachers:
            for split, data in self.splits.items():
                slots = max(layout.shape[0] for layout in layouts[split].values())
                spans = [self._span(slots, len(data), rank) for rank in range(self.ranks.size)]
                for name, writer in self._writers(folder, log, checkpoint, split, layouts[split]).items():
                    writer.join(spans)
                    digests = features[name].digest | {f"{checkpoint}/{split}": writer.digest()}
                    features[name] = features[name].model_copy(update={"digest": digests})
        manifest = self.manifest.model_copy(update={"features": features})
        store.set_manifest(folder, manifest)
        artifact.remove(folder / PIECES)
        for path in log.files():
            path.unlink()
        return manifest

    def _batches(self, slots: int, total: int, rank: int) -> list[tuple[int, int]]:
        """Return slot and first sample of the batches of a rank: a run of all batches, in their order."""
        every = [(slot, start) for slot in range(slots) for start in range(0, total, self.batch_size)]
        return every[len(every) * rank // self.ranks.size : len(every) * (rank + 1) // self.ranks.size]

    def _span(self, slots: int, total: int, rank: int) -> tuple[int, int]:
        """Return the positions of the batches of a rank."""
        batches = self._batches(slots, total, rank)
        if not batches:
            return 0, 0
        (slot, start), (last, end) = batches[0], batches[-1]
        return slot * total + start, last * total + min(end + self.batch_size, total)

    def _writers(
        self,
        folder: Path,
        log: Progress,
        checkpoint: str,
        split: str,
        layouts: Mapping[str, Layout],
        span: tuple[int, int] | None = None,
    ) -> dict[str, ShardWriter]:
        writers = {}
        for name, layout in layouts.items():
            path = store.array_path(folder, checkpoint, split, name)
            pieces = folder / PIECES / f"{checkpoint}.{split}.{path.name}"
            hashes = log.of(f"{checkpoint}/{split}/{name}")
            writers[name] = ShardWriter(StoredArray(path), layout, name, hashes, span, pieces)
        return writers

    def _features(
        self, teacher: Teacher, data: Split, slot: int, start: int, stop: int, names: set[str]
    ) -> dict[str, Tensor]:
        device = teacher.machine.device
        if data.name not in self._views:
            self._views[data.name] = Forward(stream_images(data, self.space, device), len(data))
        view = self._views[data.name].take(slot, start, stop)
        label = torch.from_numpy(data.labels[start:stop]).to(device)
        return teacher.features(self.normalise(view), names, label)

    def _cast(self, name: str, values: Tensor) -> Array:
        with np.errstate(over="ignore"):  # an overflow is told when the shard is written
            return values.cpu().numpy().astype(self.manifest.features[name].dtype)

    def _layouts(self, split: str) -> dict[str, Layout]:
        found = {}
        for name, feature in self.manifest.features.items():
            slots = 1 + (feature.slots if split == "train" else 0)
            shape = (slots, len(self.splits[split]), *feature.shape)
            found[name] = Layout.plan(shape, feature.dtype, self.shard_bytes)
        return found

    def _write_views(self, folder: Path) -> None:
        """Write `view/train`, int32 (1 + slots, N): the view id that each slot shows of each sample."""
        index = torch.arange(len(self.splits["train"]))
        slots = range(1 + self._slots())
        layout = Layout.plan((len(slots), len(index)), "int32", self.shard_bytes)
        store.create(folder, {"view": {"": {"train": layout}}}, self.compression)
        array = StoredArray(store.array_path(folder, "view", "", "train"))
        writer = ShardWriter(array, layout, "view")
        for slot in slots:
            writer.add(slot, 0, view_ids(self.space, slot, index).numpy().astype(np.int32))

    def _slots(self) -> int:
        return max(feature.slots for feature in self.manifest.features.values())


def fill(scratch: Path, extraction: Extraction, identity: str, title: str) -> Manifest:
    """Fill a store in `scratch`; what a run that was cut off has left there is gone on from.

    Args:
        scratch: an existing folder.
        extraction: what to fill it with.
        identity: of everything that the store depends on; another one's remains are dropped.
        title: of the progress bar.
    """
    mark = scratch / "identity"
    if extraction.ranks.first:
        if not mark.exists() or mark.read_text() != identity:
            artifact.remove(scratch)
            scratch.mkdir()
            mark.write_text(identity)
        # What zarr and tensorstore were writing when a run was killed; the shards are written again.
        for left in [*scratch.rglob("*.partial"), *scratch.rglob("*.__lock")]:
            artifact.remove(left)
    with progress.bar(title, extraction.num_forwards()) as advance:
        manifest = extraction.run(scratch, advance)
    if extraction.ranks.first:
        mark.unlink()
    return manifest


class Progress:
    """What of a store is written: the hashes of its shards, by array and first position.

    Each rank keeps a file of its own and reads all of them, so a run may go on with another number of ranks.

    Args:
        folder: of the store.
        ranks: who writes.
    """

    def __init__(self, folder: Path, ranks: Ranks = ALONE) -> None:
        self.folder = folder
        self.path = folder / ("progress.json" if ranks.first else f"progress.{ranks.rank}.json")
        self._state: dict[str, dict[str, str]] = {}
        for path in self.files():
            for key, hashes in json.loads(path.read_text()).items():
                self._state.setdefault(key, {}).update(hashes)

    def files(self) -> list[Path]:
        """Return the files of all ranks."""
        return sorted(self.folder.glob("progress*.json"))

    def of(self, key: str) -> dict[int, str]:
        """Return the hashes of an array's shards by their first positions."""
        return {int(begin): found for begin, found in self._state.get(key, {}).items()}

    def save(self, writers: Mapping[str, ShardWriter]) -> None:
        """Record what `writers` have written."""
        for key, writer in writers.items():
            self._state[key] = {str(begin): found for begin, found in writer.hashes.items()}
        artifact.write_json(self.path, self._state)


def stored_features(
    requested: Mapping[str, tuple[int, str]], teacher: Teacher, channels: int, size: int
) -> dict[str, StoredFeature]:
    """Probe the shapes of features.

    Args:
        requested: number of augmented slots and dtype, by feature name.
        teacher: the teacher.
        channels: of its images.
        size: of its images.

    Raises:
        UnknownNameError: a tap or encoding that does not exist.
    """
    image = torch.zeros(1, channels, size, size, device=teacher.machine.device)
    label = torch.zeros(1, dtype=torch.int64, device=teacher.machine.device)
    probed = teacher.features(image, requested, label)
    found = {}
    for name, (slots, dtype) in requested.items():
        code = probed[name]
        own = dtype if code.is_floating_point() else str(code.dtype).removeprefix("torch.")
        found[name] = StoredFeature(slots=slots, dtype=own, shape=tuple(code.shape[1:]))
    return found

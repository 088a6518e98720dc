"""Extraction: run the teacher over every view slot once and fill the store, shard after shard.

Memory is one shard a feature and a few batches, whatever the number of samples. A thread fills and writes shards while
the teacher computes the next batches; on a GPU, views and casts are made there, and copies to the CPU run beside the
computation. An interrupted run resumes after the last whole shard, and the store comes out the same.

Several ranks divide the batches of each split: every rank writes the shards that lie in its range, for two writers
into one shard lose data. A shard across the edge of a range is put together at the end from the pieces that its
ranks leave beside the arrays. Batches are those of one process, so the store is, byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import progress
from pipeline.artifacts import publish
from pipeline.compute import batch_size
from pipeline.compute.distributed import ALONE, Ranks, Tally
from pipeline.data.normalize import Normalize
from pipeline.data.prepared import Split
from pipeline.data.ranges import Ranges, open_ranges
from pipeline.data.views import ViewSpace, view_ids
from pipeline.features import store, top
from pipeline.features.contents import StoredFeature, StoredTop
from pipeline.features.layout import SHARD_BYTES, Layout
from pipeline.features.manifest import Manifest
from pipeline.features.outbox import Outbox
from pipeline.features.shards import Later, Progress, ShardWriter, at_once, drop_damaged_pieces
from pipeline.features.store import StoredArray
from pipeline.features.teacher import Teacher
from pipeline.params.size import Size, area, sides
from pipeline.params.top import Top, check_kept
from pipeline.progress import Advance

Array = NDArray[Any]
ON_CPU, ON_GPU = 256, 1024  # samples of one forward pass
GPU_BATCH_BYTES = 64 << 20  # of what is stored of one: a few of them lie in page-locked memory
PIECES = "pieces"  # folder of the parts of shards that lie across the edges of ranks


@dataclass(frozen=True)
class _Part:
    """The arrays of one checkpoint and split.

    Attributes:
        checkpoint: the teacher's.
        split: the data's.
        samples: number of samples in the split.
        layouts: how each array is cut, by feature name.
    """

    checkpoint: str
    split: str
    samples: int
    layouts: Mapping[str, Layout]

    @property
    def slots(self) -> int:
        """Number of slots, with the plain one."""
        return max(layout.shape[0] for layout in self.layouts.values())

    def key(self, name: str = "") -> str:
        """Return how the part, or its array of a feature, is named in records."""
        return "/".join(filter(None, (self.checkpoint, self.split, name)))


@dataclass
class Extraction:
    """What to extract, and with what.

    Attributes:
        manifest: what the store to make says of itself; its digests are still empty.
        teachers: the teacher at each checkpoint.
        splits: prepared data by split; augmented slots are made of "train" alone.
        space: the views of those slots.
        normalize: what the teacher's images go through.
        batch_size: samples of one forward pass; None is what the device and the data call for.
        shard_bytes: size of a shard.
        compression: the chunks', "none" or "zstd".
        ranks: the processes that share the work.
    """

    manifest: Manifest
    teachers: Mapping[str, Teacher]
    splits: Mapping[str, Split]
    space: ViewSpace
    normalize: Normalize
    batch_size: int | None = None
    shard_bytes: int = SHARD_BYTES
    compression: str = "none"
    ranks: Ranks = ALONE
    _views: dict[str, tuple[Ranges, Tensor]] = field(default_factory=dict, init=False, repr=False)  # by split

    @property
    def device(self) -> torch.device:
        """Where the teachers run."""
        return next(iter(self.teachers.values())).machine.device

    @property
    def samples(self) -> int:
        """Samples of one forward pass."""
        if self.batch_size is not None:
            return self.batch_size
        network = self.manifest.network
        size = batch_size.bounded(self.device, network.channels * area(network.size), ON_CPU, ON_GPU)
        if self.device.type == "cpu":
            return size
        kept = self.manifest.features.values()
        stored = sum(int(np.prod(feature.shape)) * np.dtype(feature.dtype).itemsize for feature in kept)
        return max(1, min(size, GPU_BATCH_BYTES // stored))

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
        self.ranks.wait()  # for the first rank's empty arrays

        log = Progress(folder, self.ranks)
        self.ranks.wait()  # all have read before one writes
        self._keep(folder, log, layouts)

        tally = Tally(self.ranks, advance, self.num_forwards())
        for part in self._parts(layouts):
            self._fill(folder, log, part, tally)
        tally.wait()
        return self.ranks.agree(self._finish(folder, layouts) if self.ranks.first else self.manifest)

    def _parts(self, layouts: Mapping[str, Mapping[str, Layout]]) -> list[_Part]:
        return [
            _Part(checkpoint, split, len(data), layouts[split])
            for checkpoint in self.teachers
            for split, data in self.splits.items()
        ]

    def _keep(self, folder: Path, log: Progress, layouts: Mapping[str, Mapping[str, Layout]]) -> None:
        """Keep of what an interrupted run has written only what is whole."""
        opened = {
            part.key(name): StoredArray(store.array_path(folder, part.checkpoint, part.split, name))
            for part in self._parts(layouts)
            for name in part.layouts
        }
        damaged = log.verify(opened)
        if damaged:
            progress.say(
                f"{damaged} shards that the interrupted run has left are damaged; they are computed again."
            )

    def _fill(self, folder: Path, log: Progress, part: _Part, advance: Advance) -> None:
        """Compute the batches of this rank; all are written at the end."""
        recording = Lock()

        def write(slot: int, start: int, values: Mapping[str, Array]) -> None:
            for name, x in values.items():
                writers[name].add(slot, start, x)

        def record(work: Callable[[], None]) -> None:
            work()
            with recording:
                log.save({part.key(name): writer for name, writer in writers.items()})

        with Outbox(self.device, write) as outbox:
            span = self._span(part, self.ranks.rank)
            writers = self._writers(folder, log, part, span, lambda work: outbox.later(partial(record, work)))
            for slot, start in self._batches(part, self.ranks.rank):
                stop = min(start + self.samples, part.samples)
                first, last = slot * part.samples + start, slot * part.samples + stop
                # A batch whose shards are all written is passed over: so an interrupted run resumes.
                pending = {name for name, writer in writers.items() if writer.wants(first, last)}
                if pending:
                    outbox.put(slot, start, self._features(part, slot, start, stop, pending))
                advance(stop - start)

    def _finish(self, folder: Path, layouts: Mapping[str, Mapping[str, Layout]]) -> Manifest:
        """Put the last shards together and write the manifest; the records of progress are dropped."""
        log = Progress(folder, self.ranks)
        features = dict(self.manifest.features)
        for part in self._parts(layouts):
            spans = [self._span(part, rank) for rank in range(self.ranks.size)]
            for name, writer in self._writers(folder, log, part).items():
                writer.join(spans)
                store.set_shards(writer.array.path, writer.ordered())
                digests = features[name].digest | {part.key(): writer.digest()}
                features[name] = features[name].model_copy(update={"digest": digests})

        views = self._write_views(folder)
        manifest = self.manifest.model_copy(update={"features": features, "view_digest": views})
        store.set_manifest(folder, manifest)

        publish.remove(folder / PIECES)
        for path in log.files():
            path.unlink()
        return manifest

    def _batches(self, part: _Part, rank: int) -> list[tuple[int, int]]:
        """Return slot and first sample of the batches of a rank: a run of all batches, in their order."""
        starts = range(0, part.samples, self.samples)
        every = [(slot, start) for slot in range(part.slots) for start in starts]
        return every[len(every) * rank // self.ranks.size : len(every) * (rank + 1) // self.ranks.size]

    def _span(self, part: _Part, rank: int) -> tuple[int, int]:
        """Return the positions of the batches of a rank."""
        batches = self._batches(part, rank)
        if not batches:
            return 0, 0
        (slot, start), (last, end) = batches[0], batches[-1]
        stop = min(end + self.samples, part.samples)
        return slot * part.samples + start, last * part.samples + stop

    def _writers(
        self,
        folder: Path,
        log: Progress,
        part: _Part,
        span: tuple[int, int] | None = None,
        later: Later = at_once,
    ) -> dict[str, ShardWriter]:
        writers = {}
        for name, layout in part.layouts.items():
            path = store.array_path(folder, part.checkpoint, part.split, name)
            pieces = folder / PIECES / f"{part.checkpoint}.{part.split}.{path.name}"
            hashes = log.of(part.key(name))
            writers[name] = ShardWriter(StoredArray(path), layout, name, hashes, span, pieces, later)
        return writers

    def _features(self, part: _Part, slot: int, start: int, stop: int, names: set[str]) -> dict[str, Tensor]:
        teacher, data = self.teachers[part.checkpoint], self.splits[part.split]
        if data.name not in self._views:
            labels = torch.from_numpy(data.labels).to(self.device)
            self._views[data.name] = open_ranges(data, self.space, self.device), labels
        views, labels = self._views[data.name]

        image = self.normalize(views.take(slot, start, stop))
        features = teacher.features(image, names, labels[start:stop])
        return {name: self._cast(name, self._coded(name, values)) for name, values in features.items()}

    def _coded(self, name: str, values: Tensor) -> Tensor:
        """Return what the store keeps of a feature: the code of its largest logits, or all values."""
        kept = self.manifest.features[name].top
        return values if kept is None else top.encode(values, kept)

    def _cast(self, name: str, values: Tensor) -> Tensor:
        """Cast on a GPU, whose copy to the CPU is the shorter for it; a CPU's thread casts when it fills the shard."""
        if values.device.type == "cpu":
            return values
        # Contiguous, since a copy of other memory formats is none that runs beside the computation.
        return values.to(getattr(torch, self.manifest.features[name].dtype)).contiguous()

    def _layouts(self, split: str) -> dict[str, Layout]:
        layouts = {}
        for name, feature in self.manifest.features.items():
            slots = 1 + (feature.slots if split == "train" else 0)
            shape = (slots, len(self.splits[split]), *feature.shape)
            layouts[name] = Layout.plan(shape, feature.dtype, self.shard_bytes)
        return layouts

    def _write_views(self, folder: Path) -> str:
        """Write `view/train`, int32 (1 + slots, N): the view id that each slot shows of each sample.

        Returns:
            The hash of its content.
        """
        index = torch.arange(len(self.splits["train"]), device=self.device)
        slots = range(1 + self._slots())
        layout = Layout.plan((len(slots), len(index)), "int32", self.shard_bytes)
        store.create(folder, {"view": {"": {"train": layout}}}, self.compression)
        array = StoredArray(store.array_path(folder, "view", "", "train"))
        array.drop()
        writer = ShardWriter(array, layout, "view")
        for slot in slots:
            writer.add(slot, 0, view_ids(self.space, slot, index).cpu().numpy())
        store.set_shards(array.path, writer.ordered())
        return writer.digest()

    def _slots(self) -> int:
        return max(feature.slots for feature in self.manifest.features.values())


def fill(scratch: Path, extraction: Extraction, identity: str, title: str) -> Manifest:
    """Fill a store in `scratch`, from where an interrupted run of the same identity stopped.

    Args:
        scratch: an existing folder.
        extraction: what to fill it with.
        identity: hash of everything that the store depends on; what another identity left is dropped.
        title: the progress bar's.
    """
    mark = scratch / "identity"
    if extraction.ranks.first:
        if not mark.exists() or mark.read_bytes() != identity.encode():
            publish.remove(scratch)
            scratch.mkdir()
            mark.write_text(identity)
        # What zarr and tensorstore were writing when a run was killed; the shards are written again. All metadata are:
        # nobody knows whether a bit of them has changed since.
        for left in [path for kind in ("*.partial", "*.__lock", "zarr.json") for path in scratch.rglob(kind)]:
            publish.remove(left)
        drop_damaged_pieces(scratch / PIECES)

    with progress.bar(title, extraction.num_forwards()) as advance:
        manifest = extraction.run(scratch, advance)
    if extraction.ranks.first:
        mark.unlink()
    return manifest


def stored_features(
    requested: Mapping[str, tuple[int, str]],
    teacher: Teacher,
    channels: int,
    size: Size,
    largest: Mapping[str, Top | None] | None = None,
    where: str = "the teacher",
) -> dict[str, StoredFeature]:
    """Probe the shapes of features.

    Args:
        requested: number of augmented slots and dtype, by feature name.
        teacher: the teacher.
        channels: its images' channels.
        size: its images' height and width.
        largest: the largest logits that are kept, by feature name; of the others all values are.
        where: the teacher's place in params.yaml, for the error.

    Raises:
        UnknownNameError: a tap or encoding that does not exist.
        ParamsError: more of the largest logits are to be kept than there are others.
    """
    image = torch.zeros(1, channels, *sides(size), device=teacher.machine.device)
    label = torch.zeros(1, dtype=torch.int64, device=teacher.machine.device)
    probed = teacher.features(image, requested, label)

    features = {}
    for name, (slots, dtype) in requested.items():
        code, kept = probed[name], (largest or {}).get(name)
        stored_top = None
        if kept is not None:
            check_kept(kept.kept, code.shape[1], where)
            stored_top = StoredTop(kept=kept.kept, dtype=kept.dtype, classes=code.shape[1])
            code = top.encode(code, kept)
        # Integer codes keep their type: no other one holds them.
        own = dtype if code.is_floating_point() else str(code.dtype).removeprefix("torch.")
        features[name] = StoredFeature(slots=slots, dtype=own, shape=tuple(code.shape[1:]), top=stored_top)
    return features

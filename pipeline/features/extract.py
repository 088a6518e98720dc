"""Extraction: run the teacher over every view slot once and fill the store, shard after shard.

Memory is one shard a feature, whatever the number of samples. A run that is cut off goes on where the last
whole shard ended, and the store comes out the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import artifact
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


class ShardWriter:
    """Fills one array in (slot, sample) order and writes each shard when it is full.

    Args:
        array: the array, open for writing.
        layout: how it is cut.
        position: slot * N + sample from which on shards are still to be written.
        hashes: of the shards before that.
        name: the feature's name, for errors.
    """

    def __init__(
        self, array: StoredArray, layout: Layout, position: int, hashes: list[str], name: str
    ) -> None:
        self.array, self.layout, self.name = array, layout, name
        self.position, self.hashes = position, hashes
        self._parts: list[Array] = []
        self._held = 0

    def add(self, slot: int, start: int, values: Array) -> bool:
        """Take samples of a slot, which follow those taken before; say whether a shard was written.

        Args:
            slot: their slot.
            start: index of the first.
            values: (n, ...); those that are written already are passed over.
        """
        samples = self.layout.shape[1]
        first = slot * samples + start
        values = values[max(0, self.position + self._held - first) :]
        wrote = False
        while len(values):
            slot, start = divmod(self.position, samples)
            room = self._shard_samples(slot, start) - self._held
            self._parts.append(values[:room])
            self._held += len(self._parts[-1])
            values = values[room:]
            if self._held == self._shard_samples(slot, start):
                self._flush(slot, start)
                wrote = True
        return wrote

    def digest(self) -> str:
        """Return the hash of the whole content."""
        return artifact.content_hash([self.layout.shape, self.layout.dtype, self.layout.shard, self.hashes])

    def _shard_samples(self, slot: int, start: int) -> int:
        slots, samples = self.layout.shape[:2]
        if self.layout.shard[1] >= samples:
            return min(self.layout.shard[0], slots - slot) * samples
        return min(self.layout.shard[1], samples - start)

    def _cure(self) -> str:
        if self.layout.dtype == "float16":
            return f"Set extract.features.{self.name}.dtype to float32 in params.yaml, then: dvc repro"
        return (
            "The teacher has diverged: train it with a smaller learning_rate in params.yaml, then: dvc repro"
        )

    def _flush(self, slot: int, start: int) -> None:
        values = np.concatenate(self._parts)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ParamsError(
                f"Feature '{self.name}' has values that {values.dtype} cannot hold. {self._cure()}"
            )
        values = np.ascontiguousarray(values)  # a copy only where the network's memory format is another
        self.hashes.append(hashlib.blake2b(values.data, digest_size=16).hexdigest())
        rows = -(-len(values) // self.layout.shape[1])
        self.array.write(slot, start, values.reshape(rows, -1, *values.shape[1:]))
        self.position += len(values)
        self._parts, self._held = [], 0


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
    """

    manifest: Manifest
    teachers: Mapping[str, Teacher]
    splits: Mapping[str, Split]
    space: ViewSpace
    normalise: Normalise
    batch_size: int = 256
    shard_bytes: int = store.SHARD_BYTES
    compression: str = "none"
    _views: dict[str, Forward] = field(default_factory=dict, init=False, repr=False)  # by split

    def num_forwards(self) -> int:
        """Return the number of samples that the teacher will see."""
        train = (1 + self._slots()) * len(self.splits["train"])
        rest = sum(len(split) for name, split in self.splits.items() if name != "train")
        return len(self.teachers) * (train + rest)

    def run(self, folder: Path, advance: Advance) -> Manifest:
        """Fill the store in `folder`, or what is missing of it, and return its whole manifest."""
        layouts = {split: self._layouts(split) for split in self.splits}
        store.create(folder, dict.fromkeys(self.teachers, layouts), self.compression)
        self._write_views(folder)
        features = dict(self.manifest.features)
        for checkpoint in self.teachers:
            for split in self.splits:
                for name, digest in self._fill(folder, checkpoint, split, layouts[split], advance).items():
                    digests = features[name].digest | {f"{checkpoint}/{split}": digest}
                    features[name] = features[name].model_copy(update={"digest": digests})
        manifest = self.manifest.model_copy(update={"features": features})
        store.set_manifest(folder, manifest)
        (folder / "progress.json").unlink()
        return manifest

    def _fill(
        self, folder: Path, checkpoint: str, split: str, layouts: Mapping[str, Layout], advance: Advance
    ) -> dict[str, str]:
        log = Progress(folder / "progress.json")
        writers = {}
        for name, layout in layouts.items():
            array = StoredArray(store.array_path(folder, checkpoint, split, name))
            writers[name] = ShardWriter(array, layout, *log.of(f"{checkpoint}/{split}/{name}"), name)
        data, teacher, total = self.splits[split], self.teachers[checkpoint], len(self.splits[split])
        slots = max(layout.shape[0] for layout in layouts.values())
        for slot in range(slots):
            wanted = {name for name, layout in layouts.items() if slot < layout.shape[0]}
            for start in range(0, total, self.batch_size):
                stop = min(start + self.batch_size, total)
                pending = {name for name in wanted if writers[name].position < slot * total + stop}
                if pending:
                    values = self._features(teacher, data, slot, start, stop, pending)
                    wrote = [
                        writers[name].add(slot, start, self._cast(name, values[name])) for name in pending
                    ]
                    if any(wrote):
                        log.save({f"{checkpoint}/{split}/{name}": w for name, w in writers.items()})
                advance(stop - start)
        return {name: writer.digest() for name, writer in writers.items()}

    def _features(
        self, teacher: Teacher, data: Split, slot: int, start: int, stop: int, names: set[str]
    ) -> dict[str, Tensor]:
        if data.name not in self._views:
            images = stream_images(data, self.space, teacher.machine.device)
            self._views[data.name] = Forward(images, len(data))
        view = self._views[data.name].take(slot, start, stop)
        return teacher.features(self.normalise(view), names)

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
        writer = ShardWriter(array, layout, 0, [], "view")
        for slot in slots:
            writer.add(slot, 0, view_ids(self.space, slot, index).numpy().astype(np.int32))

    def _slots(self) -> int:
        return max(feature.slots for feature in self.manifest.features.values())


class Progress:
    """What of a store is written: the position and the shards' hashes, by array."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._state: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def of(self, key: str) -> tuple[int, list[str]]:
        """Return position and hashes of an array; an array that was not begun is at 0."""
        state = self._state.get(key, {"position": 0, "hashes": []})
        return state["position"], state["hashes"]

    def save(self, writers: Mapping[str, ShardWriter]) -> None:
        """Record how far `writers` are."""
        self._state |= {key: {"position": w.position, "hashes": w.hashes} for key, w in writers.items()}
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
    probed = teacher.features(image, requested)
    found = {}
    for name, (slots, dtype) in requested.items():
        code = probed[name]
        own = dtype if code.is_floating_point() else str(code.dtype).removeprefix("torch.")
        found[name] = StoredFeature(slots=slots, dtype=own, shape=tuple(code.shape[1:]))
    return found

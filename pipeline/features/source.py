"""Where the teacher's features of a training batch come from: the store, or the teacher itself.

Both give the same tensors for the same views. What is too large for the device is read while the batch before is
computed (`begin`); all else is a part of the step (`features`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from pipeline.compute.resident import shared
from pipeline.features import contents, top
from pipeline.features.store import StoredArray
from pipeline.features.teacher import Teacher
from pipeline.networks.network import Taps

RESIDENT_BYTES = 2 << 30
# As long as somebody reads them, by folder and by the hash of their content.
_ARRAYS: WeakValueDictionary[tuple[Path, str | None], StoredArray] = WeakValueDictionary()


class TeacherSource(Protocol):
    """Gives the teacher's features of training batches."""

    def begin(self, checkpoint: str, slot: int, index: Tensor) -> Callable[[], Taps]:
        """Start to read what does not lie on the device, and return the function that waits for it.

        Args:
            checkpoint: the teacher's, for instance "last".
            slot: the batch's view slot.
            index: sample indices int64 (B,), on the CPU.

        Returns:
            A function that returns features (B, ...) by name, as they are stored, on the machine's device.
        """
        ...

    def features(
        self, checkpoint: str, slot: Tensor, index: Tensor, image: Tensor, label: Tensor, read: Taps
    ) -> Taps:
        """Return features (B, ...) by name, floats as float32; a part of a step, so nothing leaves the device.

        Args:
            checkpoint: the teacher's.
            slot: the batch's view slot, int64 ().
            index: sample indices int64 (B,).
            image: normalized views (B, C, H, W).
            label: int64 (B,).
            read: what `begin` has read of this batch.
        """
        ...


class CachedSource:
    """Reads stores. Arrays that are small live on the device, the others are read batch by batch.

    Args:
        stores: where each feature lies that is read in training, by feature name; a code that a fitted table
            makes has a store of its own.
        checkpoints: the teacher's that are read.
        slots: number of augmented slots that training shows.
        device: where the features go.
        resident_bytes: largest size of an array that is kept on the device.
        hint: the command that makes the stores.

    Raises:
        ParamsError: the store lacks a feature, a checkpoint or slots; it names the line of params.yaml.
    """

    def __init__(
        self,
        stores: Mapping[str, Path],
        checkpoints: Iterable[str],
        slots: int,
        device: torch.device,
        resident_bytes: int = RESIDENT_BYTES,
        hint: str = "dvc repro",
    ) -> None:
        self.device, self.checkpoints, self.names = device, list(checkpoints), list(stores)
        known = {name: contents.read(path, hint) for name, path in stores.items()}
        # All checks first: a large array is not read for a run that cannot start.
        for name, path in stores.items():
            contents.check_stored(path, known[name], name, self.checkpoints, slots)

        self._largest = {name: known[name].features[name].top for name in stores}
        self._resident: dict[tuple[str, str], Tensor] = {}
        self._arrays: dict[tuple[str, str], StoredArray] = {}
        for checkpoint in self.checkpoints:
            for name, path in stores.items():
                array = _opened(path, checkpoint, name, hint)
                if array.nbytes <= resident_bytes:
                    digest = known[name].features[name].digest[f"{checkpoint}/train"]
                    # A digest is of bytes alone: dead maps of two shapes may have the same.
                    content = f"{digest} {array.dtype} {array.shape}"
                    self._resident[checkpoint, name] = shared(content, device, array.all)
                else:
                    self._arrays[checkpoint, name] = array

    def begin(self, checkpoint: str, slot: int, index: Tensor) -> Callable[[], Taps]:
        """Start reading; see `TeacherSource.begin`. A damaged chunk raises DamagedArtifactError."""
        rows = index.numpy()
        # Reads run beside the computation of the batch before; `finish` waits for them.
        reads = {
            name: (array, array.begin(slot, rows))
            for name in self.names
            if (array := self._arrays.get((checkpoint, name))) is not None
        }

        def finish() -> Taps:
            return {
                name: _moved(torch.from_numpy(array.finish(future)), self.device)
                for name, (array, future) in reads.items()
            }

        return finish

    def features(
        self, checkpoint: str, slot: Tensor, index: Tensor, image: Tensor, label: Tensor, read: Taps
    ) -> Taps:
        """Pick the rows of what lies on the device; see `TeacherSource.features`."""
        return {
            name: top.read(
                read[name] if name in read else _rows(self._resident[checkpoint, name], slot, index),
                self._largest[name],
            )
            for name in self.names
        }


def _opened(store: Path, checkpoint: str, name: str, hint: str) -> StoredArray:
    """Open an array of the training split; the students of a process share it, and what it has verified."""
    array = StoredArray.of(store, checkpoint, "train", name, hint)
    return _ARRAYS.setdefault((array.path, array.digest), array)


def _moved(x: Tensor, device: torch.device) -> Tensor:
    # From pinned memory, out of which a GPU copies by itself.
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x


def _rows(resident: Tensor, slot: Tensor, index: Tensor) -> Tensor:
    """Return samples `index` int64 (B,) of a slot; CUDA indexes no unsigned integers, so their bits are taken."""
    if resident.dtype == torch.uint16:
        return _rows(resident.view(torch.int16), slot, index).view(torch.uint16)
    # The slot is a value on the device, so it cannot be a slice's bound.
    return resident.flatten(0, 1).index_select(0, slot * resident.shape[1] + index)


class OnlineSource:
    """Runs the frozen teacher on the very views that the student sees.

    Args:
        teachers: by checkpoint.
        features: names of the features to compute.
    """

    def __init__(self, teachers: Mapping[str, Teacher], features: Iterable[str]) -> None:
        self.teachers = teachers
        self.names = list(features)

    def begin(self, checkpoint: str, slot: int, index: Tensor) -> Callable[[], Taps]:
        """Read nothing; see `TeacherSource.begin`."""
        return dict

    def features(
        self, checkpoint: str, slot: Tensor, index: Tensor, image: Tensor, label: Tensor, read: Taps
    ) -> Taps:
        """Run the teacher; see `TeacherSource.features`."""
        return self.teachers[checkpoint].features(image, self.names, label) if self.names else {}

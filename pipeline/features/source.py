"""Where the teacher's features of a training batch come from: the store, or the teacher itself.

Both give the same tensors for the same views. The training loop asks for the next batch before it computes the
current one (`begin`), and takes the features when it needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from pipeline.features import contents
from pipeline.features.store import StoredArray, array_path
from pipeline.features.teacher import Teacher, as_float32
from pipeline.networks.network import Taps

RESIDENT_BYTES = 2 << 30


class TeacherSource(Protocol):
    """Gives the teacher's features of training batches."""

    def begin(
        self, checkpoint: str, slot: int, index: Tensor, image: Tensor, label: Tensor
    ) -> Callable[[], Taps]:
        """Start on a batch and return the function that waits for its features.

        Args:
            checkpoint: the teacher's, for instance "last".
            slot: the batch's view slot.
            index: sample indices int64 (B,), on the CPU.
            image: normalized views (B, C, H, W).
            label: int64 (B,), on the machine's device.

        Returns:
            A function that returns features (B, ...) by name, floats as float32, on the machine's device.
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
        # All checks first: a large array is not read for a run that cannot start.
        for name, path in stores.items():
            contents.check_stored(path, contents.read(path, hint), name, self.checkpoints, slots)

        self._resident: dict[tuple[str, str], Tensor] = {}
        self._arrays: dict[tuple[str, str], StoredArray] = {}
        for checkpoint in self.checkpoints:
            for name, path in stores.items():
                array = StoredArray(array_path(path, checkpoint, "train", name))
                if array.nbytes <= resident_bytes:
                    self._resident[checkpoint, name] = torch.from_numpy(array.all()).to(device)
                else:
                    self._arrays[checkpoint, name] = array

    def begin(
        self, checkpoint: str, slot: int, index: Tensor, image: Tensor, label: Tensor
    ) -> Callable[[], Taps]:
        """Start reading; see `TeacherSource.begin`. A damaged chunk raises DamagedArtifactError."""
        rows = index.numpy()
        # Reads run beside the computation of the batch before; `finish` waits for them.
        reads = {
            name: (array, array.begin(slot, rows))
            for name in self.names
            if (array := self._arrays.get((checkpoint, name))) is not None
        }

        def finish() -> Taps:
            taps: Taps = {}
            for name in self.names:
                if name in reads:
                    array, future = reads[name]
                    x = torch.from_numpy(array.finish(future)).to(self.device, non_blocking=True)
                else:
                    resident = self._resident[checkpoint, name]
                    x = _rows(resident, slot, index.to(self.device, non_blocking=True))
                taps[name] = as_float32(x)
            return taps

        return finish


def _rows(resident: Tensor, slot: int, index: Tensor) -> Tensor:
    """Return samples `index` int64 (B,) of a slot; CUDA indexes no unsigned integers, so their bits are taken."""
    if resident.dtype == torch.uint16:
        return resident.view(torch.int16)[slot].index_select(0, index).view(torch.uint16)
    return resident[slot].index_select(0, index)


class OnlineSource:
    """Runs the frozen teacher on the very views that the student sees.

    Args:
        teachers: by checkpoint.
        features: names of the features to compute.
    """

    def __init__(self, teachers: Mapping[str, Teacher], features: Iterable[str]) -> None:
        self.teachers = teachers
        self.names = list(features)

    def begin(
        self, checkpoint: str, slot: int, index: Tensor, image: Tensor, label: Tensor
    ) -> Callable[[], Taps]:
        """Run the teacher when the features are taken; see `TeacherSource.begin`."""
        return lambda: self.teachers[checkpoint].features(image, self.names, label) if self.names else {}

"""The gate behind extraction: a sample of stored rows is computed again and compared.

It runs the teacher on views made from scratch, so it finds a store that is blind to augmentation, rows that
were shifted, and weights or normalisation that are not those of the manifest. What the channels of each
feature look like is gathered on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline import plugin, seeding
from pipeline.encoding import Feature
from pipeline.features.manifest import Manifest
from pipeline.features.store import StoredArray, array_path
from pipeline.features.teacher import Teacher
from pipeline.images import stream_images
from pipeline.normalise import Normalise
from pipeline.prepared import Split
from pipeline.views import ViewSpace

BLOCK_BYTES = 32 << 20


@dataclass(frozen=True)
class Difference:
    """The largest error of one array, relative: |stored - live| / (|live| + rms of live).

    Of integer codes it is the largest share of a sample's codes that differ.

    Attributes:
        array: "checkpoint/split/feature".
        slot: where it was found.
        sample: where it was found.
        error: its size.
        mean: mean error of all rows that were compared.
    """

    array: str
    slot: int
    sample: int
    error: float
    mean: float


def compare(
    path: Path,
    manifest: Manifest,
    teacher: Teacher,
    checkpoint: str,
    splits: dict[str, Split],
    space: ViewSpace,
    normalise: Normalise,
    *,
    rows: int,
) -> list[Difference]:
    """Recompute `rows` random (slot, sample) pairs of every split and return the largest error of each array.

    Args:
        path: the store.
        manifest: what it says of itself.
        teacher: the live teacher of `checkpoint`.
        checkpoint: whose arrays are compared.
        splits: prepared data.
        space: the views.
        normalise: what images go through.
        rows: pairs a split; features with other numbers of slots have pairs of their own.
    """
    found: list[Difference] = []
    for split, data in splits.items():
        worst: dict[str, Difference] = {}
        errors: dict[str, list[float]] = {}
        for slot, index, names in _draw(manifest, checkpoint, split, len(data), rows):
            live = _live(teacher, data, space, normalise, slot, index, names)
            for name, values in live.items():
                array = f"{checkpoint}/{split}/{name}"
                stored = StoredArray(array_path(path, checkpoint, split, name)).read(slot, index.numpy())
                if stored.dtype.kind == "f":
                    error = relative_error(torch.from_numpy(stored.astype(np.float32)), values.float())
                else:
                    error = _share_of_code(name)(torch.from_numpy(stored), values)
                errors.setdefault(array, []).extend(error.tolist())
                row = int(error.argmax())
                candidate = Difference(array, slot, int(index[row]), float(error[row]), 0.0)
                if array not in worst or candidate.error > worst[array].error:
                    worst[array] = candidate
        found += [replace(one, mean=sum(errors[array]) / len(errors[array])) for array, one in worst.items()]
    return found


def _draw(
    manifest: Manifest, checkpoint: str, split: str, total: int, rows: int
) -> Iterator[tuple[int, Tensor, set[str]]]:
    """Give slots, the sample indices int64 (n,) drawn for them, and the features to compare there."""
    slots_of = {name: f.slots if split == "train" else 0 for name, f in manifest.features.items()}
    for most in sorted(set(slots_of.values())):
        draw = seeding.generator("check", checkpoint, split, most)
        slots = torch.randint(0, most + 1, (rows,), generator=draw)
        samples = torch.randint(0, total, (rows,), generator=draw)
        names = {name for name, slots in slots_of.items() if slots == most}
        for slot in torch.unique(slots).tolist():
            yield slot, samples[slots == slot], names


def relative_error(stored: Tensor, live: Tensor) -> Tensor:
    """Return the largest error of each row, (B,): |stored - live| / (|live| + rms of live).

    Args:
        stored: (B, ...).
        live: (B, ...).
    """
    error = (stored - live).abs() / (live.abs() + live.square().mean().sqrt()).clamp(min=1e-12)
    return torch.nan_to_num(error.reshape(len(error), -1), nan=float("inf")).amax(dim=1)


def share_differing(stored: Tensor, live: Tensor) -> Tensor:
    """Return the share of integer codes of each row that differ, (B,).

    Args:
        stored: (B, ...).
        live: (B, ...).
    """
    return (stored.long() != live.long()).float().flatten(1).mean(dim=1)


def _share_of_code(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function that compares codes: the encoding's own, where equality is too much to ask."""
    encoding = plugin.load("encodings", Feature.parse(name).encodings[-1])
    own: Callable[[Tensor, Tensor], Tensor] = getattr(encoding, "differing", share_differing)
    return own


def summarise(path: Path, checkpoint: str, name: str) -> dict[str, Any]:
    """Return what the plain training samples of a float feature look like, streamed.

    Returns:
        `mean`, `std`, `min`, `max`, `zeros` (share of values that are 0), and `dead_channels`: those that have
        one value everywhere.
    """
    array = StoredArray(array_path(path, checkpoint, "train", name))
    sample_bytes = max(1, array.nbytes // (array.shape[0] * array.shape[1]))
    low = high = None
    total, square, zeros, count = 0.0, 0.0, 0, 0
    for _, block in array.blocks(0, max(1, BLOCK_BYTES // sample_bytes)):
        x = np.moveaxis(block, 1, -1) if block.ndim > 1 else block[:, None]
        x = x.reshape(-1, x.shape[-1]).astype(np.float64)  # (pixels, C)
        low = x.min(axis=0) if low is None else np.minimum(low, x.min(axis=0))
        high = x.max(axis=0) if high is None else np.maximum(high, x.max(axis=0))
        total, square = total + x.sum(), square + (x**2).sum()
        zeros, count = zeros + int((x == 0).sum()), count + x.size
    assert low is not None
    assert high is not None
    mean = total / count
    return {
        "mean": mean,
        "std": max(0.0, square / count - mean**2) ** 0.5,
        "min": float(low.min()),
        "max": float(high.max()),
        "zeros": zeros / count,
        "channels": len(low),
        "dead_channels": int((low == high).sum()),
    }


def _live(
    teacher: Teacher,
    data: Split,
    space: ViewSpace,
    normalise: Normalise,
    slot: int,
    index: Tensor,
    names: set[str],
) -> dict[str, Tensor]:
    device = teacher.machine.device
    view = stream_images(data, space, device).begin(slot, index)()
    label = torch.from_numpy(data.labels[index.numpy()]).to(device)
    return {name: x.cpu() for name, x in teacher.features(normalise(view), names, label).items()}

"""The gate behind extraction: a sample of stored rows is computed again and compared.

It runs the teacher on views made from scratch, so it finds a store that is blind to augmentation, rows that
were shifted, and weights or normalisation that are not those of the manifest. What the channels of each
feature look like is gathered on the way.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline import plugin, seeding
from pipeline.compute import precision as precisions
from pipeline.compute.machine import Machine
from pipeline.compute.precision import ROUNDOFF, Precision
from pipeline.data.images import stream_images
from pipeline.data.normalize import Normalize
from pipeline.data.prepared import Split
from pipeline.data.views import ViewSpace
from pipeline.features.encoding import Feature, Tables
from pipeline.features.manifest import Manifest
from pipeline.features.store import StoredArray, array_path
from pipeline.features.teacher import Teacher
from pipeline.networks.network import Network

Array = NDArray[Any]

BLOCK_BYTES = 32 << 20
SLACK = 3.0  # two roundings of one computation, and the largest of many
# Of the distance that TF32's rounding makes: float32's own is 2^-13 of it, and sums in another order, or Winograd's
# convolutions, lose a few more bits.
SHARE_OF_FLOAT32 = 32 * ROUNDOFF["float32"] / ROUNDOFF["tf32"]
STORAGE = 2.0  # of what rounding these values to the stored type costs
MOST_STORAGE = 1e-2  # values that the stored type holds worse than this are not held
TINY = 1e-12
SCALE = 3e-3  # of the norm of all values
CODES = 0.05  # share of all codes that may differ
CODES_OF_A_SAMPLE = 0.5  # share of one sample's codes; a map may have no more than four pixels


@dataclass(frozen=True)
class Difference:
    """How far a stored array is from the live teacher, by one measure.

    Attributes:
        array: "checkpoint/split/feature".
        measure: of floats "value", "sample", "channel" or "scale"; of integer codes "codes" or "codes of a sample".
        error: its size, as the measure has it.
        allowed: what rounding explains.
        slot: where it was found; None for measures over all rows.
        sample: where it was found.
    """

    array: str
    measure: str
    error: float
    allowed: float
    slot: int | None = None
    sample: int | None = None

    @property
    def share(self) -> float:
        """The error as a share of what is allowed: above 1 the store is refused."""
        return self.error / self.allowed

    def __str__(self) -> str:
        """Say where it is, how large, and what was expected."""
        where = "" if self.slot is None else f", slot {self.slot}, sample {self.sample}"
        return (
            f"{self.array}{where} differs from the live teacher by {self.error:.2e} ({self.measure}), expected at "
            f"most {self.allowed:.2e}"
        )


@dataclass(frozen=True)
class Live:
    """The teacher of a store, computed anew: exactly, and as roughly as the store's precision does.

    How far the two lie apart is what rounding costs this network on these images. No constant could say it: in
    bfloat16 a shallow network is off by 2 % where a deep one is off by 10 %.

    Attributes:
        exact: in IEEE float32.
        rough: in the store's precision; for one of float32, with factors rounded to TF32.
        precision: of the store.
        normalize: what images go through.
    """

    exact: Teacher
    rough: Teacher
    precision: Precision
    normalize: Normalize

    @classmethod
    def of(
        cls,
        network: Network,
        precision: Precision,
        device: torch.device,
        normalize: Normalize,
        tables: Tables | None = None,
    ) -> Self:
        """Return the teacher `network` as it is compared with a store of `precision`.

        Args:
            network: the teacher.
            precision: of the store.
            device: where it runs; a store that was made elsewhere is compared alike.
            normalize: what images go through.
            tables: arrays of the fitted tables that encodings read.
        """
        exact = Teacher(network, Machine(device), tables)
        if precision == "bfloat16":
            return cls(exact, Teacher(network, Machine(device, "bfloat16"), tables), precision, normalize)

        return cls(exact, Teacher(rounded(network), Machine(device), tables), precision, normalize)

    @property
    def share(self) -> float:
        """How much of the distance between rough and exact the store's precision is allowed."""
        return SHARE_OF_FLOAT32 if self.precision == "float32" else 1.0

    def features(self, image: Tensor, names: set[str], label: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Give name, exact and rough feature (B, ...) of uint8 images (B, C, H, W), on the CPU."""
        with precisions.using("float32"):
            exact, rough = (
                teacher.features(self.normalize(image), names, label) for teacher in (self.exact, self.rough)
            )
        for name in sorted(names):
            yield name, exact[name].cpu(), rough[name].cpu()


def rounded(network: Network) -> Network:
    """Return a copy whose convolutions and linear layers round their factors to TF32, on any device."""
    copied = copy.deepcopy(network)
    for module in copied.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data = tf32(module.weight.data)
            module.register_forward_pre_hook(lambda module, given: (tf32(given[0]), *given[1:]))
    return copied


def tf32(x: Tensor) -> Tensor:
    """Round float32 to the 10 bits of fraction of TF32, to even."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


def compare(
    path: Path,
    manifest: Manifest,
    live: Live,
    checkpoint: str,
    splits: dict[str, Split],
    space: ViewSpace,
    *,
    rows: int,
) -> list[Difference]:
    """Recompute `rows` random (slot, sample) pairs of every split and return how far each array is off.

    Args:
        path: the store.
        manifest: what it says of itself.
        live: the teacher of `checkpoint`.
        checkpoint: whose arrays are compared.
        splits: prepared data.
        space: the views.
        rows: pairs a split; features with other numbers of slots have pairs of their own.

    Returns:
        Every measure of every array.
    """
    found: list[Difference] = []
    device = live.exact.machine.device
    for split, data in splits.items():
        measured: dict[str, _Floats | _Codes] = {}
        for slot, index, names in _draw(manifest, checkpoint, split, len(data), rows):
            view = stream_images(data, space, device).begin(slot, index)()
            label = torch.from_numpy(data.labels[index.numpy()]).to(device)
            for name, exact, rough in live.features(view, names, label):
                stored = StoredArray(array_path(path, checkpoint, split, name)).read(slot, index.numpy())
                if name not in measured:
                    measured[name] = _measure(name, stored.dtype, live)
                measured[name].add(slot, index, stored, exact, rough)
        for name, one in measured.items():
            found += one.differences(f"{checkpoint}/{split}/{name}")
    return found


def worst(differences: Iterable[Difference]) -> Difference:
    """Return the difference that is the largest share of what is allowed."""
    return max(differences, key=lambda difference: difference.share)


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


def _measure(name: str, dtype: np.dtype[Any], live: Live) -> _Floats | _Codes:
    if dtype.kind == "f":
        return _Floats(live, dtype)
    encoding = plugin.load("encodings", Feature.parse(name).encodings[-1])
    return _Codes(live, getattr(encoding, "differing", share_differing))


@dataclass
class _Rows:
    """The largest error of single rows, and the largest costs of rounding: of the computation, and of the storage."""

    error: float = -1.0
    noise: float = 0.0
    storage: float = 0.0
    slot: int = 0
    sample: int = 0

    def add(
        self, slot: int, index: Tensor, error: Tensor, noise: Tensor, storage: Tensor | None = None
    ) -> None:
        """Add errors (B,) and costs (B,)."""
        row = int(error.argmax())
        if float(error[row]) > self.error:
            self.error, self.slot, self.sample = float(error[row]), slot, int(index[row])
        self.noise = max(self.noise, float(noise.max()))
        if storage is not None:
            self.storage = max(self.storage, float(storage.max()))

    def difference(self, array: str, measure: str, share: float, floor: float = 0.0) -> Difference:
        """Return it as a difference."""
        allowed = SLACK * share * self.noise + _stored(self.storage) + floor + TINY
        return Difference(array, measure, self.error, allowed, self.slot, self.sample)


class _Floats:
    """Measures of a feature of floats.

    Args:
        live: the teacher.
        dtype: that the store holds.
    """

    def __init__(self, live: Live, dtype: np.dtype[Any]) -> None:
        self.live, self.dtype = live, dtype
        self.values, self.samples = _Rows(), _Rows()
        self.sums: Tensor | None = (
            None  # of squares by channel: stored, reference, exact, error, noise, storage
        )
        self.count = 0

    def add(self, slot: int, index: Tensor, stored: Array, exact: Tensor, rough: Tensor) -> None:
        """Add rows (B, ...) of a slot."""
        kept, exact, rough = torch.from_numpy(stored.astype(np.float64)), exact.double(), rough.double()
        reference = exact if self.live.precision == "float32" else rough
        cast = torch.from_numpy(reference.numpy().astype(self.dtype).astype(np.float64))
        for rows, measure in ((self.values, relative_error), (self.samples, relative_distance)):
            rows.add(slot, index, measure(kept, reference), measure(rough, exact), measure(cast, reference))

        parts = (kept, reference, exact, kept - reference, rough - exact, cast - reference)
        squares = torch.stack([_by_channel(x) for x in parts])
        self.sums = squares if self.sums is None else self.sums + squares
        self.count += len(index)

    def differences(self, array: str) -> list[Difference]:
        """Return all measures."""
        assert self.sums is not None
        share = self.live.share
        return [
            self.values.difference(array, "value", share),
            self.samples.difference(array, "sample", share),
            self._channels(array),
            self._scale(array),
        ]

    def _channels(self, array: str) -> Difference:
        """Return the largest relative distance of a channel; a weak one counts as a tenth of the usual."""
        assert self.sums is not None
        _, _, exact, error, noise, storage = self.sums.sqrt()
        size = (exact + 0.1 * exact.square().mean().sqrt()).clamp(min=TINY)
        allowed = SLACK * self.live.share * float((noise / size).max()) + TINY
        allowed += _stored(float((storage / size).max()))
        return Difference(array, "channel", _finite(float((error / size).max())), allowed)

    def _scale(self, array: str) -> Difference:
        """Return how far the norm of all values is off; independent rounding all but cancels in it."""
        assert self.sums is not None
        stored, reference, exact, _, noise, _ = self.sums.sum(dim=1).sqrt().tolist()
        relative = noise / max(exact, TINY) * self.live.share
        allowed = SCALE + SLACK * relative / (self.count * self.sums.shape[1]) ** 0.5
        return Difference(array, "scale", _finite(abs(stored - reference) / max(reference, TINY)), allowed)


class _Codes:
    """Measures of a feature of integer codes: a pixel between two words may fall either way.

    Args:
        live: the teacher.
        differing: gives the share of each sample's codes (B,) that differ.
    """

    def __init__(self, live: Live, differing: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.live, self.differing = live, differing
        self.rows = _Rows()
        self.errors: list[Tensor] = []
        self.noises: list[Tensor] = []

    def add(self, slot: int, index: Tensor, stored: Array, exact: Tensor, rough: Tensor) -> None:
        """Add rows (B, ...) of a slot."""
        reference = exact if self.live.precision == "float32" else rough
        error, noise = self.differing(torch.from_numpy(stored), reference), self.differing(rough, exact)
        self.rows.add(slot, index, error, noise)
        self.errors.append(error)
        self.noises.append(noise)

    def differences(self, array: str) -> list[Difference]:
        """Return all measures."""
        share = self.live.share
        error, noise = (float(torch.cat(parts).mean()) for parts in (self.errors, self.noises))
        return [
            Difference(array, "codes", error, CODES + SLACK * share * noise),
            self.rows.difference(array, "codes of a sample", share, CODES_OF_A_SAMPLE),
        ]


def relative_error(stored: Tensor, live: Tensor) -> Tensor:
    """Return the largest error of each row, (B,): |stored - live| / (|live| + rms of live).

    Args:
        stored: (B, ...).
        live: (B, ...).
    """
    error = (stored - live).abs() / (live.abs() + live.square().mean().sqrt()).clamp(min=TINY)
    return torch.nan_to_num(error.reshape(len(error), -1), nan=float("inf")).amax(dim=1)


def relative_distance(stored: Tensor, live: Tensor) -> Tensor:
    """Return the relative distance of each row, (B,): rms of stored - live, over the mean of both rms of live.

    Args:
        stored: (B, ...).
        live: (B, ...); its rms is that of the row, and that of all rows.
    """
    off, size = (x.flatten(1).square().mean(dim=1).sqrt() for x in (stored - live, live))
    relative = 2 * off / (size + live.square().mean().sqrt()).clamp(min=TINY)
    return torch.nan_to_num(relative, nan=float("inf"))


def share_differing(stored: Tensor, live: Tensor) -> Tensor:
    """Return the share of integer codes of each row that differ, (B,).

    Args:
        stored: (B, ...).
        live: (B, ...).
    """
    return (stored.long() != live.long()).float().flatten(1).mean(dim=1)


def _by_channel(x: Tensor) -> Tensor:
    """Return the sums of squares of every channel of (B, C, ...), (C,); of (B,) as of one channel."""
    rows = x.reshape(len(x), x.shape[1] if x.ndim > 1 else 1, -1)
    return rows.square().sum(dim=(0, 2))


def _stored(cost: float) -> float:
    """Return what the stored type explains of an error, from the cost of rounding to it."""
    return min(STORAGE * cost, MOST_STORAGE)


def _finite(x: float) -> float:
    return x if math.isfinite(x) else math.inf


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

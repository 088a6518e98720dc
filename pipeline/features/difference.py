"""How far stored features are from live ones, and how much of it rounding explains.

What rounding costs is measured where it happens: on the very network and values that are compared. `reference` is the
teacher in the store's precision, `exact` in float32 and `rough` in TF32 or bfloat16; the distance of the last two is
what one rounding of the computation costs, and the distance of the reference to itself in the stored type what the
storage costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.compute.precision import ROUNDOFF, Precision

Array = NDArray[Any]

SLACK = 3.0  # two roundings of one computation, and the largest of many
# Of the distance that TF32's rounding makes: float32's own is 2^-13 of it, and sums in another order, or Winograd's
# convolutions, lose a few more bits.
SHARE_OF_FLOAT32 = 32 * ROUNDOFF["float32"] / ROUNDOFF["tf32"]
STORAGE = 2.0  # of what rounding these values to the stored type costs
MOST_STORAGE = 1e-2  # of a value; a type that rounds more than this is too small for the feature
TINY = 1e-12
SCALE = 3e-3  # of the norm of all values
CODES = 0.05  # share of all codes that may differ
CODES_OF_A_SAMPLE = 0.5  # share of one sample's codes; a map may have no more than four pixels


@dataclass(frozen=True)
class Difference:
    """How far a stored array is from the live teacher, by one measure.

    Attributes:
        array: its name, "checkpoint/split/feature".
        measure: of floats "value", "sample", "channel" or "scale"; of integer codes "codes" or "codes of a sample".
        error: its size, as the measure has it.
        allowed: how much rounding explains.
        slot: where it lies; None for measures over all rows.
        sample: where it lies.
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


def worst(differences: Iterable[Difference]) -> Difference:
    """Return the difference that is the largest share of what is allowed."""
    return max(differences, key=lambda difference: difference.share)


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


class Floats:
    """Measures of a feature of floats.

    Args:
        precision: the store's.
        dtype: the stored type.
    """

    def __init__(self, precision: Precision, dtype: np.dtype[Any]) -> None:
        self.precision, self.dtype = precision, dtype
        self.values, self.samples = _Rows(), _Rows()
        # Of squares by channel, (6, C): stored, reference, exact, error, noise, storage.
        self.sums: Tensor | None = None
        self.count = 0

    def add(self, slot: int, index: Tensor, stored: Array, exact: Tensor, rough: Tensor) -> None:
        """Add rows (B, ...) of a slot."""
        kept, exact, rough = torch.from_numpy(stored.astype(np.float64)), exact.double(), rough.double()
        reference = exact if self.precision == "float32" else rough
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
        share = _share(self.precision)
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
        allowed = SLACK * _share(self.precision) * float((noise / size).max()) + TINY
        allowed += _stored(float((storage / size).max()))
        return Difference(array, "channel", _finite(float((error / size).max())), allowed)

    def _scale(self, array: str) -> Difference:
        """Return how far the norm of all values is off; independent rounding all but cancels in it."""
        assert self.sums is not None
        stored, reference, exact, _, noise, _ = self.sums.sum(dim=1).sqrt().tolist()
        relative = noise / max(exact, TINY) * _share(self.precision)
        allowed = SCALE + SLACK * relative / (self.count * self.sums.shape[1]) ** 0.5
        return Difference(array, "scale", _finite(abs(stored - reference) / max(reference, TINY)), allowed)


class Codes:
    """Measures of a feature of integer codes: a pixel between two words may fall either way.

    Args:
        precision: the store's.
        differing: gives the share of each sample's codes (B,) that differ.
    """

    def __init__(self, precision: Precision, differing: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.precision, self.differing = precision, differing
        self.rows = _Rows()
        self.errors: list[Tensor] = []
        self.noises: list[Tensor] = []

    def add(self, slot: int, index: Tensor, stored: Array, exact: Tensor, rough: Tensor) -> None:
        """Add rows (B, ...) of a slot."""
        reference = exact if self.precision == "float32" else rough
        error, noise = self.differing(torch.from_numpy(stored), reference), self.differing(rough, exact)
        self.rows.add(slot, index, error, noise)
        self.errors.append(error)
        self.noises.append(noise)

    def differences(self, array: str) -> list[Difference]:
        """Return all measures."""
        share = _share(self.precision)
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


def _share(precision: Precision) -> float:
    """Return how much of the distance between rough and exact a precision is allowed."""
    return SHARE_OF_FLOAT32 if precision == "float32" else 1.0

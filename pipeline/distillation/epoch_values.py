"""What an epoch shows beside its terms: values of every sample, gathered while it is trained."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.distillation.method import Batch

QUANTILES = (5, 25, 50, 75, 95)  # in percent; columns of the history end in them


class Gathered:
    """Values by name of the samples of one epoch. They stay on their device, so that no step waits for it."""

    def __init__(self) -> None:
        self._epoch: tuple[str, int] | None = None
        self._values: dict[str, list[Tensor]] = {}

    def add(self, batch: Batch, values: dict[str, Tensor]) -> None:
        """Add values (B,) by name; those of another epoch are dropped first."""
        if self._epoch != (batch.phase, batch.epoch):
            self._epoch, self._values = (batch.phase, batch.epoch), {}
        for name, value in values.items():
            self._values.setdefault(name, []).append(value.detach().float())

    def means(self) -> dict[str, float]:
        """Return the mean of every name over the epoch."""
        return {name: x.double().mean().item() for name, x in self._all().items()}

    def quantiles(self) -> dict[str, float]:
        """Return the quantiles of every name over the epoch, as "<name>.<percent>"."""
        at = torch.tensor(QUANTILES, dtype=torch.float64) / 100
        return {
            f"{name}.{percent}": value
            for name, x in self._all().items()
            for percent, value in zip(QUANTILES, torch.quantile(x.double(), at).tolist(), strict=True)
        }

    def _all(self) -> dict[str, Tensor]:
        return {name: torch.cat(parts).cpu() for name, parts in self._values.items()}

"""What an epoch shows beside its terms: values of every sample, gathered while it is trained."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.distillation.method import Batch

QUANTILES = (5, 25, 50, 75, 95)  # in percent; columns of the history end in them


class Gathered:
    """Values by name of the samples of one epoch. They stay on their device, so that no step waits for it.

    Args:
        samples: number of training samples; each has a place. One that is seen again in an epoch, as balanced
            sampling has it, counts once.
    """

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self._values: dict[str, Tensor] = {}

    def reset(self) -> None:
        """Drop what was gathered: an epoch begins."""
        for values in self._values.values():
            values.fill_(torch.nan)

    def add(self, batch: Batch, values: dict[str, Tensor]) -> None:
        """Add values (B,) by name."""
        for name, value in values.items():
            if name not in self._values:
                self._values[name] = torch.full(
                    (self.samples,), torch.nan, dtype=torch.float32, device=value.device
                )
            # At the samples' places, which need no count of the steps.
            self._values[name].index_copy_(0, batch.index, value.detach().to(torch.float32))

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
        # Places of samples that this epoch left out are empty.
        seen = ((name, x[~x.isnan()].cpu()) for name, x in self._values.items())
        return {name: x for name, x in seen if len(x)}

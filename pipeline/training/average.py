"""An exponential moving average of a network's weights, which is evaluated and kept in their place.

After every step a = d a + (1 - d) w, from the first weights on, over weights and running statistics alike. Counts, as
batch norms have them, are those of the network.
"""

from __future__ import annotations

import copy
from functools import cached_property

import torch
from torch import Tensor, nn


class Average:
    """The average of a network that is trained.

    Args:
        trained: the network; where it is placed later, the average has to be placed too.
        decay: d.

    Attributes:
        network: a network with the averaged weights.
    """

    def __init__(self, trained: nn.Module, decay: float) -> None:
        self.trained, self.decay = trained, decay
        self.network = copy.deepcopy(trained).requires_grad_(False)

    @torch.no_grad()
    def update(self) -> None:
        """Follow a step; no value is read, so that it can be captured."""
        average, weights, counts = self._tensors
        torch._foreach_lerp_(average, weights, 1 - self.decay)
        for count, now in counts:
            count.copy_(now)

    @cached_property
    def _tensors(self) -> tuple[list[Tensor], list[Tensor], list[tuple[Tensor, Tensor]]]:
        """The averaged tensors, those that they follow, and pairs of what is no average; from the first step on."""
        both = zip(self.network.state_dict().values(), self.trained.state_dict().values(), strict=True)
        # A module that stands in several places is there under each of its names.
        pairs = list(
            {average.data_ptr(): (average, weight) for average, weight in both if average.numel()}.values()
        )
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        counts = [pair for pair in pairs if not pair[0].is_floating_point()]
        return [a for a, _ in floating], [w for _, w in floating], counts

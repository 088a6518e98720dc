"""Two views of each sample at a time, a weak and a strong one: spaces of their own, whose slots take turns.

Slots 1 and 2 are the first pair, 3 and 4 the second, and so on: odd ones are weak, even ones strong, and slot 0 is
plain, as always. So a store holds both views of what a training shows, an epoch is a pair of neighboring slots, and who
goes through all slots (extraction, its check, encoding) needs to know nothing of pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pipeline.data.images import Images
    from pipeline.data.ranges import Ranges
    from pipeline.data.views import ViewSpace


def own_slot(slot: int) -> int:
    """Return the number of a slot's pair, from 1 on, which is its slot in the space of its kind; 0 stays plain."""
    return (slot + 1) // 2


class TwoViewsSpace:
    """A weak and a strong space as one. View id = 2 times that of its own space, plus 1 where it is strong.

    Args:
        weak: the odd slots'.
        strong: the even slots'.
    """

    def __init__(self, weak: ViewSpace, strong: ViewSpace) -> None:
        self.weak, self.strong = weak, strong
        # As many pairs as the larger space has views: the other one begins again.
        self.count: int | None = None
        if weak.count is not None and strong.count is not None:
            self.count = 2 * max(weak.count, strong.count)

    def part(self, slot: int) -> tuple[ViewSpace, int]:
        """Return the space whose view a slot above 0 shows, and its slot there."""
        return (self.weak if slot % 2 else self.strong), own_slot(slot)

    def ids(self, slot: int, own: Tensor) -> Tensor:
        """Return the ids of a slot's views by those of its own space, int64 (B,)."""
        return 2 * own + (1 - slot % 2)

    def apply(self, image: Tensor, view: Tensor, index: Tensor) -> Tensor:
        """Return views of either kind; see `ViewSpace.apply`. Who knows the slot saves half by asking its space."""
        own = view // 2
        weak, strong = (space.apply(image, own, index) for space in (self.weak, self.strong))
        return torch.where((view % 2 == 1)[:, None, None, None], strong, weak)


class TwoViewsImages:
    """Images of each kind by the slot; see `pipeline.data.images.Images`.

    Args:
        weak: in the slots of its own space.
        strong: likewise.
    """

    def __init__(self, weak: Images, strong: Images) -> None:
        self.weak, self.strong = weak, strong
        self.ahead = weak.ahead

    def begin(self, slot: int, index: Tensor) -> Callable[[], Tensor]:
        """Start on a batch; see `Images.begin`."""
        return (self.weak if slot % 2 else self.strong).begin(own_slot(slot), index)


class TwoViewsRanges:
    """Ranges of each kind by the slot; see `pipeline.data.ranges.Ranges`.

    Args:
        weak: in the slots of its own space.
        strong: likewise.
    """

    def __init__(self, weak: Ranges, strong: Ranges) -> None:
        self.weak, self.strong = weak, strong

    def take(self, slot: int, start: int, stop: int) -> Tensor:
        """Return the views of a range; see `Ranges.take`."""
        return (self.weak if slot % 2 else self.strong).take(own_slot(slot), start, stop)

"""The largest logits of a view as a setting: how many of them a store keeps, and in which type.

In a module of its own, since a store, a run that learns online and the section `teachers` all speak of it.
"""

from __future__ import annotations

from typing import Literal

from pipeline.errors import ParamsError
from pipeline.params.base import Block


class Top(Block):
    """The largest logits that are kept of a view; the rest of its probability is spread evenly.

    Attributes:
        kept: number of logits.
        dtype: type that they are kept in.
    """

    kept: int
    dtype: Literal["float16", "float32"] = "float16"

    @property
    def width(self) -> int:
        """Numbers of 16 bits that a view takes: the ids of its classes, their logits, and that of the rest."""
        return self.kept + (self.kept + 1) * (1 if self.dtype == "float16" else 2)


def check_kept(kept: int, classes: int, where: str) -> None:
    """Refuse to keep the largest logits where there are no others.

    Args:
        kept: number of logits that are kept.
        classes: number of all.
        where: the teacher's place in params.yaml, "teachers.<name>".

    Raises:
        ParamsError: all would be kept.
    """
    if kept >= classes:
        raise ParamsError(
            f"params.yaml: {where}.features.logits.top is {kept}, and the data have {classes} classes. Lower it, or "
            "drop it to keep all logits."
        )

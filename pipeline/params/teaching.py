"""Who teaches: what a teacher is called among its assistants, and how many are dropped at a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

TEACHER = "teacher"
# How many of them, or the probability of each.
Drop = Annotated[int, Field(ge=0, le=64)] | Annotated[float, Field(gt=0, lt=1)]


def check_drop(drop: float, names: Sequence[str]) -> None:
    """Refuse to drop all that teach.

    Raises:
        ValueError: none would be left.
    """
    if drop >= len(names):
        raise ValueError(
            f"drop is {drop}, and {len(names)} teach: expected a lower number, so that one is left"
        )

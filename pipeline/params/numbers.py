"""Kinds of numbers in params.yaml, with bounds that no experiment needs to leave.

A number beyond them is a slip, and would only be found out by a full memory, a training without end, or a loss that
is zero or infinite.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Annotated, TypeVar

from pydantic import AfterValidator, Field

Seed = Annotated[int, Field(ge=0, lt=2**32)]  # those that NumPy and scikit-learn take
Epochs = Annotated[int, Field(ge=0, le=100_000)]
Steps = Annotated[int, Field(ge=1, le=10_000_000)]
# Of softmaxes at a temperature: beyond, one is a maximum and the other uniform.
Temperature = Annotated[float, Field(ge=0.01, le=1000)]
# What multiplies distances or activations, whose own size may be anything.
Factor = Annotated[float, Field(ge=1e-6, le=1e6)]
# Of a term of a loss: below 0 it would be driven up.
Weight = Annotated[float, Field(ge=0, le=1e9)]
Width = Annotated[
    int, Field(ge=1, le=65_536)
]  # words, directions: what makes a dimension of a table or a layer

T = TypeVar("T", bound=Hashable)


def once(values: tuple[T, ...]) -> tuple[T, ...]:
    """Return a list that names each of its values once.

    Raises:
        ValueError: one is there twice.
    """
    if twice := repeated(values):
        raise ValueError(f"It has {twice[0]!r} twice: name each once")
    return values


def repeated(values: Iterable[T]) -> list[T]:
    """Return the values that are there already when they come, in their order."""
    seen: set[T] = set()
    again = []
    for value in values:
        if value in seen:
            again.append(value)
        seen.add(value)
    return again


def effective(weights: dict[str, float]) -> dict[str, float]:
    """Return weights of which one at least is above 0.

    Raises:
        ValueError: all are 0, so there is nothing to learn.
    """
    if weights and not any(weights.values()):
        raise ValueError("All weights are 0, so nothing is learned: expected one above 0")
    return weights


Once = AfterValidator(once)
Effective = AfterValidator(effective)
Names = Annotated[tuple[str, ...], Once]

"""How large images are: one number for square ones, [height, width] for others."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator


def _read(content: Any) -> int | tuple[int, int]:
    """Return a size as it is written in params.yaml or a json, in its one form."""
    values = list(content) if isinstance(content, (list, tuple)) else [content, content]
    if len(values) != 2 or not all(type(x) is int and x >= 1 for x in values):
        raise ValueError("Expected a number of pixels, 1 or more, or two of them as [height, width]")
    return reduced((values[0], values[1]))


def reduced(size: int | tuple[int, int]) -> int | tuple[int, int]:
    """Return a size in its one form: a square one is a number."""
    return size[0] if isinstance(size, tuple) and size[0] == size[1] else size


# In pixels. A square size is written as it was before there were others, so what is made of it keeps its hash.
Size = Annotated[
    int | tuple[int, int], PlainValidator(_read), PlainSerializer(lambda size: size, return_type=Any)
]


def sides(size: Size) -> tuple[int, int]:
    """Return height and width."""
    return size if isinstance(size, tuple) else (size, size)


def area(size: Size) -> int:
    """Return the number of pixels."""
    height, width = sides(size)
    return height * width


def shown(size: Size) -> str:
    """Return a size in words: height x width."""
    return "x".join(map(str, sides(size)))

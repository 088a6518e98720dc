"""What a training was made with, as flat names and values: the form in which trackers compare runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# Of an inputs.json; the rest are hashes and paths.
KEYS = (
    "dataset",
    "student",
    "teacher",
    "pair",
    "run",
    "seed",
    "network",
    "recipe",
    "views",
    "methods",
    "transform",
    "schedule",
    "source",
    "slots",
)


def flat(settings: dict[str, Any]) -> dict[str, str]:
    """Return settings by dotted names, as text.

    Args:
        settings: an inputs.json; empty for a training that has none.
    """
    return dict(_pairs({key: settings[key] for key in KEYS if key in settings}, ""))


def _pairs(value: Any, name: str) -> Iterator[tuple[str, str]]:
    match value:
        case dict():
            for key, part in value.items():
                yield from _pairs(part, f"{name}.{key}" if name else str(key))
        case list() if any(isinstance(part, dict) for part in value):
            for part in value:  # methods: a mapping of one name each; parts of views say their own
                own = part.get("space") if isinstance(part, dict) else None
                yield from _pairs(part, f"{name}.{own}" if own else name)
        case None:
            pass
        case _:
            yield name, str(value)

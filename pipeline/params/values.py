"""What any value of params.yaml may be, whichever setting it is for.

A number that float32 makes zero or infinity would switch something off, and text that does not look like what it is
names nothing, or something else. Both are refused where they stand, before a model or a plug-in sees them.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from typing import Any

from pipeline.errors import ParamsError
from pipeline.params.events import DEPTH

_SMALLEST, _LARGEST = 2.0**-126, 2.0**127  # beyond, float32 loses digits, and then all of them
_INTEGERS = 1 << 63
_LETTERS = 1000  # of one text
_PLACE = 160  # letters of a place in an error
# Nothing that a reader sees: a blank of no width, a byte order mark, and marks that turn the order of letters round.
_UNSEEN = "\u200b\ufeff\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def check(content: Any, place: str = "", depth: int = 0) -> None:
    """Check every key and value.

    Args:
        content: what the yaml holds, or a part of it.
        place: where that stands, for instance "runs.kd".
        depth: how deep.

    Raises:
        ParamsError: the first value that no setting could have.
    """
    if len(place) > _PLACE:
        place = f"{place[:_PLACE]}..."
    if depth > DEPTH:
        raise ParamsError(f"params.yaml: '{place}' nests lists and mappings deeper than {DEPTH}.")
    match content:
        case bool() | None:
            pass
        case Mapping():
            for key, part in content.items():
                _check_text(str(key), f"{place}.{str(key)[:_PLACE]}".removeprefix("."))
                check(part, f"{place}.{key}".removeprefix("."), depth + 1)
        case list() | tuple():
            for index, part in enumerate(content):
                check(part, f"{place}.{index}".removeprefix("."), depth + 1)
        case str():
            _check_text(content, place)
        case int():
            if not -_INTEGERS <= content < _INTEGERS:
                raise ParamsError(
                    f"params.yaml: '{place}' is a whole number of {content.bit_length()} bits, expected 64 at most."
                )
        case float():
            _check_number(content, place)
        case _:
            raise ParamsError(
                f"params.yaml: '{place}' is {content!r:.120}, which yaml reads as {type(content).__name__}. Quote it: "
                f"'{content!s:.120}'"
            )


def _check_number(number: float, place: str) -> None:
    size = abs(number)
    if not math.isfinite(size):
        raise ParamsError(f"params.yaml: '{place}' is {number}. Expected a finite number.")
    if size and not _SMALLEST <= size <= _LARGEST:
        becomes = "0" if size < 1 else "infinity"
        raise ParamsError(
            f"params.yaml: '{place}' is {number}, which float32 makes {becomes}. Expected 0, or a size of 1e-37 to "
            "1e38."
        )


def _check_text(text: str, place: str) -> None:
    if len(text) > _LETTERS:
        raise ParamsError(
            f"params.yaml: '{place}' is a text of {len(text):,} letters, expected a name or a path."
        )
    hidden = [letter for letter in text if _is_hidden(letter)]
    if hidden:
        name = unicodedata.name(hidden[0], f"U+{ord(hidden[0]):04X}")
        raise ParamsError(
            f"params.yaml: '{place}' is {text[:_PLACE]!r}, with {name}, which nobody sees. Write it without."
        )
    if text != text.strip():
        raise ParamsError(
            f"params.yaml: '{place}' is '{text[:_PLACE]}', with a blank at its start or end. Write it without."
        )


def _is_hidden(letter: str) -> bool:
    """Say whether a letter is a control or shows nothing; folders' names may hold blanks and joiners of any script."""
    return unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or letter in _UNSEEN

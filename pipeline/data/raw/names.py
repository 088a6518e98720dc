"""Names of classes and files: text that can be kept and shown, and classes that nobody takes for one another."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path

from pipeline.errors import DataError

_BREAKS = ("Cc", "Zl", "Zp")  # control characters, separators of lines and paragraphs


def check_text(name: str, place: str | Path) -> None:
    """Refuse a name whose bytes are not UTF-8: an artifact could not hold it.

    Args:
        name: the name, with Python's stand-ins for such bytes.
        place: what has it.

    Raises:
        DataError: it is not UTF-8.
    """
    if name.isascii():
        return
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(f"The name of {place} is not UTF-8. Rename it, then: dvc repro") from None


def check_class(name: str, place: str | Path) -> None:
    """Refuse a class name that is not UTF-8 or holds control characters: tables and plots show it in one line.

    Raises:
        DataError: it holds one.
    """
    check_text(name, place)
    found = [letter for letter in name if unicodedata.category(letter) in _BREAKS]
    if found:
        raise DataError(
            f"The name of the class {name!a} holds the control character {found[0]!a}. "
            f"Rename {place}, then: dvc repro"
        )


def by_likeness(names: Iterable[str], folder: str | Path) -> dict[str, str]:
    """Return class names by what remains of them without Unicode forms and blanks at the ends.

    Raises:
        DataError: two of them differ by nothing else; no reader of a table could tell them apart, and some file systems
            would not keep both.
    """
    found: dict[str, str] = {}
    for name in names:
        other = found.setdefault(likeness(name), name)
        if other != name:
            raise DataError(
                f"{folder} holds the classes {difference(other, name)}. Merge them or rename one, in every "
                "split, then: dvc repro"
            )
    return found


def likeness(name: str) -> str:
    """Return what remains of a name without its Unicode form and blanks at the ends; case may part two classes."""
    return unicodedata.normalize("NFC", name).strip()


def alike(name: str, others: Mapping[str, str]) -> str | None:
    """Return the one of `others`, by likeness, that looks like `name`, if only but for its case."""
    folded = {key.lower(): other for key, other in others.items()}
    return others.get(likeness(name)) or folded.get(likeness(name).lower())


def difference(one: str, other: str) -> str:
    """Return two names that look alike, and by what alone they differ."""
    if unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other):
        how = "the same text in two Unicode forms"
    elif one.strip() == other.strip():
        how = "which differ by blanks at the ends alone"
    elif one.lower() == other.lower():
        how = "which differ by case alone"
    else:
        how = "which look alike"
    return f"{one!a} and {other!a}, {how}"

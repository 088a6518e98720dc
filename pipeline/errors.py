"""Errors that a user can cause.

Each says in one line what was found, what was expected and which command comes next. The stages print that
line and exit with status 1; a traceback is for our mistakes only.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable

_LISTED = 100  # names in an error


class StillhouseError(Exception):
    """Base of every error that a user can cause."""

    def __str__(self) -> str:
        """Return the message as one line: names in it may hold line ends or a terminal's codes."""
        return "".join(
            letter if letter.isprintable() else letter.encode("unicode_escape").decode()
            for letter in super().__str__()
        )


class ParamsError(StillhouseError, ValueError):
    """`params.yaml` or an option holds something that cannot be used."""


class UnknownNameError(StillhouseError, LookupError):
    """A name that no plug-in, tap, class or block has."""


class DataError(StillhouseError, ValueError):
    """Raw data that is missing, damaged or not of the form that was declared."""


class MissingArtifactError(StillhouseError, FileNotFoundError):
    """An artifact that has not been made yet."""


class StaleArtifactError(StillhouseError, ValueError):
    """An artifact that was made from something other than what it is used with."""


class DamagedArtifactError(StillhouseError, OSError):
    """An artifact whose bytes are not what was written."""


class ShapeError(StillhouseError, ValueError):
    """Tensors that cannot be paired."""


class DivergedError(StillhouseError, ArithmeticError):
    """Training that reached a value that is not finite."""


class CohortError(StillhouseError, RuntimeError):
    """Several students of one command have failed, each with a reason of its own."""


class MachineError(StillhouseError, RuntimeError):
    """The machine lacks what a command needs: a device, an extra, disk space."""


class LostRankError(MachineError):
    """Another process of the same run has ended or does not answer."""


def unknown_name(kind: str, name: str, valid: Iterable[str], hint: str = "") -> UnknownNameError:
    """Return the error for a name that is not in `valid`, with the nearest valid one first.

    Args:
        kind: what the name should have named, for instance "method".
        name: what was found.
        valid: every valid name.
        hint: a sentence to end with, for instance the next command.
    """
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=1)
    guess = f" Did you mean '{near[0]}'?" if near else ""
    # A large network has hundreds of taps.
    shown = (
        names if len(names) <= _LISTED else difflib.get_close_matches(name, names, n=_LISTED // 2, cutoff=0)
    )
    more = f" and {len(names) - len(shown)} more" if len(shown) < len(names) else ""
    listed = (", ".join(shown) if names else "none") + more
    return UnknownNameError(
        f"Unknown {kind} '{name}'.{foreign(name)}{guess} Known: {listed}.{' ' + hint if hint else ''}"
    )


def foreign(name: str) -> str:
    """Return a sentence on the first letter of a name that may only look like one of ours, "" if there is none."""
    for letter in name:
        script = unicodedata.name(letter, "")
        if letter.isalnum() and not letter.isascii() and not script.startswith("LATIN"):
            return f" It has the letter '{letter.encode('unicode_escape').decode()}' ({script})."
    return ""

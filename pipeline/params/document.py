"""Reading params.yaml: its text, looked through before it is built, and then what it holds.

The parser is DVC's own (YAML 1.2), so that both read `5e-4` as a number. yaml has more than a file of settings needs,
and some of it is expensive or ambiguous: a few lines of aliases that stand for billions of values, nesting that no
parser ends, a number that other readers take for another one. So the events of the parser are looked through first
(`events.py`); what is built afterwards is small and plain.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.errors import ParamsError
from pipeline.params.events import Look

BYTES = 1 << 20  # of a file; the shipped one has 3,000


def read(path: Path) -> dict[str, Any]:
    """Read a yaml file whose top level is a mapping.

    Raises:
        ParamsError: no such file, not yaml, or another top level.
    """
    return parse(text(path), path)


def text(path: Path) -> str:
    """Return what a yaml file holds, in UTF-8 as DVC reads it, with its line ends as they are.

    Raises:
        ParamsError: no such file, no text, or too much of it.
    """
    try:
        # Not read_text, which changes line ends: dvc.yaml compares the checked text with the file byte by byte.
        with path.open("rb") as file:
            content = file.read(BYTES + 1)
        if len(content) <= BYTES:
            return content.decode("utf-8")
    except FileNotFoundError:
        raise ParamsError(
            f"{path} does not exist. Run the command in the project's folder, or give --params."
        ) from None
    except IsADirectoryError:
        raise ParamsError(f"{path} is a folder, expected a yaml file. Give it with --params.") from None
    except UnicodeDecodeError as error:
        raise ParamsError(f"{path} is not valid yaml: {error}. Save it as UTF-8.") from None
    raise ParamsError(f"{path} is larger than {BYTES:,} bytes, expected a file of settings. Shorten it.")


def parse(content: str, path: Path) -> dict[str, Any]:
    """Return the mapping that a yaml holds, its keys as text.

    Args:
        content: the yaml.
        path: where it stands, for the error.

    Raises:
        ParamsError: it is not yaml, has another top level, or what a file of settings should not have.
    """
    try:
        Look(path).through(content)
        loaded = YAML(typ="safe").load(content)
    except ParamsError:
        raise
    except (YAMLError, ValueError, RecursionError) as error:
        raise ParamsError(f"{path} is not valid yaml: {_shortened(error)}") from None
    if not isinstance(loaded, dict):
        raise ParamsError(f"{path} holds {type(loaded).__name__}, expected a mapping of blocks.")
    _check_keys(loaded, path)
    return loaded


def _shortened(error: Exception) -> str:
    """Return what a parser says in one line, without its advice, which speaks to programmers."""
    words = " ".join(str(error).split())
    return words if len(words) <= 300 else f"{words[:300]}..."


def _check_keys(content: Any, path: Path) -> None:
    """Refuse keys that are no text: DVC makes no stage of such a key, without a word."""
    if isinstance(content, list):
        for part in content:
            _check_keys(part, path)
    if not isinstance(content, dict):
        return
    for key, part in content.items():
        if not isinstance(key, str):
            raise ParamsError(
                f"{path} has the key {key}, which yaml reads as {type(key).__name__}, not as text. Quote it: '{key}'"
            )
        _check_keys(part, path)

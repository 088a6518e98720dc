"""Comments of a yaml that stay where they are when entries before them grow or are replaced.

The parser keeps all comment lines that follow a commented value with that value, a heading of the next section among
them. What is cut off before a change is put behind what stands there afterwards.
"""

from __future__ import annotations

import re
from typing import Any

from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import CommentMark
from ruamel.yaml.tokens import CommentToken

# Comments before the mark that a document starts with; the parser drops both.
_HEAD = re.compile(r"(?:[ \t]*(?:#[^\n]*)?\r?\n)*---[ \t]*(?:#[^\n]*)?\r?\n")


def head(content: str) -> str:
    """Return the text up to the mark that its document starts with; empty where there is none."""
    found = _HEAD.match(content)
    return found[0] if found else ""


def cut(container: Any, key: Any) -> str:
    """Take away the comment lines below an entry, and return them; the comment beside it stays.

    Args:
        container: the mapping that has the entry.
        key: of the entry.
    """
    holder, last = _last(container, key)
    token = _token(holder, last)
    if token is None:
        return ""
    beside, _, below = token.value.partition("\n")
    token.value = f"{beside}\n"
    return str(below)


def put(container: Any, key: Any, below: str) -> None:
    """Put comment lines below an entry; see `cut`."""
    if not below:
        return
    holder, last = _last(container, key)
    token = _token(holder, last)
    if token is None:
        token = CommentToken("\n", CommentMark(0), None)
        holder.ca.items[last] = [None, None, token, None] if _is_map(holder) else [token, None, None, None]
    token.value += below


def shared(value: Any) -> bool:
    """Say whether a value may stand at several places of the file, under an anchor."""
    return not isinstance(value, CommentedMap) or value.yaml_anchor() is not None


def _last(container: Any, key: Any) -> tuple[Any, Any]:
    """Return the innermost list or mapping that an entry ends with, and its last key."""
    value = container[key]
    while isinstance(value, CommentedMap | CommentedSeq) and value and not value.fa.flow_style():
        container, key = value, list(value)[-1] if _is_map(value) else len(value) - 1
        value = container[key]
    return container, key


def _token(holder: Any, key: Any) -> Any:
    """Return the comment behind a value, and all that follows it."""
    found = holder.ca.items.get(key) or ()
    place = 2 if _is_map(holder) else 0
    return found[place] if len(found) > place else None


def _is_map(value: Any) -> bool:
    return isinstance(value, CommentedMap)

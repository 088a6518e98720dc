"""What of yaml a file of settings may have: asked of the parser's events, before anything is built of them.

It takes a stack no deeper than `DEPTH`, and no more work than `VALUES` values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    MappingStartEvent,
    ScalarEvent,
)
from ruamel.yaml.nodes import ScalarNode

from pipeline.errors import ParamsError

DEPTH = 32  # of lists and mappings in each other; the deepest setting stands at 10
VALUES = 200_000  # with all that aliases stand for
# Numbers as every reader of yaml or json reads them: no leading zeros, underscores or other bases, no zero with a sign.
_PLAIN_NUMBER = re.compile(r"(?![-+]0+$)[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_DIGITS = 18  # of an integer that fits 64 bits


@dataclass
class _Collection:
    """A list or mapping that the events are inside of.

    Attributes:
        is_mapping: whether it is a mapping.
        anchor: its name for aliases, if it has one.
        values: how many it has so far, with those of its parts and of all that aliases stand for.
        parts: keys and values so far, its own alone.
        keys: kind and text of a mapping's keys; `null` and `'null'` are two, and the first is refused as no text.
    """

    is_mapping: bool
    anchor: str | None
    values: int = 1
    parts: int = 0
    keys: set[tuple[str, str]] = field(default_factory=set)

    @property
    def awaits_key(self) -> bool:
        """Whether the next part is a key."""
        return self.is_mapping and self.parts % 2 == 0


class Look:
    """One look through a yaml's events.

    Args:
        path: where it stands, for the errors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.inside: list[_Collection] = []
        self.sizes: dict[str, int] = {}  # values by anchor, of collections that have ended
        self.documents = 0
        self.resolver = YAML(typ="safe").resolver

    def through(self, content: str) -> None:
        """Look at all events.

        Raises:
            ParamsError: at the first that a file of settings should not have.
        """
        for event in self._events(content):
            match event:
                case DocumentStartEvent():
                    self._document(event)
                case CollectionStartEvent():
                    self._start(event)
                case CollectionEndEvent():
                    self._end(event)
                case AliasEvent():
                    self._add(event, self._alias(event))
                case ScalarEvent():
                    self._scalar(event)

    def _events(self, content: str) -> Iterator[Any]:
        yield from YAML(typ="safe").parse(content)

    def _document(self, event: Any) -> None:
        self.documents += 1
        if event.version or event.tags:
            raise self._refused(event, "has a directive (%)", "Drop it: DVC and Stillhouse read YAML 1.2")
        if self.documents > 1:
            raise self._refused(event, "begins another document (---)", "Put all into one")

    def _start(self, event: Any) -> None:
        self._check_tag(event)
        # Counted by whom it is in when it ends, so that its values are known.
        if self.inside and self.inside[-1].awaits_key:
            raise self._refused(event, "has a key that is a list or mapping", "Name keys by text")
        self._check_anchor(event)
        self.inside.append(_Collection(isinstance(event, MappingStartEvent), event.anchor))
        if len(self.inside) > DEPTH:
            raise self._refused(
                event, f"nests lists and mappings deeper than {DEPTH}", "No setting needs that"
            )

    def _end(self, event: Any) -> None:
        ended = self.inside.pop()
        if ended.anchor is not None:
            self.sizes[ended.anchor] = ended.values
        self._add(event, ended.values)

    def _add(self, event: Any, values: int) -> None:
        """Count a part of the collection that the events are inside of."""
        if not self.inside:
            return
        around = self.inside[-1]
        around.parts += 1
        around.values += values
        if sum(collection.values for collection in self.inside) > VALUES:
            raise self._refused(event, f"comes to more than {VALUES:,} values", "Ask for less in one file")

    def _alias(self, event: Any) -> int:
        """Return how many values an alias stands for."""
        if self.inside and self.inside[-1].awaits_key:
            raise self._refused(event, f"has the alias *{event.anchor} as a key", "Name keys by text")
        if event.anchor in (collection.anchor for collection in self.inside):
            raise self._refused(
                event, f"has the alias *{event.anchor} inside of what it stands for", "Drop it"
            )
        if event.anchor not in self.sizes:
            raise self._refused(event, f"has the alias *{event.anchor}, and no &{event.anchor} before it",
                                "Name one that is there")  # fmt: skip
        return self.sizes[event.anchor]

    def _scalar(self, event: Any) -> None:
        self._check_tag(event)
        self._check_anchor(event)
        if event.anchor is not None:
            self.sizes[event.anchor] = 1
        around = self.inside[-1] if self.inside else None
        if around is not None and around.awaits_key:
            key = (self._kind(event), event.value)
            if key in around.keys:
                raise self._refused(
                    event, f"has the key '{event.value}' twice in one mapping", "Name it once"
                )
            around.keys.add(key)
        else:
            self._check_plain(event)
        self._add(event, 1)

    def _check_tag(self, event: Any) -> None:
        # A plain value has no tag, or one that follows from how it is written.
        if event.tag is not None:
            raise self._refused(event, f"has the tag {event.tag}", "Drop it, and quote what is text")

    def _check_anchor(self, event: Any) -> None:
        anchors = (*self.sizes, *(collection.anchor for collection in self.inside))
        if event.anchor is not None and event.anchor in anchors:
            raise self._refused(
                event, f"has the anchor &{event.anchor} for a second time", "Give it another name"
            )

    def _kind(self, event: Any) -> str:
        """Return what yaml reads a value as: "str", "int" and so on."""
        if event.style not in (None, ""):
            return "str"  # quoted
        return str(self.resolver.resolve(ScalarNode, event.value, (True, False))).rpartition(":")[2]

    def _check_plain(self, event: Any) -> None:
        """Refuse what is not quoted and is a date, or a number that others read as another one."""
        value, kind = event.value, self._kind(event)
        if kind in ("timestamp", "value"):
            what = "a date" if kind == "timestamp" else "a special value"
            raise self._refused(event, f"has {value}, which yaml reads as {what}", f"Quote it: '{value}'")
        if kind in ("int", "float") and not _PLAIN_NUMBER.fullmatch(value):
            raise self._refused(
                event, f"has {value[:40]}, which is no plain number",
                "Write it in decimal digits, without underscores and leading zeros, or quote it where it is text",
            )  # fmt: skip
        if kind == "int" and len(value.lstrip("+-")) > _DIGITS:
            raise self._refused(
                event, f"has a whole number of {len(value.lstrip('+-'))} digits", f"Write {_DIGITS} at most"
            )

    def _refused(self, event: Any, found: str, advice: str) -> ParamsError:
        return ParamsError(f"{self.path} {found} in line {event.start_mark.line + 1}. {advice}.")

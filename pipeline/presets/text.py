"""Presets as text: a block as yaml that reads like a hand-written one, and a block merged into a params.yaml.

A file that is there keeps its comments and what it holds. Its entries are never mixed with a preset's of the same name:
they must be equal, except that a teacher's store may hold more features, and a pair have overrides of more runs.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from pipeline.errors import ParamsError
from pipeline.presets import comments
from pipeline.presets.selection import Params

WIDTH = 110  # letters of a line, where one is enough
GROWING = {"teachers": "features", "pairs": "overrides"}  # what an entry may have more of, by section


def written(content: Params) -> str:
    """Return a block as yaml: an entry a line where it fits, sections apart."""
    return "\n".join(_dumped({section: _styled(entries, 2)}) for section, entries in content.items())


def applied(content: str, preset: Params, *, force: bool = False) -> str:
    """Return the text of a params.yaml with a preset merged into it.

    Args:
        content: the text; it has passed `document.parse`.
        preset: the preset's block.
        force: let the preset's entries take the place of others of their names.

    Raises:
        ParamsError: an entry is there already, and is another one.
    """
    ends = "\r\n" if "\r\n" in content else "\n"
    content = content.replace("\r\n", "\n")
    head = comments.head(content)
    loaded = _yaml().load(content[len(head) :])
    params = loaded if isinstance(loaded, CommentedMap) else CommentedMap()
    for section, entries in preset.items():
        # A section without a value is an empty one.
        if params.get(section) in (None, [], {}):
            params[section] = _styled(entries, 2)
            continue

        below = comments.cut(params, section)
        if section == "distill":
            params[section].extend(item for item in entries if item not in params[section])
        elif not isinstance(entries, Mapping):
            if list(params[section]) != list(entries) and not force:
                raise _conflict(section, list(params[section]), entries)
            params[section] = _styled(entries, 2)
        else:
            for name, entry in entries.items():
                _merge_entry(params[section], section, name, entry, force)
        comments.put(params, section, below)
    return (head + _dumped(params)).replace("\n", ends)


def _merge_entry(entries: Any, section: str, name: str, entry: Any, force: bool) -> None:
    if name not in entries:
        entries[name] = _styled(entry, 4)
        return

    growing = GROWING.get(section)
    current, wanted = _plain(entries[name] or {}), entry or {}
    if section == "teachers":
        current, wanted = _of_most_slots(current, wanted), _of_most_slots(wanted, current)
    if growing in current and current[growing] is None:
        current = {**current, growing: {}}
    place = difference(current, wanted, f"{section}.{name}", growing)

    below = comments.cut(entries, name)
    if place is None:
        if growing in wanted:
            current = {**current, growing: {**current.get(growing, {}), **wanted[growing]}}
        if current != _plain(entries[name]):
            _grow(entries, name, growing, current)
    elif force:
        entries[name] = _styled(entry, 4)
    else:
        raise _conflict(*place)
    comments.put(entries, name, below)


def _grow(entries: Any, name: str, growing: str | None, grown: Params) -> None:
    """Let an entry have more under `growing`; what it has already stays as it is written, with its comments."""
    entry = entries[name]
    # What stands at several places of the file is not to change at the others.
    if growing is None or comments.shared(entry) or entry.fa.flow_style() or entry.merge:
        entries[name] = _styled(grown, 4)
        return
    held = entry.get(growing)
    if comments.shared(held) or held.fa.flow_style() or held.merge:
        entry[growing] = _styled(grown[growing], 6)
        return
    for key, value in grown[growing].items():
        if key not in held or _plain(held[key]) != value:
            held[key] = _styled(value, 8)


def _of_most_slots(teacher: Params, other: Params) -> dict[str, Any]:
    """Return a teacher whose features have as many view slots as those of another one: a store of more serves both."""
    features = {}
    for name, feature in (teacher.get("features") or {}).items():
        both = feature, other.get("features", {}).get(name, feature)
        slots = [(settings or {}).get("slots", "all") for settings in both]
        most = "all" if "all" in slots else max(slots)
        kept = {key: value for key, value in (feature or {}).items() if key != "slots"}
        features[name] = kept if most == "all" else kept | {"slots": most}
    return {**teacher, "features": features}


def difference(
    current: Any, wanted: Any, place: str, growing: str | None = None
) -> tuple[str, Any, Any] | None:
    """Return the first place where two entries differ, and both values; None where there is none.

    Args:
        current: an entry of the file.
        wanted: that of the preset.
        place: its place.
        growing: a key of it, under which either may hold more than the other.
    """
    if not (isinstance(current, Mapping) and isinstance(wanted, Mapping)):
        return None if current == wanted else (place, current, wanted)
    for key in dict.fromkeys([*wanted, *current]):
        inner = f"{place}.{key}"
        if key in current and key in wanted:
            mine, theirs = current[key], wanted[key]
            if key == growing:
                shared = [name for name in theirs if name in mine]
                mine, theirs = ({name: entries[name] for name in shared} for entries in (mine, theirs))
            if (place_within := difference(mine, theirs, inner)) is not None:
                return place_within
        elif key != growing:
            return inner, current.get(key, "nothing"), wanted.get(key, "nothing")
    return None


def _conflict(place: str, current: Any, wanted: Any) -> ParamsError:
    return ParamsError(
        f"params.yaml: {place} is {_short(current)}, and the preset has {_short(wanted)}. Nothing is written. Rename "
        "yours, take a file of its own with --params, or give --force, which replaces it."
    )


def _short(value: Any) -> str:
    plain = _plain(value)
    text = _dumped(_styled(plain, 0, flow=True)) if isinstance(plain, dict | list) else str(plain)
    text = " ".join(text.split())
    return text if len(text) <= 100 else f"{text[:100]}..."


def _plain(value: Any) -> Any:
    """Return a value of a parsed file without what the file looked like."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _styled(value: Any, indent: int, *, flow: bool = False) -> Any:
    """Return a value as ruamel's own, in braces where its line is short enough.

    Args:
        value: plain settings.
        indent: letters before it, at least.
        flow: whether it stands in braces already.
    """
    if isinstance(value, Mapping):
        # Entries of a section stand below each other.
        inline = flow or (indent > 2 and _fits(value, indent))
        result: Any = CommentedMap()
        for key, inner in value.items():
            inner_flow = inline or (isinstance(inner, Mapping | list) and _fits(inner, indent + len(key) + 2))
            result[key] = _styled(inner, indent + 2, flow=inner_flow)
    elif isinstance(value, list | tuple):
        inline = flow or _fits(value, indent)
        result = CommentedSeq(_styled(inner, indent + 2, flow=inline) for inner in value)
    else:
        return value
    (result.fa.set_flow_style if inline else result.fa.set_block_style)()
    return result


def _fits(value: Any, indent: int) -> bool:
    return indent + len(str(_plain(value)).replace("'", "")) <= WIDTH


def _dumped(content: Any) -> str:
    stream = io.StringIO()
    _yaml().dump(content, stream)
    return stream.getvalue()


def _yaml() -> YAML:
    yaml = YAML(typ="rt")
    yaml.width = 4096  # lines are broken by entries, not by length
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.preserve_quotes = True
    return yaml

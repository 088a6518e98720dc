"""Records as a table in a page, which the command that measures them makes anew.

The table stands between two marks, each alone on its line: `<!-- measured: costs -->` and `<!-- end -->`. What a
record's name begins with is the measurement, what it ends in is the column, and what stands between is the row.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.artifacts import publish
from pipeline.benchmark.record import Record, text

_PLACE = re.compile(r"(?<=^<!-- measured: )(\w+) -->\n.*?(?=^<!-- end -->$)", re.MULTILINE | re.DOTALL)


def measured(page: str) -> list[str]:
    """Return the measurements that a page has places for."""
    return [match[1] for match in _PLACE.finditer(page)]


def fill(path: Path, machine: Mapping[str, Any], records: Sequence[Record]) -> None:
    """Write the records of each measurement into its place in a page; places of others stay as they are."""

    def filled(match: re.Match[str]) -> str:
        own = [entry for entry in records if entry.name.partition("/")[0] == match[1]]
        if not own:
            return match[0]
        return f"{match[1]} -->\n\n{table(own)}\n{facts(machine)}\n\n"

    page = _PLACE.sub(filled, path.read_text("utf-8"))
    with publish.writing(path) as part:
        part.write_text(page, "utf-8")


def facts(machine: Mapping[str, Any]) -> str:
    """Return the facts of a machine as a line."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in machine.items()) + "."


def table(records: Sequence[Record]) -> str:
    """Return the records of one measurement as a table in markdown, a row for each name without its last part."""
    rows: dict[str, dict[str, Record]] = {}
    for entry in records:
        row, _, column = entry.name.partition("/")[2].rpartition("/")
        rows.setdefault(row, {})[column] = entry
    columns = {column: entry.unit for row in rows.values() for column, entry in row.items()}

    # What all rows begin with, mostly the pair, is said once.
    starts = {row.rpartition("/")[0] for row in rows}
    (shared,) = starts if len(starts) == 1 else ("",)
    head = [shared, *(f"{column}, {unit}" for column, unit in columns.items()), ""]
    lines = [head, ["---"] + ["---:"] * len(columns) + ["---"]]
    for row, entries in rows.items():
        values = (text(entries[column].value) if column in entries else "" for column in columns)
        notes = dict.fromkeys(entry.note for entry in entries.values() if entry.note)
        lines.append([f"`{row.removeprefix(f'{shared}/')}`", *values, "; ".join(notes)])
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)

"""The fitted tables, and the numbers that say how good each is."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from pipeline.report.drawing import markup, text
from pipeline.report.results import Results, Table

TITLE = "Fitted tables"
LEAD = "how well each table fits its features, before any student learns from it."
GROUP, ORDER = "closing", 40


def section(results: Results) -> Markup:
    """Return one table for every plug-in that fitted any."""
    plugins = dict.fromkeys(table.plugin for table in results.tables)
    parts = [_plugin(name, [table for table in results.tables if table.plugin == name]) for name in plugins]
    return Markup().join(parts)


def _plugin(name: str, tables: list[Table]) -> Markup:
    numbers = {table.title: dict(_flat(table.quality)) for table in tables}

    columns = list(dict.fromkeys(column for quality in numbers.values() for column in quality))
    rows: list[markup.Row] = [
        [
            table.name,
            table.teacher.name,
            table.feature,
            *(_cell(numbers[table.title].get(key)) for key in columns),
        ]
        for table in tables
    ]

    head = ["table", "teacher", "feature", *(column.replace("_", " ") for column in columns)]
    return Markup("<section><h3>{}</h3>{}</section>").format(name, markup.table(head, rows, 3))


def _flat(quality: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in quality.items():
        if isinstance(value, dict):
            flat += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, int | float | str | None):
            flat.append((prefix + key, value))
    return flat


def _cell(value: Any) -> markup.Cell:
    # Qualities are floats in their json, counts among them.
    whole = isinstance(value, float) and value == int(value) and abs(value) < 1e6
    order = float(value) if isinstance(value, int | float) else None
    return markup.Cell(str(int(value)) if whole else text.plain(value), order)

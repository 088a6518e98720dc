"""The fitted tables, and the numbers that say how good each is."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from pipeline.report.drawing import markup, text
from pipeline.report.results import Fit, Results

TITLE = "Fitted tables"
LEAD = "how well each table fits its features, before any student learns from it."
GROUP, ORDER = "closing", 40


def section(results: Results) -> Markup:
    """Return one table for every plug-in that fitted any."""
    plugins = dict.fromkeys(fit.plugin for fit in results.fits)
    parts = [_plugin(name, [fit for fit in results.fits if fit.plugin == name]) for name in plugins]
    return Markup().join(parts)


def _plugin(name: str, fits: list[Fit]) -> Markup:
    numbers = {fit.name: dict(_flat(fit.quality)) for fit in fits}
    columns = list(dict.fromkeys(column for quality in numbers.values() for column in quality))
    rows: list[markup.Row] = [
        [
            fit.name,
            fit.teacher.name,
            fit.table,
            fit.feature,
            *(_cell(numbers[fit.name].get(key)) for key in columns),
        ]
        for fit in fits
    ]
    head = ["fit", "teacher", "table", "feature", *(column.replace("_", " ") for column in columns)]
    return Markup("<section><h3>{}</h3>{}</section>").format(name, markup.table(head, rows, 4))


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

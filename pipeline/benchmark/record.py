"""What a measurement gives: named values beside their targets, and the facts of the machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.artifacts import publish

MISSING = "not measured"


@dataclass(frozen=True)
class Record:
    """One measured value.

    Attributes:
        name: what was measured, "measurement/what".
        value: the median; None where it was not measured.
        unit: of the value.
        target: for instance ">= 0.95"; None where there is none.
        holds: whether the value meets its target; None where one of them is missing.
        note: what helps to read the value, or why there is none.
    """

    name: str
    value: float | None
    unit: str
    target: str | None
    holds: bool | None
    note: str = ""


def record(
    name: str,
    value: float,
    unit: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    note: str = "",
) -> Record:
    """Return the record of a value, and whether it meets its target, if it has one."""
    if at_least is not None:
        return Record(name, value, unit, f">= {at_least:g}", value >= at_least, note)
    if at_most is not None:
        return Record(name, value, unit, f"<= {at_most:g}", value <= at_most, note)
    return Record(name, value, unit, None, None, note)


def missing(name: str, unit: str, why: str) -> Record:
    """Return the record of what could not be measured, and why."""
    return Record(name, None, unit, None, None, f"{MISSING}: {why}")


def facts(device: str) -> dict[str, Any]:
    """Return what the numbers depend on: cores, load, device, versions.

    Args:
        device: name of the device that computes.
    """
    return {
        "cores": os.cpu_count(),
        "device": device,
        "load_before": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "zarr", "tensorstore", "dvc")},
    }


def write(path: Path, machine: dict[str, Any], records: Sequence[Record]) -> None:
    """Write `{"machine": ..., "records": [...]}` as json."""
    publish.write_json(path, {"machine": machine, "records": [asdict(entry) for entry in records]})


def show(console: Console, machine: dict[str, Any], records: Sequence[Record]) -> None:
    """Print the facts of the machine in one line, and the records as a table."""
    console.print(", ".join(f"{key} {value}" for key, value in machine.items()), highlight=False)
    table = Table("name", "value", "unit", "target", "holds", "note")
    # Names stay whole in narrow terminals: they are what is searched for.
    table.columns[0].no_wrap, table.columns[1].justify = True, "right"
    for entry in records:
        holds = {None: "", True: "[green]yes[/]", False: "[red]no[/]"}[entry.holds]
        table.add_row(entry.name, text(entry.value), entry.unit, entry.target or "", holds, entry.note)
    console.print(table)


def text(value: float | None) -> str:
    """Return a value in three digits or more, "-" where there is none."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"

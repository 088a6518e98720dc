"""What was measured of the detectors of a plan, and how long their stages take by it, for people to read."""

from __future__ import annotations

from collections.abc import Collection

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from pipeline.benchmark.detector_times import Measured, seconds
from pipeline.runs.detector_planning import BoxPlan

_HOUR = 3600
_ALONE = 0.8  # share of the time; even alone, a thread waits for files


def show(console: Console, planned: BoxPlan, measured: Measured, made: Collection[str]) -> None:
    """Print both tables, and how the numbers came about.

    Args:
        console: to print to.
        planned: the plan.
        measured: what the machine has said of it.
        made: stages that are up to date.
    """
    table = Table(
        "training", "batch", "timed with", "images a second", "memory", "evaluated a second", box=None
    )
    for name, speed in measured.speeds.items():
        table.add_row(
            name,
            str(speed.batch),
            _counted(speed.images) if speed.images else "",
            "" if speed.step is None else f"{speed.batch / speed.step:.3g}",
            "" if speed.memory is None else decimal(speed.memory),
            "" if speed.evaluated is None else f"{1 / speed.evaluated:.3g}",
        )
    _print(console, table, 1)

    table = Table("stages", "of", "to make", "each", "all", box=None)
    total, unknown = 0.0, False
    for work in planned.works:
        missing, each = sum(stage not in made for stage in work.stages), seconds(work, measured)
        total, unknown = total + missing * (each or 0.0), unknown or (bool(missing) and each is None)
        # What is up to date was not measured, unless something else needs it.
        one = ("not known" if missing else "") if each is None else span(each)
        whole = "" if each is None or not missing else span(missing * each)
        table.add_row(work.kind, work.of, str(missing), one, whole)
    _print(console, table, 2)

    facts = measured.facts
    if facts:
        threads = f"{facts['threads']} thread{'s' * (facts['threads'] > 1)}"
        console.print(
            f"Measured on {facts['device']} ({facts['cores']} cores, {threads}, load {facts['load_before']:.1f}): some "
            "steps of each training, on made-up images and with weights that are drawn."
        )
    if measured.start is not None:
        console.print(
            f"Each stage of dvc repro also starts a process, which takes {span(measured.start)} here; stages.run "
            "mostly spares that."
        )
    if measured.share < _ALONE:
        console.print(
            f"Others were busy: a thread had a core for {measured.share:.0%} of the time. Alone it is quicker."
        )
    if any(0 < speed.images < speed.batch for speed in measured.speeds.values()):
        console.print(
            "Where fewer images were timed than a batch has, time and memory are scaled by the pixels of a batch, what "
            "pads it included."
        )
    if unknown and not total:
        console.print(
            "How long the stages of detectors that are to be made take on this machine is not known."
        )
        return
    console.print(
        f"One after another, the stages of detectors that are to be made take {span(total)} on this machine"
        f"{', plus those that are not known' if unknown else ''}."
    )


def span(seconds: float) -> str:
    """Return a time in its usual unit, as exact as an estimate is."""
    number, unit = seconds, "s"
    for length, name, least in ((60, "min", 120), (_HOUR, "h", 2 * _HOUR), (24 * _HOUR, "days", 48 * _HOUR)):
        if seconds >= least:
            number, unit = seconds / length, name
    return f"{number:.1f} {unit}" if number < 10 else f"{number:,.0f} {unit}"


def _counted(images: int) -> str:
    return f"{images} image{'s' * (images > 1)}"


def _print(console: Console, table: Table, first: int) -> None:
    for column in table.columns[first:]:
        column.justify = "right"
    console.print(table)
    console.print()

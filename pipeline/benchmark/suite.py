"""The list of measurements. A module is imported when it measures, so that names are checked at once."""

from __future__ import annotations

import pkgutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.errors import unknown_name

if TYPE_CHECKING:
    from pipeline.benchmark.material import Bench
    from pipeline.benchmark.record import Record

# "module:function" of this package; the function's docstring says what is measured.
MEASUREMENTS = {
    "gpu": "gpu:gpu",
    "captured": "gpu:captured",
    "cached_step": "step:cached_step",
    "word_step": "words:word_step",
    "self_learning": "self_learning:self_learning",
    "costs": "costs:costs",
    "extract": "extraction:extract",
    "matching": "matching:matching",
    "read": "reading:read",
    "input_pipeline": "step:input_pipeline",
    "options": "options:options",
    "precision": "precision:precision",
    "neighbors": "neighbors:neighbors",
    "memory": "memory:memory",
    "fits": "fits:fits",
    "fits_gpu": "fits_gpu:fits_gpu",
    "photographs": "photographs:photographs",
    "startup": "startup:startup",
    "repro": "repro:repro",
    "parallel": "parallel:parallel",
}

# What `--quick` leaves out unless it is named: single methods, fits, what options bring, and whole jobs.
LONG = (
    "word_step",
    "self_learning",
    "costs",
    "matching",
    "options",
    "precision",
    "neighbors",
    "fits",
    "photographs",
    "parallel",
)


def measure(name: str, bench: Bench) -> list[Record]:
    """Make the measurement `name`, a key of `MEASUREMENTS`."""
    records: list[Record] = pkgutil.resolve_name(f"{__package__}.{MEASUREMENTS[name]}")(bench)
    return records


def select(names: Sequence[str], quick: bool = False) -> list[str]:
    """Return the measurements `names` in their usual order; for none all of them, or the quick ones.

    Raises:
        UnknownNameError: no such measurement.
    """
    for name in names:
        if name not in MEASUREMENTS:
            raise unknown_name("measurement", name, MEASUREMENTS)
    selected = names or [name for name in MEASUREMENTS if not (quick and name in LONG)]
    return [name for name in MEASUREMENTS if name in selected]

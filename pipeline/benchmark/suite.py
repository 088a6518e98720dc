"""The list of measurements. Each imports what it needs when it runs, so that names are checked at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pipeline.errors import unknown_name

if TYPE_CHECKING:
    from pipeline.benchmark.material import Bench
    from pipeline.benchmark.record import Record


def cached_step(bench: Bench) -> list[Record]:
    """Measure distillation steps, cached and online, beside student-only steps."""
    from pipeline.benchmark import step

    return step.cached_step(bench)


def self_learning(bench: Bench) -> list[Record]:
    """Measure SLKD's step beside the sum of its parts."""
    from pipeline.benchmark import self_learning as steps

    return steps.self_learning(bench)


def input_pipeline(bench: Bench) -> list[Record]:
    """Measure what crop, flip and normalisation cost of a step."""
    from pipeline.benchmark import step

    return step.input_pipeline(bench)


def word_step(bench: Bench) -> list[Record]:
    """Measure letKD's and QuEST's steps beside student-only steps."""
    from pipeline.benchmark import words

    return words.word_step(bench)


def extract(bench: Bench) -> list[Record]:
    """Measure extraction beside the bare teacher."""
    from pipeline.benchmark import extraction

    return extraction.extract(bench)


def matching(bench: Bench) -> list[Record]:
    """Measure the matching of channels beside the teacher's forward."""
    from pipeline.benchmark import matching as matches

    return matches.matching(bench)


def read(bench: Bench) -> list[Record]:
    """Measure reading the store beside a memory map and zarr-python."""
    from pipeline.benchmark import reading

    return reading.read(bench)


def memory(bench: Bench) -> list[Record]:
    """Measure how the peak memory grows with the samples."""
    from pipeline.benchmark import memory as peaks

    return peaks.memory(bench)


def fits(bench: Bench) -> list[Record]:
    """Measure the fits of tables beside scikit-learn."""
    from pipeline.benchmark import fits as tables

    return tables.fits(bench)


def photographs(bench: Bench) -> list[Record]:
    """Measure peak memory and decoding of an image folder that is indexed."""
    from pipeline.benchmark import photographs as files

    return files.photographs(bench)


def startup(bench: Bench) -> list[Record]:
    """Measure `--help` of every stage."""
    from pipeline.benchmark import startup as starts

    return starts.startup(bench)


def repro(bench: Bench) -> list[Record]:
    """Measure `dvc repro` with nothing to do."""
    from pipeline.benchmark import repro as nothing

    return nothing.repro(bench)


def neighbors(bench: Bench) -> list[Record]:
    """Measure trainings beside busy processes, and what the settings for that cost alone."""
    from pipeline.benchmark import neighbors as others

    return others.neighbors(bench)


def options(bench: Bench) -> list[Record]:
    """Measure what machine options bring to a step and to a forward pass."""
    from pipeline.benchmark import options as sides

    return sides.options(bench)


MEASUREMENTS: dict[str, Callable[[Bench], list[Record]]] = {
    "cached_step": cached_step,
    "word_step": word_step,
    "self_learning": self_learning,
    "extract": extract,
    "matching": matching,
    "read": read,
    "input_pipeline": input_pipeline,
    "options": options,
    "neighbors": neighbors,
    "memory": memory,
    "fits": fits,
    "photographs": photographs,
    "startup": startup,
    "repro": repro,
}


# What `--quick` leaves out unless it is named: single methods, fits, and what options bring.
LONG = ("word_step", "self_learning", "matching", "options", "neighbors", "fits", "photographs")


def select(names: Sequence[str], quick: bool = False) -> list[str]:
    """Return the measurements `names` in their usual order; for none all of them, or the quick ones.

    Raises:
        UnknownNameError: no such measurement.
    """
    for name in names:
        if name not in MEASUREMENTS:
            raise unknown_name("measurement", name, MEASUREMENTS)
    wanted = names or [name for name in MEASUREMENTS if not (quick and name in LONG)]
    return [name for name in MEASUREMENTS if name in wanted]

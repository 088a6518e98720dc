"""The temperatures that a teacher's logits are read at: where a code of them loses how much."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline import plugin
from pipeline.params.base import Block
from pipeline.params.pairs import RunBlock
from pipeline.runs.composition import Composition

if TYPE_CHECKING:
    from pipeline.runs.project import Project


def of(project: Project, teacher: str) -> tuple[float, ...]:
    """Return the temperatures at which runs, copies and assistants read a teacher's logits, in ascending order.

    They are the settings `temperature` or `temperatures` of the methods that read them; one that learns its
    temperature, or has none, adds nothing. A schedule that softens them has a temperature too.
    """
    found = {params.temperature for params in project.params.taught.values() if params.teacher == teacher}
    for pair, name, run in project.distilled():
        if project.params.pairs[pair].teacher == teacher:
            found.update(_of_run(run, f"runs.{name}"))
    return tuple(sorted(found))


def _of_run(run: RunBlock, where: str) -> Iterator[float]:
    composition = Composition.of(run, where)
    for name, config in composition.methods.items():
        if "logits" in plugin.load("methods", name).Method.needs(config).teacher:
            yield from _named(config)
    if "logits" in run.features:
        yield from _named(composition.schedule_config)


def _named(config: Block) -> Iterator[float]:
    """Give the temperatures that settings name: one, or several; a whole number is how many there are (ProKD)."""
    one, several = getattr(config, "temperature", None), getattr(config, "temperatures", None)
    if isinstance(one, float):
        yield one
    if isinstance(several, tuple):
        yield from several

"""The temperatures that a teacher's logits are read at: where a code of them loses how much."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline import plugin
from pipeline.params.base import validate
from pipeline.params.pairs import RunBlock

if TYPE_CHECKING:
    from pipeline.runs.project import Project


def of(project: Project, teacher: str) -> tuple[float, ...]:
    """Return the temperatures at which runs, copies and assistants read a teacher's logits, in ascending order.

    They are the settings `temperature` of the methods that read them; one that learns its temperature, or has none,
    adds nothing. A schedule that softens them has a temperature too.
    """
    found = {params.temperature for params in project.params.taught.values() if params.teacher == teacher}
    for pair, _, run in project.distilled():
        if project.params.pairs[pair].teacher == teacher:
            found.update(_of_run(run))
    return tuple(sorted(found))


def _of_run(run: RunBlock) -> Iterator[float]:
    for plug in run.methods:
        module = plugin.load("methods", plug.name)
        config = validate(module.Config, plug.settings, plug.name)
        temperature = getattr(config, "temperature", None)
        if "logits" in module.Method.needs(config).teacher and isinstance(temperature, float):
            yield temperature
    softened = run.schedule.settings.get("temperature")
    if "logits" in run.features and isinstance(softened, float):
        yield softened

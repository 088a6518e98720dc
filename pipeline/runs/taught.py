"""What copies and assistants of a teacher demand of it and of each other, checked before anything is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import ParamsError, unknown_name
from pipeline.params.assistants import AssistantParams
from pipeline.params.pairs import RunBlock
from pipeline.params.teaching import TEACHER

if TYPE_CHECKING:
    from pipeline.runs.project import Project


def stage_of(project: Project, name: str) -> str:
    """Return DVC's name of the stage that trains a copy or an assistant."""
    return f"{'train_copy' if name in project.params.copies else 'train_assistant'}@{name}"


def slots_of(project: Project, name: str) -> tuple[int, str]:
    """Return how many view slots a copy or an assistant sees, and the place that says so.

    Raises:
        ParamsError: "all" of an unbounded view space, or more than there are views.
    """
    params = project.params.taught[name]
    place = f"{'copies' if name in project.params.copies else 'assistants'}.{name}.slots"
    return project.slots(params.teacher, params.slots, place), place


def check_taught(project: Project, name: str) -> None:
    """Check that there are the stored logits that a copy or an assistant learns from.

    Raises:
        ParamsError: there are not; the message says what to add.
    """
    params = project.params.taught[name]
    slots, own = slots_of(project, name)
    where, logits = own.removesuffix(".slots"), f"teachers.{params.teacher}.features.logits"

    # Also of an assistant that learns from others alone: the first of its chain learns from the teacher.
    stored = project.features(params.teacher).get("logits")
    if stored is None or "last" not in project.params.teachers[params.teacher].checkpoints:
        raise ParamsError(
            f"params.yaml: {where} learns from the logits of teacher '{params.teacher}', which its store does not "
            f"hold. Add {logits}."
        )

    sources = params.teachers if isinstance(params, AssistantParams) else (TEACHER,)
    for source in sources:
        number, place = project.slots(params.teacher, stored.slots, f"{logits}.slots"), f"{logits}.slots"
        if source != TEACHER:
            number, place = slots_of(project, source)
        if number < slots:
            raise ParamsError(
                f"params.yaml: {where} sees {slots} view slots, and {place} is {number}. Raise it, or lower {own}."
            )


def check_read(project: Project, teacher: str, run: RunBlock, where: str) -> None:
    """Check that the copies and assistants that a run learns from are of its teacher, and see what it shows.

    Args:
        project: all of params.yaml.
        teacher: key of `teachers`.
        run: the run.
        where: its place in params.yaml.

    Raises:
        UnknownNameError: its teacher has no such copy or assistant.
        ParamsError: one is not stored of as many views as the run shows.
    """
    # Those of another teacher would teach something else, and are not even offered in the error.
    own = {key: params for key, params in project.params.taught.items() if params.teacher == teacher}
    for name in run.copies:
        if name not in own:
            raise unknown_name(
                f"copy or assistant of teacher '{teacher}' of {where}:",
                name,
                own,
                "Add it to 'copies' or 'assistants' in params.yaml.",
            )

        check_taught(project, name)
        if run.slots is None:
            raise ParamsError(
                f"params.yaml: {where} shows an unbounded number of views, and the logits of '{name}' are stored. "
                "Set 'slots' of the run to a number."
            )
        slots, place = slots_of(project, name)
        if slots < run.slots:
            raise ParamsError(
                f"params.yaml: {where} shows {run.slots} view slots, and {place} is {slots}. Raise it, or set 'slots' "
                "of the run."
            )

"""Say what `dvc repro` will make and cost, before it runs; refuse what the disk cannot hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stages import command

if TYPE_CHECKING:
    from pipeline.planning import Item, Plan

# Stages of seconds that rewrite their outs on most edits, changed or not: only what changes in them counts.
LIGHT = ("code", "params", "student_inputs", "inputs")
# Their outs come before the students' inputs for the order alone.
GATES = ("check_features", "evaluate_teacher")


@dataclass(frozen=True)
class State:
    """What DVC knows.

    Attributes:
        made: names of the stages that are up to date.
        freed: bytes in the workspace that go when the others run; DVC's cache keeps its copy of them.
        cache: DVC's cache; None where there is none.
        linked: files of the workspace are links into the cache, or share its blocks.
        note: what the plan takes for granted.
    """

    made: frozenset[str] = frozenset()
    freed: int = 0
    cache: Path | None = None
    linked: bool = False
    note: str = ""


def main(
    prepared: Annotated[Path, typer.Option(help="Folder of all prepared data sets.")] = Path("data/prepared"),
    artifacts: Annotated[Path, typer.Option(help="Folder of all artifacts.")] = Path("artifacts"),
    params: command.Params = Path("params.yaml"),
    json: Annotated[bool, typer.Option("--json", help="Print the plan as json.")] = False,
) -> None:
    """Plan all of params.yaml: artifacts, bytes, files, forward passes of the teachers, break-even, disk."""
    from pipeline.params import project
    from pipeline.params.base import read

    sections = project.check(read(params))
    project.check_plugins(sections)

    from pipeline.planning import plan
    from pipeline.prepared import Prepared

    networks = [*sections.teachers.values(), *sections.students.values()]
    names = sorted({network.dataset for network in networks})
    found = plan(sections, {name: Prepared.open(prepared / name).meta for name in names})
    state = _state(params)
    again = [name for name in names if state.cache and f"prepare_data@{name}" not in state.made]
    needs = _disk(found, state, artifacts)
    if json:
        _print_json(found, state, needs)
    else:
        _print(found, state, needs, again)
    _refuse(needs)


@dataclass(frozen=True)
class Need:
    """What one disk must hold.

    Attributes:
        place: a folder on it.
        bytes: that will be written, less what goes.
        free: bytes.
    """

    place: str
    bytes: int
    free: int


def _made(item: Item, state: State) -> int:
    return sum(stage in state.made for stage in item.stages)


def _size(items: Iterable[Item], state: State) -> int:
    return sum(item.bytes * (len(item.stages) - _made(item, state)) for item in items)


def _disk(found: Plan, state: State, artifacts: Path) -> list[Need]:
    """Return what each disk must hold: the workspace, and DVC's cache with a copy of it unless they share."""
    import shutil

    size = _size(found.items, state)
    wanted = [(artifacts, 0 if state.linked else size - state.freed)]
    wanted += [(state.cache or artifacts, size)]
    disks: dict[int, tuple[Path, int]] = {}
    for path, more in wanted:
        place = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
        first, sum_ = disks.get(place.stat().st_dev, (path, 0))
        disks[place.stat().st_dev] = (first, sum_ + more)
    return [
        Need(str(path), max(0, more), shutil.disk_usage(next(p for p in (path, *path.absolute().parents) if p.exists())).free)
        for path, more in disks.values()
    ]


def _refuse(needs: list[Need]) -> None:
    from rich.filesize import decimal

    from pipeline.errors import MachineError

    for need in needs:
        if need.bytes > need.free:
            raise MachineError(
                f"The plan needs {decimal(need.bytes)} on the disk of {need.place}, and {decimal(need.free)} are free. "
                "Lower 'slots' of the largest features in params.yaml, learn online without storing them, "
                "or free disk with: dvc gc --workspace"
            )

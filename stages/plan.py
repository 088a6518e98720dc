"""Say what `dvc repro` will make and cost, before it runs; refuse what the disk cannot hold."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stages import command

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.benchmark.detector_times import Measured
    from pipeline.data.layout import Meta
    from pipeline.runs.detector_planning import BoxPlan
    from pipeline.runs.detector_scenes import Scene
    from pipeline.runs.planning import Item, Plan
    from pipeline.runs.project import Project

# Stages of seconds that rewrite their outs on most edits, changed or not: only what changes in them counts.
LIGHT = ("params", "teacher_inputs", "student_inputs", "inputs")
# `inputs` waits for them; what a student reads is not in their outs.
GATES = ("check_features", "evaluate_teacher")


@dataclass(frozen=True)
class State:
    """What DVC knows.

    Attributes:
        made: names of the stages that are up to date.
        held: bytes in the workspace by stage: they go when it runs, and DVC's cache keeps its copy of them.
        cache: DVC's cache; None where there is none.
        linked: files of the workspace are links into the cache, or share its blocks.
        note: what the plan takes for granted.
    """

    made: frozenset[str] = frozenset()
    held: Mapping[str, int] = field(default_factory=dict)
    cache: Path | None = None
    linked: bool = False
    note: str = ""


@dataclass(frozen=True)
class Need:
    """What one disk must hold.

    Attributes:
        place: an existing folder on it.
        bytes: that will be written, less what goes.
        free: bytes.
    """

    place: Path
    bytes: int
    free: int


def main(
    prepared: Annotated[Path, typer.Option(help="Folder of all prepared data sets.")] = Path("data/prepared"),
    artifacts: Annotated[Path, typer.Option(help="Folder of all artifacts.")] = Path("artifacts"),
    params: command.Params = Path("params.yaml"),
    json: Annotated[bool, typer.Option("--json", help="Print the plan as json.")] = False,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Train each detector for a few steps here, for times and memory."),
    ] = False,
    device: command.Device = "auto",
    precision: command.Precision = "auto",
    channels_last: command.ChannelsLast = None,
) -> None:
    """Plan all of params.yaml: artifacts, bytes, files, forward passes of the teachers, break-even, disk.

    The device, the precision and the memory format are those that --measure measures with.
    """
    from pipeline.params.document import read

    content = read(params)

    from pipeline.errors import MachineError
    from pipeline.runs import class_names, detector_planning, detector_scenes, weight_files
    from pipeline.runs.check import project
    from pipeline.runs.planning import plan
    from pipeline.runs.raw_files import changes

    checked = project(content)
    class_names.check(checked, prepared)
    command.warn(changes(checked.params, prepared))
    command.warn(weight_files.changes(checked, artifacts / "params"))
    found = plan(checked, {name: _meta(prepared, name) for name in sorted(_read(checked))})
    scenes = detector_scenes.scenes(checked, prepared)
    boxes = detector_planning.plan(checked, scenes)
    found = replace(found, items=(*found.items, *boxes.items))
    state = _state(params)
    needs = _needs(found, state, artifacts)
    short = next((need for need in needs if need.bytes > need.free), None)
    measured = None
    # What the disk cannot hold is refused at once, and not after an hour.
    if measure and short is None:
        measured = _measured(boxes, state, scenes, (device, precision, channels_last))
    guessed = [name for name, scene in scenes.items() if not scene.prepared]
    if guessed:
        command.warn([f"Not prepared yet, and planned as its source expects it: {', '.join(guessed)}."])
    if json:
        _print_json(found, state, needs, boxes, measured)
    else:
        _print(found, state, needs, boxes, measured)
    if short is not None:
        from rich.filesize import decimal

        raise MachineError(
            f"The plan needs {decimal(short.bytes)} on the disk of {short.place}, and {decimal(short.free)} are "
            "free. Lower the slots of the largest features in params.yaml, or take them out of the teacher's "
            "features and learn with 'source: online', or free disk with: dvc gc --workspace"
        )


def _read(project: Project) -> set[str]:
    """Return the data sets whose networks have costs that the plan knows."""
    sections = (project.params.teachers, project.params.students)
    used = {network.dataset for section in sections for network in section.values()}
    return used & project.images.keys()


def _meta(prepared: Path, name: str) -> Meta:
    from pipeline.data.prepared import Prepared

    return Prepared.open(prepared / name).meta


def _measured(
    boxes: BoxPlan, state: State, scenes: Mapping[str, Scene], options: tuple[str, str, bool | None]
) -> Measured | None:
    """Return what this machine says of the detectors that are to be made, if there are any."""
    missing = boxes.missing(state.made)
    if not missing:
        why = "params.yaml has no detector; for classifiers the plan counts forward passes"
        if boxes.works:
            why = "no detector is left to train or to evaluate"
        command.warn([f"There is nothing to measure: {why}."])
        return None
    from pipeline.benchmark import detector_times
    from pipeline.compute.machine import machine
    from pipeline.detection import average_precision

    average_precision.require()
    device, precision, channels_last = options
    # A slip in an option is one line here, and not one of each process.
    machine(device, precision, channels_last=channels_last, steps="eager")
    measured = detector_times.measure(missing, scenes, detector_times.Options(*options))
    command.warn([f"Of {name} not all is known: {x.why}." for name, x in measured.speeds.items() if x.why])
    return measured


def _made(item: Item, state: State) -> int:
    return sum(stage in state.made for stage in item.stages)


def _missing(item: Item, state: State) -> int:
    return len(item.stages) - _made(item, state)


def _needs(found: Plan, state: State, artifacts: Path) -> list[Need]:
    """Return what each disk must hold: the workspace, and DVC's cache with a copy of it unless they share."""
    import shutil

    size = sum(item.bytes * _missing(item, state) for item in found.items)
    stages = (stage for item in found.items for stage in item.stages if stage not in state.made)
    freed = sum(state.held.get(stage, 0) for stage in stages)

    disks: dict[int, tuple[Path, int]] = {}
    for path, more in (
        (artifacts, 0 if state.linked else size - freed),
        (state.cache or artifacts, size),
    ):
        # What is not there yet will be made on the disk of the nearest folder above it.
        place = next(one for one in (path, *path.absolute().parents) if one.exists())
        device = place.stat().st_dev
        first, held = disks.get(device, (place, 0))
        # Workspace and cache on one disk need room together.
        disks[device] = (first, held + more)
    return [Need(place, max(0, more), shutil.disk_usage(place).free) for place, more in disks.values()]


def _print(found: Plan, state: State, needs: list[Need], boxes: BoxPlan, measured: Measured | None) -> None:
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table

    # Into a file or a pipe, no line is cut.
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)

    table = Table("artifact", "of", "there", "to make", "size", "files", "teacher forwards", box=None)
    for item in found.items:
        missing = _missing(item, state)
        size = decimal(item.bytes * missing) if item.bytes else "small"
        forwards = f"{item.forwards * missing:,}" if item.forwards * missing else ""
        done = str(_made(item, state))
        cells = (str(missing), size, f"{item.files * missing:,}", forwards) if missing else ()
        table.add_row(item.kind, item.name, done, *cells)

    _right(table, 2)
    console.print(table)
    console.print()

    if found.costs:
        _print_features(console, found)
    for one in found.break_even:
        if one.after is None:
            console.print(f"{one.teacher}: no student reads its store.")
            continue
        console.print(
            f"{one.teacher}: its store costs {one.cached:,} forward passes; online, a student costs {one.online:,}. "
            f"It has paid for itself after {one.after} student{'s' * (one.after > 1)}; {one.students} "
            f"{'reads' if one.students == 1 else 'read'} it."
        )

    for need in needs:
        console.print(
            f"{decimal(need.bytes)} more on the disk of {need.place}"
            f"{'' if state.linked else ', a copy in the cache of DVC included'}; {decimal(need.free)} are free."
        )
    if state.note:
        console.print(state.note)
    if measured is not None:
        from pipeline.benchmark import detector_page

        console.print()
        detector_page.show(console, boxes, measured, state.made)
    elif boxes.missing(state.made):
        console.print("How long detectors take here, and their memory: python -m stages.plan --measure")


def _print_features(console: Console, found: Plan) -> None:
    from rich.filesize import decimal
    from rich.table import Table

    table = Table(
        "feature",
        "of",
        "slots",
        "a sample",
        "stored",
        "with all views",
        "online, a student",
        "students",
        box=None,
    )

    for cost in found.costs:
        table.add_row(
            cost.feature,
            cost.teacher,
            "not stored" if cost.slots is None else str(cost.slots),
            decimal(cost.view_bytes),
            decimal(cost.bytes) if cost.slots is not None else "",
            "unbounded" if cost.all_bytes is None else decimal(cost.all_bytes),
            "" if cost.online is None else f"{cost.online:,} forwards",
            str(cost.students),
        )

    _right(table, 2)
    console.print(table)
    console.print()


def _right(table: Any, first: int) -> None:
    for column in table.columns[first:]:
        column.justify = "right"


def _print_json(
    found: Plan, state: State, needs: list[Need], boxes: BoxPlan, measured: Measured | None
) -> None:
    import json
    from dataclasses import asdict

    content: dict[str, Any] = {
        "items": [asdict(item) | {"made": _made(item, state)} for item in found.items],
        "costs": [asdict(cost) for cost in found.costs],
        "break_even": [asdict(one) for one in found.break_even],
        "disks": [asdict(need) for need in needs],
        "note": state.note,
    }
    if measured is not None:
        from pipeline.benchmark import detector_times

        content["measured"] = detector_times.asdicts(boxes, measured)
    print(json.dumps(content, indent=2, default=str))


def _state(params: Path) -> State:
    """Ask DVC which stages are up to date and stay so.

    Raises:
        MachineError: DVC cannot tell.
    """
    from dvc.exceptions import DvcException, NotDvcRepoError
    from dvc.repo import Repo

    from pipeline.artifacts import rwlock
    from pipeline.errors import MachineError

    try:
        with Repo() as repo:
            if (mended := rwlock.mend(repo)) is not None:
                print(f"{mended} was cut short when DVC was killed, and is removed.", file=sys.stderr)
            return _known(repo, params)
    except NotDvcRepoError:
        return State(note="This folder is no DVC repository: everything counts as to be made.")
    except DvcException as error:
        reason = " ".join(str(error).split())
        # A kill cuts this file short too, and git may know a newer one than the run cache: it is not ours to remove.
        cure = "rm dvc.lock, then: dvc repro" if "dvc.lock'" in reason else "dvc status"
        raise MachineError(f"DVC cannot say what is up to date: {reason}. Look with: {cure}") from None


def _known(repo: Any, params: Path) -> State:
    from graphlib import TopologicalSorter
    from tempfile import TemporaryDirectory

    from pipeline.params import checks
    from pipeline.params.document import read

    root = Path(repo.root_dir)
    # DVC makes the stages that are rehearsed from this file, whichever one is planned.
    checks.check(read(root / "params.yaml"))
    graph = repo.index.graph  # from a stage to what it depends on

    order = list(TopologicalSorter({stage: set(graph.successors(stage)) for stage in graph}).static_order())
    outdated = repo.status()
    changed: set[Path] = set()  # files and folders that will be others
    heavy: set[Path] = set()  # those of them that are not known until they are made
    made: set[str] = set()
    held: dict[str, int] = {}

    with TemporaryDirectory() as folder:
        for stage in order:
            name = stage.addressing
            kind = name.partition("@")[0]
            deps, outs = (_paths(group, root) for group in (stage.deps, stage.outs))
            if kind in LIGHT:
                # What it reads is not made yet, so it cannot be rehearsed: all of it counts as changed.
                if _touched(deps, heavy):
                    changed |= outs
                else:
                    changed |= _rehearse(stage.cmd, outs, Path(folder), params)
            elif name in outdated or _touched(deps, changed):
                # DVC knows what has changed so far; `changed` is what will have changed by then.
                held[name] = sum(map(_bytes, outs))
                if kind not in GATES:
                    changed |= outs
                    heavy |= outs
            else:
                made.add(name)

    again = [name for name in outdated if name.startswith("prepare_data@")]
    notes = (
        [f"{', '.join(again)} will run again: sizes are those of the data that are there."] if again else []
    )
    if not made:
        notes.append("Nothing is up to date: everything counts as to be made.")

    types = repo.config["cache"].get("type") or ["reflink", "copy"]
    # DVC takes the first that the disk can do. Reflinks are rare, so with copies behind them a copy is counted.
    linked = "copy" not in types or bool({"hardlink", "symlink"} & set(types[: types.index("copy")]))
    return State(frozenset(made), held, Path(repo.cache.local.path), linked, " ".join(notes))


def _rehearse(cmd: str | list[str], outs: set[Path], folder: Path, params: Path) -> set[Path]:
    """Run a light stage into `folder` and return the files that come out other than they are.

    Args:
        cmd: its command, or its commands.
        outs: its outs.
        folder: holds what was rehearsed before, at the same relative paths.
        params: the yaml that is planned.
    """
    import shlex

    from stages import code, inputs, student_inputs, teacher_inputs
    from stages import params as params_stage

    mains = {
        "stages.code": code,
        "stages.inputs": inputs,
        "stages.params": params_stage,
        "stages.student_inputs": student_inputs,
        "stages.teacher_inputs": teacher_inputs,
    }
    for one in [cmd] if isinstance(cmd, str) else cmd:
        first, _, module, *words = shlex.split(one)  # python -m stages.NAME ...
        if first != "python":
            continue  # the check that comes first: the params that are planned have passed it

        arguments = []
        for before, word in zip(("", *words), words, strict=False):
            if "--mark" in (before, word):
                continue  # a folder that is there already, or holds nothing
            moved = folder / word
            arguments.append(str(moved) if moved.exists() or Path(word) in outs else word)
        if module == "stages.params":
            arguments += ["--params", str(params)]
        app = typer.Typer()
        app.command()(mains[module].main)
        app(arguments, standalone_mode=False)

    changed = set()
    for out in (out for out in outs if out.name != "about.json"):
        files = {path.relative_to(base) for base in (folder, Path()) for path in _files(base / out)}
        changed |= {path for path in files if _content(folder / path) != _content(path)}
    return changed


def _paths(group: Any, root: Path) -> set[Path]:
    paths = (Path(one.fs_path) for one in group if one.protocol == "local")
    return {path.relative_to(root) if path.is_relative_to(root) else path for path in paths}


def _touched(deps: set[Path], changed: set[Path]) -> bool:
    return any(a.is_relative_to(b) or b.is_relative_to(a) for a in deps for b in changed)


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in _files(path))


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


if __name__ == "__main__":
    command.run(main)

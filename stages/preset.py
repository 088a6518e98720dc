"""Presets: the params of each published table, to list, to print and to merge into params.yaml."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stages import command

if TYPE_CHECKING:
    from pipeline.presets.preset import Preset

Content = dict[str, Any]  # sections of params.yaml


class Action(StrEnum):
    """What to do with presets."""

    LIST = "list"
    SHOW = "show"
    APPLY = "apply"


def main(
    action: Annotated[Action, typer.Argument(help="list all, show one's params, or apply it.")] = Action.LIST,
    name: Annotated[str | None, typer.Argument(help="The preset to show or apply.")] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="One pair on scikit-learn's digits, or on drawn shapes: minutes on two cores."
        ),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace entries of params.yaml that have other values.")
    ] = False,
    params: command.Params = Path("params.yaml"),
) -> None:
    """List the presets, print the params of one, or merge them into params.yaml."""
    if (name is None) != (action is Action.LIST):
        raise typer.BadParameter(
            "list takes none; show and apply take one: python -m stages.preset show NAME", param_hint="NAME"
        )
    from pipeline.presets import preset as presets

    if name is None:
        _list()
        return
    chosen = presets.load(name)
    content = presets.block(chosen)
    if quick:
        with command.loading():
            from pipeline.presets.quick import quick as small
        content = small(content, chosen.quick)

    if action is Action.SHOW:
        print(_headed(name, chosen, content, quick))
    else:
        _apply(_headed(name, chosen, content, quick), content, params, force)


def _list() -> None:
    import sys

    from rich.console import Console
    from rich.table import Table

    from pipeline.presets import preset as presets

    # Into a file or a pipe, no line is cut.
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    table = Table("preset", "paper", "tables", "what", "students", box=None)
    table.columns[-1].justify = "right"
    for name, preset in presets.every():
        students = presets.num_students(presets.block(preset))
        table.add_row(name, preset.paper, presets.places(preset), preset.title, str(students))
    console.print(table)
    console.print("\npython -m stages.preset show NAME prints the params of one, apply NAME merges them.")


def _headed(name: str, chosen: Preset, content: Content, quick: bool) -> str:
    """Return a preset's params as a file, what is open in comments before them."""
    from pipeline.presets.text import written

    lines = [f"{chosen.title} ({chosen.paper}{', in its quick form' if quick else ''}; preset {name})"]
    lines += [f"open: {line}" for line in chosen.open]
    return "".join(f"# {line}\n" for line in lines) + "\n" + written(content)


def _apply(text: str, content: Content, path: Path, force: bool) -> None:
    from pipeline.artifacts.publish import writing
    from pipeline.params import checks
    from pipeline.params.document import parse
    from pipeline.params.document import text as text_of
    from pipeline.presets.text import applied

    if path.exists():
        before = text_of(path)
        checks.check_form(parse(before, path))
        text = applied(before, content, force=force)
    checks.check(parse(text, path))
    with writing(path) as part:
        part.write_text(text, encoding="utf-8", newline="")

    students, pairs = len(content["distill"]) * len(content["seeds"]), len(content["pairs"])
    words = f"{students} student{'s' * (students != 1)} of {pairs} pair{'s' * (pairs != 1)}"
    print(f"{path} asks for {words}. See python -m stages.plan")
    for line in _absent(content):
        print(line)


def _absent(content: Content) -> list[str]:
    """Return a line for each data set whose raw files are not there."""
    from pipeline import plugin
    from pipeline.data.raw.place import located
    from pipeline.params.base import validate
    from pipeline.params.plug import plugs

    lines = []
    for name, entry in content["datasets"].items():
        ((source, settings),) = plugs(entry["source"]).items()
        config = validate(
            plugin.load("datasets", source).Config, settings, f"datasets.{name}.source.{source}"
        )
        path = getattr(config, "path", None)
        if path is None or located(path).exists():
            continue
        if getattr(config, "download", False):
            lines.append(f"Data set {name}: prepare_data downloads it to {path}.")
        else:
            lines.append(
                f"Data set {name}: {path} is not there, and prepare_data refuses until it is. Put it there, or set its "
                "path in params.yaml."
            )
    return lines


if __name__ == "__main__":
    command.run(main)

"""Hash the code of every stage and plug-in, each with all that it imports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stages import command


def main(
    out: Annotated[Path, typer.Option(help="Folder to make: stages/NAME.json, methods/NAME.json and so on.")],
) -> None:
    """Write one json of hashes for every stage and plug-in."""
    from pipeline import plugin
    from pipeline.artifacts import closure, publish
    from pipeline.params import tasks

    stages = [path.stem for path in (closure.root() / "stages").glob("*.py") if path.stem != "__init__"]
    # A file each, so that a stage of DVC can depend on the code that it runs and no other.
    modules = {f"stages/{name}": f"stages.{name}" for name in stages}
    for catalogue in plugin.CATALOGUES:
        modules |= {f"{catalogue}/{name}": plugin.module(catalogue, name) for name in plugin.names(catalogue)}
    # What stages run for data with boxes: students of these name it among their inputs, and no others do.
    modules |= {f"{tasks.DETECTION}/{stage}": name for stage, name in tasks.modules().items()}
    with publish.building(out) as scratch:
        for name, module in modules.items():
            publish.write_json(scratch / f"{name}.json", closure.code_hashes([module]))


if __name__ == "__main__":
    command.run(main)

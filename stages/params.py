"""Check params.yaml as a whole and cut it into the blocks that the other stages depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stages import command

CHECKED = "checked.yaml"  # params.yaml as it was checked; dvc.yaml compares them
PASSED = "passed.json"  # always the same: what depends on it runs after the check, and never again for it

LISTED = (
    200_000  # raw files of a data set that are looked at after each edit; `stages.plan` looks at any number
)


def main(
    out: Annotated[Path, typer.Option(help="Folder to make: one json a block, defaults filled in.")],
    mark: command.Mark = None,
    prepared: Annotated[Path, typer.Option(help="Folder of all prepared data sets.")] = Path("data/prepared"),
    params: command.Params = Path("params.yaml"),
) -> None:
    """Check params.yaml, plug-ins, networks and tables included, and write one json for every block of it."""
    from pipeline.artifacts import publish
    from pipeline.params.document import parse, text

    content = text(params)
    parsed = parse(content, params)

    with command.loading():
        from pipeline.runs import check, class_names
        from pipeline.runs.blocks import blocks, unasked
        from pipeline.runs.raw_files import changes

    project = check.project(parsed)
    class_names.check(project, prepared)
    with publish.building(out) as scratch:
        for name, block in blocks(project).items():
            publish.write_json(scratch / f"{name}.json", block.model_dump(mode="json"))
        for name in unasked(project):
            publish.write_json(scratch / f"{name}.json", None)
        # The very bytes: while params.yaml has them, what DVC makes of it needs no other check.
        (scratch / CHECKED).write_bytes(content.encode("utf-8"))
        publish.write_json(scratch / PASSED, True)
    command.mark(mark)
    command.warn(changes(project.params, prepared, most=LISTED))


if __name__ == "__main__":
    command.run(main)

"""Report what params.yaml lists: a page for people, csv and json for programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stages import command


def main(
    params: Annotated[
        Path, typer.Argument(help="Folder of the blocks of params.yaml, made by stages.params.")
    ],
    artifacts: Annotated[Path, typer.Option(help="Folder of all artifacts.")],
    prepared: Annotated[Path, typer.Option(help="Folder of all prepared data sets.")],
    out: Annotated[Path, typer.Option(help="Folder to make: index.html, results.csv and others.")],
    project: Annotated[
        Path | None, typer.Option(help="The params.yaml that PARAMS must be of; left out, none is compared.")
    ] = None,
) -> None:
    """Write the report of all pairs, runs and seeds that params.yaml lists, and name what of them is missing."""
    from pipeline import progress
    from pipeline.artifacts import publish
    from pipeline.report.collect.blocks import Blocks
    from pipeline.report.collect.collect import collect

    if project is not None:
        Blocks.of(params).require(project)
    results = collect(params, artifacts, prepared)
    for entry in results.missing:
        progress.say(f"left out: {entry.what}. {entry.reason} Make it with: {entry.command}")
    if results.missing:
        progress.say("The report shows the rest. Once all is made, this makes it whole: dvc repro")

    from pipeline.report.export import export
    from pipeline.report.page import page

    with publish.building(out) as scratch:
        export(results, scratch)
        (scratch / "index.html").write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    command.run(main)

"""Say what `dvc repro` will make and cost, before it runs; refuse what the disk cannot hold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stages import command


def main(
    prepared: Annotated[Path, typer.Option(help="Folder of all prepared data sets.")] = Path("data/prepared"),
    artifacts: Annotated[Path, typer.Option(help="Folder of all artifacts.")] = Path("artifacts"),
    params: command.Params = Path("params.yaml"),
    json: Annotated[Path | None, typer.Option(help="Write the plan there, too.")] = None,
) -> None:
    """Plan all of params.yaml: artifacts, bytes, files, forward passes of the teachers, break-even."""
    from pipeline.params import project
    from pipeline.params.base import read

    sections = project.check(read(params))
    project.check_plugins(sections)

    import shutil
    from dataclasses import asdict

    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table

    from pipeline.artifact import write_json
    from pipeline.errors import MachineError
    from pipeline.planning import plan
    from pipeline.prepared import Prepared

    items, paid = plan(sections, {name: Prepared.open(prepared / name).meta for name in sections.datasets})
    table = Table("artifact", "of", "number", "size", "files", "teacher forwards", box=None)
    for column in table.columns[2:]:
        column.justify = "right"
    for item in items:
        size, forwards = decimal(item.bytes), f"{item.forwards:,}" if item.forwards else ""
        table.add_row(item.kind, item.name, str(item.number), size, f"{item.files:,}", forwards)
    total = sum(item.bytes for item in items)
    console = Console()
    console.print(table)
    for one in paid:
        if one.after is None:
            console.print(f"{one.teacher}: no student reads its store.")
            continue
        console.print(
            f"{one.teacher}: its store costs {one.cached:,} forward passes; online, a student costs {one.online:,}. "
            f"It has paid for itself after {one.after} student{'s' * (one.after > 1)}; {one.students} are planned."
        )
    # DVC keeps a second copy in its cache, except where the file system can share blocks or links are set up.
    artifacts.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(artifacts).free
    held = sum(path.stat().st_size for path in artifacts.rglob("*") if path.is_file())
    needed = max(0, 2 * total - 2 * held)
    console.print(
        f"In all {decimal(total)}, and as much in DVC's cache; {decimal(held)} are there, {decimal(free)} are free."
    )
    if json is not None:
        content = {"items": [asdict(item) for item in items], "break_even": [asdict(one) for one in paid]}
        write_json(json, content | {"bytes": total, "free": free})
    if needed > free:
        raise MachineError(
            f"The plan needs {decimal(needed)} more, and {decimal(free)} are free. Lower 'slots' of the largest "
            "features in params.yaml, use 'source: online', or free disk: dvc gc --workspace"
        )


if __name__ == "__main__":
    command.run(main)

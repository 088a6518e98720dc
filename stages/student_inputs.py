"""Resolve what a student alone is trained from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stages import command


def main(
    block: Annotated[Path, typer.Argument(help="The student's json, made by stages.params.")],
    data: Annotated[Path, typer.Option(help="Folder of the prepared data.")],
    code: Annotated[Path, typer.Option(help="Folder of the code's hashes, made by stages.code.")],
    out: Annotated[Path, typer.Option(help="Json to make.")],
) -> None:
    """Write the json of inputs of the student of BLOCK."""
    from pipeline.artifacts import publish
    from pipeline.params import tasks
    from pipeline.params.base import load
    from pipeline.params.students import StudentBlock

    if tasks.told(block) == tasks.DETECTION:
        content = tasks.load("student_inputs").student_inputs(block, data, code)
        with publish.replacing(out):
            publish.write_json(out, content)
        return

    student = load(StudentBlock, block)

    from pipeline.runs.resolve import resolve_student

    with publish.replacing(out):
        publish.write_json(out, resolve_student(student, data, code).model_dump(mode="json"))


if __name__ == "__main__":
    command.run(main)

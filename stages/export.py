"""Export a student as files that ship: ONNX, a program of torch.export, int8."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stages import command

if TYPE_CHECKING:
    from pipeline.params.exports import ExportParams

RUN = Annotated[
    str, typer.Argument(metavar="PAIR/RUN", help="Whose student: an entry of distill in params.yaml.")
]


def main(
    run: RUN,
    out: Annotated[
        Path | None, typer.Option(help="Folder to make.", show_default="artifacts/exports/PAIR/RUN")
    ] = None,
    block: Annotated[
        Path | None, typer.Option(help="The json of the run's entry of `exports`, made by stages.params.")
    ] = None,
    seed: Annotated[
        str | None,
        typer.Option(help="A seed, or best: of the highest top-1 on the split that chooses epochs."),
    ] = None,
    weights: Annotated[str | None, typer.Option(help="last, or best: those of the best epoch.")] = None,
    formats: Annotated[
        str | None, typer.Option(help="Any of onnx,program,int8, joined by commas.", show_default="all")
    ] = None,
    students: Annotated[Path, typer.Option(help="Folder of all students.")] = Path("artifacts/students"),
    params: Annotated[Path, typer.Option(help="Folder of the blocks of params.yaml.")] = Path(
        "artifacts/params"
    ),
) -> None:
    """Write the student of PAIR/RUN in each format, if it does there what it does in PyTorch."""
    from pipeline.artifacts import publish
    from pipeline.export.models import require_to_make
    from pipeline.params.exports import run_name

    folder = students / run_name(run)
    settings = _settings(block, seed, weights, formats)
    out = Path("artifacts/exports", run) if out is None else out
    require_to_make(settings.formats)

    with command.loading():
        import torch

        from pipeline.export.export import described, require_replaceable, write
        from pipeline.export.student import Student, chosen_seed

    number = chosen_seed(run, folder, settings, params)
    student = Student.open(folder / str(number), settings.weights, params)
    require_replaceable(out)
    torch.set_num_threads(1)
    # Neither a slip in an option nor a gate that is not passed costs what is there.
    with publish.building(out, keep=True) as scratch:
        try:
            record = write(student, settings, scratch)
        except BaseException:
            # Nobody resumes an export, and what failed the gate must not be taken for one.
            publish.remove(scratch)
            raise
    print(f"{run}, seed {number}, {settings.weights} weights, on one thread of this CPU:")
    print("\n".join(described(record)))


def _settings(block: Path | None, seed: str | None, weights: str | None, formats: str | None) -> ExportParams:
    """Return the settings of a block, or the defaults, with the options that were given."""
    from pipeline.params.base import load, validate
    from pipeline.params.exports import ExportBlock, ExportParams

    settings = ExportParams() if block is None else load(ExportBlock, block).settings
    given = {
        "seed": int(seed) if seed is not None and seed.isdecimal() else seed,
        "weights": weights,
        "formats": None if formats is None else formats.split(","),
    }
    changes = {name: value for name, value in given.items() if value is not None}
    return validate(ExportParams, settings.model_dump(mode="json") | changes, "", "options")


if __name__ == "__main__":
    command.run(main)

"""Predict the classes of a folder's images, by a student or by an exported file."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stages import command

if TYPE_CHECKING:
    from pipeline.export.models import Model
    from pipeline.export.preprocessing import Preprocessing


PARAMS = Path("artifacts/params")


class Weights(StrEnum):
    """Which weights of a student."""

    LAST = "last"
    BEST = "best"


class Damaged(StrEnum):
    """What becomes of files that cannot be read."""

    REFUSE = "refuse"
    SKIP = "skip"


def main(
    folder: Annotated[Path, typer.Argument(help="Folder of images; those in folders below it count too.")],
    out: Annotated[Path, typer.Option(help="Csv to make: file, class, probability, and that of each class.")],
    student: Annotated[
        Path | None, typer.Option(help="What a training left: artifacts/students/PAIR/RUN/SEED.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="An exported file, or its folder: artifacts/exports/PAIR/RUN/onnx.")
    ] = None,
    weights: Annotated[
        Weights | None,
        typer.Option(help="Of the student: last, or those of its best epoch.", show_default="last"),
    ] = None,
    damaged: Annotated[
        Damaged,
        typer.Option(help="Stop at a file that cannot be read, or list and skip it."),
    ] = Damaged.REFUSE,
    params: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the blocks of params.yaml, which a student is read with.",
            show_default="artifacts/params",
        ),
    ] = None,
) -> None:
    """Write the class and the probabilities of every image of FOLDER."""
    from pipeline.errors import ParamsError

    if (student is None) == (model is None):
        raise ParamsError("Expected one model. Give --student or --model, and not both.")
    for option, value in (("--weights", weights), ("--params", params)):
        if model is not None and value is not None:
            raise ParamsError(f"{option} is of a student, and {model} is an exported file. Leave it out.")
    if out.exists() and not (out.is_file() or out.is_dir()):
        raise ParamsError(f"{out} is no file, expected a CSV file to make. Give another one by --out.")
    if out.is_dir():  # to publish a file is to replace what is in its place
        raise ParamsError(f"{out} is a folder, expected a CSV file to make. Give another one by --out.")

    with command.loading():
        from pipeline.export.prediction import Predictor, images_below

    paths = images_below(folder)
    if out.resolve() in {path.resolve() for path in paths}:
        raise ParamsError(
            f"{out} is an image of {folder}, and would be replaced. Give another file by --out."
        )
    if student is not None:
        run, preprocessing = _of_student(student, weights or Weights.LAST, params or PARAMS)
    else:
        run, preprocessing = _of_file(model)
    predictor = Predictor(run, preprocessing, skip=damaged == Damaged.SKIP)
    rows = predictor.write(folder, paths, out)
    command.warn(predictor.skipped)
    skipped = f", {len(predictor.skipped):,} skipped" if predictor.skipped else ""
    print(f"{out}: {rows:,} images{skipped}.")


def _of_student(folder: Path, weights: str, params: Path) -> tuple[Model, Preprocessing]:
    with command.loading():
        from pipeline.export import models
        from pipeline.export.student import Student

    opened = Student.open(folder, weights, params)
    return models.of_network(opened.network), opened.preprocessing


def _of_file(path: Path | None) -> tuple[Model, Preprocessing]:
    # Without torch, where the file is one of ONNX.
    from pipeline.export import models

    assert path is not None
    file, preprocessing = models.located(path)
    return models.opened(file), preprocessing


if __name__ == "__main__":
    command.run(main)

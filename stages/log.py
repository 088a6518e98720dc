"""Show the histories of trainings in other programs: DVC's plots while they run, TensorBoard and MLflow afterwards."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from stages import command

SECONDS = 5.0  # between two looks
EXPERIMENT = "stillhouse"


class To(StrEnum):
    """What takes the histories."""

    DVCLIVE = "dvclive"
    TENSORBOARD = "tensorboard"
    MLFLOW = "mlflow"


def main(
    to: Annotated[To, typer.Option(help="What takes the histories.")],
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Trainings, as folders below the artifacts: 'students/*/kd/*'; all by default."),
    ] = None,
    artifacts: Annotated[Path, typer.Option(help="Folder of all artifacts.")] = Path("artifacts"),
    out: Annotated[
        Path | None, typer.Option(help="Folder to write: dvclive, or runs of TensorBoard, by default.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on until Ctrl-C, with what runs meanwhile; dvclive only.")
    ] = False,
    uri: Annotated[
        str | None, typer.Option(help="MLflow's server or store; its own default, or MLFLOW_TRACKING_URI.")
    ] = None,
    experiment: Annotated[
        str | None, typer.Option(help="MLflow's experiment.", show_default=EXPERIMENT)
    ] = None,
) -> None:
    """Write the histories of finished trainings; for dvclive, of those that run too."""
    if follow and to != To.DVCLIVE:
        raise typer.BadParameter(f"{to} takes finished trainings alone.", param_hint="--follow")
    if out is not None and to == To.MLFLOW:
        raise typer.BadParameter("MLflow writes where --uri says.", param_hint="--out")

    for option, value in (("--uri", uri), ("--experiment", experiment)):
        if value is not None and to != To.MLFLOW:
            raise typer.BadParameter(f"{to} has none: it is MLflow's.", param_hint=option)

    from pipeline.errors import MissingArtifactError, ParamsError
    from pipeline.tracking import live
    from pipeline.tracking.histories import histories

    folder = out or Path("dvclive" if to == To.DVCLIVE else "runs")
    if to != To.MLFLOW and folder.resolve().is_relative_to(artifacts.resolve()):
        raise ParamsError(f"{folder} is among the artifacts, which are DVC's. Give another folder by --out.")
    patterns = names or []
    found = histories(artifacts, patterns)
    if patterns and not found and not follow:
        raise MissingArtifactError(
            f"{artifacts} has no training that fits {', '.join(patterns)}. Give a folder below it, or a pattern such "
            "as 'students/*/kd/*'."
        )
    if to == To.DVCLIVE:
        changed = live.write(found, folder)
    else:
        found = [history for history in found if history.finished]
        if to == To.TENSORBOARD:
            from pipeline.tracking import tensorboard

            changed = tensorboard.export(found, folder)
        else:
            from pipeline.tracking import mlflow

            changed = mlflow.export(found, uri, experiment or EXPERIMENT)
    print(f"{changed} of {len(found)} trainings written; the others were there.", flush=True)
    if follow:
        _follow(artifacts, patterns, folder)


def _follow(artifacts: Path, patterns: list[str], folder: Path) -> None:
    """Look every few seconds at what has changed; checkpoints, which it reads, are ten apart."""
    import time

    from pipeline.tracking import live
    from pipeline.tracking.histories import histories

    print(f"Following {artifacts} into {folder}; Ctrl-C ends it.", flush=True)
    try:
        while True:
            time.sleep(SECONDS)
            live.write(histories(artifacts, patterns), folder)
    except KeyboardInterrupt:
        pass  # the way in which it ends


if __name__ == "__main__":
    command.run(main)

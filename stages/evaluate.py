"""Evaluate a trained network on the test split: metrics for people, predictions for the report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stages import command


def main(
    folder: Annotated[Path, typer.Argument(help="What a training left: weights/, training.json.")],
    out: Annotated[Path, typer.Option(help="Json of metrics to make.")],
    predictions: Annotated[Path, typer.Option(help="Npz to make: predicted classes of the test split.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder of the prepared data; a student's inputs name it themselves.")
    ] = None,
    device: command.Device = "auto",
) -> None:
    """Evaluate the last and the best weights of FOLDER."""
    from pipeline.artifacts import publish
    from pipeline.errors import MissingArtifactError, ParamsError

    if not folder.is_dir():
        raise MissingArtifactError(f"{folder} does not exist. Make it with: dvc repro")
    inputs_path = folder / "inputs.json"
    inputs = publish.read_json(inputs_path, "dvc repro") if inputs_path.exists() else {}
    if inputs:
        _check(inputs, inputs_path)
    if data is None and "data" not in inputs:
        raise ParamsError(f"{folder} does not say which data it was trained on. Give --data.")

    from pipeline.compute.machine import machine
    from pipeline.evaluation.evaluate import evaluate

    where = machine(device)  # a slip in an option must not cost what is there
    with publish.replacing(predictions, out):
        found, arrays = evaluate(folder, Path(inputs["data"]) if data is None else data, inputs, where)

        import numpy as np

        with publish.writing(predictions) as part, part.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        publish.write_json(out, found)


def _check(inputs: Any, path: Path) -> None:
    """Refuse a student's inputs that are not of the form that its training wrote."""
    from pipeline.errors import DamagedArtifactError, ParamsError
    from pipeline.params.base import validate
    from pipeline.runs.inputs import RunInputs, StudentInputs

    try:
        if not isinstance(inputs, dict):
            raise ParamsError(f"{path} holds {type(inputs).__name__}, expected a mapping.")
        if "run" in inputs:
            validate(RunInputs, inputs, "", str(path))
        else:  # the inputs of a student alone are those of all its seeds
            alone = {key: value for key, value in inputs.items() if key != "seed"}
            validate(StudentInputs, alone, "", str(path))
    except ParamsError as error:
        raise DamagedArtifactError(f"{error} Delete {path.parent}, then: dvc repro") from None


if __name__ == "__main__":
    command.run(main)

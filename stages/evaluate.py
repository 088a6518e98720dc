"""Evaluate a trained network on the test split: metrics for people, predictions for the report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stages import command

if TYPE_CHECKING:
    from pipeline.runs.inputs import RunInputs


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
    from pipeline.params import tasks

    if not folder.is_dir():
        raise MissingArtifactError(f"{folder} does not exist. Make it with: dvc repro")
    inputs_path = folder / "inputs.json"
    inputs = publish.read_json(inputs_path, "dvc repro") if inputs_path.exists() else {}
    of_boxes = tasks.told(inputs_path) == tasks.DETECTION
    run = _checked(inputs, inputs_path) if inputs and not of_boxes else None
    if data is None and "data" not in inputs:
        raise ParamsError(f"{folder} does not say which data it was trained on. Give --data.")

    folder_of_data = Path(inputs["data"]) if data is None else data
    finds_boxes = tasks.told(folder_of_data / "meta.json") == tasks.DETECTION

    with command.loading():
        from pipeline.artifacts.arrays import write
        from pipeline.artifacts.seal import sealed
        from pipeline.compute.machine import machine
        from pipeline.evaluation.evaluate import evaluate, require_finite
        from pipeline.networks.trained import Trained
        from pipeline.runs.comparison import compare

    trained = Trained.of(folder, "dvc repro")
    if inputs:
        trained.check_inputs(inputs, inputs_path)
    where = machine(device)  # a slip in an option must not cost what is there
    with publish.replacing(predictions, out):
        if finds_boxes:
            # By name: what evaluates detectors is in the hash of their own blocks alone.
            evaluator = tasks.load("evaluate")
            measured, arrays = evaluator.evaluate(folder, folder_of_data, inputs, where)
            if "run" in inputs:
                measured |= tasks.load("compare").compare(folder, inputs, where)
        else:
            measured, arrays = evaluate(folder, folder_of_data, inputs, where)
        if run is not None:
            # Only a distilled student has a teacher to be compared with.
            measured |= compare(folder, run, where)
        require_finite(folder, measured)
        with publish.writing(predictions) as part:
            write(part, arrays)
        publish.write_json(out, sealed(measured, trained.identity, predictions))


def _checked(inputs: Any, path: Path) -> RunInputs | None:
    """Return the inputs of a distilled student, and refuse those that are not of the form that a training writes."""
    from pipeline.errors import DamagedArtifactError, ParamsError
    from pipeline.params.base import validate
    from pipeline.runs.inputs import RunInputs
    from pipeline.runs.student import StudentInputs

    try:
        if not isinstance(inputs, dict):
            raise ParamsError(f"{path} holds {type(inputs).__name__}, expected a mapping.")
        if "run" in inputs:
            return validate(RunInputs, inputs, "", str(path))
        # The inputs of a student alone are those of all its seeds.
        validate(StudentInputs, {key: value for key, value in inputs.items() if key != "seed"}, "", str(path))
    except ParamsError as error:
        raise DamagedArtifactError(f"{error} Delete {path.parent}, then: dvc repro") from None
    return None


if __name__ == "__main__":
    command.run(main)

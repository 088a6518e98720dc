"""Evaluate a trained network on the test split: metrics for people, predictions for the report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    from pipeline import artifact
    from pipeline.errors import MissingArtifactError, ParamsError

    if not folder.is_dir():
        raise MissingArtifactError(f"{folder} does not exist. Make it with: dvc repro")
    inputs_path = folder / "inputs.json"
    inputs = artifact.read_json(inputs_path, "dvc repro") if inputs_path.exists() else {}
    if data is None and "data" not in inputs:
        raise ParamsError(f"{folder} does not say which data it was trained on. Give --data.")

    from pipeline.machine import machine
    from pipeline.training.evaluate import evaluate

    where = machine(device)  # a slip in an option must not cost what is there
    artifact.remove(out)
    artifact.remove(predictions)
    found, arrays = evaluate(folder, Path(inputs["data"]) if data is None else data, inputs, where)

    import numpy as np

    predictions.parent.mkdir(parents=True, exist_ok=True)
    part = artifact.scratch(predictions).with_suffix(".npz")
    np.savez(part, allow_pickle=False, **arrays)
    artifact.publish(part, predictions)
    artifact.write_json(out, found)


if __name__ == "__main__":
    command.run(main)

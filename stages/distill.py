"""Distil one student from its json of inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stages import command


def main(
    inputs: Annotated[Path, typer.Argument(help="The json of a run and seed, made by stages.inputs.")],
    out: Annotated[Path, typer.Option(help="Folder to make: weights/, history.csv, training.json.")],
    device: command.Device = "auto",
    precision: command.Precision = "float32",
    resident: command.Resident = 2048,
) -> None:
    """Distil the student of INPUTS by its method."""
    from pipeline import artifact, closure
    from pipeline.machine import machine
    from pipeline.params.base import load
    from pipeline.training.distil import distil
    from pipeline.training.inputs import RunInputs

    found = load(RunInputs, inputs, "dvc repro inputs")
    code = closure.digest(["stages.distill"])
    identity = artifact.content_hash([found.model_dump(mode="json"), precision, code])
    where = machine(device, precision)  # a slip in an option must not cost what is there
    with artifact.building(out, resume=True) as scratch:
        distil(
            scratch,
            found,
            where,
            identity=identity,
            resident_bytes=resident << 20,
        )
        artifact.write_json(scratch / "inputs.json", found.model_dump(mode="json"))


if __name__ == "__main__":
    command.run(main)

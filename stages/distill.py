"""Distill one student from its json of inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stages import command

CODE = "dvc repro params"  # makes the hashes of code


def main(
    inputs: Annotated[Path, typer.Argument(help="The json of a run and seed, made by stages.inputs.")],
    out: Annotated[Path, typer.Option(help="Folder to make: weights/, history.csv, training.json.")],
    code: command.Code = None,
    device: command.Device = "auto",
    precision: command.Precision = "auto",
    resident: command.Resident = 2048,
    processes: command.Processes = 1,
    channels_last: command.ChannelsLast = False,
    compiled: command.Compile = False,
) -> None:
    """Distill the student of INPUTS by its methods."""
    from pipeline.params.base import load
    from pipeline.runs.inputs import RunInputs

    run = load(RunInputs, inputs, "dvc repro inputs")
    # After the inputs are read: a mistake in them is reported once, and not by every process.
    command.spread("stages.distill", processes)

    with command.loading():
        from pipeline.artifacts import closure, hashing, publish
        from pipeline.compute import distributed
        from pipeline.compute.machine import machine
        from pipeline.training.assembly import Job
        from pipeline.training.distill import distill

    # Hashing a closure anew takes as long as a few epochs of a small network.
    hashes = closure.code_hashes(["stages.distill"]) if code is None else publish.read_json(code, CODE)
    # Before the output is touched: a slip in an option must not cost what is there.
    where = machine(device, precision, distributed.join(), channels_last=channels_last, compiled=compiled)
    identity = hashing.identity(run, where.precision, hashes)
    with distributed.building(out, where.ranks) as scratch:
        name = f"{run.pair}/{run.run}"
        job = Job(scratch, where, identity, f"{name} seed {run.seed}", f"distill@{name}-{run.seed}")
        distill(run, job, resident_bytes=resident << 20)
        if where.ranks.first:
            publish.write_json(scratch / "inputs.json", run.model_dump(mode="json"))


if __name__ == "__main__":
    command.run(main)

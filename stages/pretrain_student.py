"""Train a student alone: the baseline of every pair, and the init and solo student that KCD needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stages import command

CODE = "dvc repro params"  # makes the hashes of code


def main(
    inputs: Annotated[Path, typer.Argument(help="The student's json, made by stages.student_inputs.")],
    seed: Annotated[int, typer.Option(help="Seed of init, order and views.")],
    out: Annotated[Path, typer.Option(help="Folder to make: weights/, history.csv, training.json.")],
    code: command.Code = None,
    device: command.Device = "auto",
    precision: command.Precision = "auto",
    processes: command.Processes = 1,
    channels_last: command.ChannelsLast = False,
    compiled: command.Compile = False,
) -> None:
    """Train the student of INPUTS on labels alone."""
    from pipeline.params.base import load
    from pipeline.runs.student import StudentInputs, check_data

    student = load(StudentInputs, inputs, "dvc repro student_inputs")
    command.spread("stages.pretrain_student", processes)

    with command.loading():
        from pipeline.artifacts import closure, hashing, publish
        from pipeline.compute import distributed
        from pipeline.compute.machine import machine
        from pipeline.data.prepared import Prepared
        from pipeline.training.alone import train
        from pipeline.training.assembly import Job

    prepared = Prepared.open(Path(student.data))
    check_data(student, prepared)
    # Hashing a closure anew takes as long as a few epochs of a small network.
    hashes = (
        closure.code_hashes(["stages.pretrain_student"]) if code is None else publish.read_json(code, CODE)
    )
    # Before the output is touched: a slip in an option must not cost what is there.
    where = machine(device, precision, distributed.join(), channels_last=channels_last, compiled=compiled)
    identity = hashing.identity(student, seed, where.precision, hashes)
    with distributed.building(out, where.ranks) as scratch:
        stage = f"pretrain_student@{student.student}-{seed}"
        job = Job(scratch, where, identity, f"student {student.student} seed {seed}", stage)
        train(job, student.network, student.recipe, student.views, prepared, seed)
        if where.ranks.first:
            publish.write_json(scratch / "inputs.json", student.model_dump(mode="json") | {"seed": seed})


if __name__ == "__main__":
    command.run(main)

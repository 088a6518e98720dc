"""Train students alone: the baseline of every pair, and the init and solo student that KCD needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stages import command

CODE = "dvc repro params"  # makes the hashes of code


def main(
    inputs: Annotated[list[Path], typer.Argument(help="A student's json, made by stages.student_inputs.")],
    seed: Annotated[list[int], typer.Option(help="Seed of init, order and views; one for each of INPUTS.")],
    out: Annotated[
        list[Path],
        typer.Option(help="Folder to make: weights/, history.csv, training.json; one for each of INPUTS."),
    ],
    code: command.Code = None,
    device: command.Device = "auto",
    precision: command.Precision = "auto",
    processes: command.Processes = 1,
    channels_last: command.ChannelsLast = None,
    compiled: command.Compile = False,
    steps: command.Steps = "auto",
    cohort: command.Cohort = 0,
    deterministic: command.Deterministic = False,
) -> None:
    """Train the students of INPUTS, which share data and batch size, on labels alone."""
    command.require_as_many(inputs, "--out", out)
    command.require_as_many(inputs, "--seed", seed)
    from functools import partial

    from pipeline.params import tasks
    from pipeline.params.base import load
    from pipeline.runs.student import StudentInputs, check_data

    if tasks.told(inputs[0]) == tasks.DETECTION:
        with command.loading():
            from pipeline.artifacts import closure, publish
            from pipeline.compute.machine import machine

            # By name: what trains detectors is in the inputs of their own students alone.
            trainer = tasks.load("pretrain_student")
        trainer.check_options(processes, compiled=compiled)
        hashes = (
            closure.code_hashes(["stages.pretrain_student"])
            if code is None
            else publish.read_json(code, CODE)
        )
        where = machine(
            device, precision, channels_last=channels_last, steps="eager", deterministic=deterministic
        )
        trainer.pretrain_students(inputs, seed, out, where, hashes)
        return

    students = [load(StudentInputs, path, "dvc repro student_inputs") for path in inputs]
    command.spread("stages.pretrain_student", processes)

    with command.loading():
        from pipeline.artifacts import closure, hashing, publish
        from pipeline.compute import distributed
        from pipeline.compute.machine import machine
        from pipeline.data.prepared import Prepared
        from pipeline.training import cohort as cohorts
        from pipeline.training.alone import prepare
        from pipeline.training.assembly import Assembly, Job
        from pipeline.training.cohort import Member

    titles = [f"student {each.student} seed {number}" for each, number in zip(students, seed, strict=True)]
    cohorts.require_alike(
        [(title, each.data, each.recipe) for title, each in zip(titles, students, strict=True)]
    )
    prepared = Prepared.open(Path(students[0].data))
    for each in students:
        check_data(each, prepared)

    # Hashing a closure anew takes as long as a few epochs of a small network.
    hashes = (
        closure.code_hashes(["stages.pretrain_student"]) if code is None else publish.read_json(code, CODE)
    )
    # Before the output is touched: a slip in an option must not cost what is there.
    where = machine(
        device,
        precision,
        distributed.join(),
        channels_last=channels_last,
        compiled=compiled,
        steps=steps,
        cohort=cohort,
        deterministic=deterministic,
    )

    def ready(student: StudentInputs, number: int, title: str, scratch: Path) -> Assembly:
        identity = hashing.identity(student, number, where.precision, hashes)
        made_by = f"pretrain_student@{student.student}-{number}"
        job = Job(scratch, where, identity, title, made_by, hashing.content_hash(student.of_seed(number)))
        return prepare(job, student.network, student.recipe, student.views, prepared, number)

    def finish(student: StudentInputs, number: int, scratch: Path) -> None:
        if where.ranks.first:
            publish.write_json(scratch / "inputs.json", student.of_seed(number))

    cohorts.train(
        [
            Member(
                distributed.building(folder, where.ranks),
                partial(ready, student, number, title),
                partial(finish, student, number),
            )
            for student, number, title, folder in zip(students, seed, titles, out, strict=True)
        ],
        where,
    )


if __name__ == "__main__":
    command.run(main)

"""Distill students from their jsons of inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stages import command

CODE = "dvc repro params"  # makes the hashes of code


def main(
    inputs: Annotated[list[Path], typer.Argument(help="The json of a run and seed, made by stages.inputs.")],
    out: Annotated[
        list[Path],
        typer.Option(help="Folder to make: weights/, history.csv, training.json; one for each of INPUTS."),
    ],
    code: command.Code = None,
    device: command.Device = "auto",
    precision: command.Precision = "auto",
    resident: command.Resident = 2048,
    processes: command.Processes = 1,
    channels_last: command.ChannelsLast = None,
    compiled: command.Compile = False,
    steps: command.Steps = "auto",
    cohort: command.Cohort = 0,
    deterministic: command.Deterministic = False,
) -> None:
    """Distill the students of INPUTS, which share data and batch size, each by its own methods."""
    command.require_as_many(inputs, "--out", out)
    from functools import partial

    from pipeline.params import tasks
    from pipeline.params.base import load
    from pipeline.runs.inputs import RunInputs

    if tasks.told(inputs[0]) == tasks.DETECTION:
        with command.loading():
            from pipeline.artifacts import closure, publish
            from pipeline.compute.machine import machine

            # By name: what distills detectors is in their own inputs alone.
            trainer = tasks.load("distill")
        trainer.check_options(processes, compiled=compiled)
        hashes = closure.code_hashes(["stages.distill"]) if code is None else publish.read_json(code, CODE)
        where = machine(
            device, precision, channels_last=channels_last, steps="eager", deterministic=deterministic
        )
        trainer.distill(inputs, out, where, hashes)
        return

    runs = [load(RunInputs, path, "dvc repro inputs") for path in inputs]
    # After the inputs are read: a mistake in them is reported once, and not by every process.
    command.spread("stages.distill", processes)

    with command.loading():
        from pipeline.artifacts import closure, hashing, publish
        from pipeline.compute import distributed
        from pipeline.compute.machine import machine
        from pipeline.training import cohort as cohorts
        from pipeline.training.assembly import Assembly, Job
        from pipeline.training.cohort import Member
        from pipeline.training.distill import prepare

    titles = [f"{run.pair}/{run.run} seed {run.seed}" for run in runs]
    cohorts.require_alike([(title, run.data, run.recipe) for title, run in zip(titles, runs, strict=True)])
    # Hashing a closure anew takes as long as a few epochs of a small network.
    hashes = closure.code_hashes(["stages.distill"]) if code is None else publish.read_json(code, CODE)
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

    def ready(run: RunInputs, title: str, scratch: Path) -> Assembly:
        identity = hashing.identity(run, where.precision, hashes)
        made_by = f"distill@{run.pair}/{run.run}-{run.seed}"
        job = Job(scratch, where, identity, title, made_by, hashing.content_hash(run.model_dump(mode="json")))
        return prepare(run, job, resident_bytes=resident << 20)

    def finish(run: RunInputs, scratch: Path) -> None:
        if where.ranks.first:
            publish.write_json(scratch / "inputs.json", run.model_dump(mode="json"))

    cohorts.train(
        [
            Member(
                distributed.building(folder, where.ranks), partial(ready, run, title), partial(finish, run)
            )
            for run, title, folder in zip(runs, titles, out, strict=True)
        ],
        where,
    )


if __name__ == "__main__":
    command.run(main)

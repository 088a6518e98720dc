"""Train a copy or an assistant of a teacher from cached logits, and store its own (SLKD*; TAKD, DGKD)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stages import command


def main(
    block: Annotated[Path, typer.Argument(help="Its json, made by stages.params.")],
    prepared: Annotated[Path, typer.Option(help="Folder of all prepared data sets.")],
    weights: Annotated[Path, typer.Option(help="The teacher's folder of weights.")],
    store: Annotated[Path, typer.Option(help="The teacher's store.")],
    out: Annotated[Path, typer.Option(help="Folder to make: weights/, history.csv, store.zarr, copy.json.")],
    copies: Annotated[
        Path | None, typer.Option(help="Folder of the teacher's assistants; by default, that of OUT.")
    ] = None,
    device: command.Device = "auto",
    precision: command.Precision = "auto",
    batch_size: command.BatchSize = None,
    resident: command.Resident = 2048,
    steps: command.Steps = "auto",
    deterministic: command.Deterministic = False,
) -> None:
    """Train the copy or assistant of BLOCK by the logits that those have stored from which it learns."""
    from pipeline.params.base import load
    from pipeline.params.copies import CopyBlock

    copy = load(CopyBlock, block)

    with command.loading():
        from pipeline import plugin
        from pipeline.artifacts import closure, hashing, publish
        from pipeline.compute.machine import machine
        from pipeline.data.prepared import Prepared
        from pipeline.training.assembly import Job
        from pipeline.training.copies import Sources, train

    data = Prepared.open(prepared / copy.dataset)
    where = machine(device, precision, steps=steps, deterministic=deterministic)
    sources = Sources.of(copy, data, weights, store, copies or out.parent)
    learned = (plugin.module("methods", "kd"), plugin.module("schedules", "assistants"))
    code = closure.digest(["stages.train_copy", *learned])
    read = [sources.weights, sources.logits, data.meta.fingerprint]
    identity = hashing.identity(copy, where.precision, code, read)
    # An interrupted training stays in the scratch folder; its identity decides whether it is used.
    with publish.building(out, resume=True) as scratch:
        job = Job(scratch, where, identity, copy.stage, copy.stage)
        train(copy, data, sources, job, batch_size=batch_size, resident_bytes=resident << 20)


if __name__ == "__main__":
    command.run(main)

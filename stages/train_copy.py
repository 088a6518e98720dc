"""Train a copy of a teacher from its cached logits, and store the copy's own (SLKD*)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stages import command


def main(
    block: Annotated[Path, typer.Argument(help="The copy's json, made by stages.params.")],
    prepared: Annotated[Path, typer.Option(help="Folder of all prepared data sets.")],
    weights: Annotated[Path, typer.Option(help="The teacher's folder of weights.")],
    store: Annotated[Path, typer.Option(help="The teacher's store.")],
    out: Annotated[Path, typer.Option(help="Folder to make: weights/, history.csv, store.zarr, copy.json.")],
    device: command.Device = "auto",
    precision: command.Precision = "auto",
    batch_size: command.BatchSize = None,
    resident: command.Resident = 2048,
    steps: command.Steps = "auto",
    deterministic: command.Deterministic = False,
) -> None:
    """Train the copy of BLOCK by the teacher's logits in its STORE."""
    from pipeline.params.base import load
    from pipeline.params.copies import CopyBlock

    copy = load(CopyBlock, block)

    with command.loading():
        from pipeline import plugin
        from pipeline.artifacts import closure, hashing, publish
        from pipeline.compute.machine import machine
        from pipeline.data.prepared import Prepared
        from pipeline.features import contents
        from pipeline.training.assembly import Job
        from pipeline.training.copies import train

    data = Prepared.open(prepared / copy.dataset)
    where = machine(device, precision, steps=steps, deterministic=deterministic)
    stored = contents.read(store, f"dvc repro extract_features@{copy.teacher}")
    learned = (plugin.module("methods", "kd"), plugin.module("schedules", "final"))
    code = closure.digest(["stages.train_copy", *learned])
    # Missing ones are refused by `train`, with the line of params.yaml to change.
    read = [stored.weights.get("last"), stored.features.get("logits"), stored.data]
    identity = hashing.identity(copy, where.precision, code, [str(part) for part in read])
    # An interrupted training stays in the scratch folder; its identity decides whether it is used.
    with publish.building(out, resume=True) as scratch:
        job = Job(scratch, where, identity, f"copy {copy.name}", copy.stage)
        train(copy, data, weights, store, job, batch_size=batch_size, resident_bytes=resident << 20)
        about = {
            "made_by": copy.stage,
            "teacher": copy.teacher,
            "weights": stored.weights["last"],
            "settings": hashing.content_hash(copy.model_dump(mode="json")),
        }
        publish.write_json(scratch / "copy.json", about)


if __name__ == "__main__":
    command.run(main)

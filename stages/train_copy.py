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
    out: Annotated[Path, typer.Option(help="Folder to make: weights/, history.csv, store.zarr.")],
    summary: Annotated[Path, typer.Option(help="Json to make: whose copy it is, and what its store holds.")],
    device: command.Device = "auto",
    precision: command.Precision = "auto",
    batch_size: command.BatchSize = 256,
    resident: command.Resident = 2048,
) -> None:
    """Train the copy of BLOCK by the teacher's logits in its STORE."""
    from pipeline.params.base import load
    from pipeline.params.copies import SelfTaughtBlock

    asked = load(SelfTaughtBlock, block)

    from pipeline import plugin
    from pipeline.artifacts import closure, hashing, publish
    from pipeline.compute.machine import machine
    from pipeline.data.prepared import Prepared
    from pipeline.features import manifest as manifests
    from pipeline.training.self_taught import train

    data, where = Prepared.open(prepared / asked.dataset), machine(device, precision)
    made = manifests.read(store, "dvc repro")
    plugins = (("methods", "kd"), ("schedules", "final"), ("networks", made.network.family))
    code = closure.digest(["stages.train_self_taught", *(plugin.module(*plug) for plug in plugins)])
    read = [made.weights.get("last"), made.features.get("logits"), made.data]
    identity = hashing.content_hash(
        [asked.model_dump(mode="json"), where.precision, code, [str(part) for part in read]]
    )
    with publish.replacing(summary), publish.building(out, resume=True) as scratch:
        found = train(
            scratch,
            asked,
            data,
            weights,
            store,
            where,
            identity=identity,
            batch_size=batch_size,
            resident_bytes=resident << 20,
        )
        about = {"self_taught": asked.name, "teacher": made.weights["last"]}
        publish.write_json(summary, about | {"digest": found.features["logits"].digest})


if __name__ == "__main__":
    command.run(main)

"""Train a teacher on labels: weights, anchors, history."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stages import command


def main(
    block: Annotated[Path, typer.Argument(help="The teacher's train.json, made by stages.params.")],
    data: Annotated[Path, typer.Option(help="Folder of the prepared data.")],
    out: Annotated[Path, typer.Option(help="Folder to make: weights/, history.csv, training.json.")],
    device: command.Device = "auto",
    precision: command.Precision = "auto",
    processes: command.Processes = 1,
    channels_last: command.ChannelsLast = None,
    compiled: command.Compile = False,
    steps: command.Steps = "auto",
    deterministic: command.Deterministic = False,
) -> None:
    """Train the teacher of BLOCK on labels and keep its init, last, best and anchor weights."""
    from pipeline.params import tasks
    from pipeline.params.base import load
    from pipeline.params.teacher import TrainBlock, anchor_name

    if tasks.told(block) == tasks.DETECTION:
        with command.loading():
            from pipeline.compute.machine import machine

            # By name: what trains detectors is in the hash of their own blocks alone.
            trainer = tasks.load("train_teacher")
        trainer.check_options(processes, compiled=compiled)
        # Images differ in size, so no step can be repeated as it was.
        where = machine(
            device, precision, channels_last=channels_last, steps="eager", deterministic=deterministic
        )
        trainer.train_teacher(block, data, out, where)
        return

    teacher = load(TrainBlock, block)
    # After the block is read: a mistake in it is reported once, and not by every process.
    command.spread("stages.train_teacher", processes)

    with command.loading():
        from pipeline import plugin
        from pipeline.artifacts import closure, hashing
        from pipeline.compute import distributed
        from pipeline.compute.machine import machine
        from pipeline.data.prepared import Prepared
        from pipeline.networks.spec import NetworkSpec
        from pipeline.training.alone import train
        from pipeline.training.assembly import Job

    prepared = Prepared.open(data)
    meta = prepared.meta
    spec = NetworkSpec(
        family=teacher.family,
        network=teacher.network,
        source=teacher.source,
        weights=teacher.weights,
        **meta.kind,
    )
    # Before the output is touched: a slip in an option must not cost what is there.
    where = machine(
        device,
        precision,
        distributed.join(),
        channels_last=channels_last,
        compiled=compiled,
        steps=steps,
        deterministic=deterministic,
    )
    code = closure.digest(["stages.train_teacher", plugin.module("networks", teacher.family)])
    identity = hashing.identity(teacher, meta, where.precision, code)

    anchors = {anchor_name(share): share for share in teacher.anchors}
    with distributed.building(out, where.ranks) as scratch:
        inputs = hashing.content_hash(teacher.trained_from(meta.fingerprint, meta.mean, meta.std))
        job = Job(scratch, where, identity, f"teacher {teacher.teacher}", teacher.stage, inputs)
        train(job, spec, teacher.recipe, teacher.views, prepared, teacher.seed, anchors, teacher.head)


if __name__ == "__main__":
    command.run(main)

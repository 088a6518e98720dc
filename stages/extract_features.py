"""Run a teacher over every view once and cache its features."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stages import command


def main(
    block: Annotated[Path, typer.Argument(help="The teacher's extract.json, made by stages.params.")],
    data: Annotated[Path, typer.Option(help="Folder of the prepared data.")],
    weights: Annotated[Path, typer.Option(help="The teacher's folder of weights.")],
    out: Annotated[Path, typer.Option(help="Store to make, a folder that ends in .zarr.")],
    device: command.Device = "auto",
    precision: command.Precision = "auto",
    batch_size: command.BatchSize = None,
    processes: command.Processes = 1,
    channels_last: command.ChannelsLast = None,
    compiled: command.Compile = False,
) -> None:
    """Fill the feature store of the teacher of BLOCK; it records the precision that it was computed in."""
    if out.suffix != ".zarr":
        raise typer.BadParameter(f"{out} does not end in .zarr", param_hint="--out")

    from pipeline.params.base import load_asked
    from pipeline.params.teachers import ExtractBlock

    extract = load_asked(ExtractBlock, block)
    if extract is None:  # a detector, of which nothing is stored
        from pipeline.artifacts import publish
        from pipeline.artifacts.hashing import file_hash
        from pipeline.params.tasks import DETECTION

        # What is made of the teacher itself, and of no store, follows from these.
        hashes = {path.stem: file_hash(path) for path in sorted(weights.glob("*.safetensors"))}
        with publish.building(out) as scratch:
            publish.write_json(scratch / "zarr.json", {"task": DETECTION, "weights": hashes})
        return
    name = extract.teacher
    # After the block is read: a mistake in it is reported once, and not by every process.
    command.spread("stages.extract_features", processes)

    with command.loading():
        from pipeline import plugin
        from pipeline.artifacts import closure, hashing
        from pipeline.compute import distributed
        from pipeline.compute.machine import machine
        from pipeline.data.normalize import Normalize
        from pipeline.data.prepared import Prepared
        from pipeline.data.views import num_slots, view_space
        from pipeline.features.encoding import encodings_of
        from pipeline.features.extract import Extraction, fill, stored_features
        from pipeline.features.manifest import Manifest
        from pipeline.features.teacher import Teacher
        from pipeline.networks.weights import load

    prepared = Prepared.open(data)
    where = machine(device, precision, distributed.join(), channels_last=channels_last, compiled=compiled)
    space, meta = view_space(extract.views), prepared.meta

    loaded = {checkpoint: load(weights, checkpoint) for checkpoint in extract.checkpoints}
    teachers = {checkpoint: Teacher(network, where) for checkpoint, (network, _) in loaded.items()}
    requested = {
        feature: (
            num_slots(space, stored.slots, f"teachers.{name}.features.{feature}.slots"),
            stored.dtype,
        )
        for feature, stored in extract.features.items()
    }

    largest = {feature: stored.kept for feature, stored in extract.features.items()}
    first = next(iter(teachers.values()))
    manifest = Manifest.of(
        meta,
        extract.views,
        next(iter(loaded.values()))[1],
        {key: hashing.file_hash(weights / f"{key}.safetensors") for key in teachers},
        where.precision,
        stored_features(requested, first, meta.channels, meta.size, largest, f"teachers.{name}"),
        teacher=name,
        made_by=extract.stage,
    )

    # After the manifest, whose probe of one image is not worth compiling for.
    for teacher in teachers.values():
        where.place(teacher.network)
        where.compile(teacher.network)

    extraction = Extraction(
        manifest,
        teachers,
        prepared.splits,
        space,
        Normalize(meta.mean, meta.std, where.device),
        batch_size=batch_size,
        compression=extract.compression,
        ranks=where.ranks,
    )

    plugins = [plugin.module("networks", manifest.network.family)]
    plugins += [plugin.module("encodings", encoding) for encoding in encodings_of(extract.features)]
    code = closure.digest(["stages.extract_features", *plugins])
    # Features of an interrupted run are kept only where nothing that they depend on has changed.
    identity = hashing.identity(manifest, extract.compression, code)

    with distributed.building(out, where.ranks) as scratch:
        fill(scratch, extraction, identity, f"features of {name}")


if __name__ == "__main__":
    command.run(main)

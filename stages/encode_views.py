"""Encode a teacher's views with a fitted table: compact codes, in a store of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stages import command


def main(
    block: Annotated[Path, typer.Argument(help="The code's json, made by stages.params.")],
    prepared: Annotated[Path, typer.Option(help="Folder of all prepared data sets.")],
    weights: Annotated[Path, typer.Option(help="The teacher's folder of weights.")],
    store: Annotated[Path, typer.Option(help="The teacher's store.")],
    table: Annotated[Path, typer.Option(help="The fitted table, an npz.")],
    out: Annotated[Path, typer.Option(help="Store to make, a folder that ends in .zarr.")],
    summary: Annotated[Path, typer.Option(help="Json to make: which code the store holds.")],
    metrics: Annotated[Path, typer.Option(help="Json of metrics to make: what the code loses.")],
    device: command.Device = "auto",
    precision: command.Precision = "auto",
    batch_size: command.BatchSize = 256,
) -> None:
    """Fill the store of the code of BLOCK: every view of the training split, encoded with TABLE."""
    if out.suffix != ".zarr":
        raise typer.BadParameter(f"{out} does not end in .zarr", param_hint="--out")
    from pipeline.params.base import load as load_block
    from pipeline.params.codes import CodeBlock

    asked = load_block(CodeBlock, block)

    from pipeline.artifacts import hashing, publish
    from pipeline.compute.machine import machine
    from pipeline.data.prepared import Prepared
    from pipeline.features import contents
    from pipeline.features.codes import Encoder
    from pipeline.tables import table as tables

    data, where = Prepared.open(prepared / asked.dataset), machine(device, precision)
    hint = "dvc repro"
    arrays, origin = tables.load(table, hint)
    contents.require_source(table, origin, store, contents.read(store, hint))
    fitted_to, table_hash = origin["feature"], hashing.file_hash(table)
    stage = f"encode_views@{block.stem}"
    encoder = Encoder(
        asked,
        data,
        weights,
        store,
        arrays,
        table_hash,
        fitted_to,
        where,
        batch_size,
        made_by=stage,
        hint=hint,
    )
    with publish.replacing(summary, metrics), publish.building(out, resume=True) as scratch:
        manifest = encoder.run(scratch)
        lost = encoder.lost()
        stored = manifest.features[asked.code]
        publish.write_json(summary, {"code": asked.code, "digest": stored.digest})
        numbers = {"slots": stored.slots, "mean_kl_lost": lost}
        publish.write_json(metrics, {"code": asked.code} | numbers)


if __name__ == "__main__":
    command.run(main)

"""Encode a teacher's views with a fitted table: compact codes, each in a store of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stages import command


def main(
    block: Annotated[Path, typer.Argument(help="The codes' json, made by stages.teacher_inputs.")],
    prepared: Annotated[Path, typer.Option(help="Folder of all prepared data sets.")],
    weights: Annotated[Path, typer.Option(help="The teacher's folder of weights.")],
    store: Annotated[Path, typer.Option(help="The teacher's store.")],
    table: Annotated[Path, typer.Option(help="The fitted table, an npz.")],
    out: Annotated[
        Path, typer.Option(help="Folder to make: ENCODING.zarr for every code that is asked for.")
    ],
    metrics: Annotated[Path, typer.Option(help="Json of metrics to make: what the codes lose.")],
    device: command.Device = "auto",
    precision: command.Precision = "auto",
    batch_size: command.BatchSize = None,
) -> None:
    """Fill the stores of the codes of BLOCK: every view of the training split, encoded with TABLE."""
    from pipeline.artifacts import publish
    from pipeline.params.base import load_asked
    from pipeline.params.tables import EncodeInputs

    asked = load_asked(EncodeInputs, block, "dvc repro teacher_inputs")
    if asked is None:
        # DVC has a stage for every teacher and table, and expects its outs where nobody asks for codes too.
        with publish.replacing(metrics), publish.building(out):
            publish.write_json(metrics, {})
        return

    with command.loading():
        from pipeline.artifacts import hashing
        from pipeline.artifacts.seal import sealed
        from pipeline.compute.machine import machine
        from pipeline.data.prepared import Prepared
        from pipeline.features import contents
        from pipeline.features.codes import Encoder, whole_mark
        from pipeline.tables import table as tables

    data, where = Prepared.open(prepared / asked.dataset), machine(device, precision)
    hint = f"dvc repro extract_features@{asked.teacher}"
    # Codes of a table that was fitted to another store would be silently wrong.
    arrays, origin = tables.load(table, f"dvc repro fit_table@{asked.teacher}-{asked.table}")
    contents.require_source(table, origin, store, contents.read(store, hint))

    numbers: dict[str, Any] = {}
    with publish.replacing(metrics), publish.building(out, resume=True) as scratch:
        stores = {code: contents.code_store(scratch, code) for code in asked.codes}
        marks = [whole_mark(store) for store in stores.values()]
        # What an interrupted run has left of codes that nobody asks for any more.
        for left in set(scratch.iterdir()) - {*stores.values(), *marks}:
            publish.remove(left)

        for code, path in stores.items():
            encoder = Encoder(
                asked,
                code,
                data,
                weights,
                store,
                arrays,
                hashing.file_hash(table),
                origin["feature"],
                where,
                batch_size,
                made_by=asked.stage,
                hint=hint,
            )
            stored = encoder.run(path).features[code]
            numbers[code] = {"slots": stored.slots, "mean_kl_lost": encoder.lost()}

        # They say which stores a resumed run need not make again; the artifact is whole and has none.
        for mark in marks:
            publish.remove(mark)
        publish.write_json(metrics, sealed(numbers, asked.model_dump(mode="json"), table))


if __name__ == "__main__":
    command.run(main)

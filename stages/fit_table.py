"""Fit one table from a teacher's store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stages import command


def main(
    block: Annotated[Path, typer.Argument(help="The fit's json, made by stages.params.")],
    prepared: Annotated[Path, typer.Option(help="Folder of all prepared data sets.")],
    store: Annotated[Path, typer.Option(help="The teacher's store.")],
    out: Annotated[Path, typer.Option(help="Table to make, an npz.")],
    metrics: Annotated[Path, typer.Option(help="Json to make: how good the table is.")],
    base: Annotated[
        Path | None, typer.Option(help="The table in whose space it is fitted, where it has one.")
    ] = None,
) -> None:
    """Fit the table of BLOCK to the plain training samples of a stored feature."""
    from pipeline.params.base import load, validate
    from pipeline.params.tables import FitBlock

    fit = load(FitBlock, block)

    from pipeline import plugin
    from pipeline.artifacts import hashing, publish
    from pipeline.data.prepared import Prepared
    from pipeline.features import manifest as manifests
    from pipeline.features.source import check_stored
    from pipeline.features.stream import PlainStream
    from pipeline.tables import table

    module = plugin.load("tables", fit.table)
    config = validate(module.Config, fit.config, f"tables.{out.stem}.config")
    with publish.replacing(out, metrics):
        data, manifest = Prepared.open(prepared / fit.dataset), manifests.read(store)
        manifests.require(store, manifest, data=data.meta.fingerprint)
        check_stored(store, manifest, config.feature, ["last"], 0)
        origin = {
            "table": fit.settings(),
            "teacher": manifest.teacher,
            "weights": manifest.weights["last"],
            "digest": manifest.features[config.feature].digest["last/train"],
            "base": None if base is None else hashing.file_hash(base),
        }
        space = table.open_base(base, fit.table, getattr(module, "BASE", None), origin)
        stream = PlainStream(store, config.feature, data.split("train").labels)
        fitted = module.fit(stream, config, table.FitContext(num_classes=len(data.meta.classes), base=space))
        with publish.writing(out) as part:
            table.save(part, fitted, origin)
        publish.write_json(metrics, fitted.quality)


if __name__ == "__main__":
    command.run(main)

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
) -> None:
    """Fit the table of BLOCK to the plain training samples of a stored feature."""
    from pipeline.params.base import load, validate
    from pipeline.params.tables import FitBlock

    fit = load(FitBlock, block)

    from pipeline import plugin
    from pipeline.artifacts import publish
    from pipeline.data.prepared import Prepared
    from pipeline.features import contents
    from pipeline.features.stream import PlainStream
    from pipeline.tables import table

    module = plugin.load("tables", fit.table)
    config = validate(module.Config, fit.config, f"tables.{out.stem}.config")
    with publish.replacing(out, metrics):
        data, stored = Prepared.open(prepared / fit.dataset), contents.read(store, "dvc repro")
        contents.require(store, stored, data=data.meta.fingerprint)
        contents.check_stored(store, stored, config.feature, ["last"], 0)
        origin = {
            "made_by": f"fit_table@{block.stem}",
            "table": fit.settings(),
            "feature": config.feature,
            "teacher": stored.teacher,
            "weights": stored.weights["last"],
            "digest": stored.features[config.feature].digest["last/train"],
        }

        stream = PlainStream(store, config.feature, data.split("train").labels)
        fitted = module.fit(stream, config, table.FitContext(num_classes=len(data.meta.classes)))
        with publish.writing(out) as part:
            table.save(part, fitted, origin)
        publish.write_json(metrics, fitted.quality)


if __name__ == "__main__":
    command.run(main)

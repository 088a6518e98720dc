"""Fit one table from a teacher's store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stages import command


def main(
    block: Annotated[Path, typer.Argument(help="The table's json, made by stages.teacher_inputs.")],
    prepared: Annotated[Path, typer.Option(help="Folder of all prepared data sets.")],
    store: Annotated[Path, typer.Option(help="The teacher's store.")],
    out: Annotated[Path, typer.Option(help="Table to make, an npz; empty where nobody asks for it.")],
    metrics: Annotated[Path, typer.Option(help="Json to make: how good the table is.")],
    device: command.Device = "auto",
) -> None:
    """Fit the table of BLOCK to the plain training samples of a stored feature."""
    from pipeline.artifacts import publish
    from pipeline.params.base import load_asked, validate
    from pipeline.params.tables import FitInputs

    fit = load_asked(FitInputs, block, "dvc repro teacher_inputs")
    if fit is None:
        # DVC has a stage for every teacher and table, and expects its outs where nobody asks for it too.
        with publish.replacing(out, metrics), publish.writing(out) as part:
            part.touch()
            publish.write_json(metrics, {})
        return

    from pipeline import plugin
    from pipeline.artifacts.seal import sealed
    from pipeline.data.prepared import Prepared
    from pipeline.errors import StaleArtifactError
    from pipeline.features import contents
    from pipeline.features.stream import PlainStream
    from pipeline.tables import table

    module = plugin.load("tables", fit.table)
    config = validate(module.Config, fit.config, f"tables.{fit.name}.{fit.table}")
    # The device first: a slip in an option must not cost what is there.
    with command.fitting(device) as engine, publish.replacing(out, metrics):
        data = Prepared.open(prepared / fit.dataset)
        stored = contents.read(store, f"dvc repro extract_features@{fit.teacher}")
        contents.check_stored(store, stored, config.feature, ["last"], 0)

        digest = stored.features[config.feature].digest["last/train"]
        contents.require(store, stored, data=data.meta.fingerprint, weights={"last": fit.source.weights})
        # Run by hand, a stage may meet another store than the one that its json was made for.
        if digest != fit.source.digest:
            raise StaleArtifactError(
                f"{store} holds another '{config.feature}' than this table was resolved with. Run: dvc repro"
            )

        stream = PlainStream(store, config.feature, data.split("train").labels)
        fitted = module.fit(stream, config, table.FitContext(len(data.meta.classes), engine))

        # Kept in the table itself: whoever reads it can refuse one of another teacher or feature.
        origin = {
            "made_by": fit.stage,
            "feature": config.feature,
            "table": {"table": fit.table, "config": fit.config},
            "teacher": stored.teacher,
            "weights": stored.weights["last"],
            "digest": digest,
            "unit": module.UNIT or "cluster",
        }

        with publish.writing(out) as part:
            table.save(part, fitted, origin)
        publish.write_json(metrics, sealed(fitted.quality, fit.model_dump(mode="json"), out))


if __name__ == "__main__":
    command.run(main)

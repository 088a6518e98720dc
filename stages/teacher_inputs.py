"""List what runs ask to be made of a teacher's store, with the hash of each feature that it is made from.

A table's stage depends on its own json alone, so another feature in the store refits no table: the same bytes go in.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stages import command

if TYPE_CHECKING:
    from pipeline.params.tables import AskedBlock


def main(
    block: Annotated[Path, typer.Argument(help="The teacher's asked.json, made by stages.params.")],
    store: Annotated[Path, typer.Option(help="The teacher's store.")],
    out: Annotated[
        Path, typer.Option(help="Folder to make: tables/NAME.json, codes/NAME.json and matched.json.")
    ],
    mark: command.Mark = None,
    chain: Annotated[
        Path | None, typer.Option(help="Json to make: what chains of the teacher's assistants begin with.")
    ] = None,
) -> None:
    """Write one json of inputs for every table of params.yaml, null where nobody asks for it."""
    from pipeline.artifacts import publish
    from pipeline.features import contents
    from pipeline.params import tasks
    from pipeline.params.base import load
    from pipeline.params.tables import AskedBlock, EncodeInputs, FitInputs, Source

    asked = load(AskedBlock, block)
    if tasks.told(store / "zarr.json") == tasks.DETECTION:
        _write_nothing(asked, store, out, chain)  # of a detector nothing is stored
        command.mark(mark)
        return
    # Only the manifest is read: the stage depends on zarr.json alone, and not on gigabytes of features.
    stored = contents.read(store, f"dvc repro extract_features@{asked.teacher}")

    def source(feature: str, checkpoint: str) -> Source:
        # No slot is needed: tables and matchings are made from the plain view.
        contents.check_stored(store, stored, feature, [checkpoint], 0)
        digest = stored.features[feature].digest[f"{checkpoint}/train"]
        return Source(weights=stored.weights[checkpoint], digest=digest, data=stored.data)

    with publish.building(out) as scratch:
        for name, fit in asked.tables.items():
            table = (
                None if fit is None else FitInputs(**dict(fit), source=source(fit.config["feature"], "last"))
            )
            _write(scratch / "tables" / f"{name}.json", table)

        for name, encode in asked.codes.items():
            # Codes are made by running the teacher again: they depend on its weights, not on stored features.
            weights = stored.weights.get("last", "")
            codes = (
                None if encode is None else EncodeInputs(**dict(encode), weights=weights, data=stored.data)
            )
            _write(scratch / "codes" / f"{name}.json", codes)

        matched = {
            f"{match.checkpoint}/{match.feature}": source(match.feature, match.checkpoint).model_dump(
                mode="json"
            )
            for match in asked.matched
        }
        publish.write_json(scratch / "matched.json", matched)
    if chain is not None:
        logits = stored.features.get("logits")
        begin = {
            "teacher": asked.teacher,
            "weights": stored.weights.get("last"),
            "data": stored.data,
            "logits": None if logits is None else logits.digest.get("last/train"),
        }
        with publish.replacing(chain):
            publish.write_json(chain, begin)
    command.mark(mark)


def _write_nothing(asked: AskedBlock, store: Path, out: Path, chain: Path | None) -> None:
    """Write inputs of which none is asked for but matchings, which are made from a detector's weights."""
    from pipeline.artifacts import publish

    weights = publish.read_json(store / "zarr.json", f"dvc repro extract_features@{asked.teacher}")["weights"]
    with publish.building(out) as scratch:
        for kind, names in (("tables", asked.tables), ("codes", asked.codes)):
            for name in names:
                _write(scratch / kind / f"{name}.json", None)
        matched = {
            f"{match.checkpoint}/{match.feature}": weights[match.checkpoint] for match in asked.matched
        }
        publish.write_json(scratch / "matched.json", matched)
    if chain is not None:
        with publish.replacing(chain):
            publish.write_json(chain, None)


def _write(path: Path, block: object) -> None:
    from pipeline.artifacts import publish
    from pipeline.params.base import Block

    publish.write_json(path, block.model_dump(mode="json") if isinstance(block, Block) else None)


if __name__ == "__main__":
    command.run(main)

"""From params.yaml and the artifacts to fitted tables, and to what their codes lose."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline.artifacts import advice
from pipeline.errors import DamagedArtifactError, StaleArtifactError
from pipeline.params.tables import FitBlock
from pipeline.report.collect.blocks import Blocks
from pipeline.report.collect.mapping import inner, mapping, require
from pipeline.report.results import PLACES, Code, Table, Teacher
from pipeline.tables import table as npz


def tables(artifacts: Path, blocks: Blocks, teachers: Mapping[str, Teacher]) -> tuple[Table, ...]:
    """Read the fitted tables that runs and teachers ask for.

    Raises:
        MissingArtifactError: a table has not been made.
        StaleArtifactError: it was made from other settings, or for another teacher or other data.
        DamagedArtifactError: a file cannot be read.
    """
    return tuple(
        _table(artifacts, teachers[name], block)
        for name in blocks.sections.teachers
        for block in blocks.asked(name).tables.values()
        if block is not None
    )


def _table(artifacts: Path, teacher: Teacher, block: FitBlock) -> Table:
    place, hint = Path(block.teacher, block.name), f"dvc repro {block.stage}"
    quality = mapping(artifacts / "metrics" / "tables" / f"{place}.json", hint, ())
    path = artifacts / "tables" / f"{place}.npz"

    arrays, origin = npz.load(path, hint)
    require(path, hint, origin, {"teacher": block.teacher})
    if origin.get("table") != {"table": block.table, "config": block.config}:
        raise StaleArtifactError(
            f"{path} was fitted with other settings than params.yaml has. {advice.again(hint)}"
        )

    table = Table(block.name, teacher, block.table, str(block.config["feature"]), quality, arrays)
    _check_places(path, hint, table)
    return table


def codes(artifacts: Path, blocks: Blocks) -> tuple[Code, ...]:
    """Read what the codes lose.

    Raises:
        MissingArtifactError: a code that runs ask for has not been made.
        DamagedArtifactError: a file cannot be read.
    """
    losses = []
    for teacher in blocks.sections.teachers:
        for block in blocks.asked(teacher).codes.values():
            if block is None:
                continue

            hint = f"dvc repro {block.stage}"
            path = artifacts / "metrics" / "codes" / teacher / f"{block.table}.json"
            metrics = mapping(path, hint, block.codes)
            for name in block.codes:
                measured = inner(path, hint, metrics, name, ("slots", "mean_kl_lost"))
                losses.append(Code(teacher, name, int(measured["slots"]), float(measured["mean_kl_lost"])))
    return tuple(losses)


def _check_places(path: Path, hint: str, table: Table) -> None:
    """Refuse a table whose examples lie outside the data or the map, and a map of which no field is known."""
    if not table.has("gallery", *PLACES):
        return

    feature = table.teacher.store["features"].get(table.feature, {})
    if "field" not in feature:
        raise DamagedArtifactError(
            f"The summary of teacher '{table.teacher.name}' has no receptive field of '{table.feature}', which {path} "
            f"was fitted to. {advice.again(f'dvc repro check_features@{table.teacher.name}')}"
        )

    # Else a gallery would show pixels of other images, or end in a traceback.
    field = table.teacher.field(table.feature)
    samples = table.teacher.dataset.prepared.meta.samples["train"]
    for name, most in zip(PLACES, (samples, len(field.rows), len(field.columns)), strict=True):
        if table.arrays[name].size and table.arrays[name].max() >= most:
            raise StaleArtifactError(
                f"{path} has {name} {table.arrays[name].max()}, expected less than {most}. {advice.again(hint)}"
            )

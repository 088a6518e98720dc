"""From params.yaml and the artifacts to fitted tables, and to what their codes lose."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.artifacts import advice, seal
from pipeline.errors import DamagedArtifactError, MissingArtifactError, StaleArtifactError
from pipeline.params.tables import EncodeBlock, FitBlock
from pipeline.report.collect.blocks import Blocks
from pipeline.report.collect.mapping import inner, mapping, require
from pipeline.report.collect.missing import Omissions
from pipeline.report.results import PICTURED, PLACES, Code, Table, Teacher
from pipeline.tables import table as npz


def tables(
    artifacts: Path, blocks: Blocks, teachers: Mapping[str, Teacher], omissions: Omissions
) -> tuple[Table, ...]:
    """Read the fitted tables that runs and teachers ask for; those that are not whole are left out.

    Args:
        artifacts: folder of all artifacts.
        blocks: the blocks of params.yaml.
        teachers: those that are reported.
        omissions: takes what is left out.

    Raises:
        DamagedArtifactError: a file is not what was written.
    """
    asked = [block for name in teachers for block in blocks.asked(name).tables.values() if block is not None]
    found = (
        omissions.whole(
            f"table {block.name} of teacher {block.teacher}",
            block.stage,
            partial(_table, artifacts, teachers[block.teacher], block),
        )
        for block in asked
    )
    return tuple(table for table in found if table is not None)


def _table(artifacts: Path, teacher: Teacher, block: FitBlock) -> Table:
    place, hint = Path(block.teacher, block.name), f"dvc repro {block.stage}"
    inputs = _inputs(artifacts, "tables", block.name, block)
    path = artifacts / "tables" / f"{place}.npz"
    if path.exists() and not path.stat().st_size:
        raise MissingArtifactError(f"{path} is empty: nobody asked for it. Make it with: {hint}")

    arrays, origin = npz.load(path, hint)
    require(path, hint, origin, {"teacher": block.teacher})
    if origin.get("table") != {"table": block.table, "config": block.config}:
        raise StaleArtifactError(
            f"{path} was fitted with other settings than params.yaml has. {advice.again(hint)}"
        )
    weights, source = teacher.trained.weights["last"], inner(path, hint, inputs, "source", ("digest",))
    if (origin.get("weights"), origin.get("digest")) != (weights, source["digest"]):
        raise StaleArtifactError(
            f"{path} was fitted to other features than the project has now. {advice.again(hint)}"
        )

    metrics = artifacts / "metrics" / "tables" / f"{place}.json"
    quality = seal.opened(metrics, mapping(metrics, hint, ()), inputs, block.stage, path)
    table = Table(block.name, teacher, block.table, str(block.config["feature"]), quality, arrays)
    _check_places(path, hint, table)
    _check_pictured(path, hint, table)
    return table


def codes(
    artifacts: Path, blocks: Blocks, teachers: Mapping[str, Teacher], omissions: Omissions
) -> tuple[Code, ...]:
    """Read what the codes lose; those that are not whole are left out. See `tables`."""
    losses: list[Code] = []
    for teacher in teachers:
        for block in blocks.asked(teacher).codes.values():
            if block is not None:
                what = f"codes of teacher {teacher} by table {block.table}"
                losses += (
                    omissions.whole(what, block.stage, partial(_codes, artifacts, teachers[teacher], block))
                    or ()
                )
    return tuple(losses)


def _codes(artifacts: Path, teacher: Teacher, block: EncodeBlock) -> list[Code]:
    hint = f"dvc repro {block.stage}"
    path = artifacts / "metrics" / "codes" / block.teacher / f"{block.table}.json"
    table = artifacts / "tables" / block.teacher / f"{block.table}.npz"
    inputs = _inputs(artifacts, "codes", block.table, block)
    if inputs.get("weights") != teacher.trained.weights["last"]:
        raise StaleArtifactError(f"{path} is of codes of another teacher. {advice.again(hint)}")
    metrics = seal.opened(path, mapping(path, hint, block.codes), inputs, block.stage, table)

    losses = []
    for name in block.codes:
        measured = inner(path, hint, metrics, name, ("slots", "mean_kl_lost"))
        losses.append(Code(block.teacher, name, int(measured["slots"]), float(measured["mean_kl_lost"])))
    return losses


def _inputs(artifacts: Path, kind: str, name: str, block: FitBlock | EncodeBlock) -> dict[str, Any]:
    """Return what a table or codes are made from now, as `teacher_inputs` has resolved it."""
    path = artifacts / "inputs" / "teachers" / block.teacher / kind / f"{name}.json"
    hint, settings = f"dvc repro teacher_inputs@{block.teacher}", block.model_dump(mode="json")
    content = mapping(path, hint, settings)
    if any(content[key] != value for key, value in settings.items()):
        raise StaleArtifactError(
            f"{path} was resolved with other settings than the project has now. {advice.again(hint)}"
        )
    return content


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
        if table.arrays[name].dtype.kind != "i" or (table.arrays[name] < -1).any():
            raise DamagedArtifactError(f"{path} has {name} that are no places. {advice.again(hint)}")
        if table.arrays[name].size and table.arrays[name].max() >= most:
            raise StaleArtifactError(
                f"{path} has {name} {table.arrays[name].max()}, expected less than {most}. {advice.again(hint)}"
            )


def _check_pictured(path: Path, hint: str, table: Table) -> None:
    """Refuse a table of which images are pictured that the data do not have, or sub-classes that it does not have."""
    if not table.has("scores", "per_class", *PICTURED):
        return
    samples = table.teacher.dataset.prepared.meta.samples["train"]
    for name, most, axes in zip(PICTURED, (samples, len(table.arrays["scores"])), (1, 3), strict=True):
        array = table.arrays[name]
        if array.dtype.kind != "i" or array.ndim != axes or 0 in array.shape[1:] or (array < 0).any():
            raise DamagedArtifactError(f"{path} has {name} that are no pictures. {advice.again(hint)}")
        if array.size and array.max() >= most:
            raise StaleArtifactError(
                f"{path} has {name} {array.max()}, expected less than {most}. {advice.again(hint)}"
            )

    lengths = [len(table.arrays[name]) for name in PICTURED]
    if lengths[0] != lengths[1]:
        raise DamagedArtifactError(
            f"{path} pictures {lengths[0]} samples and {lengths[1]} maps. {advice.again(hint)}"
        )

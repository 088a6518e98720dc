"""From params.yaml and the artifacts to fitted tables, and to the codes that they make."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import DamagedArtifactError, StaleArtifactError
from pipeline.params.tables import FitBlock
from pipeline.report.collect.blocks import Blocks
from pipeline.report.collect.mapping import mapping, require
from pipeline.report.results import PLACES, Code, Fit, Teacher
from pipeline.tables import table


def fits(artifacts: Path, blocks: Blocks, teachers: Mapping[str, Teacher]) -> tuple[Fit, ...]:
    """Read the fitted tables that are asked for.

    Raises:
        MissingArtifactError: a table has not been made.
        StaleArtifactError: it was made from other settings, or for another teacher or other data.
        DamagedArtifactError: a file cannot be read.
    """
    return tuple(
        _fit(artifacts, teachers[name], block)
        for name in blocks.sections.teachers
        for block in blocks.asked(name).tables.values()
        if block is not None
    )


def _fit(artifacts: Path, teacher: Teacher, block: FitBlock) -> Fit:
    place, hint = Path(block.teacher, block.name), f"dvc repro {block.stage}"
    quality = mapping(artifacts / "metrics" / "tables" / f"{place}.json", hint, ())
    path = artifacts / "tables" / f"{place}.npz"
    arrays, origin = table.load(path, hint)
    require(path, hint, origin, {"teacher": block.teacher})
    if origin.get("table") != {"table": block.table, "config": block.config}:
        raise StaleArtifactError(
            f"{path} was fitted with other settings than params.yaml has. Make it again with: {hint}"
        )
    fit = Fit(f"{place}", teacher, block.name, block.table, str(block.config["feature"]), quality, arrays)
    _check_places(path, hint, fit)
    return fit


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
            for code in block.codes:
                lost, slots = metrics[code]["mean_kl_lost"], metrics[code]["slots"]
                losses.append(Code(teacher, code, int(slots), float(lost)))
    return tuple(losses)


def _check_places(path: Path, hint: str, fit: Fit) -> None:
    """Refuse a table whose examples lie outside the data or the map, and a map of which no field is known."""
    if not fit.has("gallery", *PLACES):
        return
    feature = fit.teacher.store["features"].get(fit.feature, {})
    if "field" not in feature:
        raise DamagedArtifactError(
            f"The summary of teacher '{fit.teacher.name}' has no receptive field of '{fit.feature}', which {path} was "
            f"fitted to. Make it again with: dvc repro check_features@{fit.teacher.name}"
        )
    field = fit.teacher.field(fit.feature)
    samples = fit.teacher.dataset.prepared.meta.samples["train"]
    for name, most in zip(PLACES, (samples, len(field.rows), len(field.columns)), strict=True):
        if fit.arrays[name].size and fit.arrays[name].max() >= most:
            raise StaleArtifactError(
                f"{path} has {name} {fit.arrays[name].max()}, expected less than {most}. Make it again with: {hint}"
            )

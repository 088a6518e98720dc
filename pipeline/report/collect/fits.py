"""From params.yaml and the artifacts to fitted tables, and to the codes that they make."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import DamagedArtifactError, MissingArtifactError, StaleArtifactError
from pipeline.params import project
from pipeline.params.project import Sections
from pipeline.params.tables import FitBlock
from pipeline.report.collect.mapping import mapping, require
from pipeline.report.results import PLACES, Code, Fit, Teacher
from pipeline.tables import table

STAGES = {"fits": "fit_table", "derived": "derive_table"}


def fits(artifacts: Path, sections: Sections, teachers: Mapping[str, Teacher]) -> tuple[Fit, ...]:
    """Read the fitted tables, those in the space of another one last.

    Raises:
        MissingArtifactError: something that params.yaml lists has not been made.
        StaleArtifactError: a table was made from other settings, or for another teacher or other data.
        DamagedArtifactError: a file cannot be read.
    """
    blocks = project.blocks(sections)
    found = []
    for section, stage in STAGES.items():
        for name, asked in getattr(sections, section).items():
            block = blocks[f"{section}/{name}"]
            assert isinstance(block, FitBlock)
            hint = f"dvc repro {stage}@{name}"
            quality = mapping(artifacts / "metrics" / "tables" / f"{name}.json", hint, ())
            path = artifacts / "tables" / asked.teacher / f"{asked.table}.npz"
            if not path.exists():
                raise MissingArtifactError(f"{path} does not exist. Make it with: {hint}")
            arrays, origin = table.load(path)
            require(path, hint, origin, {"teacher": asked.teacher})
            if origin.get("table") != block.settings():
                raise StaleArtifactError(
                    f"{path} was fitted with other settings than params.yaml has. Make it again with: {hint}"
                )
            feature = str(block.config.get("feature", ""))
            unit = str(origin.get("unit", "cluster"))  # the plug-in's own word, which `fit_table` passes on
            teacher = teachers[asked.teacher]
            fit = Fit(name, teacher, asked.table, block.table, feature, quality, arrays, unit)
            _check_places(path, hint, fit)
            found.append(fit)
    return tuple(found)


def codes(artifacts: Path, sections: Sections) -> tuple[Code, ...]:
    """Read what the codes lose.

    Raises:
        MissingArtifactError: a code that params.yaml lists has not been made.
        StaleArtifactError: it was made for another feature or table.
        DamagedArtifactError: a file cannot be read.
    """
    found = []
    for name, asked in sections.codes.items():
        path, hint = artifacts / "metrics" / "codes" / f"{name}.json", f"dvc repro encode_views@{name}"
        metrics = mapping(path, hint, ("code", "slots", "mean_kl_lost"))
        require(path, hint, metrics, {"code": asked.code})
        found.append(
            Code(name, asked.teacher, asked.code, int(metrics["slots"]), float(metrics["mean_kl_lost"]))
        )
    return tuple(found)


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

"""From params.yaml and the artifacts to what was measured of a pair's channel matchings."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.artifacts import advice, arrays, seal
from pipeline.detection.blocks import DetectorMatchBlock
from pipeline.errors import DamagedArtifactError, StaleArtifactError
from pipeline.params.matchings import MEASURED, MatchBlock, MatchingParams
from pipeline.params.names import OWN
from pipeline.report.collect.blocks import Blocks
from pipeline.report.collect.mapping import inner, mapping
from pipeline.report.collect.missing import Omissions
from pipeline.report.detectors import Finder
from pipeline.report.results import Teacher
from pipeline.report.trainings import InSeeds, Matched

MAPS = ("teacher_map", "transformed_map", "student_map")


def matched(
    artifacts: Path,
    pair: str,
    blocks: Blocks,
    teachers: Mapping[str, Teacher] | Mapping[str, Finder],
    alone: InSeeds[Any],
    omissions: Omissions,
) -> tuple[Matched, ...]:
    """Read the matchings of a pair, with the maps of the first seed; those that are not whole are left out.

    Args:
        artifacts: folder of all artifacts.
        pair: key of `pairs`.
        blocks: the blocks of params.yaml.
        teachers: those that are reported.
        alone: the students that were matched.
        omissions: takes what is left out.

    Raises:
        DamagedArtifactError: a file is not what was written.
    """
    matchings: list[Matched] = []
    for folder, block in blocks.matchings(pair):
        if not block.recipes:
            continue
        what = f"matchings {pair}/{folder}"
        if block.teacher not in teachers:  # of a pair's own there is one
            omissions.add(what, block.stage, f"Teacher {block.teacher} is left out.")
            continue
        reading = partial(_matched, artifacts, folder, block, teachers[block.teacher], alone)
        matchings += omissions.whole(what, block.stage, reading) or ()
    return tuple(matchings)


def _matched(
    artifacts: Path, folder: str, block: MatchBlock, teacher: Teacher | Finder, alone: InSeeds[Any]
) -> list[Matched]:
    hint, seeds = f"dvc repro {block.stage}", tuple(map(str, block.seeds))
    path = artifacts / "metrics" / "matchings" / block.pair / f"{folder}.json"
    place = artifacts / "matchings" / block.pair / folder
    content = mapping(path, hint, block.recipes)
    # Detectors see images of any size, whose maps have no mean.
    pictures = () if isinstance(block, DetectorMatchBlock) else MAPS
    maps = {}
    for name, recipe in block.recipes.items():
        _check_origins(place / name, block, recipe, teacher, alone)
        # Pictures are of the first seed; numbers are of all.
        maps[name] = (
            arrays.read(place / name / MEASURED / f"{seeds[0]}.npz", hint, pictures) if pictures else {}
        )
    measured = seal.opened(path, content, block.model_dump(mode="json"), block.stage, *block.files(place))

    matchings = []
    for name, recipe in block.recipes.items():
        by_seed = inner(path, hint, measured, name, seeds)
        matchings.append(
            Matched(
                name=name,
                teacher=block.teacher,
                borrowed="" if folder == OWN else folder,
                recipe=recipe,
                numbers=tuple(by_seed[seed] for seed in seeds),
                arrays=maps[name],
            )
        )
    return matchings


def _check_origins(
    folder: Path, block: MatchBlock, recipe: MatchingParams, teacher: Teacher | Finder, alone: InSeeds[Any]
) -> None:
    """Refuse matchings of other networks or data than the project has now."""
    students = {student.seed: student for student in alone.students}
    for seed in block.seeds:
        path, hint = folder / f"{seed}.npz", f"dvc repro {block.stage}"
        origin = arrays.read_about(path, hint)
        if not isinstance(origin, dict):
            raise DamagedArtifactError(f"{path} is not a matching. {advice.again(hint)}")

        expected: dict[str, Any] = {
            "teacher": block.teacher,
            "student": block.student,
            "seed": seed,
            "recipe": recipe.model_copy(update={"pictured": 0}).model_dump(
                mode="json"
            ),  # as a matching has it
            "teacher_weights": teacher.trained.weights.get(recipe.teacher_checkpoint),
            "data": teacher.dataset.fingerprint["train"],
        }
        if seed in students:
            expected["student_weights"] = students[seed].weights.get(recipe.student_weights)
        for name, value in expected.items():
            if origin.get(name) != value:
                raise StaleArtifactError(
                    f"{path} was made with other {name} than the project has now. {advice.again(hint)}"
                )

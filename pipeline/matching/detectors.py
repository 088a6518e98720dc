"""Matching the channels of a detector to those of a student that was trained alone (KCD, Algorithm 1, lines 4 and 5).

Both backbones run on the plain view of the training images, one image at a time and in evaluation mode. Every pixel of
the maps that lies over the image is a sample of the statistics. The paper averages over a map, which images of any
size would give unequal numbers of pixels; it does not say what it does for detectors. The stage match_channels runs
this by its name (`pipeline/params/tasks.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline import progress, seeding
from pipeline.artifacts import arrays, publish
from pipeline.artifacts.hashing import file_hash
from pipeline.artifacts.seal import sealed
from pipeline.compute.machine import Machine
from pipeline.data.normalize import Normalize
from pipeline.detection.blocks import DetectorMatchBlock
from pipeline.detection.detector import Detector
from pipeline.detection.images import BoxImages
from pipeline.detection.prepared import Prepared
from pipeline.detection.spec import DetectorSpec
from pipeline.detection.views import BoxSpace
from pipeline.detection.weights import load
from pipeline.errors import StaleArtifactError
from pipeline.matching.assignment import ONE_TO_ONE, assign, score
from pipeline.matching.consistency import Statistics
from pipeline.matching.matching import Matching, Origin
from pipeline.matching.sums import STRATEGIES
from pipeline.networks.weights import state_digest
from pipeline.params.base import load as load_block
from pipeline.params.matchings import MEASURED, Match, MatchingParams
from pipeline.progress import Advance


def match_channels(
    block: Path, prepared: Path, students: Path, weights: Path, out: Path, metrics: Path, machine: Machine
) -> None:
    """Match by the recipes of a pair of detectors; nothing where there are none.

    Args:
        block: the pair's json of matchings.
        prepared: folder of all prepared data sets.
        students: folder of the students trained alone, one a seed.
        weights: the teacher's folder of weights.
        out: the folder to make: MATCHING/SEED.npz, and MATCHING/measured/SEED.npz with M.
        metrics: json to make: Gamma, channels, dead channels and pixels, by matching and seed.
        machine: where both run.

    Raises:
        MissingArtifactError: a detector or the data are not there.
        StaleArtifactError: a detector is of other data.
        ParamsError: the measure does not suit the features.
    """
    pair = load_block(DetectorMatchBlock, block)
    numbers: dict[str, dict[str, Any]] = {}
    with publish.replacing(metrics), publish.building(out) as scratch:
        for match in pair.matches():
            data = Prepared.open(prepared / match.dataset)
            folder, own = scratch / match.matching, numbers.setdefault(match.matching, {})
            (folder / MEASURED).mkdir(parents=True)
            for seed in pair.seeds:
                title = f"{pair.pair}/{match.matching} seed {seed}"
                with progress.bar(title, len(data.splits["train"])) as advance:
                    matching, seen = match_one(
                        match, seed, students / str(seed), weights, data, machine, pair.stage, advance
                    )
                matching.save(folder / f"{seed}.npz")
                matrix = seen.matrix().cpu().numpy()
                arrays.write(folder / MEASURED / f"{seed}.npz", {"matrix": matrix.astype(np.float32)})
                own[str(seed)] = measured(match.recipe, seen, matrix)
        publish.write_json(metrics, sealed(numbers, pair.model_dump(mode="json"), *pair.files(scratch)))


def match_one(
    match: Match,
    seed: int,
    folder: Path,
    weights: Path,
    prepared: Prepared,
    machine: Machine,
    made_by: str,
    advance: Advance,
) -> tuple[Matching, Statistics]:
    """Match a teacher to one student.

    Args:
        match: the matching's settings.
        seed: the student's.
        folder: the student that was trained alone.
        weights: the teacher's folder of weights.
        prepared: the data.
        machine: where both run.
        made_by: the DVC stage that makes the matching.
        advance: is told of every image.

    Returns:
        The matching, and the sums that it follows from.
    """
    recipe = match.recipe
    student, spec = load(folder / "weights", recipe.student_weights)
    teacher, other = load(weights, recipe.teacher_checkpoint)
    _check(spec, prepared, folder)
    _check(other, prepared, weights)
    for detector in (student, teacher):
        machine.place(detector)

    seen: Statistics | None = None
    for a, b in pixels(teacher, student, spec, recipe, prepared, machine):
        if seen is None:
            seen = Statistics(a.shape[1], b.shape[1], recipe.measure).to(machine.device)
        seen.add(a, b)
        advance(1)

    assert seen is not None, "a split has images"
    generator = seeding.generator(recipe.seed, seed, "match", 0)
    permutation = assign(seen.matrix().cpu().numpy(), recipe.strategy, generator)
    hashed = file_hash(weights / f"{recipe.teacher_checkpoint}.safetensors")
    origin = Origin(
        made_by=made_by,
        teacher=match.teacher,
        student=match.student,
        seed=seed,
        recipe=recipe.model_copy(update={"pictured": 0}),  # which changes no student
        theta0=state_digest(load(folder / "weights", "init")[0].state_dict()),
        student_weights=file_hash(folder / "weights" / f"{recipe.student_weights}.safetensors"),
        teacher_weights=hashed,
        digest=hashed,  # nothing is stored of a detector: its maps follow from its weights
        data=prepared.meta.fingerprint["train"],
        classes=spec.classes,
        channels=seen.teacher_mean.numel(),
    )
    return Matching(origin, {"permutation": permutation[None]}), seen


@torch.no_grad()
def pixels(
    teacher: Detector,
    student: Detector,
    spec: DetectorSpec,
    recipe: MatchingParams,
    prepared: Prepared,
    machine: Machine,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Give the pixels (n, c_T) of the teacher and (n, c_S) of the student over each plain training image, float32."""
    split = prepared.splits["train"]
    normalize = Normalize(spec.mean, spec.std, machine.device)
    images = BoxImages(split, BoxSpace(spec.views), normalize, machine.device)
    for (picture,) in images.views(0, torch.split(torch.arange(len(split)), 1)):
        size = (picture.image.shape[1], picture.image.shape[2])
        inside = student.inside([size], recipe.student_tap)[0, 0].flatten().to(machine.device)
        with machine.autocast():
            a = teacher.maps([picture.image], [recipe.teacher_feature])[recipe.teacher_feature]
            b = student.maps([picture.image], [recipe.student_tap])[recipe.student_tap]
        yield a[0].flatten(1).T[inside].float(), b[0].flatten(1).T[inside].float()


def measured(recipe: MatchingParams, seen: Statistics, matrix: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Return Gamma of the strategies that are possible, and what the sums are of."""
    teacher, student = matrix.shape
    gamma = {
        strategy: score(matrix, assign(matrix, strategy, seeding.generator(recipe.seed, "gamma", 0)))
        for strategy in STRATEGIES
        if strategy not in ONE_TO_ONE or teacher >= student
    }
    dead = [int(flags.sum()) for flags in seen.dead()]
    return {
        "gamma": gamma,
        "channels": {"teacher": teacher, "student": student},
        "dead": {"teacher": dead[0], "student": dead[1]},
        "pixels": int(seen.count),
    }


def _check(spec: DetectorSpec, prepared: Prepared, folder: Path) -> None:
    meta = prepared.meta
    if (spec.classes, spec.mean, spec.std) != (len(meta.classes), meta.mean, meta.std):
        raise StaleArtifactError(
            f"{folder} is a detector of other data than {prepared.folder}. Run: dvc repro"
        )

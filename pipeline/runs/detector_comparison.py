"""How far a distilled detector is from its teacher on the plain test images (KCD, arXiv:2103.16844, table 11).

The stage evaluate runs it by its name (`pipeline/params/tasks.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipeline.compute.machine import Machine
from pipeline.data.normalize import Normalize
from pipeline.detection.images import BoxImages
from pipeline.detection.inputs import DetectorRunInputs
from pipeline.detection.prepared import Prepared
from pipeline.detection.views import BoxSpace
from pipeline.detection.weights import load
from pipeline.distillation import combination, map_lesson
from pipeline.evaluation.distance import map_distance
from pipeline.params.base import validate
from pipeline.params.recipe import Epoch
from pipeline.runs.composition import Composition
from pipeline.runs.detector_sources import DetectorSources, transform_of


@torch.no_grad()
def compare(folder: Path, inputs: dict[str, Any], machine: Machine) -> dict[str, float]:
    """Return "teacher_l2", the mean over images of the distance of the maps that the methods compare.

    It is empty where they compare none, or maps of several shapes.

    Args:
        folder: what the student's training left.
        inputs: what it was trained from.
        machine: where both run.

    Raises:
        StaleArtifactError: something that is read is not what the inputs name.
    """
    run = validate(DetectorRunInputs, inputs, "", str(folder / "inputs.json"))
    composition, sources = Composition.of(run, f"runs.{run.run}"), DetectorSources.of(run, machine)
    compared = combination.compared(composition.methods)
    _, transform = transform_of(run, composition, sources)
    student, spec = load(folder / "weights")
    machine.place(student)
    if transform is not None:
        transform.to(machine.device)

    if compared is None:
        return {}
    tap, feature = compared
    split, total = Prepared.open(Path(run.data)).splits["test"], 0.0
    images = BoxImages(
        split, BoxSpace(spec.views), Normalize(spec.mean, spec.std, machine.device), machine.device
    )
    none = torch.tensor(0, device=machine.device)
    for (picture,) in images.views(0, torch.split(torch.arange(len(split)), 1)):
        with machine.autocast():
            ours = student.maps([picture.image], [tap])[tap]
            taught = sources.teacher.eval().maps([picture.image], [feature])
        if transform is not None:
            index, epoch = none[None], Epoch("test", 0, 1)
            batch = map_lesson.lesson(picture.image[None], index, taught, epoch, (none, none), run.seed)
            taught = transform(taught, batch)
        if taught[feature].shape != ours.shape:  # a regressor stands between them
            return {}
        inside = student.inside([(picture.image.shape[1], picture.image.shape[2])], tap).to(machine.device)
        total += float(map_distance(ours * inside, taught[feature] * inside))
    return {"teacher_l2": total / len(split)}

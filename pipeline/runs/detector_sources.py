"""Opening what a run of detectors reads: the teacher and matchings, each checked to be what the inputs name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import seeding
from pipeline.artifacts import advice
from pipeline.compute.machine import Machine
from pipeline.detection.architecture import architecture
from pipeline.detection.detector import Detector
from pipeline.detection.inputs import DetectorRunInputs, first
from pipeline.detection.weights import load
from pipeline.distillation import map_lesson
from pipeline.distillation.transform import TeacherTransform
from pipeline.errors import StaleArtifactError
from pipeline.matching.matching import Matching
from pipeline.networks.network import Shape
from pipeline.networks.weights import state_digest
from pipeline.runs.composition import Composition
from pipeline.runs.inputs import check_file
from pipeline.runs.sources import RESOLVED


@dataclass(frozen=True)
class DetectorSources:
    """What a run reads, opened.

    Attributes:
        teacher: placed on the machine.
        shapes: of its maps that are read, without the batch axis, for one image.
        matchings: by their keys.
    """

    teacher: Detector
    shapes: Mapping[str, Shape]
    matchings: Mapping[str, Matching]

    @classmethod
    def of(cls, inputs: DetectorRunInputs, machine: Machine) -> DetectorSources:
        """Open what `inputs` names.

        Raises:
            MissingArtifactError: something is not there.
            StaleArtifactError: something is not what the inputs name.
        """
        folder = Path(inputs.weights_folder)
        check_file(folder / "last.safetensors", inputs.weights)
        teacher, spec = load(folder)
        machine.place(teacher)
        taps = architecture(spec.network, spec.settings).taps
        shapes = {name: taps[name] for name in inputs.features}
        return cls(teacher, shapes, {key: _matching(inputs, key) for key in inputs.matchings})


def transform_of(
    inputs: DetectorRunInputs, composition: Composition, sources: DetectorSources
) -> tuple[Mapping[str, Shape], TeacherTransform[Any] | None]:
    """Return the shapes of the teacher's maps as the methods see them, and the transform that gives them these."""
    if composition.transform is None:
        return sources.shapes, None
    config, spec = composition.transform_config, inputs.network
    shapes = architecture(spec.network, spec.settings).taps
    with seeding.scope(inputs.seed, "transform"):
        context = map_lesson.context(shapes, sources.shapes, sources.matchings, inputs.seed)
        transform = composition.transform(config, context)
    transform.eval().requires_grad_(False)
    return composition.transform.shapes(config, sources.shapes, sources.matchings), transform


def _matching(inputs: DetectorRunInputs, key: str) -> Matching:
    """Return a matching, which must be of the very theta0 that the student starts from."""
    name, expected = inputs.matchings[key]
    path, spec = Path(name), inputs.network
    check_file(path, expected)
    matching = Matching.load(path, RESOLVED)
    theta0 = first(inputs, matching.origin.seed).state_dict()
    if state_digest(theta0) != matching.origin.theta0:
        raise StaleArtifactError(
            f"{path} is of another student: {spec.network} of seed {matching.origin.seed} does not start from the "
            f"weights that it was made with. {advice.again(f'dvc repro {matching.origin.made_by}')}"
        )
    return matching

"""What a detector that learns as a student is trained from; see `pipeline/runs/inputs.py` for those of classifiers."""

from __future__ import annotations

from typing import Any, Literal

from pipeline.detection import first_weights
from pipeline.detection.detector import Detector, build
from pipeline.detection.prepared import Prepared
from pipeline.detection.spec import DetectorSpec
from pipeline.errors import StaleArtifactError
from pipeline.params.base import Block
from pipeline.params.plug import Plug
from pipeline.params.recipe import Recipe
from pipeline.params.weights import Weights


class DetectorInputs(Block):
    """What a student alone is trained from.

    Attributes:
        task: what tells it from a classifier's.
        student: key of `students`.
        dataset: key of `datasets`.
        network: the student, and the views that it sees.
        first_weights: where its first weights come from.
        recipe: how it is trained.
        data: folder of the prepared data.
        fingerprint: of the data, by split.
        code: hash by file of what its stages run for data with boxes, and of its plug-ins.
    """

    task: Literal["detection"] = "detection"
    student: str
    dataset: str
    network: DetectorSpec
    first_weights: Weights = "none"
    recipe: Recipe
    data: str
    fingerprint: dict[str, str]
    code: dict[str, str]

    def of_seed(self, seed: int) -> dict[str, Any]:
        """Return what the student of a seed is trained from, as json holds it."""
        return self.model_dump(mode="json") | {"seed": seed}


def first(inputs: DetectorInputs, seed: int) -> Detector:
    """Return the student of a seed as it is before it is trained.

    Raises:
        ParamsError: a file's weights do not fit.
        MachineError: the library's weights cannot be fetched.
        StaleArtifactError: a file of weights has changed since params.yaml was checked.
    """
    network = inputs.network
    detector = build(network.network, network.classes, seed, network.settings)
    first_weights.fill(detector, inputs.first_weights)
    return detector


def check_data(inputs: DetectorInputs, prepared: Prepared) -> None:
    """Refuse prepared data that are not those that `inputs` names.

    Raises:
        StaleArtifactError: a fingerprint, the normalization or the number of classes differs.
    """
    meta, network = prepared.meta, inputs.network
    found = (meta.fingerprint, meta.mean, meta.std, len(meta.classes))
    if found != (inputs.fingerprint, network.mean, network.std, network.classes):
        raise StaleArtifactError(
            f"{inputs.data} is not the data that this run was resolved with. Run: dvc repro"
        )


class DetectorRunInputs(DetectorInputs):
    """What a distilled student is trained from, beside what every student is.

    Attributes:
        pair: key of `pairs`.
        run: key of `runs`.
        seed: of init, order, views and sampled boxes.
        teacher: key of `teachers`.
        methods: the methods with their settings, in their order, defaults filled in.
        transform: the transform with its settings, or None.
        features: taps of the teacher that are read.
        weights_folder: of the teacher.
        weights: hash of the teacher's last weights.
        matchings: path and hash of the matchings that are read, by their keys.
    """

    pair: str
    run: str
    seed: int
    teacher: str
    methods: tuple[Plug, ...]
    transform: Plug | None
    features: tuple[str, ...]
    weights_folder: str
    weights: str
    matchings: dict[str, tuple[str, str]]

    @property
    def schedule(self) -> Plug:
        """The teacher as it is at the end of its training."""
        return Plug.of("final")

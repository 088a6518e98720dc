"""What a student alone is made from: apart from runs (`inputs.py`), so that a new setting there retrains none."""

from __future__ import annotations

from typing import Any

from pipeline.data.prepared import Prepared
from pipeline.errors import StaleArtifactError
from pipeline.networks.spec import NetworkSpec
from pipeline.params.base import Block
from pipeline.params.recipe import Recipe
from pipeline.params.views import ViewParams


class StudentInputs(Block):
    """What a student alone is trained from.

    Attributes:
        student: key of `students`.
        dataset: key of `datasets`.
        network: the plain student.
        recipe: how it is trained.
        views: what it sees.
        data: folder of the prepared data.
        fingerprint: of the data, by split.
        mean: normalization of the images.
        std: as `mean`.
        code: hash by file of the plug-ins' closure.
    """

    student: str
    dataset: str
    network: NetworkSpec
    recipe: Recipe
    views: ViewParams
    data: str
    fingerprint: dict[str, str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    code: dict[str, str]

    def of_seed(self, seed: int) -> dict[str, Any]:
        """Return what the student of a seed is trained from, as json holds it."""
        return self.model_dump(mode="json") | {"seed": seed}


def check_data(inputs: StudentInputs, prepared: Prepared) -> None:
    """Refuse prepared data that are not those that `inputs` names.

    Raises:
        StaleArtifactError: a fingerprint or the normalization differs.
    """
    meta = prepared.meta
    if (meta.fingerprint, meta.mean, meta.std) != (inputs.fingerprint, inputs.mean, inputs.std):
        raise StaleArtifactError(
            f"{inputs.data} is not the data that this run was resolved with. Run: dvc repro"
        )

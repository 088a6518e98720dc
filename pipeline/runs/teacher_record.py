"""What taught a pair's students, in words that a published student repeats: `teacher.json` beside their inputs.

It is not among a student's inputs: a licence that is corrected trains nobody anew. The hash of the teacher's weights
ties it to a student, whatever params.yaml says by now.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pipeline.errors import StaleArtifactError
from pipeline.networks.spec import NetworkSpec
from pipeline.params.base import Block, load
from pipeline.params.weights import WeightsFile

FILE = "teacher.json"  # in the folder of a pair's inputs


class TeacherRecord(Block):
    """A teacher.

    Attributes:
        teacher: key of `teachers`.
        family: a file of `pipeline/networks/families`.
        network: a network of that family.
        first: where its first weights came from: "none" were drawn, "imagenet" are the library's.
        licence: of its weights; "" where none was given.
        weights: hash of its last weights.
    """

    teacher: str
    family: str
    network: str
    first: Literal["none", "imagenet", "file"]
    licence: str
    weights: str

    @classmethod
    def of(cls, teacher: str, licence: str, spec: NetworkSpec, weights: str) -> Self:
        """Return the record of a teacher.

        Args:
            teacher: key of `teachers`.
            licence: of its weights.
            spec: its network, as it stands beside its weights.
            weights: hash of its last weights.
        """
        return cls(
            teacher=teacher,
            family=spec.family,
            network=spec.network,
            first="file" if isinstance(spec.weights, WeightsFile) else spec.weights,
            licence=licence,
            weights=weights,
        )


def read(folder: Path, pair: str, weights: str, student: Path) -> TeacherRecord:
    """Return what taught a student.

    Args:
        folder: of the inputs of all pairs.
        pair: the student's.
        weights: hash of the last weights of the teacher that it was distilled from.
        student: its folder, for the error.

    Raises:
        MissingArtifactError: there is no record.
        StaleArtifactError: the record is of another teacher.
    """
    path, hint = folder / pair / FILE, f"dvc repro inputs@{pair}"
    record = load(TeacherRecord, path, hint)
    if record.weights != weights:
        raise StaleArtifactError(
            f"{student} was distilled from other weights than those of '{record.teacher}' that {path} is about. "
            "Distill it again: dvc repro"
        )
    return record

"""A matching of a teacher's channels to a student's, as it lies on disk: an npz without pickle.

Beside its arrays it keeps what it was made from, so that one of another student, seed or teacher is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from numpy.typing import NDArray

from pipeline.artifacts import advice, arrays
from pipeline.errors import DamagedArtifactError, ParamsError
from pipeline.params.base import Block, validate
from pipeline.params.matchings import MatchingParams

Array = NDArray[Any]


class Origin(Block):
    """What a matching was made from.

    Attributes:
        made_by: the DVC stage that made it, for instance "match_channels@PAIR".
        teacher: key of `teachers`.
        student: key of `students`.
        seed: the student's.
        recipe: the matching.
        theta0: hash of the student's first weights.
        student_weights: hash of the file of the student's weights that were matched.
        teacher_weights: hash of the file of the teacher's weights.
        digest: hash of the teacher's stored feature.
        data: fingerprint of the training images.
        classes: number of classes.
        channels: c_T of the feature.
    """

    made_by: str
    teacher: str
    student: str
    seed: int
    recipe: MatchingParams
    theta0: str
    student_weights: str
    teacher_weights: str
    digest: str
    data: str
    classes: int
    channels: int


@dataclass(frozen=True)
class Matching:
    """A matching.

    Attributes:
        origin: what it was made from.
        arrays: `permutation` int64 (ranges, c_S), or the weights of a learned network as "subnet.<name>".
    """

    origin: Origin
    arrays: dict[str, Array]

    @property
    def recipe(self) -> MatchingParams:
        """How it was made."""
        return self.origin.recipe

    @property
    def width(self) -> int:
        """Channels that a feature has after it: c_S."""
        # Both learned networks have the straight path, whose weight is (c_S, c_T, 1, 1).
        learned = self.arrays.get("subnet.straight.weight")
        return int(self.arrays["permutation"].shape[1] if learned is None else learned.shape[0])

    def save(self, path: Path) -> None:
        """Write it to a scratch path; the same content is the same bytes."""
        arrays.write(path, self.arrays, self.origin.model_dump(mode="json"))

    @classmethod
    def load(cls, path: Path, hint: str) -> Self:
        """Read it.

        Args:
            path: the npz.
            hint: the command that makes it, for instance "dvc repro match_channels@PAIR".

        Raises:
            MissingArtifactError: there is no such file.
            DamagedArtifactError: it is not a matching.
        """
        content, about = arrays.read(path, hint), arrays.read_about(path, hint)
        try:
            matching = cls(validate(Origin, about, "", str(path)), content)
            if matching.width < 1:
                raise ValueError("it has no channels")
        except (ValueError, LookupError, ParamsError) as error:
            reason = " ".join(str(error).split())
            raise DamagedArtifactError(f"{path} is not a matching ({reason}). {advice.again(hint)}") from None
        return matching

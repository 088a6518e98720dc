"""A matching of a teacher's channels to a student's, as it lies on disk: an npz without pickle.

Beside its arrays it keeps what it was made from, so that one of another student, seed or teacher is refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DamagedArtifactError, MissingArtifactError, ParamsError
from pipeline.params.base import Block, validate
from pipeline.params.matching import MatchingParams

Array = NDArray[Any]
_ORIGIN = "origin"


class Wanted(NamedTuple):
    """What a run asks for.

    Attributes:
        matching: key of `matchings`.
        teacher: another teacher than the pair's own, or None.
        seed: of another student than the run's own, or None.
    """

    matching: str
    teacher: str | None = None
    seed: int | None = None

    @property
    def key(self) -> str:
        """Its name among a run's matchings, for instance "kcd", "other/kcd" or "kcd@1"."""
        before = "" if self.teacher is None else f"{self.teacher}/"
        return before + self.matching + ("" if self.seed is None else f"@{self.seed}")


class Origin(Block):
    """What a matching was made from.

    Attributes:
        teacher: key of `teachers`.
        student: key of `students`.
        seed: of the student.
        recipe: the matching.
        theta0: hash of the student's first weights.
        student_weights: hash of the file of the student's weights that were matched.
        teacher_weights: hash of the file of the teacher's.
        digest: of the teacher's stored feature.
        data: fingerprint of the training images.
        classes: number of classes.
        channels: c_T of the feature.
    """

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
        learned = self.arrays.get("subnet.straight.weight")
        return int(self.arrays["permutation"].shape[1] if learned is None else learned.shape[0])

    def save(self, path: Path) -> None:
        """Write it; the same content is the same bytes."""
        text = json.dumps(self.origin.model_dump(mode="json"), sort_keys=True)
        with path.open("wb") as file:  # numpy would add a suffix to a path
            np.savez(file, allow_pickle=False, **self.arrays, **{_ORIGIN: np.array(text)})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read it.

        Raises:
            MissingArtifactError: there is no such file.
            DamagedArtifactError: it is not a matching.
        """
        hint = f"dvc repro match_channels@{path.parent.name}"
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            origin = validate(Origin, json.loads(str(arrays.pop(_ORIGIN))), "", str(path))
            found = cls(origin, arrays)
            if found.width < 1:
                raise ValueError("it has no channels")
        except FileNotFoundError:
            raise MissingArtifactError(f"{path} does not exist. Make it with: {hint}") from None
        except (
            ValueError,
            KeyError,
            TypeError,
            EOFError,
            OSError,
            BadZipFile,
            ParamsError,
            IndexError,
        ) as error:
            reason = " ".join(str(error).split())
            raise DamagedArtifactError(f"{path} is no matching ({reason}). Delete it, then: {hint}") from None
        return found

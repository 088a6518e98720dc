"""What a student is made from, in one json a run and seed: settings, paths, and the hash of everything that it reads.

A student's stage depends on its json alone. So it runs again when something that it uses has changed, and not
when something else has: a new K for K-means leaves plain KD's json byte for byte as it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer

from pipeline.artifacts import advice
from pipeline.artifacts.hashing import file_hash
from pipeline.errors import StaleArtifactError
from pipeline.params.base import Block
from pipeline.params.plug import Plug
from pipeline.params.top import Top
from pipeline.runs.student import StudentInputs

# The state that a transform ended in, if it has one: its name in a student's folder.
TRANSFORM = "transform.safetensors"


class Stored(Block):
    """Where one teacher feature is stored.

    Attributes:
        store: the teacher's store, or the store of a code.
        digest: of what is read, by "checkpoint/split".
    """

    store: str
    digest: dict[str, str]


class RunInputs(StudentInputs):
    """What a distilled student is trained from, beside what every student is.

    Attributes:
        pair: key of `pairs`.
        run: key of `runs`.
        seed: of init, order and views.
        teacher: key of `teachers`.
        methods: the methods with their settings, in their order, defaults filled in.
        transform: the transform with its settings, or None.
        schedule: the schedule with its settings.
        source: where the teacher's features come from.
        slots: augmented view slots that the student sees; None where they are unbounded.
        features: teacher features that are read.
        teacher_network: the method reads the teacher's own modules.
        weights_folder: of the teacher.
        weights: hash of the teacher's weights, by checkpoint; empty when only the store is read.
        stored: the features that are read from a store, by name; empty when online.
        largest: the largest logits that an online teacher gives exactly, by feature name, as its store would.
        copies: the logits of copies and assistants of the teacher that are read, by their names.
        tables: path and hash of the fitted tables that are read, by name.
        matchings: path and hash of the matchings that are read, by their keys.
        teacher_weights: hash of the teacher's last weights, which made `teacher_evaluation`.
        teacher_evaluation: the teacher's predictions, to which the student's are compared. It does not change
            the student, so its hash is not here.
    """

    pair: str
    run: str
    seed: int
    teacher: str
    methods: tuple[Plug, ...]
    transform: Plug | None
    schedule: Plug
    source: Literal["cached", "online"]
    slots: int | None
    features: tuple[str, ...]
    teacher_network: bool
    weights_folder: str
    weights: dict[str, str]
    stored: dict[str, Stored]
    largest: dict[str, Top] = {}
    copies: dict[str, Stored] = {}
    tables: dict[str, tuple[str, str]]
    matchings: dict[str, tuple[str, str]] = {}
    teacher_weights: str
    teacher_evaluation: str

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Unused it is not there, so that no student from before there was any is trained again.
        content: dict[str, Any] = handler(self)
        return {key: value for key, value in content.items() if key != "largest" or value}


def check_file(path: Path, expected: str) -> None:
    """Refuse a file whose hash is not the one that the inputs name.

    Raises:
        MissingArtifactError: there is no such file.
        StaleArtifactError: it differs.
    """
    actual = file_hash(path)
    if actual != expected:
        raise StaleArtifactError(
            f"{path} is not the file that this run was resolved with: found {actual[:8]}, expected "
            f"{expected[:8]}. {advice.again('dvc repro')}"
        )

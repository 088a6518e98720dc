"""What a copy or an assistant of a teacher says of itself: copy.json, beside its weights and its store."""

from __future__ import annotations

from pathlib import Path

from pipeline.artifacts import advice
from pipeline.errors import StaleArtifactError
from pipeline.params.base import Block, load
from pipeline.params.teaching import TEACHER

FILE = "copy.json"


class Taught(Block):
    """What a copy or an assistant has learned from, and what it has become.

    An assistant's stage depends on the file of the one that it follows. So it changes with all that came before.

    Attributes:
        made_by: DVC's name of the stage.
        teacher: key of `teachers`.
        weights: hash of the teacher's last weights.
        data: fingerprint of the data, by split.
        settings: hash of its block.
        learned_from: hash of the logits of each that it learned from.
        logits: hash of its own stored logits.
        top1: of its last epoch, in percent; None where no epoch ran.
    """

    made_by: str
    teacher: str
    weights: str
    data: dict[str, str]
    settings: str
    learned_from: dict[str, str]
    logits: str
    top1: float | None


def checked(copies: Path, name: str, stage: str, weights: str) -> Taught:
    """Read what a copy or an assistant says of itself; it must have learned from what there is now.

    Args:
        copies: folder of the teacher's copies and assistants.
        name: its name.
        stage: DVC's name of the stage that makes it.
        weights: hash of the teacher's last weights.

    Raises:
        MissingArtifactError: it is not there, or one that it learned from.
        StaleArtifactError: it learned from another teacher, or from an assistant that has changed since.
        DamagedArtifactError: the file is of another form.
    """
    folder, hint = copies / name, f"dvc repro {stage}"
    taught = load(Taught, folder / FILE, hint)
    if taught.weights != weights:
        raise StaleArtifactError(f"{folder} is of a copy of another teacher. {advice.again(hint)}")

    for source, logits in taught.learned_from.items():
        # The teacher's weights are known to be the same.
        if source != TEACHER and of_assistant(copies, source, weights).logits != logits:
            raise StaleArtifactError(
                f"{folder} has learned from another '{source}' than there is now. {advice.again(hint)}"
            )
    return taught


def of_assistant(copies: Path, name: str, weights: str) -> Taught:
    """Read what an assistant says of itself; see `checked`."""
    return checked(copies, name, f"train_assistant@{name}", weights)

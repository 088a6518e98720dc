"""The folder that a training leaves, as its readers open it: `training.json` names all that belongs together.

Weights, history and inputs of another training beside it are refused. The writer is `pipeline.training.result`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pipeline.artifacts import advice
from pipeline.artifacts.hashing import content_hash, file_hash
from pipeline.artifacts.publish import read_json
from pipeline.errors import DamagedArtifactError, MissingArtifactError, StaleArtifactError

NUMBERS = ("best_epoch", "epochs", "seconds", "images_per_second", "peak_bytes")
TEXTS = ("made_by", "inputs", "device")


@dataclass(frozen=True)
class Trained:
    """What a training says of itself.

    Attributes:
        folder: what it left.
        made_by: DVC's name of the stage.
        weights: hash of each file of weights, by its name.
        history: hash of the history; None where no epoch ran.
        states: hash of each file of what else ended in a state, by its name.
        inputs: hash of what it was trained from.
        device: the kind of device.
        numbers: `NUMBERS` by name.
        identity: all of it: what is measured of this training names it.
    """

    folder: Path
    made_by: str
    weights: dict[str, str]
    history: str | None
    states: dict[str, str]
    inputs: str
    device: str
    numbers: dict[str, float | int]
    identity: dict[str, Any]

    @classmethod
    def of(cls, folder: Path, hint: str) -> Self:
        """Read the `training.json` of a folder.

        Args:
            folder: what a training left.
            hint: the command that makes it.

        Raises:
            MissingArtifactError: it is not there.
            DamagedArtifactError: it is of another form.
        """
        path = folder / "training.json"
        content = read_json(path, hint)
        content = content if isinstance(content, dict) else {}
        hashes = [content.get(name) for name in ("weights", "states")]
        weights, states = (named if isinstance(named, dict) else {} for named in hashes)

        # By type, because a bool is an instance of int.
        numbers = {name: content[name] for name in NUMBERS if type(content.get(name)) in (int, float)}
        texts = [*(content.get(name) for name in TEXTS), *(weights.get(name) for name in ("last", "best"))]
        history = content.get("history")
        if (
            len(numbers) < len(NUMBERS)
            or not all(type(text) is str for text in texts)
            or not (history is None or type(history) is str)
        ):
            raise DamagedArtifactError(
                f"{path} does not hold the numbers {', '.join(NUMBERS)} and the hashes weights, history and inputs "
                f"of a training. Delete {folder}, then: {hint}"
            )
        made_by, inputs, device = (content[name] for name in TEXTS)
        return cls(folder, made_by, weights, history, states, inputs, device, numbers, content)

    @property
    def hint(self) -> str:
        """The command that makes it where it is missing."""
        return f"dvc repro {self.made_by}"

    def check_weights(self, name: str) -> None:
        """Refuse a file of weights that this training did not leave.

        Raises:
            MissingArtifactError: it is not there.
            DamagedArtifactError: it is another.
        """
        self._check(f"weights/{name}.safetensors", self.weights.get(name))

    def check_history(self) -> None:
        """Refuse a history of another training, or one that has changed; see `check_weights`."""
        self._check("history.csv", self.history)

    def check_state(self, path: Path) -> None:
        """Refuse a file of what else ended in a state that is another training's; see `check_weights`."""
        self._check(path.name, self.states.get(path.stem))

    def check_inputs(self, content: Any, path: Path) -> None:
        """Refuse inputs that are not those of this training.

        Args:
            content: the inputs.
            path: where they stand, for the error.

        Raises:
            StaleArtifactError: it was trained from others.
        """
        if content_hash(content) != self.inputs:
            raise StaleArtifactError(
                f"{self.folder} was not trained from what {path} says. {advice.again(self.hint)}"
            )

    def _check(self, name: str, expected: str | None) -> None:
        path = self.folder / name
        if not path.exists():
            raise MissingArtifactError(f"{path} does not exist. Make it with: {self.hint}")
        actual = file_hash(path)
        if actual != expected:
            raise DamagedArtifactError(
                f"{path} is not the file that its training left: found {actual[:8]}, expected "
                f"{expected[:8] if expected else 'none'}. {advice.again(self.hint)}"
            )

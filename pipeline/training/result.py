"""The folder that a training leaves: `weights/`, `history.csv` and `training.json`.

Weights stand in a folder of their own, so that what reads them does not depend on how long they took. Of several
ranks the first writes.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from pipeline import progress
from pipeline.artifacts import publish
from pipeline.artifacts.hashing import file_hash
from pipeline.artifacts.publish import read_json, write_json
from pipeline.compute.distributed import ALONE, Ranks
from pipeline.compute.machine import Machine
from pipeline.errors import DamagedArtifactError, MissingArtifactError
from pipeline.networks.weights import read_weights, save_spec, save_weights
from pipeline.params.base import Block
from pipeline.training import checkpoint
from pipeline.training.loop import Row

ALWAYS = ("init", "last", "best")  # weights that every training leaves, by their files' names
CHECKPOINT = "checkpoint.safetensors"


def begin(
    scratch: Path,
    identity: str,
    spec: Block,
    ranks: Ranks = ALONE,
    anchors: Mapping[str, int] | None = None,
) -> Path:
    """Make the scratch folder ready for a training, emptied of another one's remains and of damaged ones.

    Args:
        scratch: the folder.
        identity: of all that the training depends on.
        spec: the network.
        ranks: the processes that train.
        anchors: epochs after which weights are kept, by name.

    Returns:
        The folder for weights in it.
    """
    weights = scratch / "weights"
    if not ranks.first:
        return weights
    if not _resumable(scratch, identity, anchors or {}):
        for path in scratch.iterdir():
            publish.remove(path)
    weights.mkdir(exist_ok=True)
    save_spec(spec, weights)
    return weights


def _resumable(scratch: Path, identity: str, anchors: Mapping[str, int]) -> bool:
    """Say whether a training can go on from what is in the scratch folder; a damaged file in it is reported."""
    try:
        interrupted = checkpoint.state(scratch / CHECKPOINT)
        if interrupted is None or interrupted["identity"] != identity:
            return False

        done = len(interrupted["history"])
        names = ["best"] * bool(done) + [name for name, epochs in anchors.items() if epochs <= done]
        for name in names:
            read_weights(scratch / "weights" / f"{name}.safetensors")
    except (DamagedArtifactError, MissingArtifactError):
        _say_damaged(scratch)
        return False
    return True


def whole(folder: Path) -> bool:
    """Say whether the files of a finished training are those that its json names; if not, that is reported."""
    try:
        summary = read_json(folder / "training.json", "the same command again")
        alike = isinstance(summary, dict) and all(
            summary.get(key) == own for key, own in parts(folder).items()
        )
    except (DamagedArtifactError, MissingArtifactError):
        alike = False
    if not alike:
        _say_damaged(folder)
    return alike


def _say_damaged(folder: Path) -> None:
    progress.say(
        f"What an interrupted run has left in {folder} is damaged. Training starts at its beginning."
    )


def parts(folder: Path) -> dict[str, Any]:
    """Return the hashes of what belongs to a training's json, so that a reader can see that they are of one training.

    Args:
        folder: the training's.

    Raises:
        MissingArtifactError: weights that every training leaves are not there.
        DamagedArtifactError: a file of weights has changed since it was written.

    Returns:
        `history`, the hash of history.csv, or None where no epoch ran, and by name `weights`, those of the weights
        files, and `states`, those of what else ended in a state, as a transform may.
    """
    history = folder / "history.csv"
    states = sorted(path for path in folder.glob("*.safetensors") if path.name != CHECKPOINT)
    weights = {path.stem: path for path in sorted((folder / "weights").glob("*.safetensors"))}
    weights |= {name: folder / "weights" / f"{name}.safetensors" for name in ALWAYS}
    # Some of them were written hours ago.
    for path in weights.values():
        read_weights(path)
    return {
        "history": file_hash(history) if history.exists() else None,
        "states": {path.stem: file_hash(path) for path in states},
        "weights": {name: file_hash(path) for name, path in sorted(weights.items())},
    }


def saver(network: nn.Module, weights: Path, ranks: Ranks = ALONE) -> Callable[[str], None]:
    """Return the function that writes `network` as `<name>.safetensors`, in one step."""

    def save(name: str) -> None:
        if not ranks.first:
            return
        with publish.writing(weights / f"{name}.safetensors") as part:
            save_weights(network, part)

    return save


def finish(
    scratch: Path,
    history: list[Row],
    save: Callable[[str], None],
    machine: Machine,
    made_by: str,
    inputs: str = "",
    measure: str = "top1",
) -> None:
    """Write the last weights (the best ones too, where no epoch ran), the history and its summary.

    The checkpoint is dropped.

    Args:
        scratch: the folder of the training.
        history: one row an epoch.
        save: writes the network under a name.
        machine: where it was trained.
        made_by: DVC's name of the stage.
        inputs: hash of what it was trained from.
        measure: the column that picks the best epoch.
    """
    machine.ranks.wait()  # a rank that is lost by now must not cost the checkpoint
    if not machine.ranks.first:
        return
    save("last")

    if not history:
        save("best")
    else:
        with publish.writing(scratch / "history.csv") as part, part.open("w", newline="") as file:
            # Phases differ in their terms: a row has empty cells where it lacks one.
            writer = csv.DictWriter(file, list(dict.fromkeys(key for row in history for key in row)))
            writer.writeheader()
            writer.writerows(history)

    seconds = sum(float(row["seconds"]) for row in history)
    images = sum(float(row["images_per_second"]) * float(row["seconds"]) for row in history)
    measured = [row for row in history if measure in row]
    best = max(measured, key=lambda row: float(row[measure]), default=None)

    summary = {
        "made_by": made_by,
        "inputs": inputs,
        "epochs": len(history),
        "best_epoch": best["epoch"] if best else 0,
        "seconds": seconds,
        "images_per_second": images / seconds if seconds else 0.0,
        "peak_bytes": machine.peak_bytes(),
        "device": machine.hardware,
    }

    # The checkpoint goes last: until all is written, a run that is interrupted resumes from it.
    write_json(scratch / "training.json", summary | parts(scratch))
    publish.remove(scratch / CHECKPOINT)

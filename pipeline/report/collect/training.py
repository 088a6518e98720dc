"""From the artifacts of a network to what is reported of it.

Its metrics, predictions and history must be of one training, and that training of what the project has now.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artifacts import advice, seal
from pipeline.artifacts.hashing import content_hash
from pipeline.artifacts.predictions import Predictions
from pipeline.errors import DamagedArtifactError, StaleArtifactError
from pipeline.networks import trained as trainings
from pipeline.report.collect.mapping import mapping, require
from pipeline.report.results import ACCURACIES, COSTS, Dataset, Trained
from pipeline.report.trainings import History

NUMBERS = (*ACCURACIES, "epochs", *COSTS)


@dataclass(frozen=True)
class Source:
    """Where a trained network's results lie, and what they must be of.

    Attributes:
        key: its path below `artifacts`, `artifacts/metrics` and `artifacts/predictions`.
        evaluated: the stage that makes metrics and predictions.
        trained: the stage that makes the history.
        inputs: what it must have been trained from.
        expected: what its metrics must say.
        needed: numbers that it has beside those that every network has.
        numbers: those that every network of its task has.
    """

    key: str
    evaluated: str
    trained: str
    inputs: Any
    expected: dict[str, Any]
    needed: tuple[str, ...] = ()
    numbers: tuple[str, ...] = NUMBERS


def read(artifacts: Path, source: Source, dataset: Dataset, seed: int) -> Trained:
    """Read what is reported of a network.

    Args:
        artifacts: folder of all artifacts.
        source: which network.
        dataset: the data that it was evaluated on.
        seed: of its training.

    Raises:
        MissingArtifactError: a file has not been made.
        StaleArtifactError: one is of another training, other settings or other data.
        DamagedArtifactError: one is not what was written.
    """
    training = opened(artifacts / source.key, source)

    hint = f"dvc repro {source.evaluated}"
    place = artifacts / "predictions" / f"{source.key}.npz"
    meta = dataset.prepared.meta
    samples, classes = meta.samples["test"], len(meta.classes)
    predictions = Predictions.read(place, hint, meta.fingerprint["test"], samples, classes)
    if (predictions.weights, predictions.inputs) != (training.weights["last"], training.inputs):
        raise StaleArtifactError(
            f"{place} is of another network than {training.folder}. {advice.again(hint)}"
        )

    metrics = measured(artifacts / "metrics" / f"{source.key}.json", source, training, place)

    return Trained(
        seed=seed,
        metrics=metrics,
        prediction=predictions.last,
        history=read_history(training, int(metrics["epochs"])),
        correlation=predictions.correlation,
        pooled=predictions.pooled,
        pooled_index=predictions.pooled_index,
        device=training.device,
        weights=training.weights,
    )


def opened(folder: Path, source: Source) -> trainings.Trained:
    """Open what a training left: it must be of this network, and of what the project has now."""
    hint = f"dvc repro {source.trained}"
    training = trainings.Trained.of(folder, hint)
    if training.made_by != source.trained:
        raise StaleArtifactError(
            f"{folder} was made by '{training.made_by}', expected '{source.trained}'. {advice.again(hint)}"
        )
    if training.inputs != content_hash(source.inputs):
        raise StaleArtifactError(
            f"{folder} was trained from other settings, data or code than the project has now. {advice.again(hint)}"
        )
    return training


def measured(path: Path, source: Source, training: trainings.Trained, predictions: Path) -> dict[str, Any]:
    """Read the metrics of a training, which belong to its predictions."""
    hint = f"dvc repro {source.evaluated}"
    content = mapping(path, hint, (*source.numbers, "network"))
    # Metrics of another kind of network lack what this one needs: they are of something else, and not damaged.
    require(path, hint, content, source.expected)
    metrics = seal.opened(path, content, training.identity, source.evaluated, predictions)

    for name in (*source.numbers, *source.needed):
        if type(metrics.get(name)) not in (int, float) or not math.isfinite(metrics[name]):
            raise DamagedArtifactError(
                f"{path} has {name} '{metrics.get(name)}', expected a finite number. {advice.again(hint)}"
            )
    return metrics


def read_history(training: trainings.Trained, epochs: int) -> History:
    """Read the columns of a history; there is none where weights were taken as they are."""
    if not epochs:
        return {}
    training.check_history()

    path = training.folder / "history.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (ValueError, csv.Error) as error:  # bytes that are no text
        raise DamagedArtifactError(
            f"{path} cannot be read ({error}). {advice.again(training.hint)}"
        ) from None

    if len(rows) != epochs:
        raise DamagedArtifactError(
            f"{path} has {len(rows)} epochs, the metrics say {epochs}. {advice.again(training.hint)}"
        )

    # A line that is cut short has None in its last cells.
    columns = {name: [row[name] or "" for row in rows] for name in rows[0]}
    # Read once here, so that a cell that is no number is an error which names the file.
    for name in columns.keys() - {"phase"}:
        for cell in columns[name]:
            try:
                float(cell or 0)
            except ValueError:
                message = f"{path} has {name} '{cell}', expected a number. {advice.again(training.hint)}"
                raise DamagedArtifactError(message) from None
    return columns

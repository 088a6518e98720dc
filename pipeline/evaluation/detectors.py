"""What is known of a trained detector: average precisions, cost, and what it finds.

The stage evaluate runs it by its name (`pipeline/params/tasks.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts import advice
from pipeline.compute.machine import Machine
from pipeline.data.normalize import Normalize
from pipeline.detection import average_precision
from pipeline.detection.average_precision import Evaluation
from pipeline.detection.prepared import Prepared
from pipeline.detection.sample import Detected
from pipeline.detection.views import BoxSpace
from pipeline.detection.weights import load
from pipeline.errors import StaleArtifactError
from pipeline.evaluation.boxes import detections, evaluation, percent
from pipeline.evaluation.cost import num_params
from pipeline.networks.trained import Trained

Metrics = dict[str, float | int | str]
# Of a student's inputs: what its metrics say of the run.
PASSED_ON = ("dataset", "pair", "run", "teacher", "student", "seed")


def evaluate(
    folder: Path, data: Path, inputs: dict[str, Any], machine: Machine
) -> tuple[Metrics, dict[str, NDArray[Any]]]:
    """Evaluate the last and the best weights that a training left, on the test split.

    Args:
        folder: `weights/` and `training.json`.
        data: folder of the prepared data.
        inputs: the student's inputs; empty for a teacher.
        machine: where it runs.

    Returns:
        Metrics by name (average precisions in percent), and arrays: by weights, "last" and "best", the boxes that were
        found float32 (M, 4) in the images' own pixels, their scores float32 (M,) and labels int64 (M,), and `offsets`
        int64 (N + 1,), by which those of image i are rows `offsets[i]` to `offsets[i + 1]`. Of the last weights also
        `recalls` float64 (101,) and the precision at each of them, `curve_AP`, `curve_AP50` and `curve_AP75`, 0 to 1.
        They say of which weights, inputs and data they are.

    Raises:
        StaleArtifactError: the detector was trained for other classes.
        DamagedArtifactError: the weights are not those that the training left.
        MachineError: pycocotools is not there.
    """
    average_precision.require()
    trained, prepared = Trained.of(folder, "dvc repro"), Prepared.open(data)
    split, classes = prepared.splits["test"], len(prepared.meta.classes)

    metrics: Metrics = {}
    arrays: dict[str, NDArray[Any]] = {}
    for name, prefix in (("last", ""), ("best", "best_")):
        network, spec = load(folder / "weights", name)
        if spec.classes != classes:
            raise StaleArtifactError(
                f"{folder} finds {spec.classes} classes, and {data} has {classes}. {advice.again(trained.hint)}"
            )
        trained.check_weights(name)
        normalize = Normalize(spec.mean, spec.std, machine.device)
        machine.place(network)
        found = detections(network, split, BoxSpace(spec.views), normalize, machine)
        measured = evaluation(split, found, classes)
        metrics |= {f"{prefix}{key}": value for key, value in percent(measured).items()}
        arrays |= {f"{name}_{key}": value for key, value in _flat(found).items()}
        if name == "last":
            arrays |= _curves(measured)

    others = {key: value for key, value in trained.numbers.items() if key != "seconds"}
    metrics |= {
        "network": spec.network,
        "params": num_params(network),
        "train_seconds": trained.numbers["seconds"],
        **others,
    }
    origin = {"weights": trained.weights["last"], "inputs": trained.inputs, "fingerprint": split.fingerprint}
    if inputs.get("methods"):
        metrics["methods"] = " + ".join(name for plug in inputs["methods"] for name in plug)
    passed = {key: inputs[key] for key in PASSED_ON if key in inputs}
    return metrics | passed, arrays | {key: np.array(value) for key, value in origin.items()}


def _curves(measured: Evaluation) -> dict[str, NDArray[Any]]:
    """Return the curves of precision by recall as arrays."""
    return {"recalls": measured.recalls} | {f"curve_{key}": x for key, x in measured.precisions.items()}


def _flat(found: list[Detected]) -> dict[str, NDArray[Any]]:
    """Return the detections of all images as arrays."""
    counts = [len(one.scores) for one in found]
    return {
        "boxes": np.concatenate([one.boxes.numpy() for one in found]),
        "scores": np.concatenate([one.scores.numpy() for one in found]),
        "labels": np.concatenate([one.labels.numpy() for one in found]),
        "offsets": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
    }

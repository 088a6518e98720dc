"""What is known of a trained network: accuracy, agreement with its teacher, cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.artifacts import advice
from pipeline.artifacts.predictions import Predictions
from pipeline.compute.machine import Machine
from pipeline.data.normalize import Normalize
from pipeline.data.prepared import Prepared
from pipeline.errors import DivergedError, StaleArtifactError
from pipeline.evaluation.accuracy import top
from pipeline.evaluation.agreement import agreement, correlation
from pipeline.evaluation.cost import latency, macs, num_params
from pipeline.evaluation.forward import PlainSplit, logits
from pipeline.evaluation.pooling import pooled
from pipeline.evaluation.probe import fisher
from pipeline.networks.network import Network, probe
from pipeline.networks.spec import NetworkSpec
from pipeline.networks.trained import Trained
from pipeline.networks.weights import load

Metrics = dict[str, float | int | str]
# Of a student's inputs: what its metrics say of the run.
PASSED_ON = ("dataset", "pair", "run", "teacher", "student", "seed", "source", "slots")
_CURE = "Lower learning_rate of its recipe in params.yaml, then: dvc repro"


def evaluate(
    folder: Path, data: Path, inputs: dict[str, Any], machine: Machine
) -> tuple[Metrics, dict[str, NDArray[Any]]]:
    """Evaluate the last and the best weights that a training left.

    The network is built from its own json and takes every tensor of its weights file, no more and no less: so
    what a method adds for training is gone, and what it inserts for good is there.

    Args:
        folder: `weights/` and `training.json`.
        data: folder of the prepared data.
        inputs: the student's inputs; empty for a teacher.
        machine: where it runs.

    Returns:
        Metrics by name (accuracies and agreement in percent, latency in ms, training time in s, peak memory in
        bytes; of a network with inserted layers, what a linear probe finds before and after each), and arrays:
        predicted classes int32 (N,) of both weights; of the last weights, the correlation of every two classes'
        logits float32 (K, K), and the pooled features float32 (n, D) of the samples `pooled_index`. Both say of
        which weights and inputs they are.

    Raises:
        StaleArtifactError: the teacher's predictions are not those of this teacher or data.
        DamagedArtifactError: the weights are not those that the training left.
        DivergedError: a logit or a number is not finite.
    """
    trained = Trained.of(folder, "dvc repro")
    prepared = Prepared.open(data)
    test = prepared.split("test")
    normalize = Normalize(prepared.meta.mean, prepared.meta.std, machine.device)
    split = PlainSplit.of(prepared, "test", normalize, machine)
    arrays: dict[str, NDArray[Any]] = {"label": test.labels.astype(np.int32)}

    metrics: Metrics = {}
    for name, prefix in (("last", ""), ("best", "best_")):
        network, _ = load(folder / "weights", name)
        trained.check_weights(name)
        scores = logits(network.to(machine.device), split, machine)
        if not scores.isfinite().all():
            raise DivergedError(f"{folder}: the {name} weights give logits that are not finite. {_CURE}")
        metrics[f"{prefix}top1"] = top(scores, split.labels, 1)
        metrics[f"{prefix}top5"] = top(scores, split.labels, 5)
        arrays[name] = scores.argmax(dim=1).cpu().numpy().astype(np.int32)
        if name == "last":
            arrays |= _pictured(network, scores, split, test.labels, machine)

    # Built again: a network that is measured has not been moved, nor run in another mode.
    network, spec = load(folder / "weights")
    metrics |= _cost(network, spec, trained.numbers)
    if network.inserted:
        train = PlainSplit.of(prepared, "train", normalize, machine)
        metrics |= _probes(network.to(machine.device), spec, train, split, machine)

    # Of which network and data they are: a student's evaluation compares both with its teacher's.
    origin = {"weights": trained.weights["last"], "inputs": trained.inputs}
    arrays |= {name: np.array(value) for name, value in origin.items()}
    arrays["fingerprint"] = np.array(test.fingerprint)

    if inputs.get("teacher_evaluation"):
        other = _teacher_prediction(inputs, prepared)
        metrics["agreement"] = agreement(torch.from_numpy(arrays["last"]), other)
        metrics["best_agreement"] = agreement(torch.from_numpy(arrays["best"]), other)

    if inputs.get("methods"):
        metrics["methods"] = " + ".join(name for plug in inputs["methods"] for name in plug)
    passed = {key: inputs[key] for key in PASSED_ON if inputs.get(key) is not None}
    return metrics | passed, arrays


def require_finite(folder: Path, metrics: Metrics) -> None:
    """Refuse metrics that no json can hold, and that no mean could be taken of.

    Args:
        folder: the network's, for the error.
        metrics: its numbers.

    Raises:
        DivergedError: one of them is not finite.
    """
    for name, value in metrics.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise DivergedError(f"{folder}: {name} is {value}, expected a finite number. {_CURE}")


def _pictured(
    network: Network, scores: Tensor, split: PlainSplit, labels: NDArray[np.int64], machine: Machine
) -> dict[str, NDArray[Any]]:
    """Return what the report draws of a network: correlations of classes, and pooled features of some samples."""
    rows = shown(labels)
    return {
        "correlation": correlation(scores).cpu().numpy().astype(np.float32),
        "pooled_index": rows,
        "pooled": pooled(network, split, ["pooled"], machine, torch.from_numpy(rows))["pooled"],
    }


def _cost(network: Network, spec: NetworkSpec, training: Mapping[str, float | int]) -> Metrics:
    """Return what a network costs at inference, and what its training cost."""
    others = {name: value for name, value in training.items() if name != "seconds"}
    return {
        "network": spec.network,
        "params": num_params(network),
        "macs": macs(network, spec.size, spec.channels),
        "latency_ms": latency(network, spec.size, spec.channels),
        "train_seconds": training["seconds"],
        **others,
    }


def _probes(
    network: Network, spec: NetworkSpec, train: PlainSplit, test: PlainSplit, machine: Machine
) -> Metrics:
    """Return the accuracy of a linear probe before and after every inserted layer, as `probe_<tap>`."""
    shapes = probe(network, spec.size, spec.channels)
    # Not every layer offers what it reads.
    taps = [name for tap in network.inserted for name in (f"{tap}.input", tap) if name in shapes]
    fitted, seen = pooled(network, train, taps, machine), pooled(network, test, taps, machine)
    label, test_label = train.labels.cpu().numpy(), test.labels.cpu().numpy()
    return {f"probe_{tap}": fisher(fitted[tap], label, seen[tap], test_label) for tap in taps}


def shown(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Choose the samples whose features are kept for pictures: the first 30 of at most ten classes, int64 (n,).

    Args:
        labels: of the split (N,).
    """
    classes = np.unique(labels)
    # Spread evenly over all classes; rounding may meet one twice.
    chosen = classes[np.unique(np.linspace(0, len(classes) - 1, min(len(classes), 10)).round().astype(int))]
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:30] for label in chosen]))


def _teacher_prediction(inputs: dict[str, Any], prepared: Prepared) -> Tensor:
    """Return the classes int32 (N,) that the teacher predicts of the same samples."""
    path, hint = Path(inputs["teacher_evaluation"]), f"dvc repro evaluate_teacher@{inputs['teacher']}"
    test = prepared.split("test")
    predictions = Predictions.read(path, hint, test.fingerprint, len(test), len(prepared.meta.classes))
    if predictions.weights != inputs["teacher_weights"]:
        raise StaleArtifactError(f"{path} is of another teacher. {advice.again(hint)}")
    return torch.from_numpy(predictions.last)

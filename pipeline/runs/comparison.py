"""How far a distilled student is from its teacher on the plain test images (KCD, arXiv:2103.16844, table 11)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline import seeding
from pipeline.compute.machine import Machine
from pipeline.data.normalize import Normalize
from pipeline.data.prepared import Prepared
from pipeline.distillation import combination
from pipeline.distillation.method import Batch, Context
from pipeline.distillation.transform import TeacherTransform
from pipeline.evaluation.distance import map_distance, prediction_kl
from pipeline.evaluation.forward import PlainSplit
from pipeline.features import contents, top
from pipeline.features.contents import StoredTop
from pipeline.features.ranges import StoredRanges
from pipeline.features.store import StoredArray
from pipeline.features.teacher import Teacher
from pipeline.networks.network import Network, Taps, probe
from pipeline.networks.trained import Trained
from pipeline.networks.weights import load, load_weights
from pipeline.runs.composition import Composition
from pipeline.runs.inputs import TRANSFORM, RunInputs
from pipeline.runs.sources import RESOLVED, Sources

Fetch = Callable[
    [int, Tensor, Tensor], Tensor
]  # of the samples from a position on: images, labels -> feature


@torch.no_grad()
def compare(folder: Path, inputs: RunInputs, machine: Machine) -> dict[str, float]:
    """Compare a student with the features that its teacher's store holds, or with the teacher that taught it online.

    Args:
        folder: what its training left.
        inputs: what it was trained from.
        machine: where both run.

    Returns:
        "teacher_kl" of the predictions, and "teacher_l2", the mean distance of the features that its methods compare,
        where both have one shape; without those whose teacher's side is not there.

    Raises:
        StaleArtifactError: something that is read is not what the inputs name.
    """
    composition = Composition.of(inputs, f"runs.{inputs.run}")
    # Test rows are read below; the training arrays that this opens are not worth loading.
    sources = Sources.of(inputs, machine, resident_bytes=0)
    student = load(folder / "weights")[0].to(machine.device)
    compared = combination.compared(composition.methods)

    fetches = _fetches(inputs, sources, None if compared is None else compared[1], machine.device)
    if not fetches:
        return {}
    tap, feature = compared or ("", "")
    transform = _transform(folder, inputs, composition, sources, student)

    prepared = Prepared.open(Path(inputs.data))
    normalize = Normalize(prepared.meta.mean, prepared.meta.std, machine.device)
    split = PlainSplit.of(prepared, "test", normalize, machine)
    # Sums in float64, divided and read once: the last batch is smaller than the others, and none waits for another.
    totals: dict[str, Tensor] = {}
    start = 0
    for image in split.batches():
        label = split.labels[start : start + len(image)]
        with machine.autocast():
            ours = student.record(image, {"logits", tap} if feature in fetches else {"logits"})
        theirs = {name: fetch(start, image, label) for name, fetch in fetches.items()}
        start += len(image)

        if "logits" in theirs:
            _add(totals, "teacher_kl", prediction_kl(ours["logits"], theirs["logits"]))
        if feature in theirs:
            taught = theirs[feature]
            if transform is not None:
                taught = transform({feature: taught}, _batch(image, label, {feature: taught}))[feature]
            if taught.shape == ours[tap].shape:  # else a regressor stands between them
                _add(totals, "teacher_l2", map_distance(ours[tap], taught))
    return {name: float(total) / start for name, total in totals.items()}


def _fetches(
    inputs: RunInputs, sources: Sources, feature: str | None, device: torch.device
) -> dict[str, Fetch]:
    """Return what gives the teacher's logits on test samples, and the feature if it is compared."""
    wanted = {"logits": _fetch("logits", inputs, sources, device)}
    if feature is not None and feature in inputs.features:
        wanted[feature] = _fetch(feature, inputs, sources, device)
    return {name: fetch for name, fetch in wanted.items() if fetch is not None}


def _fetch(feature: str, inputs: RunInputs, sources: Sources, device: torch.device) -> Fetch | None:
    """Return the function that gives a feature of the last teacher on test samples, or None."""
    if inputs.source == "online":
        teacher = sources.teachers.get("last")
        return None if teacher is None else partial(_run, teacher, feature)
    for stored in inputs.stored.values():
        store = Path(stored.store)
        manifest = contents.read(store, RESOLVED)
        kept = manifest.features.get(feature)
        # Codes have no test split, not every store has the last checkpoint, and a new one may be of other weights.
        if kept and "last/test" in kept.digest and manifest.weights["last"] == inputs.teacher_weights:
            array = StoredArray.of(store, "last", "test", feature)
            return partial(_read, StoredRanges(array, 0, device), kept.top)
    return None


def _run(teacher: Teacher, feature: str, start: int, image: Tensor, label: Tensor) -> Tensor:
    return teacher.features(image, [feature], label)[feature]


def _read(
    stored: StoredRanges, largest: StoredTop | None, start: int, image: Tensor, label: Tensor
) -> Tensor:
    return top.read(stored.take(start, start + len(image)), largest)


def _transform(
    folder: Path, inputs: RunInputs, composition: Composition, sources: Sources, student: Network
) -> TeacherTransform[Any] | None:
    """Build the transform as it was when training ended: it may have changed itself (KCD's Table 5)."""
    if composition.transform is None:
        return None
    spec = inputs.network
    context = Context(
        num_classes=spec.classes,
        labels=torch.empty(0, dtype=torch.int64),  # of the training samples, which are not looked at
        student=student,
        student_shapes=probe(student, spec.size, spec.channels),
        teacher_shapes=sources.shapes,
        tables=sources.tables,
        seed=inputs.seed,
        matchings=sources.matchings,
    )

    # As in training, should the plug-in draw anything.
    with seeding.scope(inputs.seed, "transform"):
        transform = composition.transform(composition.transform_config, context)
    if transform.state_dict():
        load_weights(transform, folder / TRANSFORM)
        Trained.of(folder, RESOLVED).check_state(folder / TRANSFORM)
    return transform.to(next(student.parameters()).device).eval()


def _add(totals: dict[str, Tensor], name: str, values: Tensor) -> None:
    total = values.double().sum()
    totals[name] = totals[name] + total if name in totals else total


def _batch(image: Tensor, label: Tensor, teacher: Taps) -> Batch:
    """Return plain samples as the batch that a transform is given."""
    index, none = torch.arange(len(label), device=label.device), torch.zeros_like(label[0])
    return Batch(image, label, index, teacher, epoch=none, epochs=1, step=none, phase="test", seed=0)

"""How far a distilled student is from its teacher on the plain test images (KCD, arXiv:2103.16844, table 11)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline import seeding
from pipeline.distillation.method import Batch, MethodConfig
from pipeline.distillation.transform import TeacherTransform
from pipeline.evaluation.distance import map_distance, prediction_kl
from pipeline.features import manifest as manifests
from pipeline.features.source import OnlineSource, TeacherSource
from pipeline.features.store import StoredArray, array_path
from pipeline.features.teacher import Teacher, as_float32
from pipeline.networks.network import Network, Taps
from pipeline.runs.inputs import RunInputs
from pipeline.training.setting import Setting

Fetch = Callable[
    [int, Tensor, Tensor], Tensor
]  # of the samples from a position on: images, labels -> feature


@torch.no_grad()
def compare(
    student: Network,
    config: MethodConfig,
    transform: TeacherTransform[Any] | None,
    inputs: RunInputs,
    source: TeacherSource,
    setting: Setting,
) -> dict[str, float]:
    """Compare with the features that the store holds, or with the teacher that runs beside the student.

    Args:
        student: as training left it.
        config: of its method; where it names a `student_tap` and a `teacher_feature`, these are compared.
        transform: what was done to the teacher's features, or None.
        inputs: what it was trained from.
        source: where its teacher's features came from.
        setting: the data.

    Returns:
        "teacher_kl" of the predictions, and "teacher_l2", the mean distance of the features where both have one shape;
        without those whose teacher's side is not there.
    """
    tap, feature = (str(getattr(config, name, "")) for name in ("student_tap", "teacher_feature"))
    wanted = {"logits": _fetch("logits", inputs, source)}
    if tap and feature in inputs.features:
        wanted[feature] = _fetch(feature, inputs, source)
    fetches = {name: fetch for name, fetch in wanted.items() if fetch is not None}
    split, training, start = setting.plain("test"), student.training, 0
    totals: dict[str, float] = {}
    student.eval()
    for image in split.batches() if fetches else ():
        label = split.labels[start : start + len(image)]
        with setting.machine.autocast():
            ours = student.record(image, {"logits", tap} if feature in fetches else {"logits"})
        theirs = {name: fetch(start, image, label) for name, fetch in fetches.items()}
        if "logits" in theirs:
            _add(totals, "teacher_kl", prediction_kl(ours["logits"], theirs["logits"]))
        if feature in theirs:
            taught = theirs[feature]
            if transform is not None:
                taught = transform({feature: taught}, _batch(image, label, {feature: taught}))[feature]
            if taught.shape == ours[tap].shape:  # else a regressor stands between them
                _add(totals, "teacher_l2", map_distance(ours[tap], taught))
        start += len(image)
    student.train(training)
    return {name: total / start for name, total in totals.items()}


def _add(totals: dict[str, float], name: str, values: Tensor) -> None:
    totals[name] = totals.get(name, 0.0) + float(values.double().sum())


def _fetch(feature: str, inputs: RunInputs, source: TeacherSource) -> Fetch | None:
    """Return the function that gives a feature of the last teacher on test samples, or None."""
    if isinstance(source, OnlineSource):
        teacher = source.teachers.get("last")
        return None if teacher is None else partial(_run, teacher, feature)
    for stored in inputs.stored.values():
        store = Path(stored.store)
        manifest = manifests.read(store, "dvc repro")
        held = manifest.features.get(feature)
        if held and "last/test" in held.digest and manifest.weights["last"] == inputs.teacher_weights:
            return partial(_read, StoredArray(array_path(store, "last", "test", feature)))
    return None


def _run(teacher: Teacher, feature: str, start: int, image: Tensor, label: Tensor) -> Tensor:
    return teacher.features(image, [feature], label)[feature]


def _read(array: StoredArray, start: int, image: Tensor, label: Tensor) -> Tensor:
    return as_float32(torch.from_numpy(array.range(0, start, start + len(image))).to(image.device))


def _batch(image: Tensor, label: Tensor, teacher: Taps) -> Batch:
    """Return plain samples as the batch that a transform is told of."""
    index = torch.arange(len(label))
    return Batch(image, label, index, teacher, 0, 1, 0, "test", seeding.generator("test"))

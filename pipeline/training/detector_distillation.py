"""Distilling a detector: maps of the teacher's backbone beside the detector's own losses.

The teacher runs beside the student, its backbone alone. The detector's losses stand in the place of the label's term
`ce`: all together they have its weight. Maps are 0 outside of their image on both sides: what a batch pads an image
with teaches nothing. The stage distill runs it by its name (`pipeline/params/tasks.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.artifacts import hashing, publish
from pipeline.compute import distributed
from pipeline.compute.machine import Machine
from pipeline.detection import average_precision
from pipeline.detection.architecture import architecture
from pipeline.detection.detector import Detector
from pipeline.detection.inputs import DetectorRunInputs, check_data, first
from pipeline.detection.prepared import Prepared
from pipeline.detection.spec import evaluated
from pipeline.distillation import combination, map_lesson
from pipeline.distillation.combination import LABELS
from pipeline.distillation.method import BaseMethod
from pipeline.distillation.transform import TeacherTransform
from pipeline.networks.network import Taps
from pipeline.params.base import load
from pipeline.params.recipe import Epoch
from pipeline.runs.composition import Composition
from pipeline.runs.detector_sources import DetectorSources, transform_of
from pipeline.training import assembly, cohort
from pipeline.training.assembly import Assembly, Job, Subject
from pipeline.training.box_batches import BoxViews
from pipeline.training.cohort import Member
from pipeline.training.detectors import MEASURE, BoxSetting, Losses, check_options
from pipeline.training.step import Clock, Terms

# What the stage calls, and tests.
__all__ = ["Distillation", "check_options", "distill", "prepare"]


class Distillation(nn.Module):
    """The objective: the detector's own losses, and the terms of the methods.

    Args:
        losses: the student's own.
        teacher: frozen, placed on the machine.
        method: what is minimized beside them.
        transform: what is done to the teacher's maps first, or None.
        taps: of the student, which the method reads.
        features: of the teacher.
        seed: of the run.
    """

    def __init__(
        self,
        losses: Losses,
        teacher: Detector,
        method: BaseMethod[Any],
        transform: TeacherTransform[Any] | None,
        *,
        taps: Sequence[str],
        features: Sequence[str],
        seed: int,
    ) -> None:
        super().__init__()
        self.losses, self.method, self.transform = losses, method, transform
        self.teacher = teacher.eval().requires_grad_(False)
        self.taps, self.features, self.seed = tuple(taps), tuple(features), seed
        self.epoch = Epoch("main", 0, 1)

    def start(self, epoch: Epoch) -> Hashable:
        """Begin an epoch."""
        self.epoch = epoch
        self.losses.start(epoch)
        return self.method.start(epoch)

    def begin(self, slot: int, index: Tensor) -> Callable[[], Taps]:
        """Read nothing: the teacher runs."""
        return dict

    def forward(self, views: BoxViews, read: Taps, clock: Clock) -> tuple[Tensor, Terms]:
        """Return the weighted sum of all terms, and the terms: torchvision's by its names, then the methods'."""
        own, taps = self.losses.computed(views, self.taps)
        with torch.no_grad(), self.losses.machine.autocast():
            maps = self.teacher.maps(views.images, self.features)

        device = clock.epoch.device
        padded, _ = self.teacher.model.transform(list(views.images))
        at, index = (clock.epoch, clock.step), views.index.to(device)
        taught = _within(self.teacher, views, maps)
        batch = map_lesson.lesson(padded.tensors, index, taught, self.epoch, at, self.seed)
        if self.transform is not None:
            taught = self.transform(taught, batch)
            batch = map_lesson.lesson(padded.tensors, index, taught, self.epoch, at, self.seed)

        computed, weights = (
            map_lesson.terms(self.method, _within(self.losses.network, views, taps), batch),
            self.method.weights(batch),
        )
        loss = weights[LABELS] * torch.stack([*own.values()]).sum()
        for name, term in computed.items():
            loss = loss + weights[name] * term
        return loss, own | computed


def distill(inputs: Sequence[Path], out: Sequence[Path], machine: Machine, code: Mapping[str, str]) -> None:
    """Distill students and leave their results, one after another.

    Args:
        inputs: the json of each.
        out: the folders to make, one for each.
        machine: where they run.
        code: hash by file of what the stage runs for classifiers and detectors alike.

    Raises:
        MachineError: pycocotools is not there.
        StaleArtifactError: something that is read is not what the inputs name.
        CohortError: several have no result.
    """
    runs = [load(DetectorRunInputs, path, "dvc repro inputs") for path in inputs]
    average_precision.require()

    def ready(run: DetectorRunInputs, scratch: Path) -> Assembly:
        identity = hashing.identity(run, machine.precision, dict(code))
        title, made_by = f"{run.pair}/{run.run} seed {run.seed}", f"distill@{run.pair}/{run.run}-{run.seed}"
        inputs = hashing.content_hash(run.model_dump(mode="json"))
        return prepare(run, Job(scratch, machine, identity, title, made_by, inputs))

    def finish(run: DetectorRunInputs, scratch: Path) -> None:
        publish.write_json(scratch / "inputs.json", run.model_dump(mode="json"))

    members = [
        Member(distributed.building(folder, machine.ranks), partial(ready, run), partial(finish, run))
        for run, folder in zip(runs, out, strict=True)
    ]
    cohort.train(members, machine)


def prepare(inputs: DetectorRunInputs, job: Job) -> Assembly:
    """Return the training of a student by its inputs, ready to run.

    Raises:
        StaleArtifactError: something that is read is not what the inputs name.
    """
    prepared = Prepared.open(Path(inputs.data))
    check_data(inputs, prepared)
    spec, machine = inputs.network, job.machine
    sources = DetectorSources.of(inputs, machine)
    student = first(inputs, inputs.seed)
    machine.place(student)

    composition = Composition.of(inputs, f"runs.{inputs.run}")
    seen, transform = transform_of(inputs, composition, sources)
    shapes = architecture(spec.network, spec.settings).taps
    context = map_lesson.context(shapes, seen, sources.matchings, inputs.seed, machine.autocast)
    method = combination.assemble(composition.methods, context)

    taps = [name for name in composition.needs.student if name != map_lesson.LOGITS]
    losses = Losses(student, machine, inputs.seed)
    objective = Distillation(
        losses, sources.teacher, method, transform, taps=taps, features=inputs.features, seed=inputs.seed
    )
    setting = BoxSetting.of(prepared, spec.views, machine)
    batches = setting.batches(inputs.recipe, inputs.seed)
    return assembly.assemble(
        job,
        Subject(student, spec, {"method": method}),
        objective.to(machine.device),
        setting,
        batches,
        method.phases(inputs.recipe),
        diagnose=method.diagnose,
        measure=MEASURE,
        evaluated=evaluated(inputs.recipe.num_epochs(len(batches))),
    )


def _within(detector: Detector, views: BoxViews, maps: Taps) -> Taps:
    """Return maps (B, C, H, W) of a detector that are 0 outside of their image, float32."""
    sizes = [(image.shape[1], image.shape[2]) for image in views.images]
    return {name: x.float() * detector.inside(sizes, name).to(x.device) for name, x in maps.items()}

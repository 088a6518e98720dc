"""How fast this machine trains and runs one detector: a few real steps on made-up images, in a process of its own.

What is timed is what the stages run: `training/step.py` with its batches read from files, `Detector.detect`, and
pycocotools. Nothing is learned: rates are 0, and weights are drawn, so none is downloaded. A batch that would take
long, or much of the memory, is not tried: one image is, and its time and memory are scaled by the pixels of the batch,
with what pads it.

Run as a module it reads a `Job` from standard input and prints a json for each thing that it has measured.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from pipeline.benchmark import detector_clock, process
from pipeline.benchmark.record import facts
from pipeline.compute.machine import Machine, machine
from pipeline.detection.architecture import architecture
from pipeline.detection.detector import Detector, build
from pipeline.detection.images import BoxImages, Picture
from pipeline.detection.prepared import Prepared
from pipeline.detection.sample import Detected
from pipeline.detection.spec import DetectorSpec
from pipeline.detection.views import back
from pipeline.distillation import combination, map_lesson
from pipeline.distillation.method import BaseMethod, Batch
from pipeline.distillation.transform import TeacherTransform, TransformConfig
from pipeline.errors import StillhouseError
from pipeline.evaluation.boxes import precision
from pipeline.networks.network import Taps
from pipeline.params.base import Block
from pipeline.runs.composition import Composition
from pipeline.runs.detector_training import Training
from pipeline.training.detector_distillation import Distillation
from pipeline.training.detectors import BoxSetting, Losses
from pipeline.training.step import Objective

LONG = 10.0  # seconds: a whole batch that is expected to take longer is not tried
_SMALL = 128 * 128  # pixels: a batch norm learns nothing of one image that may be a single pixel at last
_SHARE = 0.5  # of the free memory, that a batch may be expected to take


class Job(Block):
    """What is to be measured.

    Attributes:
        training: the detector, and how it learns.
        data: folder of prepared data, made up.
        batch: images of a step: those of the recipe, or all that there are.
        batch_pixels: those of a whole batch of the data, padding included, on average.
        plain_pixels: those of one plain image, likewise.
        device: see `stages/command.py`, as the following.
        precision: of the forward passes.
        channels_last: memory format.
        begun: when the process was started, seconds since 1970.
        enough: seconds that are measured of each thing, about.
    """

    training: Training
    data: str
    batch: int
    batch_pixels: float
    plain_pixels: float
    device: str = "auto"
    precision: str = "auto"
    channels_last: bool | None = None
    begun: float = 0.0
    enough: float = detector_clock.ENOUGH


class _First(TeacherTransform[TransformConfig]):
    """Takes the first channels of maps, as many as a matching would pick."""

    def __init__(self, seen: dict[str, tuple[int, ...]]) -> None:
        nn.Module.__init__(self)
        self.picked = {name: shape[0] for name, shape in seen.items()}

    def forward(self, teacher: Taps, batch: Batch) -> Taps:
        return {name: x[:, torch.arange(self.picked[name], device=x.device)] for name, x in teacher.items()}


def measure(job: Job, free: int | None = None) -> Iterator[dict[str, float | int | str]]:
    """Give what was measured, piece by piece: a step's time and memory first.

    Args:
        job: what is to be measured.
        free: bytes of memory that there are; None asks the machine.
    """
    where = machine(job.device, job.precision, channels_last=job.channels_last, steps="eager")
    start = time.time() - job.begun
    yield {"start": start, **facts(where.hardware), "threads": torch.get_num_threads()}

    before = process.turns()
    setting = BoxSetting.of(Prepared.open(Path(job.data)), job.training.network.views, where)
    student, spec = _built(job.training.network, where), job.training.teacher
    teacher = None if spec is None else _built(spec, where)
    objective, parameters = _objective(job, student, teacher, where)
    yield from _trained(job, setting, student, objective, parameters, where, free)
    # What follows may be large, too.
    del objective, parameters
    student.zero_grad(set_to_none=True)

    yield {"evaluated": _evaluated(job, setting, student, where)}
    lesson = job.training.lesson
    if teacher is not None and lesson is not None:
        other, features, taps = teacher, lesson.features, lesson.taps

        @torch.no_grad()
        def both(picture: Picture) -> None:
            with where.autocast():
                other.maps([picture.image], features)
                student.maps([picture.image], taps)

        images = BoxImages(setting.prepared.splits["train"], setting.space, setting.normalize, where.device)
        timed = detector_clock.each(images, where, both, job.enough)
        yield {"paired": timed.seconds * job.plain_pixels / timed.pixels}
    share = process.share(before, process.turns())
    if where.device.type == "cpu" and share is not None:
        yield {"share": share}


def _built(spec: DetectorSpec, where: Machine) -> Detector:
    """Return a detector with weights that are drawn."""
    detector = build(spec.network, spec.classes, 0, spec.settings)
    for module in detector.modules():
        if isinstance(module, FrozenBatchNorm2d):
            # It was never trained, and over a hundred layers what normalizes nothing would leave no finite number.
            module.weight.fill_(0.5)
    where.place(detector)
    return detector


def _objective(
    job: Job, student: Detector, teacher: Detector | None, where: Machine
) -> tuple[Objective, list[nn.Parameter]]:
    losses, lesson = Losses(student, where, 0), job.training.lesson
    trained = [x for x in student.parameters() if x.requires_grad]
    student.train()
    if teacher is None or lesson is None:
        return losses, trained

    shapes = architecture(job.training.network.network, job.training.network.settings).taps
    composition = Composition.of(lesson, "runs")
    method: BaseMethod[Any] = combination.assemble(
        composition.methods, map_lesson.context(shapes, lesson.seen, autocast=where.autocast)
    )
    objective = Distillation(
        losses, teacher, method, _First(lesson.seen), taps=lesson.taps, features=lesson.features, seed=0
    )
    objective.to(where.device)
    method.train()
    return objective, trained + [x for x in method.parameters() if x.requires_grad]


def _trained(
    job: Job,
    setting: BoxSetting,
    student: Detector,
    objective: Objective,
    parameters: list[nn.Parameter],
    where: Machine,
    free: int | None,
) -> Iterator[dict[str, float | int | str]]:
    """Give the time and the memory of a step: of an image first, and of a whole batch where that can be."""
    recipe, held = job.training.recipe, process.held(where)
    few = 1 if job.plain_pixels > _SMALL else min(2, job.batch)
    first = next(detector_clock.steps(setting, recipe, objective, parameters, where, few))
    gradients = sum(x.numel() * x.element_size() for x in parameters)
    moments = gradients * (2 if recipe.optimizer == "adamw" else 1)
    ratio = job.batch_pixels / first.pixels
    memory = process.scaled(held, where.peak_bytes(), gradients, moments, ratio)
    room = (process.free(where) if free is None else free) + where.peak_bytes()
    yield {"step": first.seconds * ratio, "images": first.images, "memory": memory}

    whole = first.seconds * ratio < LONG and memory < _SHARE * room
    if not whole:
        if first.seconds < detector_clock.ONCE:
            again = next(detector_clock.steps(setting, recipe, objective, parameters, where, few))
            yield {"step": again.seconds * job.batch_pixels / again.pixels}
        return
    timed = [*detector_clock.steps(setting, recipe, objective, parameters, where, job.batch, job.enough)]
    seconds, pixels = (sum(getattr(x, key) for x in timed) for key in ("seconds", "pixels"))
    yield {
        "step": seconds * job.batch_pixels / pixels,
        "images": timed[-1].images,
        "memory": where.peak_bytes(),
    }


def _evaluated(job: Job, setting: BoxSetting, student: Detector, where: Machine) -> float:
    """Return the seconds of an image's evaluation: finding boxes, and comparing them with the truth."""
    split = setting.prepared.splits["test"]
    detections: list[Detected] = []

    @torch.no_grad()
    def find(picture: Picture) -> None:
        with where.autocast():
            (one,) = student.detect([picture.image])
        height, width = split.sizes[len(detections)].tolist()
        boxes = back(one.boxes.float().cpu(), height, width, picture.shown)
        detections.append(Detected(boxes, one.scores.float().cpu(), one.labels.cpu()))

    images = BoxImages(split, setting.space, setting.normalize, where.device)
    timed = detector_clock.each(images, where, find, job.enough)
    start = time.perf_counter()
    # Every image needs detections; of those that were not run, those of others.
    precision(split, [*islice(cycle(detections), len(split))], job.training.network.classes)
    compared = (time.perf_counter() - start) / len(split)
    return timed.seconds * job.plain_pixels / timed.pixels + compared


def main() -> None:
    """Measure the job of standard input."""
    # Where memory runs out, the kernel ends this process and no other one.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    job = Job.model_validate_json(sys.stdin.read())
    try:
        for piece in measure(job):
            print(json.dumps(piece), flush=True)
    except StillhouseError as error:
        print(json.dumps({"why": str(error)}), flush=True)


if __name__ == "__main__":
    main()

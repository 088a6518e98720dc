"""How fast this machine trains and runs one detector: a few real steps on made-up images, in a process of its own.

What is timed is what the stages run: `training/step.py` with its batches read from files, `Detector.detect`, and
pycocotools. Nothing is learned: rates are 0, and weights are drawn, so none is downloaded. A batch that would take
long, or much of the memory, is not tried: one image is, and its time and memory are scaled by the pixels of the batch,
with what pads it.

Run as a module it reads a `Job` from standard input and prints a json for each thing that it has measured.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from pipeline.benchmark.record import facts
from pipeline.compute.distributed import ALONE
from pipeline.compute.machine import Machine, machine
from pipeline.detection.architecture import architecture
from pipeline.detection.detector import Detector, build, padded
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
from pipeline.params.recipe import Epoch
from pipeline.runs.composition import Composition
from pipeline.runs.detector_training import Training
from pipeline.training.detector_distillation import Distillation
from pipeline.training.detectors import BoxSetting, Losses
from pipeline.training.optimizer import recipe_optimizer
from pipeline.training.step import Objective, Step, take

ENOUGH = 5.0  # seconds that are measured of each thing, about
LONG = 10.0  # seconds: a whole batch that is expected to take longer is not tried
ONCE = 30.0  # seconds: what takes longer is measured once, and its first run counts, which warms up
MOST = 64  # steps that are measured at most
_SMALL = 128 * 128  # pixels: a batch norm learns nothing of one image that may be a single pixel at last
_SHARE = 0.5  # of the free memory, that a batch may be expected to take


class Job(Block):
    """What is to be measured.

    Attributes:
        training: the detector, and how it learns.
        data: folder of prepared data, made up.
        batch_pixels: those of a whole batch of the data, padding included, on average.
        plain_pixels: those of one plain image, likewise.
        device: see `stages/command.py`, as the following.
        precision: of the forward passes.
        channels_last: memory format.
        begun: when the process was started, seconds since 1970.
    """

    training: Training
    data: str
    batch_pixels: float
    plain_pixels: float
    device: str = "auto"
    precision: str = "auto"
    channels_last: bool | None = None
    begun: float = 0.0


@dataclass(frozen=True)
class Timed:
    """Steps or images that were timed.

    Attributes:
        seconds: of one.
        pixels: of one, padding included.
        images: of one.
    """

    seconds: float
    pixels: float
    images: int = 1


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
    threads = torch.get_num_threads()
    yield {"start": time.time() - job.begun, **facts(where.hardware), "threads": threads}

    wall, busy = time.perf_counter(), time.process_time()
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
        timed = _each(images, where, both)
        yield {"paired": timed.seconds * job.plain_pixels / timed.pixels}
    if where.device.type == "cpu":
        yield {"share": (time.process_time() - busy) / (time.perf_counter() - wall) / threads}


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
    recipe = job.training.recipe
    size, held = recipe.batch_size, _held(where)
    few = 1 if job.plain_pixels > _SMALL else min(2, size)
    first = next(_epoch(setting, job, objective, parameters, where, few, 1))
    gradients = sum(x.numel() * x.element_size() for x in parameters)
    moments = gradients * (2 if recipe.optimizer == "adamw" else 1)
    ratio = job.batch_pixels / first.pixels
    memory = scaled(held, where.peak_bytes(), gradients, moments, ratio)
    room = (_free(where) if free is None else free) + where.peak_bytes()
    yield {"step": first.seconds * ratio, "images": first.images, "memory": memory}

    whole = first.seconds * ratio < LONG and memory < _SHARE * room
    if not whole:
        if first.seconds < ONCE:
            again = next(_epoch(setting, job, objective, parameters, where, first.images, 1))
            yield {"step": again.seconds * job.batch_pixels / again.pixels}
        return
    timed = [*_epoch(setting, job, objective, parameters, where, size, MOST)]
    seconds, pixels = (sum(getattr(x, key) for x in timed) for key in ("seconds", "pixels"))
    yield {
        "step": seconds * job.batch_pixels / pixels,
        "images": timed[-1].images,
        "memory": where.peak_bytes(),
    }


def _epoch(
    setting: BoxSetting,
    job: Job,
    objective: Objective,
    parameters: list[nn.Parameter],
    where: Machine,
    size: int,
    most: int,
) -> Iterator[Timed]:
    """Give steps of a batch size; where there are several, the first one warms up and is left out.

    Raises:
        StillhouseError: a step cannot be taken.
    """
    recipe = job.training.recipe.model_copy(update={"batch_size": size, "drop_last": True})
    batches = setting.batches(recipe, 0)
    optimizer = recipe_optimizer(parameters, recipe, fused=where.fused)
    step = Step("made up", objective, batches, batches.feed(fixed=False), optimizer, ALONE, clip=recipe.clip)
    spent, taken, epoch = 0.0, 0, 0
    warm = most > 1
    while taken < most and (taken < 2 or spent < ENOUGH):
        number = min(len(batches), most)
        step.start(Epoch("main", epoch, epoch + 1), 0, [0.0] * number, 0)
        for row in range(number):
            start = time.perf_counter()
            for error in take([step], row).values():
                raise error
            _wait(where)
            seconds = time.perf_counter() - start
            views = step.feed.views(row)
            if not (warm and taken == 0):
                spent += seconds
                sides = [(image.shape[1], image.shape[2]) for image in views.images]
                yield Timed(seconds, pixels(sides), size)
            taken += 1
            if taken >= most or (taken >= 2 and spent > ENOUGH):
                return
        epoch += 1


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

    timed = _each(BoxImages(split, setting.space, setting.normalize, where.device), where, find)
    start = time.perf_counter()
    # Every image needs detections; of those that were not run, those of others.
    precision(split, [*islice(cycle(detections), len(split))], job.training.network.classes)
    compared = (time.perf_counter() - start) / len(split)
    return timed.seconds * job.plain_pixels / timed.pixels + compared


def _each(images: BoxImages, where: Machine, work: Callable[[Picture], None]) -> Timed:
    """Return the mean time of work on plain images, one by one; the first warms up, unless it takes long."""
    rows = torch.split(torch.arange(len(images.split)), 1)
    timed: list[Timed] = []
    start = time.perf_counter()
    for (picture,) in images.views(0, rows):
        work(picture)
        _wait(where)
        now = time.perf_counter()
        timed.append(Timed(now - start, pixels([(picture.shown.height, picture.shown.width)])))
        start = now
        kept = timed[1:] or timed
        if timed[0].seconds > ONCE or sum(x.seconds for x in timed[1:]) > ENOUGH:
            break
    return Timed(*(sum(getattr(x, key) for x in kept) / len(kept) for key in ("seconds", "pixels")))


def scaled(held: int, peak: int, gradients: int, moments: int, ratio: float) -> int:
    """Return the memory of a training by that of its first step, in bytes.

    Args:
        held: before the step: weights, and what is imported.
        peak: in the step.
        gradients: of all parameters; as the weights, they do not grow with the images.
        moments: what the optimizer keeps from the first step on.
        ratio: pixels of a batch by those of the step.
    """
    return int(held + gradients + moments + max(0, peak - held - gradients) * ratio)


def pixels(sizes: list[tuple[int, int]]) -> float:
    """Return the pixels of a batch of images of these heights and widths, with what pads them."""
    height, width = padded(sizes)
    return float(len(sizes) * height * width)


def _wait(where: Machine) -> None:
    if where.device.type == "cuda":
        torch.cuda.synchronize(where.device)


def _held(where: Machine) -> int:
    """Return the memory that this process uses now, in bytes."""
    if where.device.type == "cuda":
        return int(torch.cuda.memory_allocated(where.device))
    pages = Path("/proc/self/statm")
    if not pages.exists():
        return where.peak_bytes()
    return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _free(where: Machine) -> int:
    """Return the memory that nobody uses, in bytes."""
    if where.device.type == "cuda":
        return int(torch.cuda.mem_get_info(where.device)[0])
    known = Path("/proc/meminfo")
    if known.exists():
        for line in known.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10  # given in kB
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


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

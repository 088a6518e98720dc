"""How long the stages of detectors will take on this machine: each training is tried for a few steps, then multiplied.

Every training is measured in a process of its own (`detector_steps.py`): its memory is its own then, and one that is
killed for it, or takes too long, costs the plan nothing else. What is not counted: what DVC does between stages,
weights that are written, and statistics of a matching. Detectors are drawn, not trained, and find other boxes than
trained ones.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from pipeline import progress
from pipeline.artifacts.closure import root
from pipeline.benchmark import made_up
from pipeline.benchmark.detector_clock import pixels
from pipeline.benchmark.detector_steps import Job
from pipeline.detection.views import BoxSpace
from pipeline.runs.detector_planning import BoxPlan, Work
from pipeline.runs.detector_scenes import Scene
from pipeline.runs.detector_training import Training

LIMIT = 600.0  # seconds that a training is measured for at most
TEST = 32  # made-up images that are evaluated
_TRAIN = 16  # made-up images to learn from, at least
_DRAWN = 64  # batches that the mean of their pixels is taken of


@dataclass(frozen=True)
class Options:
    """Where it is measured; see `stages/command.py`."""

    device: str = "auto"
    precision: str = "auto"
    channels_last: bool | None = None


@dataclass(frozen=True)
class Speed:
    """How fast a training is on this machine; None is not known.

    Attributes:
        start: seconds until a process computes.
        batch: images of a step: those of the recipe, or all that there are.
        step: seconds of a step.
        images: of the step that was timed; where they are fewer than the batch has, time and memory are scaled.
        memory: bytes of a training process at most.
        evaluated: seconds of an image's evaluation.
        paired: seconds of an image through both backbones.
        share: of the time that its thread was ready, for which it had a core; the rest was its neighbors'.
        facts: of the machine.
        why: something is not known.
    """

    batch: int
    start: float | None = None
    step: float | None = None
    images: int = 0
    memory: int | None = None
    evaluated: float | None = None
    paired: float | None = None
    share: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True)
class Measured:
    """What this machine has said of a plan.

    Attributes:
        speeds: by training.
        listed: seconds of an image of each data set in prepare_data.
    """

    speeds: Mapping[str, Speed]
    listed: Mapping[str, float]

    @property
    def facts(self) -> Mapping[str, Any]:
        """Of the machine."""
        return next((speed.facts for speed in self.speeds.values() if speed.facts), {})

    @property
    def start(self) -> float | None:
        """Seconds until a process computes, on average; None where that is not known."""
        starts = [speed.start for speed in self.speeds.values() if speed.start is not None]
        return fmean(starts) if starts else None

    @property
    def share(self) -> float:
        """Of the time that a thread was ready, for which it had a core, on average; 1 where that is not known."""
        shares = [speed.share for speed in self.speeds.values() if speed.share is not None]
        return fmean(shares) if shares else 1.0


def measure(
    trainings: Mapping[str, Training], known: Mapping[str, Scene], options: Options, limit: float = LIMIT
) -> Measured:
    """Try trainings of a plan.

    Args:
        trainings: by name.
        known: the data sets with boxes, by name.
        options: of the machine.
        limit: seconds that a training is measured for at most.
    """
    speeds: dict[str, Speed] = {}
    listed: dict[str, float] = {}
    tried: dict[str, Speed] = {}  # by what is asked: two names of one training are measured once
    with TemporaryDirectory() as scratch, progress.bar("measure", len(trainings)) as advance:
        for name in sorted({training.dataset for training in trainings.values()}):
            batches = [x.recipe.batch_size for x in trainings.values() if x.dataset == name]
            number = max([_TRAIN, *(2 * size for size in batches)])
            listed[name] = made_up.make(known[name].expected, number, TEST, Path(scratch) / name)
        for name, training in trainings.items():
            asked = training.model_dump_json()
            if asked not in tried:
                folder = Path(scratch) / training.dataset
                tried[asked] = _try(_job(training, known[training.dataset], folder, options), limit)
            speeds[name] = tried[asked]
            advance(1, note=name)
    return Measured(speeds, listed)


def seconds(work: Work, measured: Measured) -> float | None:
    """Return how long each of the stages of some work will take; None where it is not known.

    Args:
        work: what they compute.
        measured: how fast.
    """
    # What is up to date was not measured.
    speed = measured.speeds.get(work.training or "", Speed(1))
    parts = (
        (work.shown, None if speed.step is None else speed.step / speed.batch),
        (work.evaluated, speed.evaluated),
        (work.paired, speed.paired),
        (work.listed, measured.listed.get(work.dataset)),
    )
    total = measured.start
    if total is None:
        return None
    for number, each in parts:
        if number and each is None:
            return None
        total += number * (each or 0.0)
    return total


def batch_pixels(scene: Scene, size: int) -> float:
    """Return the pixels of a batch of some data, padding included, on average over batches that are drawn."""
    draws, space = np.random.default_rng(0), BoxSpace(scene.views)
    sizes = scene.expected.sizes
    drawn = []
    for _ in range(_DRAWN):
        rows, views = draws.integers(0, len(sizes), size), draws.integers(0, space.count, size)
        shown = [space.shown(int(view), *sizes[row]) for row, view in zip(rows, views, strict=True)]
        drawn.append(pixels([(one.height, one.width) for one in shown]))
    return fmean(drawn)


def plain_pixels(scene: Scene) -> float:
    """Return the pixels of a plain image, padding included, on average."""
    space = BoxSpace(scene.views)
    shown = (space.shown(0, *size) for size in scene.expected.sizes)
    return fmean(pixels([(one.height, one.width)]) for one in shown)


def asdicts(planned: BoxPlan, measured: Measured) -> dict[str, Any]:
    """Return what was measured, and how long stages take by it, as json holds it."""
    return {
        "machine": dict(measured.facts),
        "prepare_data": dict(measured.listed),
        "trainings": {
            name: {key: value for key, value in asdict(speed).items() if key != "facts"}
            for name, speed in measured.speeds.items()
        },
        "stages": {stage: seconds(work, measured) for work in planned.works for stage in work.stages},
    }


def _job(training: Training, scene: Scene, folder: Path, options: Options) -> Job:
    # Of fewer images than a batch has, all are one.
    size = min(training.recipe.batch_size, scene.expected.samples["train"])
    return Job(
        training=training,
        data=str(folder),
        batch=size,
        batch_pixels=batch_pixels(scene, size),
        plain_pixels=plain_pixels(scene),
        begun=time.time(),
        **asdict(options),
    )


def _try(job: Job, limit: float) -> Speed:
    """Measure a training in a process of its own; what it had not said when it ended is not known."""
    command = [sys.executable, "-m", "pipeline.benchmark.detector_steps"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=root(), text=True, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        try:
            printed, errors = process.communicate(job.model_dump_json(), timeout=limit)
            why = "" if process.returncode == 0 else _reason(process.returncode, errors)
        except subprocess.TimeoutExpired:
            process.kill()
            printed, _ = process.communicate()
            why = f"it took more than {limit:.0f} s to measure, and was ended"
        finally:
            process.kill()
    return read(printed.splitlines(), job.batch, why)


def read(lines: Sequence[str], batch: int, why: str = "") -> Speed:
    """Return the speed that the lines of a measurement say.

    Args:
        lines: a json each; what comes later counts.
        batch: images of a step.
        why: there are no more of them.
    """
    pieces: dict[str, Any] = {}
    for line in lines:
        pieces |= json.loads(line)
    own = {
        name: pieces.pop(name) for name in Speed.__dataclass_fields__ if name in pieces and name != "facts"
    }
    return Speed(batch, **{"why": why, **own}, facts=pieces)


def _reason(code: int, errors: str) -> str:
    if code == -9:
        return "it was killed, as happens where the memory does not suffice"
    lines = [" ".join(line.split()) for line in errors.splitlines()]
    # Pydantic ends with where to read on, which says nothing of what is wrong.
    said = [line for line in lines if line and not line.startswith("For further information visit")]
    return said[-1][:200] if said else f"it ended with {code}"

"""A GPU: the project's loop beside a plain captured one, a usual toolkit's, and its own eager steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline import seeding
from pipeline.benchmark.material import Bench
from pipeline.benchmark.plain import PlainLoop
from pipeline.benchmark.record import Record, missing, record
from pipeline.benchmark.step import cached_logits, distillation, learner, side_by_side, training_batches
from pipeline.benchmark.timing import Rates, Run, interleaved, synchronize, timed
from pipeline.benchmark.toolkit import Toolkit
from pipeline.benchmark.words import WORDS, Given
from pipeline.data.image_array import ImageArray
from pipeline.features import codebook
from pipeline.features.source import TeacherSource
from pipeline.networks.network import Shape, build, probe

COHORT = 4  # students side by side
WHY = "it compares what a GPU does; give --device cuda"


@dataclass(frozen=True)
class Taught:
    """A method that is compared with itself.

    Attributes:
        source: of the teacher's features.
        how: what `learner` is told.
    """

    source: TeacherSource
    how: Mapping[str, Any]


def gpu(bench: Bench) -> list[Record]:
    """Time KD from cached logits beside a plain loop and a toolkit's: one student, and four side by side."""
    return _on_gpu(bench, "gpu", loops)


def captured(bench: Bench) -> list[Record]:
    """Time captured steps of letKD-1 with 4,096 words, DSKD and SLKD beside the same steps taken by Python."""
    return _on_gpu(bench, "captured", methods)


def _on_gpu(bench: Bench, name: str, measure: Callable[[Bench], list[Record]]) -> list[Record]:
    return measure(bench) if bench.machine.device.type == "cuda" else [missing(name, "ratio", WHY)]


def loops(bench: Bench) -> list[Record]:
    """Compare the loops on the first pair."""
    teacher, student = bench.scale.pairs[0]
    pair = f"{teacher.split('.')[1]}-{student.split('.')[1]}"
    rates = interleaved(f"loops of {pair}", _loops(bench, teacher, student), bench.scale.rounds)
    return _compared(rates, f"gpu/{pair}", f"{bench.machine.precision}, batch {bench.scale.batch_size}")


def _loops(bench: Bench, teacher_name: str, student_name: str) -> dict[str, Run]:
    spec, machine, scale = bench.spec(student_name), bench.machine, bench.scale
    data = bench.prepared(scale.images).split("train")
    assert isinstance(data.images, ImageArray)
    # Its workers start first: a fork copies nothing of the store's threads then.
    toolkit = Toolkit(
        build(spec, 0),
        bench.random(teacher_name),
        data.images.pixels,
        data.labels,
        machine.device,
        scale.batch_size,
        scale.workers,
    )

    teacher = bench.teacher(teacher_name)
    cached = cached_logits(bench, bench.spec(teacher_name), teacher, scale.images)
    batches = training_batches(bench, scale.images)
    students = [learner(bench, spec, cached, batches) for _ in range(COHORT)]
    plain = PlainLoop(
        build(spec, 0),
        torch.from_numpy(data.images.block(0, len(data))),
        torch.from_numpy(np.array(data.labels)),
        torch.randn(len(data), spec.classes, generator=seeding.generator("logits")).half(),
        machine,
        scale.batch_size,
    )

    def epoch() -> None:
        plain.epoch()
        synchronize(machine.device)

    return {
        "plain": timed(epoch, scale.images // scale.batch_size * scale.batch_size),
        "one": side_by_side(bench, students[:1], batches),
        "cohort": side_by_side(bench, students, batches),
        "toolkit": lambda: toolkit.rate(scale.toolkit_steps),
    }


def _compared(rates: Rates, name: str, note: str) -> list[Record]:
    together = f"{COHORT} students side by side"
    return [
        record(f"{name}/plain", rates.median("plain"), "images/s", note=note),
        record(f"{name}/one", rates.ratio("one", to="plain"), "of plain", at_least=0.9),
        record(f"{name}/cohort", rates.ratio("cohort", to="plain"), "of plain", at_least=1.6, note=together),
        record(
            f"{name}/toolkit", rates.median("toolkit"), "images/s", note="DataLoader, online teacher, float32"
        ),
        record(f"{name}/one_of_toolkit", rates.ratio("one", to="toolkit"), "of a toolkit", at_least=7),
        record(
            f"{name}/cohort_of_toolkit",
            rates.ratio("cohort", to="toolkit"),
            "of a toolkit",
            at_least=11,
            note=together,
        ),
    ]


def methods(bench: Bench) -> list[Record]:
    """Compare captured with eager steps of single methods; the student is the first pair's."""
    name = bench.scale.pairs[0][1]
    spec, batches = bench.spec(name), training_batches(bench, bench.scale.compared)
    eager = replace(bench, machine=replace(bench.machine, captured=False))

    records = []
    for method, taught in _taught(bench).items():
        runs = {
            key: distillation(each, spec, taught.source, batches, **taught.how)
            for key, each in (("eager", eager), ("captured", bench))
        }
        rates = interleaved(f"{method}, captured and eager", runs, bench.scale.rounds)
        note = f"{rates.median('captured'):,.0f} images/s"
        records.append(
            record(
                f"captured/{spec.network}/{method}",
                rates.ratio("captured", to="eager"),
                "of eager",
                at_least=2,
                note=note,
            )
        )
    return records


def _taught(bench: Bench) -> dict[str, Taught]:
    """Return the methods, with the teacher's features from memory; one batch stands for all."""
    teacher_name, student_name = bench.scale.pairs[0]
    teacher, spec = bench.teacher(teacher_name), bench.spec(student_name)
    shapes: dict[str, Shape] = probe(build(spec, 0), spec.size, spec.channels)
    logits, maps = _random(bench, shapes["logits"]), _random(bench, shapes["stage3"])

    centers = np.random.default_rng(0).random((WORDS, shapes["final"][0]), np.float32)
    words = torch.from_numpy(centers).to(bench.machine.device)
    code = codebook.as_code(codebook.nearest_word(_random(bench, shapes["final"]), words), WORDS)
    coded = "final:nearest@words"

    return {
        f"letkd1 of {WORDS:,} words": Taught(
            Given({coded: code}),
            {
                "name": "letkd",
                "settings": {"places": {"final": {"table": "words", "encoding": "nearest"}}},
                "features": {coded: tuple(code.shape[1:])},
                "tables": {"words": {"centers": centers, "counts": np.ones(WORDS, np.int64)}},
            },
        ),
        "dskd": Taught(
            Given({"logits": logits, "stage3": maps}),
            {"name": "dskd", "features": {"logits": shapes["logits"], "stage3": shapes["stage3"]}},
        ),
        "slkd": Taught(
            Given({"logits": logits}), {"schedule_name": "self_learning", "teacher": teacher.network}
        ),
    }


def _random(bench: Bench, shape: Shape) -> Tensor:
    """Return a feature of a whole batch, drawn on the CPU: not negative, as what follows a ReLU."""
    x = np.random.default_rng(1).random((bench.scale.batch_size, *shape), np.float32)
    return torch.from_numpy(x).to(bench.machine.device)

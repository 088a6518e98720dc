"""Training steps: a distillation step from the cache must cost what a student-only step costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import nn

from pipeline import plugin, progress
from pipeline.benchmark.material import VIEWS, Bench, extraction
from pipeline.benchmark.record import Record, record
from pipeline.benchmark.timing import Run, interleaved, synchronize, timed
from pipeline.distillation.method import Context, Known, Tables
from pipeline.errors import StillhouseError
from pipeline.features.source import CachedSource, OnlineSource, TeacherSource
from pipeline.features.teacher import Teacher
from pipeline.networks.architecture import architecture
from pipeline.networks.network import Network, Shape, build, probe
from pipeline.networks.spec import NetworkSpec
from pipeline.params.recipe import Phase, Recipe
from pipeline.training.alone import CrossEntropy
from pipeline.training.batches import Batches
from pipeline.training.distill import Distillation, build_student
from pipeline.training.loop import Training, run
from pipeline.training.setting import Setting
from pipeline.training.step import Objective

SLOTS = 1
TARGET = {
    "cpu": 0.95,
    "cuda": 0.97,
}  # of a cached step: a GPU computes so much faster that less may be lost beside it
# What a usual toolkit, which runs the teacher, reaches of a student-only step.
USUAL = {"resnet32x4-resnet8x4": 0.41, "resnet56-resnet20": 0.54, "wrn_40_2-wrn_16_2": 0.59}
_RUNS = count()  # identities: no timed training resumes from the checkpoint of another


@dataclass(frozen=True)
class Learner:
    """What a timed training trains.

    Attributes:
        modules: the student, and what learns beside it, by name.
        objective: what a step minimizes.
        phase: the part of the training that is timed.
        frozen: prefixes of the student's parameters that stay as they are in it.
    """

    modules: Mapping[str, nn.Module]
    objective: Objective
    phase: str = "main"
    frozen: tuple[str, ...] = ()


def cached_step(bench: Bench) -> list[Record]:
    """Time student-only, cached and online steps of every pair; the method is KD."""
    records: list[Record] = []
    for teacher, student in bench.scale.pairs:
        pair = f"{teacher.split('.')[1]}-{student.split('.')[1]}"
        rates = interleaved(f"steps of {pair}", _sides(bench, teacher, student), bench.scale.rounds)
        cached, online = rates.ratio("cached", to="alone"), rates.ratio("online", to="alone")
        note = f"a usual toolkit: {USUAL[pair]}" if pair in USUAL else ""
        records += [
            record(f"cached_step/{pair}/alone", rates.median("alone"), "images/s"),
            record(
                f"cached_step/{pair}/cached",
                cached,
                "of alone",
                at_least=TARGET.get(bench.machine.device.type, TARGET["cpu"]),
            ),
            record(f"cached_step/{pair}/online", online, "of alone", note=note),
            record(f"cached_step/{pair}/speed_up", rates.ratio("cached", to="online"), "cached / online"),
        ]
    return records


def input_pipeline(bench: Bench) -> list[Record]:
    """Time the batches of an epoch (gather, crop, flip, normalize) without and with the student's step."""
    records = []
    for student in dict.fromkeys(student for _, student in bench.scale.pairs[:2]):
        spec, batches = bench.spec(student), training_batches(bench, bench.scale.trained)
        epochs = count()

        def read(batches: Batches = batches, epochs: count[int] = epochs) -> None:
            for _ in batches.epoch(next(epochs)):
                pass
            synchronize(bench.machine.device)

        network = build(spec, 0)
        bench.machine.place(network)
        objective = CrossEntropy(network, bench.machine)
        runs = {
            "read": timed(read, bench.scale.trained),
            "step": one_epoch(bench, {"student": network}, objective, batches),
        }
        # Reading is a small part of a step: its share needs more rounds.
        rates = interleaved(f"input of {spec.network}", runs, 3 * bench.scale.rounds)
        share = 100 * rates.ratio("step", to="read")
        note = f"{rates.median('read'):,.0f} images/s"
        records.append(record(f"input_pipeline/{spec.network}", share, "% of a step", at_most=5, note=note))
    return records


def _sides(bench: Bench, teacher_name: str, student_name: str) -> dict[str, Run]:
    """Return one epoch of the student alone, taught from a store, and taught by the live teacher."""
    spec, teacher, machine = bench.spec(teacher_name), bench.teacher(teacher_name), bench.machine
    batches, cached = training_batches(bench, bench.scale.trained), cached_logits(bench, spec, teacher)
    online = OnlineSource({"last": teacher}, ["logits"])
    student = bench.spec(student_name)
    network = build(student, 0)
    machine.place(network)
    alone = one_epoch(bench, {"student": network}, CrossEntropy(network, machine), batches)
    return {
        "alone": alone,
        "cached": distillation(bench, student, cached, batches),
        "online": distillation(bench, student, online, batches),
    }


def cached_logits(
    bench: Bench, spec: NetworkSpec, teacher: Teacher, samples: int | None = None
) -> CachedSource:
    """Extract a teacher's logits of so many training images, all by default, and return the source that reads them."""
    samples = samples or bench.scale.trained
    store = bench.folder / "steps" / f"{spec.network}-{samples}.zarr"
    work = extraction(bench.prepared(samples), teacher, spec, {"logits": (SLOTS, "float16")})
    with progress.bar(f"store of {spec.network}", work.num_forwards()) as advance:
        work.run(store, advance)
    return CachedSource({"logits": store}, ["last"], SLOTS, bench.machine.device)


def distillation(bench: Bench, spec: NetworkSpec, source: TeacherSource, batches: Batches, **how: Any) -> Run:
    """Return the run that distills a student for one epoch; see `learner`."""
    return side_by_side(bench, [learner(bench, spec, source, batches, **how)], batches)


def learner(
    bench: Bench,
    spec: NetworkSpec,
    source: TeacherSource,
    batches: Batches,
    name: str = "kd",
    settings: Mapping[str, Any] | None = None,
    features: Mapping[str, Shape] | None = None,
    tables: Tables | None = None,
    schedule_name: str = "final",
    teacher: Network | None = None,
    known: Known | None = None,
    samples: int | None = None,
    seed: int = 0,
) -> Learner:
    """Return a student that is distilled by the method `name`, in its first phase.

    Args:
        bench: where it is measured.
        spec: the plain student.
        source: of the teacher's features.
        batches: the training data.
        name: the method.
        settings: its config.
        features: shapes of the teacher's features; logits where they are left out.
        tables: that the method reads.
        schedule_name: who teaches, with the schedule's defaults.
        teacher: its network, where the schedule copies it or the method reads its modules.
        known: what settings are filled in from; None lets the student stand in for the teacher.
        samples: that the method is told of; None are those of the batches.
        seed: of the student's first weights.
    """
    module, plug = plugin.load("methods", name), plugin.load("schedules", schedule_name)
    config, features = module.Config(**(settings or {})), features or {"logits": (spec.classes,)}

    own = architecture(spec)
    # The student stands in for the teacher, of which no network need be there.
    config = config.resolved(known or Known(own, own, dict.fromkeys(tables or {}, "final")))
    student, spec = build_student(spec, {name: config}, features, tables or {}, teacher, seed)
    bench.machine.place(student)

    labels = batches.labels.cpu()
    context = Context(
        spec.classes,
        # Over and over, where there are to be more.
        labels[torch.arange(samples or len(labels)) % len(labels)],
        student,
        probe(student, spec.size, spec.channels),
        features,
        tables or {},
        teacher=teacher,
        autocast=bench.machine.autocast,
    )

    method, schedule = module.Method(config, context), plug.Schedule(plug.Config(), context)
    taps = (module.Method.needs(config) | plug.Schedule.needs(plug.Config())).student
    objective = Distillation(student, method, schedule, None, source, bench.machine, seed, taps=taps)
    modules = {"student": student, "method": method, "schedule": schedule}
    for part in modules.values():
        bench.machine.place(part)
    phase = method.phases(Recipe())[0]
    return Learner(modules, objective, phase.name, phase.frozen)


def one_epoch(bench: Bench, modules: Mapping[str, nn.Module], objective: Objective, batches: Batches) -> Run:
    """Return the run that trains one epoch with the project's own loop and gives its images a second."""
    return side_by_side(bench, [Learner(modules, objective)], batches)


def side_by_side(bench: Bench, learners: Sequence[Learner], batches: Batches) -> Run:
    """Return the run that trains learners together for one epoch and gives the images a second of all of them.

    Where steps are captured, that is in an epoch before, which does not count.
    """
    scratch = bench.folder / "steps" / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    captured = bench.machine.captured
    recipe = Recipe(epochs=1 + captured, batch_size=bench.scale.batch_size, learning_rate=1e-4)

    def training(learner: Learner) -> Training:
        return Training(
            modules=learner.modules,
            objective=learner.objective,
            batches=batches,
            phases=(Phase(learner.phase, recipe, learner.frozen),),
            # Nothing is evaluated or saved: the steps alone are timed.
            evaluate=lambda: {"top1": 0.0},
            save=lambda name: None,
            scratch=scratch,
            identity=str(next(_RUNS)),
            title="training",
            captured=captured,
            fused=bench.machine.fused,
        )

    def rate() -> float:
        rows = []
        for outcome in run([training(learner) for learner in learners]):
            if isinstance(outcome, StillhouseError):
                raise outcome
            rows.append(outcome[-1])

        samples = len(learners) * sum(batches.sizes)
        # Those that are captured train at the same time, the others one after another.
        together = max if captured else sum
        return samples / together(float(row["seconds"]) for row in rows)

    return rate


def training_batches(bench: Bench, samples: int) -> Batches:
    """Return the batches of generated training data of so many samples."""
    setting = Setting.of(bench.prepared(samples), VIEWS, bench.machine)
    return setting.batches(Recipe(batch_size=bench.scale.batch_size), 0, SLOTS)

"""Distilling one student: its inputs become a line-up of networks, and an objective for the loop."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import seeding
from pipeline.artifacts import publish
from pipeline.compute.machine import Machine
from pipeline.data.prepared import Prepared
from pipeline.distillation import combination
from pipeline.distillation.combination import LABELS, STRONG_LABELS
from pipeline.distillation.method import BaseMethod, Batch, Context, StepWeights, StrongView, Tables, Terms
from pipeline.distillation.schedule import Lesson, TeacherSchedule
from pipeline.distillation.transform import TeacherTransform
from pipeline.errors import ParamsError
from pipeline.features.source import RESIDENT_BYTES, TeacherSource
from pipeline.networks.network import Network, Shape, Taps, build, probe
from pipeline.networks.spec import NetworkSpec
from pipeline.networks.weights import save_weights
from pipeline.params.recipe import Epoch
from pipeline.runs.composition import Composition
from pipeline.runs.inputs import TRANSFORM, RunInputs
from pipeline.runs.sources import Sources
from pipeline.runs.student import check_data
from pipeline.training import assembly
from pipeline.training.assembly import Assembly, Job, Subject
from pipeline.training.balance import label_term
from pipeline.training.batches import Views
from pipeline.training.setting import Setting
from pipeline.training.step import Clock

_STRONG = "strong/"  # before the names of what is read of the strong view


class Distillation(nn.Module):
    """The objective: the method, applied to every lesson of the schedule, under the transform.

    Args:
        student: the network that is trained.
        method: what it is trained to minimize.
        schedule: who teaches.
        transform: what is done to the teacher's features first, or None.
        source: where they come from.
        machine: where it runs.
        seed: of the run.
        copies: where the logits of copies and assistants of the teacher come from, by their names.
        taps: taps of the student that are read.
        strong: whether a strong view of each sample is read beside the weak one.
        smoothing: share of each label that is spread over all classes, in the term `ce`.
        class_weights: what labels weigh in that term, by their class (K,), on the device; None weighs all alike.
    """

    def __init__(
        self,
        student: Network,
        method: BaseMethod[Any],
        schedule: TeacherSchedule[Any],
        transform: TeacherTransform[Any] | None,
        source: TeacherSource,
        machine: Machine,
        seed: int,
        *,
        taps: tuple[str, ...],
        strong: bool = False,
        copies: Mapping[str, TeacherSource] | None = None,
        smoothing: float = 0.0,
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.student, self.method, self.schedule, self.transform = student, method, schedule, transform
        if transform is not None:
            transform.eval().requires_grad_(False)
        self.source, self.machine, self.seed, self.copies = source, machine, seed, copies or {}
        self.taps, self.strong = taps, strong
        self.smoothing, self.class_weights = smoothing, class_weights
        self.epoch, self.checkpoint = Epoch("main", 0, 1), "last"
        self._checked = False

    def start(self, epoch: Epoch) -> Hashable:
        """Begin an epoch; see `pipeline.training.step.Objective`."""
        self.epoch, self.checkpoint = epoch, self.schedule.checkpoint(epoch)
        ways = [
            part.start(epoch) for part in (self.method, self.schedule, self.transform) if part is not None
        ]
        return self.checkpoint, *ways

    def begin(self, slot: int, index: Tensor) -> Callable[[], Taps]:
        """Start to read the teacher's features that are not on the device."""
        waits = {"": self.source.begin(self.checkpoint, slot, index)}
        if self.strong:
            waits[_STRONG] = self.source.begin(self.checkpoint, slot + 1, index)
        waits |= {f"{name}/": source.begin("last", slot, index) for name, source in self.copies.items()}
        return lambda: {
            f"{prefix}{feature}": x for prefix, wait in waits.items() for feature, x in wait().items()
        }

    def forward(self, views: Views, read: Taps, clock: Clock) -> tuple[Tensor, Terms]:
        """Return the weighted sum of all terms, and the terms by name.

        Raises:
            ParamsError: a term has no weight, or the features of the first batch do not suit the method.
        """
        batch = Batch(
            image=views.image,
            label=views.label,
            index=views.index,
            teacher=self._features(views, read),
            epoch=clock.epoch,
            epochs=self.epoch.epochs,
            step=clock.step,
            phase=self.epoch.phase,
            seed=self.seed,
            mixture=views.mixture,
        )

        with self.machine.autocast():
            taps = self.student.record(views.image, self.taps)
        # Losses are computed in float32, whatever the forward pass was.
        taps = {name: x.float() for name, x in taps.items()}
        # After the weak view, and apart from it, as those who proposed it do: a batch norm sees one kind at a time.
        strong = None if views.strong is None else self._strong(views, views.strong, read)

        plan = self.schedule(taps, batch)
        # Before the lessons: an epoch that starts with a new permutation is taught by it from its first batch.
        if self.transform is not None:
            self.transform.observe({name: x.detach() for name, x in taps.items()}, batch)

        if strong is not None:
            batch = replace(batch, strong=self._transformed(strong, batch))
        # What the methods see; the labels' own term is of what the student says.
        seen = taps if self.transform is None else self.transform.student(taps)
        terms: Terms = {}
        none = torch.zeros((), device=views.image.device)
        loss = _weigh(plan.terms, plan.weights, terms, none, 1.0, "", "schedule")

        for number, lesson in enumerate(plan.lessons):
            taught = self._lesson(lesson, batch)
            # Once, in the first step, which is never captured: to read a value makes a GPU wait.
            if not self._checked:
                self.method.check(taught)
            computed = self.method(seen, taught)
            if self._own_labels(views, changed=seen is not taps):
                self._relabel(computed, views, taps, strong)
            if lesson.terms is not None:
                # Terms that do not count are not in the history either.
                computed = {name: term for name, term in computed.items() if name in lesson.terms}
            given = self.method.weights(taught) if lesson.weights is None else lesson.weights
            if plan.labels_once:
                label = {name: computed.pop(name) for name in (LABELS,) if name in computed}
                if number == 0:
                    loss = _weigh(label, given, terms, loss, 1.0, "", "method")
            loss = loss + _weigh(computed, given, terms, none, lesson.weight, lesson.name, "method")
        self._checked = True
        return loss, terms

    def diagnose(self) -> dict[str, float]:
        """Return what method and schedule say of the epoch that has ended."""
        return self.method.diagnose() | self.schedule.diagnose()

    def _own_labels(self, views: Views, *, changed: bool) -> bool:
        """Return whether `ce` is not what methods make of it: of other logits, or with what the recipe or views add."""
        weighed = bool(self.smoothing) or self.class_weights is not None
        return changed or weighed or views.mixture is not None

    def _relabel(self, computed: Terms, views: Views, taps: Taps, strong: StrongView | None) -> None:
        """Put the terms of the labels right, of one view or of both."""
        seen = {LABELS: taps} if strong is None else {LABELS: taps, STRONG_LABELS: strong.student}
        for name in seen.keys() & computed.keys():
            logits = seen[name]["logits"]
            computed[name] = label_term(
                logits, views.label, self.smoothing, self.class_weights, views.mixture
            )

    def _features(self, views: Views, read: Taps) -> Taps:
        of = (views.slot, views.index, views.image, views.label)
        features = dict(self.source.features(self.checkpoint, *of, read))
        for name, source in self.copies.items():
            own = {key.removeprefix(f"{name}/"): x for key, x in read.items() if key.startswith(f"{name}/")}
            features |= {f"{name}/{key}": x for key, x in source.features("last", *of, own).items()}
        return features

    def _strong(self, views: Views, image: Tensor, read: Taps) -> StrongView:
        """Return what student and teacher make of the strong view."""
        with self.machine.autocast():
            taps = self.student.record(image, self.taps)
        own = {name.removeprefix(_STRONG): x for name, x in read.items() if name.startswith(_STRONG)}
        of = (views.slot + 1, views.index, image, views.label)
        teacher = self.source.features(self.checkpoint, *of, own)
        return StrongView(image, {name: x.float() for name, x in taps.items()}, dict(teacher))

    def _transformed(self, strong: StrongView, batch: Batch) -> StrongView:
        """Return the strong view as methods see it."""
        if self.transform is None:
            return strong
        of = replace(batch, image=strong.image, teacher=strong.teacher, strong=None)
        return replace(
            strong,
            student=self.transform.student(strong.student),
            teacher=self.transform(strong.teacher, of),
        )

    def _lesson(self, lesson: Lesson, batch: Batch) -> Batch:
        if self.transform is None:
            return replace(batch, teacher=lesson.teacher)
        # With gradients: a schedule's own networks may teach too, and be taught back (SLKD).
        return replace(batch, teacher=self.transform(lesson.teacher, batch))


def _weigh(
    computed: Terms,
    weights: StepWeights,
    terms: Terms,
    total: Tensor,
    scale: float | Tensor,
    prefix: str,
    what: str,
) -> Tensor:
    """Add `computed` to `terms` under their full names and return `total` and their weighted sum."""
    missing = computed.keys() - weights.keys()
    if missing:
        raise ParamsError(
            f"Term '{min(missing)}' of the {what} has no weight; found weights for {', '.join(sorted(weights))}. "
            "Give it a default weight in the plug-in's Config."
        )

    for name, term in computed.items():
        terms[f"{prefix}_{name}" if prefix else name] = term
        total = total + scale * weights[name] * term
    return total


def distill(inputs: RunInputs, job: Job, *, resident_bytes: int = RESIDENT_BYTES) -> None:
    """Train a student by its inputs and leave its result in the job's scratch folder; see `prepare`.

    Raises:
        DivergedError: a term is not finite.
    """
    assembly.train(prepare(inputs, job, resident_bytes=resident_bytes))


def prepare(inputs: RunInputs, job: Job, *, resident_bytes: int = RESIDENT_BYTES) -> Assembly:
    """Return the training of a student by its inputs, ready to run.

    Args:
        inputs: what it is trained from.
        job: where it runs.
        resident_bytes: largest stored array that is kept on the device.

    Raises:
        StaleArtifactError: something that is read is not what the inputs name.
    """
    prepared = Prepared.open(Path(inputs.data))
    check_data(inputs, prepared)
    setting = Setting.of(prepared, inputs.views, job.machine)
    sources = Sources.of(inputs, job.machine, resident_bytes)
    weights = setting.class_weights(inputs.recipe, job.title)
    labels = torch.from_numpy(prepared.split("train").labels)
    lineup = line_up(inputs, sources, labels, job.machine, weights)
    objective = lineup.objective.to(job.machine.device)
    batches = setting.batches(inputs.recipe, inputs.seed, inputs.slots, strong=objective.strong)

    def finish() -> None:
        # Evaluation compares features under the transform as it is now.
        transform = objective.transform
        if transform is not None and transform.state_dict() and job.machine.ranks.first:
            with publish.writing(job.scratch / TRANSFORM) as part:
                save_weights(transform, part)

    return assembly.assemble(
        job,
        lineup.subject,
        objective,
        setting,
        batches,
        objective.method.phases(inputs.recipe),
        diagnose=objective.diagnose,
        finish=finish,
    )


@dataclass(frozen=True)
class LineUp:
    """Who takes part in a distillation.

    Attributes:
        subject: the student, and what is trained beside it.
        objective: what they minimize.
    """

    subject: Subject
    objective: Distillation


def line_up(
    inputs: RunInputs,
    sources: Sources,
    labels: Tensor,
    machine: Machine,
    class_weights: Tensor | None = None,
) -> LineUp:
    """Build the student with what stays in it, and the methods, schedule and transform around it.

    Args:
        inputs: what the student is trained from.
        sources: what it reads, opened.
        labels: labels of the training samples, int64 (N,).
        machine: where it runs.
        class_weights: what labels weigh, by their class (K,); None weighs all alike.

    Raises:
        ParamsError: the student lacks a tap that is read.
    """
    seed, composition = inputs.seed, Composition.of(inputs, f"runs.{inputs.run}")
    # What methods see has the shapes that the transform gives it.
    seen = sources.shapes
    if composition.transform is not None:
        seen = composition.transform.shapes(composition.transform_config, seen, sources.matchings)

    teacher = sources.teachers.get("last") if inputs.teacher_network else None
    network = None if teacher is None else teacher.network
    student, spec = build_student(
        inputs.network, composition.methods, seen, sources.tables, network, inputs.seed
    )
    machine.place(student)
    context = Context(
        num_classes=spec.classes,
        labels=labels,
        student=student,
        student_shapes=probe(student, spec.size, spec.channels),
        teacher_shapes=seen,
        tables=sources.tables,
        teacher=network,
        seed=seed,
        matchings=sources.matchings,
        autocast=machine.autocast,
    )
    _check_taps(context.student_shapes, composition.needs.student, inputs)

    # Schedules and transforms see the features as the teacher has them. Each draws from a scope of its own, so that a
    # method starts alike whatever it is composed with.
    untransformed = replace(context, teacher_shapes=sources.shapes)
    method = combination.assemble(composition.methods, context)
    with seeding.scope(seed, "schedule"):
        schedule = composition.schedule(composition.schedule_config, untransformed)
    transform = None
    if composition.transform is not None:
        with seeding.scope(seed, "transform"):
            transform = composition.transform(composition.transform_config, untransformed)

    objective = Distillation(
        student,
        method,
        schedule,
        transform,
        sources.features,
        machine,
        seed,
        copies=sources.copies,
        taps=composition.needs.student,
        strong=composition.needs.strong,
        smoothing=inputs.recipe.label_smoothing,
        class_weights=class_weights,
    )

    beside: dict[str, nn.Module] = {"method": method, "schedule": schedule}
    if transform is not None and transform.state_dict():
        beside["transform"] = transform  # it may change while the student learns
    # Where features are cached, a method may read a teacher's modules, but no teacher runs.
    running = sources.teachers.values() if inputs.source == "online" else ()
    return LineUp(Subject(student, spec, beside, [one.network for one in running]), objective)


def build_student(
    plain: NetworkSpec,
    methods: combination.Configs,
    teacher_shapes: Mapping[str, Shape],
    tables: Tables,
    teacher: Network | None,
    seed: int,
) -> tuple[Network, NetworkSpec]:
    """Build a student with the methods' operations; what it has in common with the plain one starts alike.

    Args:
        plain: the student without them.
        methods: the methods' settings, resolved.
        teacher_shapes: shapes of the needed features.
        tables: arrays of the needed tables.
        teacher: the teacher, where a method takes its classifier.
        seed: of the first weights.
    """
    shapes = probe(build(plain, seed), plain.size, plain.channels)
    operations = combination.operations(methods, shapes, teacher_shapes, tables)
    spec = plain.model_copy(
        update={"inserted": dict(operations.insert), "classifier_width": operations.classifier_width}
    )
    student = build(spec, seed)
    if operations.teacher_classifier:
        assert teacher is not None, "a method that takes the classifier needs the network"
        # Before anything is saved: the first weights have it too.
        student.classifier.load_state_dict(teacher.classifier.state_dict())
        student.classifier.requires_grad_(False)
    return student, spec


def _check_taps(shapes: Mapping[str, Shape], needed: tuple[str, ...], inputs: RunInputs) -> None:
    missing = [name for name in needed if name not in shapes]
    if missing:
        raise ParamsError(
            f"Run '{inputs.run}' reads student tap '{missing[0]}'. {inputs.network.network} has "
            f"{', '.join(shapes)}. Change it in params.yaml."
        )

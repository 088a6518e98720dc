"""Distilling one student: its json of inputs becomes networks, a source, and an objective for the loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import plugin, seeding
from pipeline.artifacts import publish
from pipeline.compute import distributed
from pipeline.compute.machine import Machine
from pipeline.data.prepared import Prepared
from pipeline.distillation.method import (
    BaseMethod,
    Batch,
    Context,
    MethodConfig,
    Needs,
    Tables,
    Terms,
    Weights,
)
from pipeline.distillation.schedule import Lesson, TeacherSchedule
from pipeline.distillation.transform import TeacherTransform, TransformConfig
from pipeline.errors import ParamsError, StaleArtifactError
from pipeline.features import manifest as manifests
from pipeline.features.extract import stored_features
from pipeline.features.source import RESIDENT_BYTES, CachedSource, OnlineSource, TeacherSource
from pipeline.features.teacher import Teacher, on_device
from pipeline.matching.matching import Matching
from pipeline.networks.network import Network, Shape, Taps, build, probe
from pipeline.networks.spec import NetworkSpec
from pipeline.networks.weights import load, state_digest
from pipeline.params.base import validate
from pipeline.runs.inputs import RunInputs, Stored, check_data, check_file
from pipeline.tables import table
from pipeline.training import result
from pipeline.training.batches import Views
from pipeline.training.comparison import compare
from pipeline.training.loop import Moment, Training
from pipeline.training.setting import Setting


class Distillation(nn.Module):
    """The objective: the method, applied to every lesson of the schedule, under the transform.

    Args:
        student: the network that is trained.
        method: what it is trained to minimise.
        schedule: who teaches.
        transform: what is done to the teacher's features first, or None.
        source: where they come from.
        machine: where it runs.
        seed: of the run.
        copies: the stored logits of self-taught copies of the teacher, by the copy's name.
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
        copies: Mapping[str, TeacherSource] | None = None,
    ) -> None:
        super().__init__()
        self.student, self.method, self.schedule, self.transform = student, method, schedule, transform
        if transform is not None:
            transform.eval().requires_grad_(False)
        self.source, self.machine, self.seed, self.copies = source, machine, seed, copies or {}
        read = type(schedule).needs(schedule.config)
        if transform is not None:
            read |= type(transform).needs(transform.config)
        self.taps = tuple(dict.fromkeys((*method.taps, *read.student)))

    def begin(self, views: Views, moment: Moment) -> Callable[[], Taps]:
        """Start fetching the teacher's features of a batch."""
        chosen = self.schedule.checkpoint(moment.epoch, moment.epochs)
        of = (views.slot, views.index, views.image, views.label)
        wait = self.source.begin(chosen, *of)
        copies = {f"{name}/logits": source.begin("last", *of) for name, source in self.copies.items()}
        return lambda: wait() | {name: take()["logits"] for name, take in copies.items()}

    def forward(self, views: Views, fetched: Taps, moment: Moment) -> tuple[Tensor, Terms]:
        """Return the weighted sum of all terms, and the terms by name.

        Raises:
            ParamsError: a term has no weight.
        """
        batch = Batch(
            image=views.image,
            label=views.label,
            index=views.index,
            teacher=fetched,
            epoch=moment.epoch,
            epochs=moment.epochs,
            step=moment.step,
            phase=moment.phase,
            generator=seeding.generator(self.seed, "step", moment.step),
        )
        with self.machine.autocast():
            taps = self.student.record(views.image, self.taps)
        taps = {name: x.float() for name, x in taps.items()}
        plan = self.schedule(taps, batch)
        if self.transform is not None:
            self.transform.observe({name: x.detach() for name, x in taps.items()}, batch)
        terms: Terms = {}
        none = torch.zeros((), device=views.image.device)
        loss = _weigh(plan.terms, plan.weights, terms, none, 1.0, "", "schedule")
        for lesson in plan.lessons:
            taught = self._lesson(lesson, batch)
            found = self.method(taps, taught)
            if lesson.terms is not None:
                found = {name: term for name, term in found.items() if name in lesson.terms}
            given = self.method.weights(taught) if lesson.weights is None else lesson.weights
            loss = loss + _weigh(found, given, terms, none, lesson.weight, lesson.name, "method")
        return loss, terms

    def diagnose(self) -> dict[str, float]:
        """Return what method and schedule say of the epoch that has ended."""
        return self.method.diagnose() | self.schedule.diagnose()

    def _lesson(self, lesson: Lesson, batch: Batch) -> Batch:
        if self.transform is None:
            return replace(batch, teacher=lesson.teacher)
        # With gradients: a schedule's own networks may teach too, and be taught back (SLKD).
        return replace(batch, teacher=self.transform(lesson.teacher, batch))


def _weigh(
    found: Terms, weights: Weights, terms: Terms, total: Tensor, scale: float, prefix: str, what: str
) -> Tensor:
    """Add `found` to `terms` under their full names and return `total` and their weighted sum."""
    missing = found.keys() - weights.keys()
    if missing:
        raise ParamsError(
            f"Term '{min(missing)}' of the {what} has no weight; found weights for {', '.join(sorted(weights))}. "
            "Give all of them in the run's config.weights, or none, in params.yaml."
        )
    for name, term in found.items():
        terms[f"{prefix}_{name}" if prefix else name] = term
        total = total + scale * weights[name] * term
    return total


def method_of(inputs: RunInputs) -> tuple[type[BaseMethod[Any]], MethodConfig, Needs]:
    """Return the method's class, its validated settings, and its needs.

    Raises:
        UnknownNameError: no such method.
        ParamsError: its settings are wrong.
    """
    module = plugin.load("methods", inputs.method)
    config = validate(module.Config, inputs.config, f"runs.{inputs.run}.config")
    return module.Method, config, module.Method.needs(config)


def distil(
    scratch: Path,
    inputs: RunInputs,
    machine: Machine,
    *,
    identity: str,
    resident_bytes: int = RESIDENT_BYTES,
) -> None:
    """Train a student by its inputs and leave its result in `scratch`.

    Args:
        scratch: an existing folder; a checkpoint in it with the same identity is gone on from.
        inputs: what it is trained from.
        machine: where it runs.
        identity: of everything that the result depends on.
        resident_bytes: largest stored array that is kept on the device.

    Raises:
        StaleArtifactError: something that is read is not what the inputs name.
        DivergedError: a term is not finite.
    """
    prepared = Prepared.open(Path(inputs.data))
    check_data(inputs, prepared)
    seed = inputs.seed
    setting = Setting.of(prepared, inputs.views, machine)
    batches = replace(setting.batches(inputs.recipe, seed, inputs.slots), ranks=machine.ranks)
    tables, matchings = _tables(inputs), _matchings(inputs)
    source, teacher = _teacher(inputs, tables, machine, resident_bytes)
    method_class, config, needs = method_of(inputs)
    transform = _transform(inputs)
    if transform is not None:
        needs |= transform[0].needs(transform[1])
    shapes = _feature_shapes(inputs, source)
    seen = shapes if transform is None else transform[0].shapes(transform[1], shapes, matchings)
    student, spec = _student(inputs, method_class, config, seen, tables, seed)
    result_weights = result.begin(scratch, identity, spec, machine.ranks)
    machine.place(student)
    save = result.saver(student, result_weights, machine.ranks)
    save("init")
    context = Context(
        num_classes=spec.classes,
        labels=batches.labels.cpu(),
        student=student,
        student_shapes=probe(student, spec.size, spec.channels),
        teacher_shapes=seen,
        tables=tables,
        teacher=teacher.network if teacher and inputs.teacher_network else None,
        seed=seed,
        matchings=matchings,
        autocast=machine.autocast,
    )
    _check_taps(context.student_shapes, needs.student, inputs)
    untransformed = replace(context, teacher_shapes=shapes)
    with seeding.scope(seed, "method"):
        method = method_class(config, context)
    with seeding.scope(seed, "schedule"):
        schedule = _schedule(inputs, untransformed)
    frozen = None
    if transform is not None:
        with seeding.scope(seed, "transform"):
            frozen = transform[0](transform[1], untransformed)
    copies = _copies(inputs, machine, resident_bytes)
    objective = Distillation(student, method, schedule, frozen, source, machine, seed, copies)
    objective.to(machine.device)
    modules: dict[str, nn.Module] = {"student": student, "method": method, "schedule": schedule}
    if frozen is not None and frozen.state_dict():
        modules["transform"] = frozen
    for module in modules.values():
        distributed.synchronized(module, machine.device, machine.ranks)
    teachers = [one.network for one in getattr(source, "teachers", {}).values()]
    for network in (*modules.values(), *teachers):
        machine.place(network)
    for network in (student, *teachers):
        machine.compile(network)
    evaluate = setting.evaluation(student)
    training = Training(
        modules=modules,
        objective=objective,
        batches=batches,
        phases=method.phases(inputs.recipe),
        evaluate=lambda: evaluate() | objective.diagnose(),
        save=save,
        scratch=scratch,
        identity=identity,
        title=f"{inputs.pair}/{inputs.run} seed {seed}",
    )
    rows = training.run()
    if machine.ranks.first:
        said = compare(student, config, frozen, inputs, source, setting)
        publish.write_json(scratch / "comparison.json", said)
    result.finish(scratch, rows, save, machine)


def _schedule(inputs: RunInputs, context: Context) -> TeacherSchedule[Any]:
    module = plugin.load("schedules", inputs.schedule)
    config = validate(module.Config, inputs.schedule_config, f"runs.{inputs.run}.schedule_config")
    schedule: TeacherSchedule[Any] = module.Schedule(config, context)
    return schedule


def _transform(inputs: RunInputs) -> tuple[type[TeacherTransform[Any]], TransformConfig] | None:
    if inputs.transform is None:
        return None
    module = plugin.load("transforms", inputs.transform)
    where = f"runs.{inputs.run}.transform_config"
    return module.Transform, validate(module.Config, inputs.transform_config, where)


def _teacher(
    inputs: RunInputs, tables: Tables, machine: Machine, resident_bytes: int
) -> tuple[TeacherSource, Teacher | None]:
    """Open the source of features; the teacher itself is loaded only where it runs or is read."""
    teachers: dict[str, Teacher] = {}
    for checkpoint, expected in inputs.weights.items():
        folder = Path(inputs.weights_folder)
        check_file(folder / f"{checkpoint}.safetensors", expected)
        teachers[checkpoint] = Teacher(load(folder, checkpoint)[0], machine, on_device(tables, machine))
    last = teachers.get("last")
    if inputs.source == "online":
        return OnlineSource(teachers, inputs.features), last
    stores = {name: Path(stored.store) for name, stored in inputs.stored.items()}
    for name, stored in inputs.stored.items():
        _check_stored(stored, name)
    checkpoints = {key.split("/")[0] for stored in inputs.stored.values() for key in stored.digest}
    slots = inputs.slots if inputs.slots is not None else 0
    return CachedSource(stores, sorted(checkpoints), slots, machine.device, resident_bytes), last


def _copies(inputs: RunInputs, machine: Machine, resident_bytes: int) -> dict[str, TeacherSource]:
    """Open the stored logits of the self-taught copies that are read."""
    found: dict[str, TeacherSource] = {}
    for name, stored in inputs.self_taught.items():
        _check_stored(stored, "logits")
        slots = inputs.slots if inputs.slots is not None else 0
        stores = {"logits": Path(stored.store)}
        found[name] = CachedSource(stores, ["last"], slots, machine.device, resident_bytes)
    return found


def _check_stored(stored: Stored, name: str) -> None:
    held = manifests.read(Path(stored.store), "dvc repro").features.get(name)
    if held is None or any(held.digest.get(key) != value for key, value in stored.digest.items()):
        raise StaleArtifactError(
            f"{stored.store} does not hold the '{name}' that this run was resolved with. Run: dvc repro"
        )


def _feature_shapes(inputs: RunInputs, source: TeacherSource) -> dict[str, Shape]:
    if not inputs.features:
        return {}
    if not isinstance(source, OnlineSource):
        return {
            name: manifests.read(Path(stored.store), "dvc repro").features[name].shape
            for name, stored in inputs.stored.items()
        }
    teacher, spec = next(iter(source.teachers.values())), inputs.network
    return {
        name: feature.shape
        for name, feature in stored_features(
            dict.fromkeys(inputs.features, (0, "float32")), teacher, spec.channels, spec.size
        ).items()
    }


def _student(
    inputs: RunInputs,
    method: type[BaseMethod[Any]],
    config: MethodConfig,
    teacher_shapes: Mapping[str, Shape],
    tables: Tables,
    seed: int,
) -> tuple[Network, NetworkSpec]:
    """Build the student with the method's operations; what it has in common with the plain one starts alike."""
    spec = inputs.network
    plain = probe(build(spec, seed), spec.size, spec.channels)
    operations = method.operations(config, plain, teacher_shapes, tables)
    update = {"inserted": dict(operations.insert), "classifier_width": operations.classifier_width}
    spec = spec.model_copy(update=update)
    return build(spec, seed), spec


def _matchings(inputs: RunInputs) -> dict[str, Matching]:
    """Read the matchings; each must be of the very theta0 that its student starts from."""
    found = {}
    for key, (name, expected) in inputs.matchings.items():
        path = Path(name)
        check_file(path, expected)
        matching = found[key] = Matching.load(path, "dvc repro")
        if state_digest(build(inputs.network, matching.origin.seed).state_dict()) != matching.origin.theta0:
            raise StaleArtifactError(
                f"{path} is of another student: {inputs.network.network} of seed {matching.origin.seed} does not start "
                "from the weights that it was made with. Make it again with: dvc repro "
                f"match_channels@{path.parent.name}"
            )
    return found


def _tables(inputs: RunInputs) -> Tables:
    for path, expected in inputs.tables.values():
        check_file(Path(path), expected)
    return {name: table.load(Path(path), "dvc repro")[0] for name, (path, _) in inputs.tables.items()}


def _check_taps(shapes: Mapping[str, Shape], needed: tuple[str, ...], inputs: RunInputs) -> None:
    missing = [name for name in needed if name not in shapes]
    if missing:
        raise ParamsError(
            f"Run '{inputs.run}' reads student tap '{missing[0]}'. {inputs.network.network} has "
            f"{', '.join(shapes)}. Change it in params.yaml."
        )

"""What a run consists of: its methods, its schedule and its transform, and all that these read.

There is one answer to that question, and everybody asks here: the check of params.yaml, the blocks that stages depend
on, the plan, the training and the evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

from pipeline import plugin
from pipeline.distillation import combination
from pipeline.distillation.method import Known, MethodConfig, Needs
from pipeline.distillation.schedule import ScheduleConfig, TeacherSchedule
from pipeline.distillation.transform import TeacherTransform, TransformConfig
from pipeline.errors import ParamsError
from pipeline.features.encoding import encodings_of
from pipeline.params.base import placed, validate
from pipeline.params.plug import Plug


class Composed(Protocol):
    """A run as params.yaml, a block of it, or a student's inputs have it."""

    @property
    def methods(self) -> tuple[Plug, ...]:
        """The methods, in their order."""

    @property
    def schedule(self) -> Plug:
        """The schedule."""

    @property
    def transform(self) -> Plug | None:
        """The transform, if there is one."""


@dataclass(frozen=True)
class Composition:
    """The plug-ins of a run, with their settings checked.

    Attributes:
        methods: settings by method, in their order.
        schedule: the class of the schedule.
        schedule_config: its settings.
        transform: the class of the transform, or None.
        transform_config: its settings.
        needs: what all of them read.
        plugins: the code that the run depends on beside its networks, as "catalogue/name".
    """

    methods: Mapping[str, MethodConfig]
    schedule: type[TeacherSchedule[Any]]
    schedule_config: ScheduleConfig
    transform: type[TeacherTransform[Any]] | None
    transform_config: TransformConfig
    needs: Needs
    plugins: tuple[str, ...]

    @classmethod
    def of(cls, run: Composed, where: str, known: Known | None = None) -> Composition:
        """Return what a run consists of.

        Args:
            run: names and settings of its plug-ins.
            where: its place, for instance "runs.kd".
            known: networks and tables that settings are filled in from; None where that has been done.

        Raises:
            UnknownNameError: there is no such plug-in, or no such layer.
            ParamsError: settings are wrong, or plug-ins do not go together.
        """
        methods = _methods(run, where)
        module, schedule_config = _loaded("schedules", run.schedule, f"{where}.schedule")
        schedule: type[TeacherSchedule[Any]] = module.Schedule
        transform: type[TeacherTransform[Any]] | None = None
        transform_config = TransformConfig()
        if run.transform is not None:
            module, transform_config = _loaded("transforms", run.transform, f"{where}.transform")
            transform = module.Transform

        if known is not None:
            methods = combination.resolved(methods, known)
            schedule_config = schedule_config.resolved(known)
            transform_config = transform_config.resolved(known)

        needs = combination.needs(methods)
        # Before its own needs are added: the question is what the methods read.
        schedule.check(schedule_config, needs)
        _check_lessons(methods, schedule.who_teaches(schedule_config), where)
        _check_strong(methods, schedule, f"{where}.schedule is '{run.schedule.name}'")
        needs |= schedule.needs(schedule_config)
        if transform is not None:
            # Likewise: something else than the transform must read what it changes.
            changes = transform.changes(transform_config)
            _check_changes(changes, needs, where)
            _check_modules(methods, changes, where)
            needs |= transform.needs(transform_config)

        named = [*(f"methods/{name}" for name in methods), f"schedules/{run.schedule.name}"]
        named += [] if run.transform is None else [f"transforms/{run.transform.name}"]
        named += [f"encodings/{encoding}" for encoding in encodings_of(needs.teacher)]
        named += [f"layers/{layer}" for layer in dict.fromkeys(_layers(methods))]
        return cls(methods, schedule, schedule_config, transform, transform_config, needs, tuple(named))

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """The checkpoints of the teacher that teach."""
        return self.schedule.checkpoints(self.schedule_config)

    @property
    def copies(self) -> tuple[str, ...]:
        """The copies and assistants of the teacher whose logits are read."""
        return self.schedule.copies(self.schedule_config)

    @property
    def changes(self) -> tuple[str, ...]:
        """The teacher features that the transform changes."""
        return () if self.transform is None else self.transform.changes(self.transform_config)

    def plugs(self) -> tuple[Plug, ...]:
        """Return the methods with their settings, defaults filled in."""
        return tuple(Plug.of(name, **config.model_dump(mode="json")) for name, config in self.methods.items())


def check_settings(run: Composed, where: str) -> None:
    """Check that the plug-ins of a run exist and that their settings are of their form, whatever its networks are.

    Raises:
        UnknownNameError: there is no such plug-in, or no such layer.
        ParamsError: settings are wrong.
    """
    with placed(f"{where}.methods"):
        # Run through for its errors alone: a layer that does not exist.
        list(_layers(_methods(run, where)))
    _loaded("schedules", run.schedule, f"{where}.schedule")
    if run.transform is not None:
        _loaded("transforms", run.transform, f"{where}.transform")


def _methods(run: Composed, where: str) -> dict[str, MethodConfig]:
    return {plug.name: _loaded("methods", plug, f"{where}.methods")[1] for plug in run.methods}


def _loaded(catalogue: str, plug: Plug, where: str) -> tuple[ModuleType, Any]:
    """Import a plug-in, and return it with its settings checked."""
    with placed(where):
        module = plugin.load(catalogue, plug.name)
    return module, validate(module.Config, plug.settings, f"{where}.{plug.name}")


def _check_lessons(methods: Mapping[str, MethodConfig], who_teaches: tuple[str, ...], where: str) -> None:
    """Refuse a method without a teacher where several teach: its terms would count once for each."""
    if not who_teaches:
        return
    for name, config in methods.items():
        if not plugin.load("methods", name).Method.needs(config).teacher:
            raise ParamsError(
                f"params.yaml: {where}.methods has '{name}', which learns from no teacher, and by its schedule each of "
                f"{', '.join(who_teaches)} teaches at every step. Drop the method, or name one of them alone."
            )


def _check_strong(
    methods: Mapping[str, MethodConfig], schedule: type[TeacherSchedule[Any]], what: str
) -> None:
    """Refuse a method that reads a strong view too, where lessons are of the weak one alone."""
    for name, config in methods.items():
        if plugin.load("methods", name).Method.needs(config).strong and not schedule.strong:
            able = [key for key in plugin.names("schedules") if plugin.load("schedules", key).Schedule.strong]
            raise ParamsError(
                f"params.yaml: {what}, whose lessons are of one view, and method '{name}' learns from a weak and a "
                f"strong one. Set the schedule to {' or '.join(able)}, then: dvc repro params"
            )


def _check_changes(changes: tuple[str, ...], needs: Needs, where: str) -> None:
    for feature in changes:
        if feature not in needs.teacher:
            raise ParamsError(
                f"params.yaml: {where}.transform changes teacher feature '{feature}', and the run reads "
                f"{', '.join(needs.teacher) or 'none'}. Name one of these in the transform's features."
            )


def _check_modules(methods: Mapping[str, MethodConfig], changes: tuple[str, ...], where: str) -> None:
    """Refuse a transform of what a method reads with modules of the teacher: they speak of its own channels."""
    for name, config in methods.items():
        needs = combination.needs({name: config})
        changed = [feature for feature in changes if feature in needs.teacher]
        if needs.network and changed:
            raise ParamsError(
                f"params.yaml: {where}.transform changes teacher feature '{changed[0]}', which method '{name}' reads "
                "together with modules of the teacher (its classifier, its BN). Take it out of the transform's "
                "features, or drop the method."
            )


def _layers(methods: Mapping[str, MethodConfig]) -> Iterator[str]:
    """Give the layers that stay in the student: those of the methods, and those that `insert` names."""
    for name, config in methods.items():
        yield from getattr(plugin.load("methods", name), "LAYERS", ())
        for layer in config.insert.values():
            plugin.load("layers", layer.name)  # its name is the user's: an unknown one is an error
            yield layer.name

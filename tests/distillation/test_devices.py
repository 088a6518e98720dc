"""A training step keeps to its device: on the `meta` device, which has no values and no way back from the CPU.

What would fail on a GPU, or make it wait, is told here without one: a tensor that a step makes on the CPU or takes
from there, and a value that it reads back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_methods import BY_TABLE, MATCHINGS, SETTINGS
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training_fixtures import RECIPE, Assembled, FixedSource, assemble_all, frozen_teacher, views_of

from pipeline import plugin
from pipeline.compute.distributed import ALONE
from pipeline.compute.machine import Machine
from pipeline.data.images import ResidentImages
from pipeline.data.normalize import Normalize
from pipeline.data.views import view_space
from pipeline.distillation.epoch_values import Gathered
from pipeline.distillation.method import Batch, Needs
from pipeline.distillation.schedule import ScheduleConfig, TeacherSchedule
from pipeline.distillation.transform import TeacherTransform
from pipeline.matching.matching import Matching
from pipeline.params.recipe import Epoch, Phase
from pipeline.params.views import CropFlip, Plain, RandomResizedCrop, RotateFlip, ViewParams
from pipeline.training.batches import Batches, Feed, Views
from pipeline.training.distill import Distillation
from pipeline.training.optimizer import recipe_optimizer
from pipeline.training.step import Clock, Step

META = torch.device("meta")
FINAL, INNER = "final", "stage3_block1"
# Every method as it is, and what its defaults leave out: each kind of code, and other ways through the loss.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in plugin.names("methods")} | {
    "fitnet standardized": ("fitnet", {"standardize": "moments"}),
    "letkd nearest": ("letkd", {"places": {FINAL: {"table": "words", "encoding": "nearest"}}}),
    "letkd top4": ("letkd", {"places": {FINAL: {"table": "words", "encoding": "top4"}}}),
    "letkd map of sub-classes": ("letkd", {"places": {INNER: "subclasses"}}),
    "letkd subclass": ("letkd", {"places": {INNER: {"table": "subclasses", "encoding": "subclass"}}}),
    "quest nearest": ("quest", {"places": {FINAL: {"table": "words", "encoding": "nearest"}}}),
    "quest top4": ("quest", {"places": {FINAL: {"table": "words", "encoding": "top4"}}}),
    "dskd equal": ("dskd", {"balance": "equal"}),
    "dskd differentiated": ("dskd", {"detach": False}),
}
SCHEDULES: dict[str, tuple[str, dict[str, Any]]] = {
    name: (name, SETTINGS.get(("schedules", name), {})) for name in plugin.names("schedules")
} | {
    "assistants alone": ("assistants", {"names": ("one",)}),
    "assistants by chance": ("assistants", {"names": ("teacher", "one"), "drop": 0.25}),
    "self_learning method": ("self_learning", {"lesson": "method"}),
    "self_learning self": ("self_learning", {"teachers": "self", "detach": True}),
    "self_learning teacher": ("self_learning", {"teachers": "teacher"}),
}
PERMUTED = {"features": ("stage2",)}
TRANSFORMS: dict[str, tuple[str, dict[str, Any]]] = {
    name: (name, SETTINGS.get(("transforms", name), {})) for name in plugin.names("transforms")
} | {
    "permutation of ranges": ("permutation", PERMUTED | {"matching": "ranges"}),
    "permutation dynamic": ("permutation", PERMUTED | {"student_tap": "stage2", "dynamic": 1}),
    "dynamic of ranges": (
        "permutation",
        PERMUTED | {"student_tap": "stage2", "dynamic": 1, "matching": "ranges"},
    ),
}
# Steps that cannot do without a value, and why.
WAITING = {
    "dynamic of ranges": "the samples of a range of labels are picked by a mask, and how many they are is a value",
}


class KeepsToItsDevice(TorchDispatchMode):
    """Refuses every operation whose result lies on the CPU."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        for x in tree_leaves(found):
            if isinstance(x, Tensor):
                assert x.device == META, f"{func} leaves a tensor on the {x.device}"
        return found


def matching(ranges: int = 1) -> Matching:
    """Return one that keeps the number of channels, as the method needs it."""
    origin = MATCHINGS["permutation", "kcd"].origin
    recipe = origin.recipe.model_copy(update={"ranges": ranges})
    orders = np.stack([np.roll(np.arange(32), number) for number in range(ranges)])
    return Matching(origin.model_copy(update={"recipe": recipe}), {"permutation": orders})


def table(name: str) -> Mapping[str, Any]:
    moments = {"mean": np.zeros(32), "std": np.ones(32)}
    return moments if name == "moments" else BY_TABLE[name]


def build(
    method: str | Mapping[str, Mapping[str, Any]] = "kd",
    settings: Mapping[str, Any] | None = None,
    schedule: tuple[str, Mapping[str, Any]] | None = None,
    transform: tuple[str, Mapping[str, Any]] | None = None,
) -> tuple[Assembled, Distillation, Batch]:
    """Return an objective, and a batch with all that it reads, on the CPU."""
    found = assemble_all({method: settings or {}} if isinstance(method, str) else method, table)
    context = replace(found.context, teacher=frozen_teacher().network)
    batch = found.batch()
    teacher: TeacherSchedule[Any] = TeacherSchedule(ScheduleConfig(), context)
    if schedule is not None:
        module = plugin.load("schedules", schedule[0])
        teacher = module.Schedule(module.Config(**schedule[1]), context)
        copies = module.Schedule.copies(teacher.config)
        logits = {f"{name}/logits": batch.teacher["logits"] for name in copies}
        batch = replace(batch, teacher=batch.teacher | logits)
    changed: TeacherTransform[Any] | None = None
    if transform is not None:
        module = plugin.load("transforms", transform[0])
        config = module.Config(**transform[1])
        wanted = module.Transform.needs(config).matchings
        matchings = {one.key: matching(2 if one.matching == "ranges" else 1) for one in wanted}
        changed = module.Transform(config, replace(context, matchings=matchings))
    needs = found.needs | teacher.needs(teacher.config)
    needs |= Needs(student=()) if changed is None else changed.needs(changed.config)
    source, where = FixedSource(batch.teacher), Machine(META)
    objective = Distillation(
        found.student, found.method, teacher, changed, source, where, 0, taps=needs.student
    )
    return found, objective, batch


def step(objective: Distillation, batch: Batch, phase: Phase) -> None:
    """Run a step that is not the first, forward and backward, on the meta device."""
    objective.start(Epoch(phase.name, 0, 2))
    with torch.no_grad():
        objective(views_of(batch), {}, Clock.on(torch.device("cpu")))
    objective.start(Epoch(phase.name, 1, 2))
    objective.to(META)
    for part in (objective.method, *getattr(objective.method, "methods", {}).values(), objective.schedule):
        if hasattr(part, "gathered"):  # what was gathered on the CPU stays there
            part.gathered = Gathered(part.gathered.samples)
    objective.source = FixedSource({name: x.to(META) for name, x in batch.teacher.items()})
    index, image, label = (x.to(META) for x in (batch.index, batch.image, batch.label))
    strong = None if batch.strong is None else batch.strong.image.to(META)
    clock = Clock.on(META)
    for _ in range(2):
        with KeepsToItsDevice():
            views = Views(torch.zeros((), device=META), index, image, label, strong=strong)
            loss, terms = objective(views, {}, clock)
            loss.backward()
            clock.tick()
    assert loss.device == META
    assert terms
    for name, x in objective.named_parameters():
        assert x.grad is None or x.grad.device == META, name


@pytest.mark.parametrize("name", METHODS)
def test_a_step_of_every_method_keeps_to_its_device(name: str) -> None:
    phases = build(*METHODS[name])[0].method.phases(RECIPE)
    for phase in phases:
        _, objective, batch = build(*METHODS[name])
        step(objective, replace(batch, phase=phase.name), phase)


def test_a_step_of_several_methods_keeps_to_its_device() -> None:
    methods: dict[str, dict[str, Any]] = {
        "kd": {},
        "fitnet": {"standardize": "moments"},
        "letkd": {},
        "dskd": {},
    }
    _, objective, batch = build(methods)
    step(objective, batch, Phase("main", RECIPE))


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_step_of_every_schedule_keeps_to_its_device(name: str) -> None:
    _, objective, batch = build(schedule=SCHEDULES[name])
    step(objective, batch, Phase("main", RECIPE))


@pytest.mark.parametrize("name", [name for name in TRANSFORMS if name not in WAITING])
def test_a_step_of_every_transform_keeps_to_its_device(name: str) -> None:
    _, objective, batch = build("fitnet", transform=TRANSFORMS[name])
    step(objective, batch, Phase("main", RECIPE))


@pytest.mark.parametrize("name", WAITING)
def test_a_step_that_reads_a_value_is_listed_as_long_as_it_does(name: str) -> None:
    _, objective, batch = build("fitnet", transform=TRANSFORMS[name])
    # torch's own refusal: of `.item()` the first, of an operation whose shape depends on values the second.
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        step(objective, batch, Phase("main", RECIPE))


@pytest.mark.parametrize(
    "params",
    [
        CropFlip(space="crop_flip", padding=1),
        CropFlip(space="crop_flip", padding=1, fill="reflect", flip=False),
        RandomResizedCrop(space="random_resized_crop"),
        RotateFlip(space="rotate_flip"),
        Plain(space="plain"),
    ],
    ids=lambda params: params.space,
)
def test_a_whole_step_of_the_loop_keeps_to_its_device(params: ViewParams) -> None:
    """Its views, its loss and its backward pass; the update of the weights is one kernel of torch."""
    _, objective, batch = build()
    objective.start(Epoch("main", 0, 1))
    with torch.no_grad():
        objective(views_of(batch), {}, Clock.on(torch.device("cpu")))
    objective.to(META)
    objective.source = FixedSource({name: x.to(META) for name, x in batch.teacher.items()})

    images = ResidentImages(torch.zeros(18, 1, 8, 8, dtype=torch.uint8, device=META), view_space(params))
    labels = torch.zeros(18, dtype=torch.int64, device=META)
    batches = Batches(images, labels, 0, Normalize((0.5,), (0.5,), META), 0, len(batch.label))
    optimizer = recipe_optimizer(list(objective.student.parameters()), RECIPE)
    taken = Step("meta", objective, batches, Feed(batches), optimizer, ALONE)
    # The first slot's views are known: to find those of another one reads values, once an epoch.
    taken.start(Epoch("main", 0, 1), 0, [0.05] * 3, 0)
    optimizer.step = lambda: None  # type: ignore[method-assign]
    for number in range(2):
        taken.advance(number)
        with KeepsToItsDevice():
            taken(number)
    assert taken.names == ["ce", "kd", "loss"]
    assert taken.rows.shape == (3, 3)
    assert all(x.grad is not None and x.grad.is_meta for x in objective.student.parameters())


def test_a_tensor_from_the_cpu_is_refused() -> None:
    """What the tests above rest on."""
    x = torch.zeros(3, device=META)
    with KeepsToItsDevice():
        with pytest.raises(AssertionError, match="leaves a tensor on the cpu"):
            torch.zeros(())
        with pytest.raises(AssertionError, match="leaves a tensor on the cpu"):
            torch.arange(3)
        with pytest.raises(RuntimeError, match="meta"):
            x.sum().item()
    with pytest.raises(RuntimeError, match="meta"):
        x + torch.ones(3)

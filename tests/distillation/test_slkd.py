"""Self-learning teachers: the losses against plain references, who learns from whom, and what they compose with."""

from __future__ import annotations

import copy
import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from device_fixtures import current, here
from error_fixtures import one_line
from safetensors.torch import load_file
from torch import Tensor, nn
from training_fixtures import (
    CLASSES,
    RECIPE,
    STUDENT,
    TEACHER,
    Assembled,
    FixedSource,
    World,
    assemble,
    clock,
    frozen_teacher,
    make_world,
    views_of,
)

from pipeline import seeding
from pipeline.data.mixing import Mixture
from pipeline.distillation.method import Batch
from pipeline.distillation.schedules.self_learning import Config, Schedule
from pipeline.distillation.transform import TeacherTransform, TransformConfig
from pipeline.errors import ParamsError, StillhouseError
from pipeline.networks.network import Network, Taps, build
from pipeline.params.base import validate
from pipeline.params.recipe import Epoch
from pipeline.runs.inputs import RunInputs
from pipeline.training import loop
from pipeline.training.distill import Distillation
from pipeline.training.loop import Training
from pipeline.training.optimizer import recipe_optimizer

pytestmark = pytest.mark.usefixtures("device")


def made(
    settings: dict[str, Any] | None = None, method: str = "kd", **options: Any
) -> tuple[Distillation, Schedule, Assembled, Batch]:
    """Build the objective of `method` with self-learning teachers on a small student."""
    found = assemble(method, options)
    context = replace(found.context, teacher=frozen_teacher().network)
    schedule = here(Schedule(Config(**(settings or {})), context))
    batch = found.batch(5)
    needed = (*found.needs.teacher, *Schedule.needs(schedule.config).teacher)
    teacher = frozen_teacher().features(batch.image, needed, batch.label)
    batch = replace(batch, teacher=teacher)
    taps = (found.needs | Schedule.needs(schedule.config)).student
    source, where = FixedSource(teacher), current()
    objective = Distillation(found.student, found.method, schedule, None, source, where, 0, taps=taps)
    return objective, schedule, found, batch


def step(objective: Distillation, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    objective.source = FixedSource(batch.teacher)
    return objective(views_of(batch), {}, clock())


# ------------------------------------------------------------------ the formula, in plain float64

Logits = list[list[float]]


def softmax(row: list[float], temperature: float) -> list[float]:
    e = [math.exp(v / temperature) for v in row]
    return [v / sum(e) for v in e]


def ce(logits: Logits, label: list[int]) -> float:
    return -sum(math.log(softmax(row, 1)[y]) for row, y in zip(logits, label, strict=True)) / len(label)


def kl(target: Logits, logits: Logits, temperature: float) -> float:
    """Return tau^2 times the mean over samples of the sum over classes of p log(p / q)."""
    found = 0.0
    for one, other in zip(target, logits, strict=True):
        p, q = softmax(one, temperature), softmax(other, temperature)
        found += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return temperature**2 * found / len(target)


def fuse(learned: list[Logits], shares: list[float]) -> Logits:
    size, width = len(learned[0]), len(learned[0][0])
    return [
        [sum(w * c[i][k] for w, c in zip(shares, learned, strict=True)) for k in range(width)]
        for i in range(size)
    ]


def test_the_published_form_is_the_formula() -> None:
    """On CIFAR's settings the student's loss is 1.1 CE + 14.4 KL(T) + 16 KL(fused), KL without tau^2."""
    objective, schedule, found, batch = made()
    loss, terms = step(objective, batch)
    s = found.student(batch.image).double().tolist()
    t, label = batch.teacher["logits"].double().tolist(), batch.label.tolist()
    learned = [network(batch.image).double().tolist() for network in schedule.networks]
    assert len(learned) == 2
    fused = fuse(learned, [0.5, 0.5])
    student = 1.1 * ce(s, label) + 14.4 * kl(t, s, 4) / 16 + 16 * kl(fused, s, 4) / 16
    own = [0.1 * ce(c, label) + 0.9 * kl(t, c, 4) for c in learned]
    # float32 against float64
    assert loss.item() == pytest.approx(student + sum(own), rel=1e-4)
    for number, c in enumerate(learned, start=1):
        assert terms[f"slt{number}_ce"].item() == pytest.approx(ce(c, label), rel=1e-4)
        assert terms[f"slt{number}_kd"].item() == pytest.approx(kl(t, c, 4), rel=1e-4)
    assert terms["fused_kd"].item() == pytest.approx(kl(fused, s, 4), rel=1e-4)
    assert list(terms) == ["slt1_ce", "slt1_kd", "slt2_ce", "slt2_kd", "fused_ce", "fused_kd", "ce", "kd"]


def test_every_network_learns_from_both_labels_of_mixed_samples() -> None:
    objective, schedule, found, batch = made()
    partner, share = (batch.label + 1) % CLASSES, here(torch.linspace(0.1, 0.9, 5))
    views = replace(views_of(batch), mixture=Mixture(partner, share))
    objective.source = FixedSource(batch.teacher)
    _, terms = objective(views, {}, clock())
    networks = {"ce": found.student, "fused_ce": found.student}
    networks |= {f"slt{number}_ce": network for number, network in enumerate(schedule.networks, start=1)}
    assert {name for name in terms if name.endswith("ce")} == networks.keys()
    for name, network in networks.items():
        logits = network(batch.image).double()
        # One by one: of a sample its own label counts its share, and its partner's the rest.
        rows = [
            w * ce([row], [own]) + (1 - w) * ce([row], [other])
            for row, own, other, w in zip(
                logits.tolist(), batch.label.tolist(), partner.tolist(), share.tolist(), strict=True
            )
        ]
        assert terms[name].item() == pytest.approx(sum(rows) / 5, rel=1e-4), name


@pytest.mark.parametrize(
    ("settings", "shares"),
    [
        ({"num_networks": 1}, [1.0]),
        ({"num_networks": 3}, [1 / 3] * 3),
        ({"fusion": 0.3}, [0.3, 0.7]),
        ({"fusion": 1.0}, [1.0, 0.0]),
        ({"num_networks": 3, "fusion": (0.5, 0.2, 0.3)}, [0.5, 0.2, 0.3]),
    ],
)
@pytest.mark.parametrize("form", [{}, {"ce": 0.1, "kd": 0.9}])
def test_any_number_and_weights_and_the_papers_form(
    settings: dict[str, Any], shares: list[float], form: dict[str, float]
) -> None:
    more = {"student_weights": form} if form else {}
    objective, schedule, found, batch = made(settings | more | {"beta": 0.7, "temperature": 2.0})
    loss, terms = step(objective, batch)
    s, label = found.student(batch.image).double().tolist(), batch.label.tolist()
    t = batch.teacher["logits"].double().tolist()
    learned = [network(batch.image).double().tolist() for network in schedule.networks]
    a, b = (0.1, 0.9) if form else (1.0, 1.0)
    expected = 0.1 * ce(s, label) + 0.9 * kl(t, s, 4)  # the method's own temperature
    expected += 0.7 * (a * ce(s, label) + b * kl(fuse(learned, shares), s, 2))
    expected += sum(0.1 * ce(c, label) + 0.9 * kl(t, c, 2) for c in learned)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert len([name for name in terms if name.startswith("slt")]) == 2 * len(shares)


def test_the_methods_own_lesson_of_fused_logits_is_the_same_for_kd() -> None:
    one, _, _, batch = made()
    other, _, _, _ = made({"lesson": "method"})
    (loss, terms), (same, also) = step(one, batch), step(other, batch)
    torch.testing.assert_close(same, loss, rtol=1e-6, atol=1e-6)  # summed in another order
    assert terms.keys() == also.keys()


def test_the_methods_lesson_has_weights_of_its_own_and_the_teachers_other_features() -> None:
    seen: list[Taps] = []
    objective, _, found, batch = made(
        {"lesson": "method", "beta": 0.5, "student_weights": {"ce": 2.0, "kd": 3.0}}
    )
    batch = replace(batch, teacher=batch.teacher | {"stage2": torch.zeros(5, 2)})
    forward = found.method.forward

    def watched(student: Taps, given: Batch) -> Any:
        seen.append(given.teacher)
        return forward(student, given)

    found.method.forward = watched
    loss, terms = step(objective, batch)
    expected = sum(0.1 * terms[f"slt{j}_ce"] + 0.9 * terms[f"slt{j}_kd"] for j in (1, 2))
    expected += 0.1 * terms["ce"] + 0.9 * terms["kd"] + 0.5 * (2 * terms["fused_ce"] + 3 * terms["fused_kd"])
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    assert seen[0]["stage2"] is seen[1]["stage2"]
    assert not torch.equal(seen[0]["logits"], seen[1]["logits"])


def test_table_7_teacher_alone_and_self_learning_teachers_alone() -> None:
    both, alone, watched = (made({"teachers": who})[0] for who in ("both", "self", "teacher"))
    _, _, _, batch = made()
    results = {name: step(x, batch) for name, x in (("both", both), ("self", alone), ("teacher", watched))}
    terms = results["both"][1]
    own = sum(0.1 * terms[f"slt{j}_ce"] + 0.9 * terms[f"slt{j}_kd"] for j in (1, 2))
    expected = {
        "both": 1.1 * terms["ce"] + 0.9 * terms["kd"] + terms["fused_kd"],
        "self": 1.1 * terms["ce"] + terms["fused_kd"],
        "teacher": 0.1 * terms["ce"] + 0.9 * terms["kd"],
    }
    for name, (loss, _) in results.items():
        torch.testing.assert_close(loss, expected[name] + own, rtol=1e-5, atol=1e-6)
    assert "kd" not in results["self"][1]
    assert "fused_kd" not in results["teacher"][1]


# ------------------------------------------------------------------ gradients


class Given(nn.Module):
    """Logits that do not depend on the image."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, image: Tensor) -> Tensor:
        return self.logits


@pytest.mark.parametrize("detach", [False, True])
def test_gradients_of_self_learning_teachers_against_differences(detach: bool) -> None:
    objective, schedule, found, batch = made({"detach": detach, "fusion": 0.3})
    generator = seeding.generator("given")
    given = [here(2 * torch.randn(5, CLASSES, generator=generator)) for _ in range(2)]
    schedule.networks = nn.ModuleList(Given(x) for x in given)
    loss, _ = step(objective, batch)
    loss.backward()
    s, label = found.student(batch.image).double().tolist(), batch.label.tolist()
    t = batch.teacher["logits"].double().tolist()

    def total(learned: list[Logits]) -> float:
        value = sum(0.1 * ce(c, label) + 0.9 * kl(t, c, 4) for c in learned)
        return value if detach else value + kl(fuse(learned, [0.3, 0.7]), s, 4)

    start = [x.double().tolist() for x in given]
    for number, i, k in ((0, 0, 0), (0, 3, 2), (1, 1, 1), (1, 4, 3)):
        ends = []
        for change in (1e-5, -1e-5):
            moved = copy.deepcopy(start)
            moved[number][i][k] += change
            ends.append(total(moved))
        grad = schedule.networks[number].logits.grad
        # float32 gradients against central differences in float64
        assert grad[i, k].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("detach", [False, True])
def test_the_student_pulls_them_unless_the_target_is_detached(detach: bool) -> None:
    objective, schedule, _, batch = made({"detach": detach})
    _, terms = step(objective, batch)
    grads = torch.autograd.grad(
        terms["fused_kd"], list(schedule.networks.parameters()), retain_graph=True, allow_unused=True
    )
    assert all(grad is None for grad in grads) if detach else all(grad is not None for grad in grads)
    if not detach:
        assert any((grad != 0).any() for grad in grads)


@pytest.mark.parametrize("settings", [{}, {"detach": True}, {"lesson": "method"}, {"teachers": "teacher"}])
def test_every_self_learning_teacher_and_the_student_learn_and_the_teacher_never(
    settings: dict[str, Any],
) -> None:
    objective, schedule, found, batch = made(settings)
    teacher = found.context.teacher
    assert teacher is None  # the schedule's own context has it
    loss, _ = step(objective, batch)
    loss.backward()
    for module in (found.student, schedule.networks):
        for name, x in module.named_parameters():
            assert x.grad is not None, name
            assert torch.isfinite(x.grad).all(), name
    assert not batch.teacher["logits"].requires_grad


def test_the_teacher_is_neither_held_nor_trained() -> None:
    teacher = frozen_teacher().network
    before = {name: x.clone() for name, x in teacher.state_dict().items()}
    found = assemble("kd")
    schedule = here(Schedule(Config(), replace(found.context, teacher=teacher)))
    held = {id(x) for x in schedule.parameters()}
    assert held.isdisjoint(id(x) for x in teacher.parameters())
    assert not any(x.requires_grad for x in teacher.parameters())
    assert all(x.requires_grad for x in schedule.parameters())
    batch = found.batch()
    schedule.train()(found.taps(batch), batch)
    assert all(torch.equal(x, before[name]) for name, x in teacher.state_dict().items())


def test_one_optimizer_does_what_three_of_equal_settings_do() -> None:
    ends = []
    for apart in (False, True):
        objective, schedule, found, batch = made()
        modules: list[nn.Module] = [found.student, *schedule.networks]
        groups = [list(module.parameters()) for module in modules]
        groups = groups if apart else [[x for group in groups for x in group]]
        optimizers = [recipe_optimizer(group, RECIPE) for group in groups]
        for _ in range(3):
            loss, _ = step(objective, batch)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
        ends.append([x.detach().clone() for module in modules for x in module.parameters()])
    for one, other in zip(*ends, strict=True):
        assert torch.equal(one, other)


# ------------------------------------------------------------------ the networks


@pytest.mark.cpu
def test_they_are_untrained_copies_that_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    _, one, _, _ = made()
    torch.manual_seed(2)
    _, again, _, _ = made({"num_networks": 3})
    first, second = (network.state_dict() for network in one.networks)
    plain = build(TEACHER, 0).state_dict()
    assert first.keys() == plain.keys()
    assert all(torch.equal(x, again.networks[0].state_dict()[name]) for name, x in first.items())
    assert all(torch.equal(x, again.networks[1].state_dict()[name]) for name, x in second.items())
    trained = frozen_teacher().network.state_dict()
    for name, x in first.items():
        if x.ndim > 1:
            assert not torch.equal(x, second[name]), name
            assert not torch.equal(x, trained[name]), name
    found = assemble("kd")
    other = Schedule(Config(), replace(found.context, teacher=frozen_teacher().network, seed=1))
    assert not torch.equal(other.networks[0].classifier.weight, one.networks[0].classifier.weight)


@pytest.mark.cpu
def test_a_teacher_that_cannot_be_drawn_anew_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    found = assemble("kd")
    teacher = frozen_teacher().network
    monkeypatch.setattr(Network, "draw", lambda self: None)
    with pytest.raises(ParamsError, match="cannot be drawn anew") as error:
        Schedule(Config(), replace(found.context, teacher=teacher))
    one_line(error)


def test_distances_are_means_of_an_epoch() -> None:
    objective, schedule, found, batch = made()
    assert schedule.diagnose() == {}
    objective.start(Epoch("main", 0, 2))
    objective(views_of(batch), {}, clock())
    objective.start(Epoch("main", 1, 2))
    for number in (0, 1):  # the epoch before no longer counts
        shown = replace(batch, image=found.batch(5, seed=number).image, index=batch.index + 5 * number)
        objective(views_of(shown), {}, clock(1, number))
    t = batch.teacher["logits"].double().tolist()
    total = dict.fromkeys(("student-self", "student-teacher", "self-teacher"), 0.0)
    for number in (0, 1):
        image = found.batch(5, seed=number).image
        s = found.student(image).double().tolist()
        c = fuse([network(image).double().tolist() for network in schedule.networks], [0.5, 0.5])
        outputs = {"student": s, "self": c, "teacher": t}
        for name in total:
            one, other = (outputs[key] for key in name.split("-"))
            total[name] += sum(
                math.dist(softmax(a, 1), softmax(b, 1)) for a, b in zip(one, other, strict=True)
            )
    expected = {f"distance.{name}": value / 10 for name, value in total.items()}
    assert objective.diagnose() == pytest.approx(expected, rel=1e-4)


# ------------------------------------------------------------------ whole runs


@pytest.fixture(scope="module")
def world(device: str, tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def resolved(world: World, name: str, **run: Any) -> RunInputs:
    """Resolve a run of these settings."""
    runs = {name: {"methods": "kd", "schedule": "self_learning"} | run}
    pair = world.blocks(runs=runs, distill=[f"pair/{name}"]) / "pairs/pair.json"
    found = world.resolve(world.path(f"changed/{name}-out"), block=pair)
    return RunInputs.model_validate_json(found[name])


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def losses(folder: Path) -> list[float]:
    found = [float(row["loss"]) for row in history(folder)]
    assert all(math.isfinite(value) for value in found)
    return found


def test_slkd_trains_and_leaves_the_plain_student(world: World) -> None:
    inputs = resolved(world, "slkd")
    assert inputs.teacher_network
    assert set(inputs.weights) == {"last"}
    assert "pipeline/distillation/schedules/self_learning.py" in inputs.code
    folder = world.distill("slkd", inputs)
    found = losses(folder)
    assert found[1] < found[0]
    plain = build(STUDENT, 0).state_dict()
    for name in ("init", "last", "best"):
        held = load_file(folder / f"weights/{name}.safetensors")
        assert held.keys() == plain.keys(), name
    init = load_file(folder / "weights/init.safetensors")
    assert all(torch.equal(x, plain[name]) for name, x in init.items())
    rows = history(folder)
    columns = {
        "distance.student-teacher",
        "distance.self-teacher",
        "distance.student-self",
        "slt2_kd",
        "fused_kd",
    }
    assert columns <= rows[0].keys()
    assert float(rows[1]["distance.self-teacher"]) < float(rows[0]["distance.self-teacher"])


def test_slkd_with_the_teacher_alone_is_kd(world: World) -> None:
    watched = world.distill(
        "watched", resolved(world, "watched", schedule={"self_learning": {"teachers": "teacher"}})
    )
    kd = world.distill("watched-kd", world.inputs("kd"))
    one, other = (load_file(folder / "weights/last.safetensors") for folder in (watched, kd))
    assert all(torch.equal(x, other[name]) for name, x in one.items())


def test_slkd_online_ends_as_cached(world: World) -> None:
    online = world.distill("slkd-online", resolved(world, "slkd-online", source="online"))
    cached = world.distill("slkd-cached", resolved(world, "slkd-cached"))
    one, other = (load_file(folder / "weights/last.safetensors") for folder in (online, cached))
    for name, x in one.items():
        # Ten steps in float32; the teacher ran on batches of another size.
        torch.testing.assert_close(x, other[name], rtol=1e-4, atol=1e-4, msg=name)


def test_slkd_that_was_interrupted_ends_alike(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = resolved(world, "slkd-cut")
    whole = world.distill("slkd-whole", inputs)
    keep = Training._keep

    def cut(self: Training, rows: list[Any]) -> None:
        if len(rows) > 1:
            raise KeyboardInterrupt
        keep(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
        patch.setattr(Training, "_keep", cut)
        with pytest.raises(KeyboardInterrupt):
            world.distill("slkd-cut", inputs)
    again = world.distill("slkd-cut", inputs)
    for name in ("best", "last"):
        path = f"weights/{name}.safetensors"
        assert (again / path).read_bytes() == (whole / path).read_bytes(), name
    drop = ("seconds", "images_per_second")
    one, other = (
        [{k: v for k, v in row.items() if k not in drop} for row in history(x)] for x in (again, whole)
    )
    assert one == other


class Doubled(TeacherTransform[TransformConfig]):
    """Doubles the logits."""

    def forward(self, teacher: Taps, batch: Batch) -> Taps:
        return {name: 2 * x for name, x in teacher.items()}


def test_a_transform_is_for_the_method_and_not_for_the_self_learning_teachers() -> None:
    objective, _, found, batch = made()
    _, plain = step(objective, batch)
    objective.transform = Doubled(TransformConfig(), found.context)
    _, terms = step(objective, batch)
    assert terms["kd"].item() != pytest.approx(plain["kd"].item(), rel=1e-3)
    for name in ("slt1_kd", "slt2_kd", "fused_kd"):
        torch.testing.assert_close(terms[name], plain[name], rtol=1e-6, atol=1e-6)


def test_methods_that_read_no_logits_are_taught_too(world: World) -> None:
    folder = world.distill("slkd-fitnet", resolved(world, "slkd-fitnet", methods="fitnet"))
    assert {"hint", "fused_kd", "slt1_kd"} <= history(folder)[0].keys()
    found = losses(folder)
    assert found[1] < found[0]


# ------------------------------------------------------------------ bad input


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"fusion": 1.5}, "weights are within"),
        ({"fusion": -0.1}, "weights are within"),
        ({"fusion": [0.5, 0.6]}, "a list's sum is 1"),
        ({"fusion": [0.5, 0.25, 0.25]}, "fusion has 3 weights, expected 2"),
        ({"fusion": 0.5, "num_networks": 3}, "give a list of 3"),
        ({"num_networks": 0}, "greater than or equal to 1"),
        ({"temperature": 0}, "greater than or equal to 0.01"),
        ({"weights": {"ce": 1.0}}, "weights must name ce and kd"),
        ({"student_weights": {"ce": 1.0, "hint": 1.0}}, "student_weights must name ce and kd"),
        ({"teachers": "nobody"}, "'both', 'self' or 'teacher'"),
        ({"detached": True}, "Did you mean 'detach'"),
    ],
)
def test_settings_that_cannot_be_are_reported_in_one_line(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ParamsError, match=match) as error:
        validate(Config, settings, "runs.slkd.schedule.self_learning")
    one_line(error)


@pytest.mark.cpu
def test_defaults_are_the_published_constants() -> None:
    config = Config()
    assert (config.num_networks, config.temperature, config.beta, config.detach) == (2, 4.0, 1.0, False)
    assert (config.weights, config.student_weights) == ({"ce": 0.1, "kd": 0.9}, {"ce": 1.0, "kd": 1.0})
    assert config.shares == (0.5, 0.5)
    assert validate(Config, {"fusion": 1}, "").shares == (1.0, 0.0)  # yaml's 1 is a number too


@pytest.mark.cpu
def test_teaching_by_a_method_that_reads_no_logits_is_reported(world: World) -> None:
    with pytest.raises(StillhouseError, match="The method reads stage2 of the teacher") as error:
        resolved(world, "no-logits", methods="fitnet", schedule={"self_learning": {"lesson": "method"}})
    assert "Set 'lesson' of the run's schedule to logits" in str(error.value)
    one_line(error)


@pytest.mark.cpu
def test_a_term_that_the_lesson_does_not_weigh_is_reported() -> None:
    objective, _, _, batch = made({"lesson": "method", "student_weights": {"ce": 1.0}})
    with pytest.raises(ParamsError, match="Term 'kd' of the method has no weight; found weights for ce"):
        step(objective, batch)

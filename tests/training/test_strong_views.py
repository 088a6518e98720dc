"""Students that learn from a weak and a strong view of each sample, through the stages' own commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from device_fixtures import current
from graph_fixtures import StandIn
from test_captured import capturing, eager, left
from torch import Tensor
from training_fixtures import (
    PARAMS,
    RECIPE,
    STUDENT,
    VIEWS,
    World,
    assemble_all,
    changed,
    clock,
    cut_off_after,
    job,
    make_world,
    views_of,
    weights,
)

from pipeline.compute import graphs
from pipeline.data.normalize import Normalize
from pipeline.data.views import view_ids, view_space
from pipeline.distillation.schedule import ScheduleConfig, TeacherSchedule
from pipeline.distillation.transforms import logit_standardization
from pipeline.features.source import CachedSource, OnlineSource
from pipeline.networks.network import Taps, build
from pipeline.networks.weights import load
from pipeline.params.recipe import Recipe
from pipeline.params.sections import merged
from pipeline.params.views import RandomErasing, Stack, TwoViews
from pipeline.training import assembly, distill, loop
from pipeline.training.distill import Distillation
from pipeline.training.loop import Training
from pipeline.training.setting import Setting

pytestmark = pytest.mark.usefixtures("device")

STRONG = Stack(space="stack", parts=(VIEWS, RandomErasing(space="random_erasing", probability=1)))
BOTH = TwoViews(weak=VIEWS, strong=STRONG)
RUNS: dict[str, Any] = {
    "kd": {"methods": "kd", "slots": 4},
    **{name: {"methods": name, "slots": 4} for name in ("mlld", "crld")},
    **{f"{name}_online": {"methods": name, "slots": 4, "source": "online"} for name in ("mlld", "crld")},
    "several": {"methods": {"kd": {}, "mlld": {}, "crld": {}}, "slots": 4},
    "unbounded": {"methods": "crld", "source": "online"},
    "standardized": {"methods": "mlld", "slots": 4, "transform": "logit_standardization"},
    "rco": {"methods": "crld", "slots": 4, "schedule": {"anchors": {"anchors": ["anchor_050", "last"]}}},
}
WORLD = merged(
    {name: PARAMS[name] for name in ("recipes", "datasets", "students", "pairs")},
    {
        "seeds": [0],
        "datasets": {"toy": {"strong_views": {
            "crop_flip": {"padding": 1, "flip": False}, "random_erasing": {"probability": 1}}}},
        "teachers": {"big": PARAMS["teachers"]["big"] | {"features": {"logits": {"dtype": "float32", "slots": 6}}}},
        "runs": RUNS,
        "distill": [f"pair/{run}" for run in RUNS],
    },
)  # fmt: skip


@pytest.fixture(scope="module")
def world(device: str, tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), WORLD)


def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Tensor, Tensor, Tensor]]:
    """Return a list that takes slot, samples, images and the teacher's logits of all that it is asked about."""
    seen: list[tuple[int, Tensor, Tensor, Tensor]] = []

    def watch(source: type[Any]) -> None:
        features = source.features

        def noted(self: Any, checkpoint: str, slot: Tensor, index: Tensor, image: Tensor, *rest: Any) -> Taps:
            found: Taps = features(self, checkpoint, slot, index, image, *rest)
            seen.append((int(slot), index.cpu(), image, found["logits"].cpu()))
            return found

        monkeypatch.setattr(source, "features", noted)

    watch(CachedSource)
    watch(OnlineSource)
    return seen


@pytest.mark.parametrize(
    ("run", "resident"), [("mlld", 0), ("mlld", 1 << 30), ("several", 1 << 30), ("unbounded", 0)]
)
def test_student_and_teacher_see_the_weak_and_the_strong_view_of_the_same_samples(
    world: World, monkeypatch: pytest.MonkeyPatch, run: str, resident: int
) -> None:
    seen = shown(monkeypatch)
    recorded: list[Tensor] = []
    record = Distillation.forward

    def forward(self: Distillation, views: Any, read: Taps, now: Any) -> Any:
        assert views.strong is not None
        recorded.extend((views.image, views.strong))
        return record(self, views, read, now)

    monkeypatch.setattr(Distillation, "forward", forward)
    world.distill(f"seen-{run}-{resident}", world.inputs(run), resident_bytes=resident)

    images, meta = torch.from_numpy(world.prepared.split("train").images.block(0, 100)), world.prepared.meta
    images, normalize = images.to(current().device), Normalize(meta.mean, meta.std, current().device)
    teacher = load(world.path("artifacts/teachers/big/weights"))[0].to(current().device).eval()
    spaces = {1: view_space(VIEWS), 0: view_space(STRONG)}
    assert len(seen) == len(recorded) == 2 * 2 * 5
    for number, ((slot, index, image, logits), of_student) in enumerate(zip(seen, recorded, strict=True)):
        assert slot % 2 == (number + 1) % 2  # the weak view first
        assert number % 2 == 0 or slot == seen[number - 1][0] + 1
        rows, space = index.to(current().device), spaces[slot % 2]
        views = space.apply(images[rows], view_ids(space, (slot + 1) // 2, rows), rows)
        assert torch.equal(image, of_student)
        assert torch.equal(image, normalize(views))
        with torch.no_grad():
            torch.testing.assert_close(logits, teacher(image).cpu(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "resident"), [("mlld", 0), ("crld", 1 << 30)])
def test_cached_and_online_end_in_the_same_weights(world: World, name: str, resident: int) -> None:
    cached = world.distill(f"cached-{name}-{resident}", world.inputs(name), resident_bytes=resident)
    one, other = weights(cached), weights(world.distill(f"online-{name}", world.inputs(f"{name}_online")))
    for key, x in one.items():
        # Ten steps in float32; the teacher ran on batches of another size.
        torch.testing.assert_close(x, other[key], rtol=1e-5, atol=2e-5, msg=key)
    assert not torch.equal(one["classifier.weight"], build(STUDENT, 0).classifier.weight)


def test_a_method_of_one_view_learns_what_it_would_learn_from_the_weak_views_alone(world: World) -> None:
    setting, alone = (Setting.of(world.prepared, views, current()) for views in (BOTH, VIEWS))
    for strong in (False, True):
        both = setting.batches(RECIPE, 0, 6, strong=strong)
        for epoch in range(4):
            own = alone.batches(RECIPE, 0, 3)
            for one, other in zip(both.epoch(epoch), own.epoch(epoch), strict=True):
                assert torch.equal(one.image, other.image)
                assert torch.equal(one.index, other.index)
                assert (one.strong is not None) == strong
                assert int(one.slot) == 2 * int(other.slot) - 1


@pytest.mark.parametrize("run", ["several", "rco"])
def test_captured_steps_end_in_the_bits_of_eager_ones(
    world: World, run: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    if current().device.type == "cpu":
        monkeypatch.setattr(graphs, "Graph", StandIn)
    inputs = world.inputs(run, recipe=RECIPE.model_copy(update={"epochs": 4}))

    def learned(name: str, where: Any) -> dict[str, Any]:
        scratch = world.path(f"scratch/{name}-{run}")
        assembly.train(distill.prepare(inputs, job(scratch, run, machine=where)))
        return left(scratch)

    captured = learned("captured", capturing())
    assert "run eagerly" not in capsys.readouterr().err
    assert captured == learned("eager", eager(monkeypatch))


@pytest.mark.parametrize(("run", "resident"), [("mlld", 1 << 30), ("several", 0)])
def test_a_distillation_that_was_interrupted_ends_alike(
    world: World, monkeypatch: pytest.MonkeyPatch, run: str, resident: int
) -> None:
    inputs = world.inputs(run, recipe=RECIPE.model_copy(update={"epochs": 3}))
    whole = world.distill(f"whole-{run}-{resident}", inputs, resident_bytes=resident)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
        patch.setattr(Training, "_keep", cut_off_after(Training._keep, 2))
        with pytest.raises(KeyboardInterrupt):
            world.distill(f"cut-{run}-{resident}", inputs, resident_bytes=resident)
    assert left(world.distill(f"cut-{run}-{resident}", inputs, resident_bytes=resident)) == left(whole)


def test_methods_of_one_run_compose(world: World) -> None:
    """KD sees the weak view as alone; the labels of each view count once, as the first method weighs them."""
    recipe = Recipe(epochs=1, batch_size=100)
    rows = {
        run: left(world.distill(f"one-{run}", world.inputs(run, recipe=recipe)))["history"][0]
        for run in ("kd", "mlld", "crld", "several")
    }
    terms = ("kd", "instance", "batch", "class", "within", "cross", "ce", "ce_strong")
    found = {term: float(rows["several"][term]) for term in terms}
    own = {
        "kd": ("kd", "ce"),
        "mlld": ("instance", "batch", "class", "ce_strong"),
        "crld": ("within", "cross"),
    }
    for run, names in own.items():
        for term in names:
            assert found[term] == pytest.approx(float(rows[run][term]), rel=1e-5), term

    weights = dict.fromkeys(("kd", "instance", "batch", "class"), 0.9)
    weights |= {"within": 2.0, "cross": 0.5, "ce": 0.1, "ce_strong": 0.1}
    total = sum(weights[term] * found[term] for term in terms)
    assert float(rows["several"]["loss"]) == pytest.approx(total, rel=1e-5)


def test_the_student_sees_each_view_in_a_pass_of_its_own() -> None:
    """A batch norm in training has the statistics of one view at a time, and follows the weak one first."""
    found = assemble_all({"crld": {}})
    batch = found.batch(12)
    assert batch.strong is not None
    source = Fixed({"logits": batch.teacher["logits"]})
    made = objective(found, source, None, smoothing=0.0)
    _, terms = made(views_of(batch), {}, clock())

    apart = build(STUDENT, 0).to(current().device)
    apart.train(found.student.training)
    with torch.no_grad():
        weak, strong = apart(batch.image), apart(batch.strong.image)
    expected = F.cross_entropy(weak, batch.label), F.cross_entropy(strong, batch.label)
    torch.testing.assert_close((terms["ce"], terms["ce_strong"]), expected)
    assert source.slots == [1, 2]


@pytest.mark.parametrize("standardized", [False, True])
def test_smoothing_and_transform_are_of_both_views(standardized: bool) -> None:
    found = assemble_all({"crld": {"tau_weak": 0, "tau_strong": 0}})
    batch = found.batch(12)
    assert batch.strong is not None
    transform = (
        logit_standardization.Transform(logit_standardization.Config(), found.context)
        if standardized
        else None
    )
    made = objective(found, Fixed({"logits": batch.teacher["logits"]}), transform, smoothing=0.1)
    found.student.eval()
    _, terms = made(views_of(batch), {}, clock())

    with torch.no_grad():
        s, other = found.student(batch.image), found.student(batch.strong.image)
    for name, logits in (("ce", s), ("ce_strong", other)):
        torch.testing.assert_close(
            terms[name].detach(), F.cross_entropy(logits, batch.label, label_smoothing=0.1)
        )
    t = batch.teacher["logits"]
    if standardized:
        s, other, t = (logit_standardization.standardized(x) for x in (s, other, t))
    p = (t / 4).softmax(1)
    rows = sum(16 * (p * (p.log() - (x / 4).log_softmax(1))).sum(1) for x in (s, other))
    assert isinstance(rows, Tensor)
    torch.testing.assert_close(terms["within"].detach(), rows.mean(), rtol=1e-4, atol=1e-5)


class Fixed:
    """Says the same of both views, and notes the slots that it is asked about."""

    def __init__(self, features: Taps) -> None:
        self.given, self.slots = features, list[int]()

    def begin(self, checkpoint: str, slot: int, index: Tensor) -> Any:
        return dict

    def features(self, checkpoint: str, slot: Tensor, *rest: Any) -> Taps:
        self.slots.append(int(slot))
        return self.given


def objective(found: Any, source: Fixed, transform: Any, smoothing: float) -> Distillation:
    schedule = TeacherSchedule(ScheduleConfig(), found.context)
    return Distillation(
        found.student, found.method, schedule, transform, source, current(), 0, taps=("logits",), strong=True,
        smoothing=smoothing,
    )  # fmt: skip


# ------------------------------------------------------------------ what depends on the strong views


@pytest.mark.cpu
def test_strong_views_change_the_store_and_the_runs_and_train_no_network_again(world: World) -> None:
    params = changed(WORLD, "datasets.toy.strong_views", ...)
    params["distill"] = ["pair/kd"]
    found = {}
    for name, given in (("both", WORLD), ("weak", params)):
        root = world.path(f"blocks/{name}")
        root.mkdir(parents=True)
        found[name] = written(root, given)
    same = {"teachers/big/train.json", "teachers/big/evaluate.json", "students/small.json"}
    for file in same:
        assert found["both"][file] == found["weak"][file], file
    both, weak = (found[name]["teachers/big/extract.json"] for name in ("both", "weak"))
    assert both["views"] == BOTH.model_dump(mode="json")
    assert weak["views"] == VIEWS.model_dump(mode="json")


def written(root: Path, params: dict[str, Any]) -> dict[str, Any]:
    from stages import params as stage

    file = root / "params.yaml"
    file.write_text(json.dumps(params))
    stage.main(out=root / "blocks", params=file)
    made = root / "blocks"
    return {str(path.relative_to(made)): json.loads(path.read_text()) for path in made.rglob("*.json")}

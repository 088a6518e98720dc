"""Distilling: the objective, paired seeds, both sources, operations on the student, evaluation, resolution."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from device_fixtures import current
from error_fixtures import one_line
from feature_fixtures import crop_flip, rewrite_manifest
from prepared_fixtures import edit_meta
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from training_fixtures import (
    CLASSES,
    RECIPE,
    STUDENT,
    TIMES,
    Assembled,
    FixedSource,
    World,
    assemble,
    changed,
    clock,
    cut_off_after,
    job,
    make_world,
    plug,
    views_of,
    weights,
)

from pipeline import seeding
from pipeline.distillation.method import (
    BaseMethod,
    Batch,
    Context,
    Matchings,
    MethodConfig,
    Needs,
    Operations,
    Tables,
    Terms,
    Weights,
)
from pipeline.distillation.schedule import Lesson, ScheduleConfig, TeacherSchedule, Teaching
from pipeline.distillation.transform import TeacherTransform, TransformConfig
from pipeline.errors import (
    DamagedArtifactError,
    DivergedError,
    MissingArtifactError,
    ParamsError,
    ShapeError,
    StaleArtifactError,
    StillhouseError,
    UnknownNameError,
)
from pipeline.evaluation.cost import macs, num_params
from pipeline.evaluation.evaluate import evaluate, shown
from pipeline.features.source import OnlineSource
from pipeline.networks.layer import LayerSpec
from pipeline.networks.network import Network, Shape, Tap, Taps, build, probe
from pipeline.networks.weights import load, state_digest
from pipeline.params.pairs import PairBlock
from pipeline.params.plug import Plug
from pipeline.params.recipe import Epoch, Phase, Recipe
from pipeline.runs import check
from pipeline.runs.resolve import resolve_student
from pipeline.tables import table
from pipeline.training import loop
from pipeline.training.alone import train
from pipeline.training.batches import Views
from pipeline.training.distill import Distillation
from pipeline.training.loop import Training
from pipeline.training.step import Clock

pytestmark = pytest.mark.usefixtures("device")


@pytest.fixture(scope="module")
def world(device: str, tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def history(scratch: Path) -> list[dict[str, str]]:
    with (scratch / "history.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


# ------------------------------------------------------------------ the objective


class TwoTeachers(TeacherSchedule[ScheduleConfig]):
    """A small network beside the student teaches it too, and learns from labels itself."""

    def __init__(self, config: ScheduleConfig, context: Context) -> None:
        super().__init__(config, context)
        self.pupil = nn.Linear(64, context.num_classes)
        self.weights = {"ce": 3.0}

    def checkpoint(self, epoch: Epoch) -> str:
        return "early" if 2 * epoch.number < epoch.epochs else "last"

    def forward(self, student: Taps, batch: Batch) -> Teaching:
        logits = self.pupil(batch.image.flatten(1))
        lessons = (Lesson(batch.teacher), Lesson({"logits": logits}, weight=0.5, name="own"))
        return Teaching(lessons, {"pupil_ce": F.cross_entropy(logits, batch.label)}, {"pupil_ce": 3.0})


class Doubled(TeacherTransform[TransformConfig]):
    """Doubles the logits; has a parameter, which must stay as it is."""

    def __init__(self, config: TransformConfig, context: Context) -> None:
        super().__init__(config, context)
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, teacher: Taps, batch: Batch) -> Taps:
        return {name: self.factor * x for name, x in teacher.items()}


def objective(
    schedule: TeacherSchedule[Any] | None = None, transform: TeacherTransform[Any] | None = None
) -> tuple[Distillation, Assembled, Batch, Views, Clock]:
    found = assemble("kd")
    batch = found.batch(5)
    schedule = schedule or TeacherSchedule(ScheduleConfig(), found.context)
    made = Distillation(
        found.student, found.method, schedule, transform, FixedSource(batch.teacher), current(), 0,
        taps=found.needs.student,
    ).to(current().device)  # fmt: skip
    return made, found, batch, views_of(batch), clock()


def test_objective_weighs_and_sums_the_terms() -> None:
    made, found, batch, views, moment = objective()
    loss, terms = made(views, {}, moment)
    expected = found.method({"logits": found.student(batch.image)}, batch)
    assert terms.keys() == {"ce", "kd"}
    for name, term in expected.items():
        torch.testing.assert_close(terms[name], term, rtol=1e-6, atol=1e-7)  # float32 twice
    torch.testing.assert_close(loss, 0.1 * terms["ce"] + 0.9 * terms["kd"], rtol=1e-6, atol=1e-7)


def test_schedule_adds_lessons_and_terms_of_its_own() -> None:
    found = assemble("kd")
    schedule = TwoTeachers(ScheduleConfig(), found.context)
    made, found, _, views, moment = objective(schedule)
    loss, terms = made(views, {}, moment)
    assert list(terms) == ["pupil_ce", "ce", "kd", "own_ce", "own_kd"]
    expected = (
        3 * terms["pupil_ce"]
        + (0.1 * terms["ce"] + 0.9 * terms["kd"])
        + 0.5 * (0.1 * terms["own_ce"] + 0.9 * terms["own_kd"])
    )
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(terms["ce"], terms["own_ce"])  # labels are the same in both lessons
    assert not torch.isclose(terms["kd"], terms["own_kd"])
    loss.backward()
    assert schedule.pupil.weight.grad is not None  # trained beside the student


@pytest.mark.cpu
def test_schedule_chooses_the_checkpoint_of_an_epoch() -> None:
    found = assemble("kd")
    made, _, _, views, _ = objective(TwoTeachers(ScheduleConfig(), found.context))
    for epoch in range(4):
        made.start(Epoch("main", epoch, 4))
        made.begin(1, views.index)
    source = made.source
    assert isinstance(source, FixedSource)
    assert source.asked == ["early", "early", "last", "last"]


def test_transform_comes_before_the_method_and_is_not_trained() -> None:
    found = assemble("kd")
    transform = Doubled(TransformConfig(), found.context)
    made, found, batch, views, moment = objective(transform=transform)
    loss, terms = made(views, {}, moment)
    doubled = replace(batch, teacher={name: 2 * x for name, x in batch.teacher.items()})
    expected = found.method({"logits": found.student(batch.image)}, doubled)
    torch.testing.assert_close(terms["kd"], expected["kd"], rtol=1e-6, atol=1e-7)
    loss.backward()
    assert transform.factor.grad is None
    assert not transform.training


@pytest.mark.cpu
def test_a_term_without_a_weight_is_reported_in_one_line() -> None:
    found = assemble("kd")
    found.method.config = found.method.config.model_copy(update={"weights": {"ce": 1.0}})
    batch = found.batch()
    made = Distillation(
        found.student, found.method, TeacherSchedule(ScheduleConfig(), found.context), None,
        FixedSource(batch.teacher), current(), 0, taps=("logits",),
    )  # fmt: skip
    views = views_of(batch)
    with pytest.raises(
        ParamsError, match=r"Term 'kd' of the method has no weight; found weights for ce\."
    ) as error:
        made(views, {}, clock())
    one_line(error)


@pytest.mark.cpu
def test_draws_of_a_step_are_a_function_of_seed_and_step() -> None:
    seen: list[float] = []

    class Draws(BaseMethod[MethodConfig]):
        def forward(self, student: Taps, batch: Batch) -> Terms:
            seen.append(batch.uniform(1).item())
            return {"ce": student["logits"].mean()}

    found = assemble("kd")
    for seed, step in ((0, 0), (0, 1), (1, 0), (0, 0)):
        method = Draws(MethodConfig(weights={"ce": 1.0}), found.context)
        schedule = TeacherSchedule(ScheduleConfig(), found.context)
        batch = found.batch()
        source, where = FixedSource({}), current()
        made = Distillation(found.student, method, schedule, None, source, where, seed, taps=("logits",))
        made(views_of(batch), {}, clock(0, step))
    assert seen[0] == seen[3]
    assert len(set(seen)) == 3


# ------------------------------------------------------------------ paired seeds, both sources


def test_for_one_seed_init_order_and_views_are_shared(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[list[Views]] = []

    def run(self: Training) -> list[Any]:
        shown.append([views for epoch in (0, 1) for views in self.batches.epoch(epoch)])
        return []

    monkeypatch.setattr(Training, "run", run)
    alone, folder = world.student(), world.path("scratch/paired-alone")
    train(job(folder), alone.network, alone.recipe, alone.views, world.prepared, 0)
    folders = [folder]
    folders += [
        world.distill(f"paired-{run}", world.inputs(run)) for run in ("kd", "fitnet", "online", "rco")
    ]
    inits = {(folder / "weights/init.safetensors").read_bytes() for folder in folders}
    assert len(inits) == 1
    for other in shown[1:]:
        for one, same in zip(shown[0], other, strict=True):
            assert one.slot == same.slot
            assert torch.equal(one.index, same.index)
            assert torch.equal(one.image, same.image)
            assert torch.equal(one.label, same.label)
    world.distill("paired-other", world.inputs("kd"), seed=1)
    assert (world.path("scratch/paired-other/weights/init.safetensors")).read_bytes() not in inits
    assert not torch.equal(shown[-1][0].index, shown[0][0].index)


def test_views_of_a_runs_own_are_what_its_student_and_its_teacher_see(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other run's json changes by them, and of this one nothing but its views and slots."""
    own = {"crop_flip": {"padding": 2, "fill": "reflect"}}
    pair = world.blocks(runs={"online": {"views": own}}) / "pairs/pair.json"
    found, before = (
        world.resolve(world.path("changed/views"), block=pair),
        world.resolve(world.path("changed/no")),
    )
    assert {run for run in found if found[run] != before[run]} == {"online"}
    content, plain = json.loads(found["online"]), json.loads(before["online"])
    assert content["views"] == {"space": "crop_flip", "padding": 2, "fill": "reflect", "flip": True}
    assert content["slots"] == 50
    assert {name for name in content if content[name] != plain[name]} == {"views", "slots"}

    shown: list[tuple[Tensor, Tensor]] = []
    features = OnlineSource.features

    def noted(
        self: OnlineSource, checkpoint: str, slot: Tensor, index: Tensor, image: Tensor, *rest: Any
    ) -> Taps:
        shown.extend(zip(index.cpu(), image.cpu(), strict=True))
        return features(self, checkpoint, slot, index, image, *rest)

    monkeypatch.setattr(OnlineSource, "features", noted)
    inputs = world.inputs("online").model_validate_json(found["online"])
    world.distill("own-views", inputs.model_copy(update={"recipe": Recipe(epochs=1, batch_size=20)}))
    images, meta = world.prepared.split("train").images, world.prepared.meta
    assert len(shown) == 100
    for index, image in shown:
        views = {crop_flip(images[int(index)], view, 2, "reflect").tobytes() for view in range(50)}
        pixels = (image * meta.std[0] + meta.mean[0]) * 255
        assert pixels.round().to(torch.uint8).numpy().tobytes() in views


@pytest.mark.parametrize("resident", [0, 1 << 30])
def test_cached_and_online_end_in_the_same_weights(world: World, resident: int) -> None:
    cached = world.distill(f"cached-{resident}", world.inputs("fitnet"), resident_bytes=resident)
    online = world.distill(f"online-{resident}", world.inputs("online"))
    one, other = weights(cached), weights(online)
    for name, x in one.items():
        # Ten steps in float32; the teacher ran on batches of another size.
        torch.testing.assert_close(x, other[name], rtol=1e-5, atol=1e-5, msg=name)
    untouched = load_file(cached / "weights/init.safetensors")
    assert (one["classifier.weight"] - untouched["classifier.weight"]).abs().max() > 1e-3


def test_distilled_loss_is_by_hand_in_the_first_step(world: World) -> None:
    inputs = world.inputs("kd", recipe=Recipe(epochs=1, batch_size=100))
    row = history(world.distill("first-step", inputs))[0]
    student, teacher = build(STUDENT, 0), load(world.path("artifacts/teachers/big/weights"))[0]
    from pipeline.training.setting import Setting

    setting = Setting.of(world.prepared, inputs.views, current())
    (views,) = setting.batches(inputs.recipe, 0, inputs.slots).epoch(0)
    with torch.no_grad():
        s, t = student(views.image.cpu()), teacher(views.image.cpu())
    p, q = (t / 4).softmax(1), (s / 4).softmax(1)
    assert float(row["ce"]) == pytest.approx(F.cross_entropy(s, views.label.cpu()).item(), rel=1e-5)
    assert float(row["kd"]) == pytest.approx((16 * (p * (p / q).log()).sum(1).mean()).item(), rel=1e-4)


def test_anchors_teach_in_their_epochs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.features.source import CachedSource

    asked: list[str] = []
    begin = CachedSource.begin

    def noted(self: CachedSource, checkpoint: str, *batch: Any) -> Any:
        asked.append(checkpoint)
        return begin(self, checkpoint, *batch)

    monkeypatch.setattr(CachedSource, "begin", noted)
    rco = world.distill("rco", world.inputs("rco"))
    assert asked == ["anchor_050"] * 5 + ["last"] * 5
    kd = world.distill("rco-kd", world.inputs("kd"))
    assert history(rco)[0]["kd"] != history(kd)[0]["kd"]


def test_anchors_without_the_last_can_teach_online(world: World) -> None:
    runs = {"online": {"schedule": {"anchors": {"anchors": ["anchor_050"]}}}}
    pair = world.blocks(runs=runs) / "pairs/pair.json"
    found = world.resolve(world.path("changed/online"), block=pair)
    inputs = world.inputs("online").model_validate_json(found["online"])
    assert set(inputs.weights) == {"anchor_050"}
    world.distill("online-anchor", inputs)  # FitNet's shapes are probed on the anchor


@pytest.mark.parametrize("run", ["fitnet", "online"])
def test_a_distillation_that_was_interrupted_ends_alike(
    world: World, monkeypatch: pytest.MonkeyPatch, run: str
) -> None:
    inputs = world.inputs(run, recipe=RECIPE.model_copy(update={"epochs": 3}))
    whole = world.distill(f"whole-{run}", inputs)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
        patch.setattr(Training, "_keep", cut_off_after(Training._keep, 2))
        with pytest.raises(KeyboardInterrupt):
            world.distill(f"cut-{run}", inputs)
    again = world.distill(f"cut-{run}", inputs)
    for name in ("init", "best", "last"):
        path = f"weights/{name}.safetensors"
        assert (again / path).read_bytes() == (whole / path).read_bytes(), name
    assert history(again) == history(whole)


# ------------------------------------------------------------------ operations


class Gate(nn.Module):
    """Scales every channel and offers what it scales by."""

    def __init__(self, name: str, channels: int, start: float) -> None:
        super().__init__()
        self.name = name
        self.scale = nn.Parameter(start * torch.rand(channels))

    def forward(self, x: Tensor, tap: Tap) -> Tensor:
        scaled: Tensor = x * tap(f"{self.name}.scale", self.scale.expand(len(x), -1))[..., None, None]
        return scaled


class ToyConfig(MethodConfig):
    weights: Weights = {"ce": 1.0, "gate": 0.1, "head": 0.5}


class ToyMethod(BaseMethod[ToyConfig]):
    """Inserts a gate for good, and trains a head that is dropped."""

    def __init__(self, config: ToyConfig, context: Context) -> None:
        super().__init__(config, context)
        assert context.student_shapes["stage2.scale"] == (32,)
        self.head = context.student.rest("stage2")

    @classmethod
    def needs(cls, config: ToyConfig) -> Needs:
        return Needs(student=("logits", "stage2", "stage2.scale"), teacher=("logits",))

    @classmethod
    def operations(
        cls, config: ToyConfig, student: Mapping[str, Shape], teacher: Mapping[str, Shape], tables: Tables
    ) -> Operations:
        return Operations({"stage2": LayerSpec.of("gate", start=2.0)})

    def forward(self, student: Taps, batch: Batch) -> Terms:
        return {
            "ce": F.cross_entropy(student["logits"], batch.label),
            "gate": (student["stage2.scale"] - 1).square().mean(),
            "head": F.cross_entropy(self.head(student["stage2"]), batch.label),
        }


@pytest.fixture
def toy(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    plug(monkeypatch, "layers", "gate", build=Gate)
    plug(monkeypatch, "methods", "toy", Config=ToyConfig, Method=ToyMethod, LAYERS=("gate",))
    return world


def finished(world: World, name: str, inputs: Any) -> Path:
    folder = world.distill(name, inputs)
    (folder / "inputs.json").write_text(json.dumps(inputs.model_dump(mode="json") | {"seed": 0}))
    return folder


def test_an_inserted_layer_is_trained_saved_evaluated_and_counted(toy: World) -> None:
    inputs = toy.inputs("kd", methods=(Plug.of("toy"),))
    folder = finished(toy, "toy", inputs)
    init, last = (load_file(folder / f"weights/{name}.safetensors") for name in ("init", "last"))
    plain = build(STUDENT, 0).state_dict()
    assert init.keys() - plain.keys() == {"inserted.stage2.scale"}
    for name, x in plain.items():
        assert torch.equal(init[name], x), name  # the rest starts as the plain student does
    assert not torch.equal(init["inserted.stage2.scale"], last["inserted.stage2.scale"])
    rows = history(folder)
    assert {"ce", "gate", "head"} <= rows[0].keys()
    expected = float(rows[0]["ce"]) + 0.1 * float(rows[0]["gate"]) + 0.5 * float(rows[0]["head"])
    assert float(rows[0]["loss"]) == pytest.approx(expected, rel=1e-5)
    found, arrays = evaluate(
        folder, toy.path("data/prepared/toy"), json.loads((folder / "inputs.json").read_text()), current()
    )
    assert found["params"] == num_params(build(STUDENT, 0)) + 32
    network, _ = load(folder / "weights")
    with torch.no_grad():  # without the gate the network is another one
        image = torch.randn(50, 1, 8, 8, generator=seeding.generator(0))
        gated = network(image)
        network.inserted = nn.ModuleDict()
        assert not torch.allclose(gated, network(image), atol=1e-2)
    assert arrays["last"].shape == (60,)


def test_a_head_is_trained_and_dropped(toy: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Tensor]] = []
    run = Training.run

    def watched(self: Training) -> list[Any]:
        method = self.modules["method"]
        seen.append({name: x.clone() for name, x in method.state_dict().items()})
        rows = run(self)
        seen.append(dict(method.state_dict()))
        return rows

    monkeypatch.setattr(Training, "run", watched)
    folder = toy.distill("toy-head", toy.inputs("kd", methods=(Plug.of("toy"),)))
    before, after = seen
    assert any(name.startswith("head.") for name in before)
    assert not any(torch.equal(x, after[name]) for name, x in before.items() if name.endswith("weight"))
    for name in ("init", "last", "best"):
        assert not any("head" in key for key in load_file(folder / f"weights/{name}.safetensors"))


@pytest.mark.cpu
def test_a_layer_at_an_unknown_tap_is_reported_in_one_line(
    toy: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = Operations({"stage9": LayerSpec.of("gate", start=1.0)})
    monkeypatch.setattr(ToyMethod, "operations", classmethod(lambda cls, *arguments: spec))
    with pytest.raises(UnknownNameError, match="Unknown tap 'stage9'") as error:
        toy.distill("toy-tap", toy.inputs("kd", methods=(Plug.of("toy"),)))
    one_line(error)


@pytest.mark.cpu
def test_a_student_tap_that_is_not_there_is_reported_in_one_line(world: World) -> None:
    inputs = world.inputs("fitnet", methods=(Plug.of("fitnet", student_tap="stage7"),))
    with pytest.raises(StillhouseError, match="stage7") as error:
        world.distill("no-tap", inputs)
    assert "stage2" in one_line(error)  # the taps that there are


class Phased(ToyMethod):
    """Trains its head first, on a frozen student."""

    def phases(self, recipe: Recipe) -> tuple[Phase, ...]:
        one = recipe.model_copy(update={"epochs": 1})
        return (Phase("heads", one, frozen=("units", "classifier")), Phase("all", one))

    def weights(self, batch: Batch) -> Weights:
        return {"ce": 0.0, "gate": 0.0, "head": 1.0} if batch.phase == "heads" else self.config.weights


def test_a_method_can_have_phases(toy: World, monkeypatch: pytest.MonkeyPatch) -> None:
    plug(monkeypatch, "methods", "phased", Config=ToyConfig, Method=Phased, LAYERS=("gate",))
    rows = history(toy.distill("phased", toy.inputs("kd", methods=(Plug.of("phased"),))))
    assert [row["phase"] for row in rows] == ["heads", "all"]
    assert float(rows[0]["loss"]) == pytest.approx(float(rows[0]["head"]), rel=1e-6)


class Failing(ToyMethod):
    def forward(self, student: Taps, batch: Batch) -> Terms:
        terms = super().forward(student, batch)
        return terms | {"gate": terms["gate"] * (float("nan") if batch.epoch == 1 else 1.0)}


def test_divergence_keeps_what_was_good(toy: World, monkeypatch: pytest.MonkeyPatch) -> None:
    plug(monkeypatch, "methods", "failing", Config=ToyConfig, Method=Failing, LAYERS=("gate",))
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    with pytest.raises(
        DivergedError, match=r"pair/kd seed 0: term 'gate' is nan in epoch 2, step 1\."
    ) as error:
        toy.distill("failing", toy.inputs("kd", methods=(Plug.of("failing"),)))
    one_line(error)
    scratch = toy.path("scratch/failing")
    assert (scratch / "checkpoint.safetensors").exists()
    assert all(torch.isfinite(x).all() for x in load_file(scratch / "weights/best.safetensors").values())
    assert not (scratch / "weights/last.safetensors").exists()


class Halved(TeacherTransform[TransformConfig]):
    """Keeps the first half of the channels."""

    @classmethod
    def shapes(
        cls, config: TransformConfig, teacher: Mapping[str, Shape], matchings: Matchings
    ) -> Mapping[str, Shape]:
        return {name: (shape[0] // 2, *shape[1:]) for name, shape in teacher.items()}

    def forward(self, teacher: Taps, batch: Batch) -> Taps:
        return {name: x[:, : x.shape[1] // 2] for name, x in teacher.items()}


def test_a_transform_may_change_the_shapes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    plug(monkeypatch, "transforms", "halved", Config=TransformConfig, Transform=Halved)
    world.distill("halved", world.inputs("fitnet", transform=Plug.of("halved")))
    seen = world.inputs("standardized", transform=Plug.of("halved"))
    with pytest.raises(ShapeError, match="standardizes 16 channels"):  # the table is of all 32
        world.distill("halved-standardized", seen)


# ------------------------------------------------------------------ what is read is what was resolved


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("run", "update", "match"),
    [
        ("kd", {"fingerprint": {"train": "0", "test": "0"}}, "is not the data"),
        ("kd", {"mean": (0.1,)}, "is not the data"),
        ("kd", {"stored": "other"}, "does not hold the 'logits'"),
        ("online", {"weights": {"last": "0"}}, "is not the file that this run was resolved with"),
        ("standardized", {"tables": {"moments": ("TABLE", "0")}}, "is not the file"),
    ],
)
def test_stale_inputs_are_refused(world: World, run: str, update: dict[str, Any], match: str) -> None:
    if "tables" in update:
        update = {"tables": {"moments": (world.inputs(run).tables["moments"][0], "0")}}
    if "stored" in update:
        held = world.inputs(run).stored["logits"]
        update = {"stored": {"logits": held.model_copy(update={"digest": {"last/train": "0"}})}}
    with pytest.raises(StaleArtifactError, match=match) as error:
        world.distill(f"stale-{run}", world.inputs(run, **update))
    assert "dvc repro" in one_line(error)


@pytest.mark.cpu
def test_a_missing_teacher_is_reported_in_one_line(world: World, tmp_path: Path) -> None:
    with pytest.raises(MissingArtifactError, match=r"last\.safetensors does not exist") as error:
        world.distill("no-teacher", world.inputs("online", weights_folder=str(tmp_path)))
    one_line(error)


# ------------------------------------------------------------------ evaluation


@pytest.fixture(scope="module")
def student(world: World) -> Path:
    return finished(world, "evaluated", world.inputs("kd"))


def evaluated(world: World, folder: Path, **update: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    inputs = json.loads((folder / "inputs.json").read_text()) | update
    return evaluate(folder, world.path("data/prepared/toy"), inputs, current())


def test_evaluation_against_numpy(world: World, student: Path) -> None:
    found, arrays = evaluated(world, student)
    split, meta = world.prepared.split("test"), world.prepared.meta
    images = ((np.array(split.images) / 255 - meta.mean[0]) / meta.std[0]).astype(np.float32)
    labels = np.array(split.labels)
    teacher = load(world.path("artifacts/teachers/big/weights"))[0]
    with torch.no_grad():
        taught = teacher(torch.from_numpy(images)).numpy().argmax(1)
        for name, prefix in (("last", ""), ("best", "best_")):
            scores = load(student / "weights", name)[0](torch.from_numpy(images)).numpy()
            predicted = scores.argmax(1)
            assert found[f"{prefix}top1"] == pytest.approx(100 * np.mean(predicted == labels), abs=1e-9)
            assert found[f"{prefix}top5"] == 100.0  # there are four classes
            agreement = f"{prefix}agreement"
            assert found[agreement] == pytest.approx(100 * np.mean(predicted == taught), abs=1e-9)
            np.testing.assert_array_equal(arrays[name], predicted)
    np.testing.assert_array_equal(arrays["label"], labels)


def test_evaluation_keeps_correlations_and_some_features(world: World, student: Path) -> None:
    found, arrays = evaluated(world, student)
    split, meta = world.prepared.split("test"), world.prepared.meta
    images = ((np.array(split.images) / 255 - meta.mean[0]) / meta.std[0]).astype(np.float32)
    network = load(student / "weights")[0]
    with torch.no_grad():
        taps = network.record(torch.from_numpy(images), ["logits", "pooled"])
    scores = taps["logits"].double().numpy()
    for i in range(CLASSES):
        for j in range(CLASSES):
            one, other = scores[:, i] - scores[:, i].mean(), scores[:, j] - scores[:, j].mean()
            expected = (one @ other) / np.sqrt((one @ one) * (other @ other))
            assert arrays["correlation"][i, j] == pytest.approx(expected, abs=1e-5)
    index = arrays["pooled_index"]
    assert sorted(index.tolist()) == list(range(60))  # fewer than thirty of each class
    np.testing.assert_allclose(arrays["pooled"], taps["pooled"].numpy()[index], rtol=1e-5, atol=1e-6)
    assert found["peak_bytes"] > 0


@pytest.mark.cpu
def test_features_are_kept_of_the_first_samples_of_at_most_ten_classes() -> None:
    labels = np.tile(np.arange(100), 60)
    index = shown(labels)
    assert np.unique(labels[index]).tolist() == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99]
    assert np.bincount(labels[index]).max() == 30
    assert (np.diff(index) > 0).all()


def test_evaluation_reports_cost_and_origin(world: World, student: Path) -> None:
    found, _ = evaluated(world, student)
    network, spec = load(student / "weights")
    assert found["params"] == num_params(network) == sum(x.numel() for x in network.parameters())
    assert found["macs"] == macs(network, spec.size, spec.channels) > 0
    assert found["epochs"] == 2
    assert found["best_epoch"] in (1, 2)
    expected = {"pair": "pair", "run": "kd", "methods": "kd", "teacher": "big", "student": "small",
                "seed": 0, "source": "cached", "slots": 9, "dataset": "toy", "network": "resnet8"}  # fmt: skip
    assert {key: found[key] for key in expected} == expected


@pytest.mark.cpu
@pytest.mark.parametrize("extra", [True, False])
def test_evaluation_takes_every_tensor_no_more_and_no_less(
    world: World, student: Path, tmp_path: Path, extra: bool
) -> None:
    folder = tmp_path / "student"
    shutil.copytree(student, folder)
    path = folder / "weights/last.safetensors"
    tensors = load_file(path)
    if extra:
        tensors["head.weight"] = torch.zeros(3)
    else:
        del tensors["classifier.bias"]
    save_file(tensors, path, {"digest": state_digest(tensors)})
    with pytest.raises(DamagedArtifactError, match="does not hold this network's weights") as error:
        evaluated(world, folder)
    assert ("head.weight" if extra else "classifier.bias") in one_line(error)


@pytest.mark.cpu
def test_predictions_of_another_teacher_are_refused(world: World, student: Path, tmp_path: Path) -> None:
    path = world.path("artifacts/predictions/teachers/big.npz")
    with np.load(path) as archive:
        arrays = dict(archive)
    for key, match in (("weights", "is of another teacher"), ("fingerprint", "was made with other data")):
        stale = tmp_path / f"{key}.npz"
        np.savez(stale, **(arrays | {key: np.array("0")}))
        with pytest.raises(StaleArtifactError, match=match) as error:
            evaluated(world, student, teacher_evaluation=str(stale))
        one_line(error)
    with pytest.raises(MissingArtifactError, match="does not exist"):
        evaluated(world, student, teacher_evaluation=str(tmp_path / "none.npz"))


# ------------------------------------------------------------------ resolution


def copied(world: World, tmp_path: Path, name: str) -> Path:
    source = world.path(name)
    copy = tmp_path / source.name
    shutil.copytree(source, copy)
    return copy


def rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content) or content))


@pytest.mark.cpu
def test_resolving_twice_gives_the_same_bytes(world: World, tmp_path: Path) -> None:
    folder = world.path("artifacts/inputs/pairs/pair")
    found = world.resolve(tmp_path / "out")
    runs = [path for path in folder.iterdir() if path.is_dir()]
    assert found == {run.name: (run / "0.json").read_bytes() for run in runs}
    for run in runs:
        assert {path.name for path in run.iterdir()} == {"0.json", "1.json"}
        for path in run.iterdir():
            assert (tmp_path / "out" / run.name / path.name).read_bytes() == path.read_bytes()


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("plug_in", "expected"),
    [
        ("methods/kd", {"kd", "rco"}),
        ("methods/fitnet", {"fitnet", "standardized", "online"}),
        ("schedules/anchors", {"rco"}),
        ("schedules/final", {"kd", "fitnet", "standardized", "online", "kcd"}),
        ("methods/mimicry", {"kcd"}),
        ("transforms/permutation", {"kcd"}),
        ("encodings/pooled", set()),
        ("networks/resnet", {"kd", "fitnet", "standardized", "online", "rco", "kcd"}),
        ("networks/vgg", set()),
        ("tables/moments", set()),  # the table's own hash stands for it
        ("stages/distill", set()),  # the stage depends on it itself
    ],
)
def test_only_runs_that_use_code_change_with_it(
    world: World, tmp_path: Path, plug_in: str, expected: set[str]
) -> None:
    code = copied(world, tmp_path, "artifacts/code")
    path = f"pipeline/{plug_in}.py" if not plug_in.startswith("stages") else f"{plug_in}.py"
    rewrite(code / f"{plug_in}.json", lambda hashes: hashes.__setitem__(path, "0"))
    before, after = world.resolve(tmp_path / "before"), world.resolve(tmp_path / "after", code=code)
    assert {run for run in before if before[run] != after[run]} == expected


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"runs": {"kd": {"methods": {"kd": {"temperature": 2.0}}}}}, {"kd"}),
        ({"runs": {"kd": {"methods": {"kd": {"temperature": 4.0}}}}}, set()),  # a default spelled out
        ({"runs": {"kd": {"schedule": "final"}}}, set()),
        ({"runs": {"kd": {"methods": {"kd": {}, "fitnet": {}}}}}, {"kd"}),
        ({"runs": {"kd": {"recipe": {"epochs": 3}}}}, {"kd"}),
        ({"runs": {"rco": {"schedule": {"anchors": {"anchors": ["last"]}}}}}, {"rco"}),
        ({"runs": {"kd": {"slots": 3}}}, {"kd"}),
        (
            {"students": {"small": {"recipe": {"quick": {"epochs": 3}}}}},
            {"kd", "fitnet", "standardized", "online", "rco", "kcd"},
        ),
        ({"pairs": {"pair": {"overrides": {"kd": {"methods": {"kd": {"temperature": 2.0}}}}}}}, {"kd"}),
        ({"seeds": [0]}, set()),
        ({"tables": {"other": {"moments": {"feature": "logits"}}}}, set()),
    ],
)
def test_only_runs_that_use_settings_change_with_them(
    world: World, tmp_path: Path, change: dict[str, Any], expected: set[str]
) -> None:
    pair = world.blocks(**change) / "pairs/pair.json"
    before, after = world.resolve(tmp_path / "before"), world.resolve(tmp_path / "after", block=pair)
    assert {run for run in before if before[run] != after[run]} == expected


@pytest.mark.cpu
def test_a_new_run_leaves_the_others_alone(world: World, tmp_path: Path) -> None:
    runs = {"hot": {"methods": {"kd": {"temperature": 8.0}}}}
    asked = ["pair/hot", "pair/kd", "pair/fitnet", "pair/standardized", "pair/online", "pair/rco", "pair/kcd"]
    pair = world.blocks(runs=runs, distill=asked) / "pairs/pair.json"
    before, after = world.resolve(tmp_path / "before"), world.resolve(tmp_path / "after", block=pair)
    assert after.keys() - before.keys() == {"hot"}
    assert all(after[run] == content for run, content in before.items())


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("feature", "expected"), [("logits", {"kd", "rco"}), ("stage2", {"fitnet", "standardized", "kcd"})]
)
def test_only_runs_that_read_a_feature_change_with_it(
    world: World, tmp_path: Path, feature: str, expected: set[str]
) -> None:
    store = copied(world, tmp_path, "artifacts/features/big.zarr")

    rewrite_manifest(store, lambda said: said["features"][feature]["digest"].update({"last/train": "0"}))
    tables = copied(world, tmp_path, "artifacts/tables/big")
    if feature == "stage2":  # the table is fitted again too
        refitted(tables / "moments.npz", digest="0")
    before = world.resolve(tmp_path / "before")
    after = world.resolve(tmp_path / "after", store=store, tables=tables)
    # The paths change with the copies, so they are put back before the bytes are compared.
    for run, content in after.items():
        for copy, original in ((store, "artifacts/features/big.zarr"), (tables, "artifacts/tables/big")):
            content = content.replace(str(copy).encode(), str(world.path(original)).encode())
        after[run] = content
    assert {run for run in before if before[run] != after[run]} == expected


def refitted(path: Path, **origin: Any) -> None:
    """Write a table as a fit of something else would have left it."""
    arrays, fitted_from = table.load(path, "dvc repro")
    table.save(path, table.Fitted(arrays, {}), fitted_from | origin)


@pytest.mark.cpu
def test_only_runs_that_read_a_table_change_with_it(world: World, tmp_path: Path) -> None:
    tables = copied(world, tmp_path, "artifacts/tables/big")
    np.savez(tables / "another.npz", x=np.zeros(3))  # a table that nothing asks for
    home = str(world.path("artifacts/tables/big")).encode()
    before = world.resolve(tmp_path / "before")
    for name, expected in (("same", set()), ("other", {"standardized"})):
        if name == "other":
            refitted(tables / "moments.npz", by="another version of the fit")
        after = world.resolve(tmp_path / name, tables=tables)
        assert {
            run for run in before if before[run] != after[run].replace(str(tables).encode(), home)
        } == expected


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("origin", "message"),
    [
        ({"teacher": "tall"}, "was fitted to teacher 'tall', expected 'big'"),
        ({"digest": "0"}, "was fitted to another 'stage2' than"),
        ({"feature": "stage1"}, "was fitted to another 'stage1' than"),
    ],
)
def test_a_table_of_another_teacher_or_store_is_refused(
    world: World, tmp_path: Path, origin: dict[str, Any], message: str
) -> None:
    tables = copied(world, tmp_path, "artifacts/tables/big")
    refitted(tables / "moments.npz", **origin)
    found = resolve_error(world, tmp_path / "out", tables=tables)
    assert message in found
    assert "dvc repro" in found


@pytest.mark.cpu
def test_inputs_name_what_is_read_and_nothing_else(world: World) -> None:
    assert set(world.inputs("kd").stored) == {"logits"}
    assert set(world.inputs("kd").stored["logits"].digest) == {"last/train"}
    assert set(world.inputs("rco").stored["logits"].digest) == {"last/train", "anchor_050/train"}
    assert world.inputs("kd").weights == {}
    assert set(world.inputs("online").weights) == {"last"}
    assert world.inputs("online").stored == {}
    assert set(world.inputs("standardized").tables) == {"moments"}
    assert "pipeline/distillation/methods/kd.py" in world.inputs("kd").code
    assert "pipeline/distillation/methods/fitnet.py" not in world.inputs("kd").code


def resolve_error(world: World, out: Path, **places: Path) -> str:
    with pytest.raises(StillhouseError) as error:
        world.resolve(out, **places)
    assert not out.exists()
    return one_line(error)


@pytest.mark.cpu
def test_a_missing_table_names_its_stage(world: World, tmp_path: Path) -> None:
    tables = copied(world, tmp_path, "artifacts/tables/big")
    (tables / "moments.npz").unlink()
    message = resolve_error(world, tmp_path / "out", tables=tables)
    assert "moments.npz does not exist" in message
    assert "dvc repro fit_table@big-moments" in message
    (tables / "moments.npz").touch()  # what the stage leaves where nobody asks
    assert "dvc repro fit_table@big-moments" in resolve_error(world, tmp_path / "out", tables=tables)


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("lacking", "match"),
    [
        ("feature", "does not hold teacher feature 'stage2'; it holds logits. Add it to teachers.big.features"),
        ("checkpoint", "does not hold checkpoint 'anchor_050'; it holds last. Add it to teachers.big.checkpoints"),
        ("slots", "holds 2 view slots of 'logits', expected 9. Raise teachers.big.features.logits.slots"),
    ],
)  # fmt: skip
def test_a_store_that_lacks_what_a_run_reads_is_refused(
    world: World, tmp_path: Path, lacking: str, match: str
) -> None:
    """As one of an earlier params.yaml would."""
    store = copied(world, tmp_path, "artifacts/features/big.zarr")

    def change(about: dict[str, Any]) -> None:
        if lacking == "feature":
            del about["features"]["stage2"]
        elif lacking == "checkpoint":
            del about["weights"]["anchor_050"]
        else:
            about["features"]["logits"]["slots"] = 2

    rewrite_manifest(store, change)
    message = resolve_error(world, tmp_path / "out", store=store)
    assert match in message
    assert "then: dvc repro extract_features@big" in message


@pytest.mark.cpu
@pytest.mark.parametrize("field", ["data", "views", "mean", "weights"])
def test_a_store_of_something_else_is_refused(world: World, tmp_path: Path, field: str) -> None:
    store = copied(world, tmp_path, "artifacts/features/big.zarr")

    def change(held: dict[str, Any]) -> None:
        if field == "data":
            held["data"]["train"] = "0"
        elif field == "views":
            held["views"]["padding"] = 2
        elif field == "weights":
            held["weights"]["last"] = "0"
        else:
            held["mean"] = [0.25]

    rewrite_manifest(store, change)
    message = resolve_error(world, tmp_path / "out", store=store)
    assert f"was made with other {field}" in message
    assert "dvc repro --force --single-item extract_features@big" in message


@pytest.mark.cpu
def test_other_normalization_is_another_students_json(world: World, tmp_path: Path) -> None:
    data = copied(world, tmp_path, "data/prepared/toy")
    block = PairBlock.model_validate_json(world.path("artifacts/params/pairs/pair.json").read_bytes()).student
    before = resolve_student(block, data, world.path("artifacts/code"))
    edit_meta(data, std=[0.5])
    after = resolve_student(block, data, world.path("artifacts/code"))
    assert (before.std, after.std) == (world.prepared.meta.std, (0.5,))
    assert before.fingerprint == after.fingerprint  # of the images alone


@pytest.mark.cpu
def test_students_of_open_families_resolve(world: World) -> None:
    block = PairBlock.model_validate_json(world.path("artifacts/params/pairs/pair.json").read_bytes()).student
    family = block.model_copy(update={"family": "timm", "network": "some_network"})
    inputs = resolve_student(family, world.path("data/prepared/toy"), world.path("artifacts/code"))
    assert inputs.network.network == "some_network"


@pytest.mark.cpu
def test_params_of_these_tests_are_whole(world: World) -> None:
    from training_fixtures import PARAMS

    check.check(changed(PARAMS, "seeds", [1]))
    assert isinstance(build(STUDENT, 0), Network)
    assert probe(build(STUDENT, 0), 8, 1)["logits"] == (CLASSES,)

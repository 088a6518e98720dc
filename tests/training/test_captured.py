"""Steps that are captured, and students that are trained side by side: the bits of a lone student's eager steps.

On a CPU a stand-in repeats what was recorded, as a CUDA graph does; on a GPU it is a graph.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from device_fixtures import current
from error_fixtures import one_line
from graph_fixtures import StandIn
from training_fixtures import (
    PARAMS,
    RECIPE,
    STUDENT,
    TIMES,
    VIEWS,
    FixedSource,
    World,
    assemble,
    clock,
    job,
    make_world,
    plug,
    views_of,
)

from pipeline.compute import graphs
from pipeline.compute import machine as machines
from pipeline.compute.graphs import Watch
from pipeline.compute.machine import Machine, machine
from pipeline.distillation.method import BaseMethod, Batch, MethodConfig, Needs, Terms, Weights
from pipeline.distillation.schedule import ScheduleConfig, TeacherSchedule
from pipeline.errors import CohortError, DivergedError, MachineError, ParamsError
from pipeline.features.source import RESIDENT_BYTES
from pipeline.networks.network import Taps
from pipeline.params.plug import Plug
from pipeline.params.recipe import Recipe
from pipeline.params.sections import merged
from pipeline.training import alone, assembly, cohort, distill
from pipeline.training.assembly import Assembly
from pipeline.training.cohort import Member, require_alike
from stages import distill as distill_stage
from stages import pretrain_student

pytestmark = pytest.mark.usefixtures("device")

# Four whole batches and one of 4 samples an epoch; the learning rate falls after the second epoch.
LEARN = Recipe(epochs=4, batch_size=24, learning_rate=0.05, milestones=(2,))
STAGE2 = {"student_tap": "stage2", "teacher_feature": "stage2"}
RUNS: dict[str, dict[str, Any]] = {
    "slkd": {"methods": "kd", "schedule": "self_learning"},
    "dskd": {"methods": "dskd"},
    "letkd": {"methods": "letkd"},
    "nearest": {
        "methods": {"letkd": {"places": {"final": {"table": "words", "encoding": "nearest"}}}},
        "source": "online",
    },
    "quest": {"methods": "quest"},
    "byot": {"methods": "byot"},
    "several": {"methods": {"kd": {}, "fitnet": {}}},
    "dynamic": {
        "methods": {"mimicry": STAGE2},
        "transform": {"permutation": {"features": ["stage2"], "student_tap": "stage2", "dynamic": 2}},
    },
}
WORLD = merged(
    PARAMS,
    {
        "seeds": [0],
        "teachers": {"big": {"features": {"final": {}, "last": {}}}},
        "tables": {"words": {"kmeans": {"feature": "final", "clusters": 12}}},
        "runs": RUNS,
        "distill": [*PARAMS["distill"], *(f"pair/{run}" for run in RUNS)],
    },
)


@pytest.fixture(scope="module")
def world(device: str, tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), WORLD)


@pytest.fixture
def graph(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    """Let machines capture: on a CPU by the stand-in, whose counts are those of the test."""
    monkeypatch.setattr(StandIn, "made", 0)
    monkeypatch.setattr(StandIn, "replayed", 0)
    if current().device.type == "cpu":
        monkeypatch.setattr(graphs, "Graph", StandIn)
    return StandIn


def capturing() -> Machine:
    return replace(current(), captured=True)


def eager(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Return a machine that captures nothing and computes the optimizer's step as one that does."""
    monkeypatch.setattr(Machine, "fused", property(lambda self: True))
    return current()


def student(
    world: World,
    run: str,
    folder: str,
    where: Machine,
    resident_bytes: int = RESIDENT_BYTES,
    **changes: Any,
) -> Path:
    """Distill a student by the inputs of a run, some of which are changed, and return its folder."""
    scratch = world.path(f"scratch/{folder}")
    inputs = world.inputs(run, recipe=LEARN, **changes)
    assembly.train(distill.prepare(inputs, job(scratch, run, machine=where), resident_bytes=resident_bytes))
    return scratch


def left(folder: Path) -> dict[str, Any]:
    """Return the bytes of all weights, and the history but for its times."""
    with (folder / "history.csv").open(newline="") as file:
        rows = [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]
    files = {path.name: path.read_bytes() for path in sorted((folder / "weights").glob("*.safetensors"))}
    return files | {"history": rows}


# ------------------------------------------------------------------ captured is eager


@pytest.mark.parametrize("run", sorted(name.removeprefix("pair/") for name in WORLD["distill"]))
def test_captured_steps_end_in_the_bits_of_eager_ones(
    world: World, run: str, graph: type[StandIn], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    captured = student(world, run, f"captured-{run}", capturing())
    assert "run eagerly" not in capsys.readouterr().err
    if current().device.type == "cpu":
        # Of 16 whole batches Python took the first three; it takes three more where epochs need another graph.
        graphs_needed = {"rco": 2, "dynamic": 4}.get(run, 1)
        assert (graph.made, graph.replayed) == (graphs_needed, 16 - 3 * graphs_needed)
    expected = left(student(world, run, f"eager-{run}", eager(monkeypatch)))
    assert left(captured) == expected
    rates = [row["learning_rate"] for row in expected["history"]]
    assert rates[1] != rates[2]  # a frozen one would show


def test_a_teachers_steps_are_captured_too(
    world: World, graph: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(name: str, where: Machine) -> dict[str, Any]:
        scratch = world.path(f"scratch/{name}")
        alone.train(
            job(scratch, name, machine=where), STUDENT, LEARN, VIEWS, world.prepared, 0, {"half": 0.5}
        )
        return left(scratch)

    assert trained("teacher-captured", capturing()) == trained("teacher-eager", eager(monkeypatch))


@pytest.mark.parametrize("resident", [0, 20_000], ids=["none", "some"])
def test_what_is_read_from_the_disk_is_replayed_as_well(
    world: World, graph: type[StandIn], monkeypatch: pytest.MonkeyPatch, resident: int
) -> None:
    captured = left(student(world, "fitnet", f"read-captured-{resident}", capturing(), resident))
    assert captured == left(student(world, "fitnet", f"read-eager-{resident}", eager(monkeypatch), resident))


@pytest.mark.cpu
def test_the_stand_in_would_show_a_number_of_python(graph: type[StandIn]) -> None:
    """What the comparisons above rest on: a value that Python changes stays as it was recorded."""
    x, factor = torch.zeros(3), [1.0]

    def none(result: object) -> None:
        return None

    frozen = graph([lambda: none(x.add_(factor[0]))])
    for value in (1.0, 10.0, 100.0):
        factor[0] = value
        frozen.replay()
    assert x.tolist() == [3.0] * 3


# ------------------------------------------------------------------ what cannot be captured


class Reads(BaseMethod[MethodConfig]):
    """Branches on a value of its loss, as a plug-in may."""

    @classmethod
    def needs(cls, config: MethodConfig) -> Needs:
        return Needs(student=("logits",), teacher=("logits",))

    def forward(self, student: Taps, batch: Batch) -> Terms:
        ce = F.cross_entropy(student["logits"], batch.label)
        return {"ce": ce * 2 if float(ce.detach()) > 1 else ce}


class ReadsConfig(MethodConfig):
    weights: Weights = {"ce": 1.0}


def test_a_step_that_reads_a_value_runs_eagerly_and_says_so(
    world: World, graph: type[StandIn], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    plug(monkeypatch, "methods", "reads", Config=ReadsConfig, Method=Reads)
    methods = (Plug.model_validate("reads"),)

    found = left(student(world, "kd", "reads-captured", capturing(), methods=methods))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "its steps run eagerly and are not captured, because" in lines[0]
    assert "reads a value back" in lines[0]
    assert graph.made == 0
    assert found == left(student(world, "kd", "reads-eager", eager(monkeypatch), methods=methods))


class Waits(BaseMethod[ReadsConfig]):
    """Waits for the GPU, which no operation shows and no capture may."""

    @classmethod
    def needs(cls, config: ReadsConfig) -> Needs:
        return Needs(student=("logits",), teacher=("logits",))

    def forward(self, student: Taps, batch: Batch) -> Terms:
        if batch.image.is_cuda:
            torch.cuda.synchronize()
        return {"ce": F.cross_entropy(student["logits"], batch.label)}


class Fails(StandIn):
    """Fails half-way, and again at the capture's end, as one of torch does."""

    def __init__(self, branches: Any) -> None:
        try:
            raise RuntimeError("operation not permitted\nwhen stream is capturing")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")


def test_a_capture_that_fails_half_way_leaves_eager_steps_and_further_captures(
    world: World, graph: type[StandIn], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    plug(monkeypatch, "methods", "waits", Config=ReadsConfig, Method=Waits)
    methods = (Plug.model_validate("waits"),)

    with monkeypatch.context() as patch:
        if current().device.type == "cpu":
            patch.setattr(graphs, "Graph", Fails)
        found = left(student(world, "kd", "waits-captured", capturing(), methods=methods))
    (line,) = capsys.readouterr().err.splitlines()
    assert "its steps run eagerly and are not captured, because" in line
    assert "operation not permitted" in line
    F.dropout(torch.ones(3, device=current().device))  # the generator has left the capture
    student(world, "kd", "after-a-failure", capturing())
    assert "run eagerly" not in capsys.readouterr().err
    assert found == left(student(world, "kd", "waits-eager", eager(monkeypatch), methods=methods))


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("work", "words"),
    [
        (lambda x: x.sum().item(), "reads a value back"),
        (lambda x: x[x > 0], "picks by a mask"),
        (lambda x: x.nonzero(), "reads a value back"),
        (lambda x: x.long().bincount(), "reads a value back"),
        (lambda x: torch.linalg.inv(x.diag()), "reads a value back"),
        (lambda x: x.repeat_interleave(x.long()), "reads a value back"),
        (lambda x: x.repeat_interleave(3), None),
        (lambda x: F.dropout(x, 0.5), "draws random numbers"),
        (lambda x: torch.rand(2, device=x.device), "draws random numbers"),
        (lambda x: (x + 1).relu().mean(), None),
        (lambda x: torch.arange(3, device=x.device), None),
    ],
)
def test_a_watch_finds_what_ties_work_to_the_cpu(work: Callable[[Any], Any], words: str | None) -> None:
    watch = Watch(torch.device("cpu"))
    with watch:
        work(torch.ones(4))
    assert (watch.found is None) == (words is None)
    assert words is None or words in (watch.found or "")


@pytest.mark.cpu
def test_a_watch_finds_tensors_of_another_device() -> None:
    meta = torch.device("meta")
    for work, words in (
        (lambda: torch.zeros(3), "makes a tensor on the CPU"),
        (lambda: torch.zeros(3).to(meta), "makes a tensor on the CPU"),
        (lambda: torch.zeros(3, device=meta).copy_(torch.zeros(3)), "makes a tensor on the CPU"),
    ):
        watch = Watch(meta)
        with watch:
            work()
        assert watch.found is not None
        assert words in watch.found
    given, watch = torch.zeros(3), Watch(meta)
    with watch:
        given.to(meta)
    assert watch.found is not None
    assert "reads a tensor on the CPU" in watch.found


@pytest.mark.cpu
def test_options_that_a_cpu_does_not_have_are_one_line() -> None:
    with pytest.raises(MachineError, match=r"--steps is 'captured', which GPUs do.*Give auto or eager"):
        machine("cpu", steps="captured")
    with pytest.raises(MachineError, match=r"--steps is 'graph'\. Give auto, eager or captured\."):
        machine("cpu", steps="graph")
    assert not machine("cpu").captured
    assert not machine("cpu").channels_last


# ------------------------------------------------------------------ side by side


def members(world: World, runs: list[str], where: Machine, prefix: str) -> tuple[list[Member], list[Path]]:
    from pipeline.compute.distributed import ALONE, building

    outs = [world.path(f"{prefix}/{run}") for run in runs]

    def ready(run: str, scratch: Path) -> Any:
        return distill.prepare(world.inputs(run, recipe=LEARN), job(scratch, run, machine=where))

    return [
        Member(building(out, ALONE), lambda scratch, run=run: ready(run, scratch), lambda scratch: None)
        for run, out in zip(runs, outs, strict=True)
    ], outs


SIDE_BY_SIDE = ["kd", "fitnet", "slkd", "dskd", "rco", "dynamic"]


def test_students_side_by_side_are_lone_students_to_the_bit(world: World, graph: type[StandIn]) -> None:
    group, outs = members(world, SIDE_BY_SIDE, capturing(), "cohort")
    cohort.train(group, replace(capturing(), cohort=len(group)))
    if current().device.type == "cpu":
        assert graph.made > 1  # one graph for all, and anew where one of them needs another
        assert graph.replayed > 0
    for run, out in zip(SIDE_BY_SIDE, outs, strict=True):
        assert left(out) == left(student(world, run, f"lone-{run}", capturing())), run


def test_one_after_another_they_are_too(world: World) -> None:
    group, outs = members(world, SIDE_BY_SIDE[:3], current(), "series")
    cohort.train(group, current())
    for run, out in zip(SIDE_BY_SIDE, outs, strict=False):
        assert left(out) == left(student(world, run, f"single-{run}", current())), run


@pytest.mark.parametrize("captured", [False, True])
def test_one_that_fails_leaves_the_others_their_results(
    world: World, graph: type[StandIn], captured: bool
) -> None:
    where = capturing() if captured else current()
    group, outs = members(world, ["kd", "fitnet", "rco"], where, f"failing-{captured}")
    spoiled = world.inputs("fitnet", recipe=LEARN.model_copy(update={"learning_rate": 1e30}))
    group[1] = replace(
        group[1], prepare=lambda scratch: distill.prepare(spoiled, job(scratch, "spoiled", machine=where))
    )
    with pytest.raises(DivergedError, match="spoiled"):
        cohort.train(group, where)
    assert [out.exists() for out in outs] == [True, False, True]
    for run, out in ((("kd"), outs[0]), ("rco", outs[2])):
        assert left(out) == left(student(world, run, f"beside-{captured}-{run}", where))

    group, _ = members(world, ["kd", "fitnet"], where, f"both-{captured}")
    group = [
        replace(one, prepare=lambda scratch: distill.prepare(spoiled, job(scratch, "spoiled", machine=where)))
        for one in group
    ]
    with pytest.raises(CohortError, match=r"2 of 2 students have no result: spoiled.* / spoiled") as error:
        cohort.train(group, where)
    one_line(error)


class Refuses(BaseMethod[ReadsConfig]):
    """Does not like the first batch."""

    def check(self, batch: Batch) -> None:
        raise ParamsError("refused: the first batch. Change params.yaml, then: dvc repro")

    def forward(self, student: Taps, batch: Batch) -> Terms:
        return {"ce": F.cross_entropy(student["logits"], batch.label)}


@pytest.mark.parametrize("captured", [False, True])
def test_one_that_fails_within_a_step_leaves_the_others_theirs(
    world: World, graph: type[StandIn], monkeypatch: pytest.MonkeyPatch, captured: bool
) -> None:
    plug(monkeypatch, "methods", "refuses", Config=ReadsConfig, Method=Refuses)
    where = capturing() if captured else current()
    group, outs = members(world, ["kd", "fitnet", "rco"], where, f"refused-{captured}")
    inputs = world.inputs("kd", recipe=LEARN, methods=(Plug.model_validate("refuses"),))
    group[1] = replace(
        group[1], prepare=lambda scratch: distill.prepare(inputs, job(scratch, "refuses", machine=where))
    )
    with pytest.raises(ParamsError, match="refused"):
        cohort.train(group, where)
    assert [out.exists() for out in outs] == [True, False, True]
    for run, out in (("kd", outs[0]), ("rco", outs[2])):
        assert left(out) == left(student(world, run, f"past-{captured}-{run}", where))


def test_the_time_of_an_epoch_is_that_of_its_steps(
    world: World, graph: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not that of the evaluations of students beside it; by a clock that they alone move far."""
    from pipeline.training import loop
    from pipeline.training import step as steps

    now = [0.0]

    def clock_by_hand() -> float:
        now[0] += 1
        return now[0]

    def evaluate() -> dict[str, float]:
        now[0] += 1000
        return {"top1": 1.0}

    monkeypatch.setattr(steps, "time", SimpleNamespace(perf_counter=clock_by_hand))
    trainings = []
    for run in ("kd", "fitnet", "rco"):
        where = job(world.path(f"scratch/timed-{run}"), run, machine=capturing())
        training = distill.prepare(world.inputs(run, recipe=LEARN), where).training
        trainings.append(replace(training, evaluate=evaluate))
    for history in loop.run(trainings):
        assert isinstance(history, list)
        assert len(history) == LEARN.epochs
        assert all(0 < float(row["seconds"]) < 100 for row in history)
    assert now[0] > 1000 * LEARN.epochs * len(trainings)


def test_a_cohort_that_was_interrupted_resumes(
    world: World, graph: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    from training_fixtures import cut_off_after

    from pipeline.training import loop
    from pipeline.training.loop import Training

    where = replace(capturing(), cohort=2)
    group, whole = members(world, ["kd", "slkd"], where, "whole")
    cohort.train(group, where)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
        patch.setattr(Training, "_keep", cut_off_after(Training._keep, 2))
        group, cut = members(world, ["kd", "slkd"], where, "cut")
        with pytest.raises(KeyboardInterrupt):
            cohort.train(group, where)
    assert not any(out.exists() for out in cut)
    group, cut = members(world, ["kd", "slkd"], where, "cut")
    cohort.train(group, where)
    for one, other in zip(whole, cut, strict=True):
        assert left(one) == left(other)


ITERATIONS = Recipe(iterations=13, batch_size=24, learning_rate=0.05, milestones=(5, 8), warmup=3)


def test_a_graph_reads_the_rate_of_every_step(
    world: World, graph: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(name: str, where: Machine) -> dict[str, Any]:
        scratch = world.path(f"scratch/{name}")
        alone.train(job(scratch, name, machine=where), STUDENT, ITERATIONS, VIEWS, world.prepared, 0)
        return left(scratch)

    captured = trained("iterations-captured", capturing())
    if current().device.type == "cpu":
        # Epochs of four whole batches and a smaller one, the last epoch of three: nine whole ones by one graph.
        assert (graph.made, graph.replayed) == (1, 11 - 3)
    assert captured == trained("iterations-eager", eager(monkeypatch))
    assert [float(row["learning_rate"]) for row in captured["history"]] == pytest.approx([0.05, 5e-4, 5e-4])


EVERYTHING: dict[str, Any] = {
    "optimizer": "adamw",
    "learning_rate": 2e-3,
    "schedule": "cosine",
    "milestones": (),
    "undecayed": ("bias", "norm"),
    "label_smoothing": 0.1,
    "clip": 0.5,
    "ema": 0.9,
    "class_weights": {"0": 3.0},
    "sampling": "balanced",
}


@pytest.mark.parametrize("unit", ["epochs", "iterations"])
@pytest.mark.parametrize(
    "names",
    [
        ("optimizer", "learning_rate"),
        ("clip", "ema", "undecayed"),
        ("class_weights", "sampling"),
        tuple(EVERYTHING),
    ],
)
def test_every_setting_of_a_recipe_is_captured(
    world: World,
    graph: type[StandIn],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    unit: str,
    names: tuple[str, ...],
) -> None:
    recipe = (LEARN if unit == "epochs" else ITERATIONS).model_copy(update={n: EVERYTHING[n] for n in names})
    folder = f"{unit}-{len(names)}"

    def trained(name: str, where: Machine) -> dict[str, Any]:
        scratch = world.path(f"scratch/{name}-{folder}")
        alone.train(job(scratch, name, machine=where), STUDENT, recipe, VIEWS, world.prepared, 0)
        return left(scratch)

    captured = trained("settings-captured", capturing())
    assert "run eagerly" not in capsys.readouterr().err
    if current().device.type == "cpu":
        assert graph.made == 1
    assert captured == trained("settings-eager", eager(monkeypatch))


def test_every_setting_of_a_recipe_side_by_side(
    world: World, graph: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Distilled too, and an interrupted one ends alike: ProKD's phases have optimizers and recipes of their own."""
    from training_fixtures import cut_off_after

    from pipeline.training import loop
    from pipeline.training.loop import Training

    recipe = LEARN.model_copy(update=EVERYTHING | {"epochs": 2})

    def ready(run: str, folder: str, where: Machine) -> Assembly:
        phases = {"methods": (Plug.of("prokd", labels=1.0),)} if run == "prokd" else {}
        inputs = world.inputs("kd" if phases else run, recipe=recipe, **phases)
        return distill.prepare(inputs, job(world.path(f"scratch/{folder}-{run}"), run, machine=where))

    runs = {"kd": 1, "prokd": 3}  # epochs before the interruption, which is within ProKD's second phase
    assert assembly.run([ready(run, "beside", capturing()) for run in runs]) == [None] * len(runs)
    for run, epochs in runs.items():
        with monkeypatch.context() as patch:
            patch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
            patch.setattr(Training, "_keep", cut_off_after(Training._keep, epochs))
            with pytest.raises(KeyboardInterrupt):
                assembly.train(ready(run, "resumed", capturing()))
    where = eager(monkeypatch)
    for run in runs:
        assembly.train(ready(run, "lone", where))
        assembly.train(ready(run, "resumed", where))
        expected = left(world.path(f"scratch/lone-{run}"))
        assert left(world.path(f"scratch/beside-{run}")) == expected, run
        assert left(world.path(f"scratch/resumed-{run}")) == expected, run


def test_students_side_by_side_may_end_within_an_epoch(world: World, graph: type[StandIn]) -> None:
    def ready(steps: int, folder: str) -> Assembly:
        recipe = ITERATIONS.model_copy(update={"iterations": steps})
        where = job(world.path(f"scratch/{folder}"), f"{steps} steps", machine=capturing())
        return distill.prepare(world.inputs("kd", recipe=recipe), where)

    assert assembly.run([ready(steps, f"ends-{steps}") for steps in (7, 13, 9)]) == [None] * 3
    for steps in (7, 13, 9):
        assembly.train(ready(steps, f"ends-alone-{steps}"))
        assert left(world.path(f"scratch/ends-{steps}")) == left(world.path(f"scratch/ends-alone-{steps}"))


@pytest.mark.cpu
def test_students_of_other_data_or_batches_are_refused_before_anything_is_made() -> None:
    one = ("pair/kd seed 0", "data/prepared/toy", RECIPE)
    require_alike([one, ("pair/kd seed 1", *one[1:])])
    with pytest.raises(
        ParamsError, match=r"kd seed 0 has the data .*toy and other has .*ten; .*a command each"
    ):
        require_alike([one, ("other", "data/prepared/ten", RECIPE)])
    with pytest.raises(ParamsError, match="has batches of 20 and other has 32"):
        require_alike([one, ("other", one[1], RECIPE.model_copy(update={"batch_size": 32}))])
    with pytest.raises(ParamsError, match="has drop_last False and other has True"):
        require_alike([one, ("other", one[1], RECIPE.model_copy(update={"drop_last": True}))])


@pytest.mark.parametrize("side_by_side", [False, True])
def test_the_stages_take_several(
    world: World, graph: type[StandIn], monkeypatch: pytest.MonkeyPatch, side_by_side: bool
) -> None:
    if side_by_side:
        monkeypatch.setattr(machines, "_captured", lambda steps, device: True)
    device, jsons = str(current().device), world.path("artifacts/inputs/pairs/pair")
    inputs = [jsons / run / "0.json" for run in ("kd", "slkd")]
    outs = [world.path(f"stage-{side_by_side}/{name}") for name in ("kd", "slkd")]
    distill_stage.main(inputs, out=outs, device=device)
    for path, out in zip(inputs, outs, strict=True):
        single = out.with_name(f"{out.name}-single")
        distill_stage.main([path], out=[single], device=device)
        assert left(out) == left(single)
        assert (out / "inputs.json").read_bytes() == (single / "inputs.json").read_bytes()

    plain, seeds = world.path("artifacts/inputs/students/small.json"), [0, 5]
    outs = [world.path(f"stage-{side_by_side}/alone-{seed}") for seed in seeds]
    pretrain_student.main([plain, plain], seed=seeds, out=outs, device=device)
    for seed, out in zip(seeds, outs, strict=True):
        single = out.with_name(f"{out.name}-single")
        pretrain_student.main([plain], seed=[seed], out=[single], device=device)
        assert left(out) == left(single)


@pytest.mark.cpu
def test_how_many_are_trained_side_by_side_follows_from_their_size(world: World) -> None:
    def training(where: Machine) -> Any:
        scratch = world.path("scratch/size")
        return distill.prepare(world.inputs("kd"), job(scratch, "size", machine=where)).training

    assert cohort.size(training(current()), current()) == 1  # not captured
    small = training(capturing())
    assert cohort.size(small, capturing()) == 8
    assert cohort.size(small, replace(capturing(), cohort=3)) == 3


def test_several_of_the_same_content_lie_on_a_device_once(world: World) -> None:
    one, other = (
        distill.prepare(world.inputs(run), job(world.path(f"scratch/once-{run}"), run)).training
        for run in ("kd", "rco")
    )
    assert one.batches.images.images.data_ptr() == other.batches.images.images.data_ptr()  # type: ignore[attr-defined]


# ------------------------------------------------------------------ draws


class Draws(BaseMethod[ReadsConfig]):
    """Adds noise that is a function of seed and step."""

    @classmethod
    def needs(cls, config: ReadsConfig) -> Needs:
        return Needs(student=("logits",), teacher=("logits",))

    def forward(self, student: Taps, batch: Batch) -> Terms:
        logits = student["logits"]
        return {"ce": F.cross_entropy(logits + batch.uniform(*logits.shape), batch.label)}


def test_draws_are_replayed_anew(world: World, graph: type[StandIn], monkeypatch: pytest.MonkeyPatch) -> None:
    plug(monkeypatch, "methods", "draws", Config=ReadsConfig, Method=Draws)
    methods = (Plug.model_validate("draws"),)

    captured = left(student(world, "kd", "draws-captured", capturing(), methods=methods))
    assert captured == left(student(world, "kd", "draws-eager", eager(monkeypatch), methods=methods))


def test_draws_are_uniform_and_differ_by_draw_and_step() -> None:
    found = assemble("kd")
    batch = found.batch()
    one = batch.uniform(100, 50)
    assert one.shape == (100, 50)
    assert ((one >= 0) & (one < 1)).all()
    assert one.mean().item() == pytest.approx(0.5, abs=0.02)  # 5,000 draws: four standard errors
    assert torch.equal(one, batch.uniform(100, 50))
    assert not torch.equal(one, batch.uniform(100, 50, draw=1))
    assert not torch.equal(one, replace(batch, step=batch.step + 1).uniform(100, 50))
    assert not torch.equal(one, replace(batch, seed=1).uniform(100, 50))


class WarmUp(BaseMethod[ReadsConfig]):
    """Its weight grows with the epoch."""

    def weights(self, batch: Batch) -> Any:
        return {"ce": ((1 + batch.epoch) / 4).clamp(max=1)}

    def forward(self, student: Taps, batch: Batch) -> Terms:
        return {"ce": F.cross_entropy(student["logits"], batch.label)}


def test_weights_may_follow_the_epoch() -> None:
    found = assemble("kd")
    method = WarmUp(ReadsConfig(), found.context)
    batch = found.batch()
    schedule = TeacherSchedule(ScheduleConfig(), found.context)
    objective = distill.Distillation(
        found.student, method, schedule, None, FixedSource({}), current(), 0, taps=("logits",)
    )
    for epoch, factor in ((0, 0.25), (1, 0.5), (9, 1.0)):
        loss, terms = objective(views_of(batch), {}, clock(epoch))
        torch.testing.assert_close(loss, factor * terms["ce"])

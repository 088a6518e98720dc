"""Measurements on a GPU, at the smallest sizes and mostly on the CPU: what they compute, and what they say."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from device_fixtures import current
from graph_fixtures import StandIn
from PIL import Image
from test_benchmark import TINY
from torch import Tensor, nn

from pipeline.benchmark import first_step, gpu, precision, startup, step, suite
from pipeline.benchmark.material import FULL, FULL_GPU, QUICK, QUICK_GPU, Bench, scale
from pipeline.benchmark.plain import PADDING, PlainLoop
from pipeline.benchmark.record import Record
from pipeline.benchmark.toolkit import Samples, Toolkit
from pipeline.compute import graphs
from pipeline.compute.machine import Machine
from pipeline.errors import DivergedError
from pipeline.report.statistics import estimate, gain
from pipeline.training.loop import Training

SIZE, CLASSES = 6, 5
CPU = torch.device("cpu")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(TINY, current(), tmp_path)


def material(samples: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Return images uint8 (N, 3, 6, 6), labels int64 (N,) and logits (N, 5)."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (samples, 3, SIZE, SIZE), generator=draw, dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (samples,), generator=draw)
    return images, labels, torch.randn(samples, CLASSES, generator=draw)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, CLASSES))


def plain_loss(out: Tensor, taught: Tensor, label: Tensor) -> float:
    """Return 0.1 CE + 0.9 * 16 KL at a temperature of 4, sample by sample in float64."""
    losses = []
    for s, t, y in zip(out.double(), taught.double(), label.tolist(), strict=True):
        p, q = (np.exp(x.detach().cpu().numpy() / 4) for x in (t, s))
        p, q = p / p.sum(), q / q.sum()
        scores = s.detach().cpu().numpy()
        ce = math.log(np.exp(scores).sum()) - scores[y]
        losses.append(0.1 * ce + 0.9 * 16 * float((p * np.log(p / q)).sum()))
    return sum(losses) / len(losses)


# The plain loop.


def plain(batch_size: int = 3) -> PlainLoop:
    return PlainLoop(network(), *material(), current(), batch_size)


@pytest.mark.usefixtures("device")
def test_a_plain_views_is_a_crop_of_the_padded_image_mirrored_if_asked() -> None:
    loop, images = plain(), material()[0].numpy()
    loop.index.copy_(torch.tensor([4, 0, 4]))
    loop.corner.copy_(torch.tensor([[0, PADDING, 8], [8, PADDING, 3]]))
    loop.flip.copy_(torch.tensor([0, 1, 1]))
    padded = np.pad(images, ((0, 0), (0, 0), (PADDING, PADDING), (PADDING, PADDING)))
    expected = np.stack(
        [
            padded[4, :, 0:SIZE, 8 : 8 + SIZE],
            images[0, :, :, ::-1],
            padded[4, :, 8 : 8 + SIZE, 3 : 3 + SIZE][:, :, ::-1],
        ]
    )
    np.testing.assert_array_equal(loop.views().cpu().numpy(), expected)


@pytest.mark.usefixtures("device")
def test_a_plain_step_is_a_step_of_kd() -> None:
    """The loss to 1e-5, by hand from the logits; the weights follow SGD with weight decay and no momentum yet."""
    loop = plain()
    loop.optimizer.state.clear()  # a captured loop has taken steps already
    loop.index.copy_(torch.tensor([1, 5, 2]))
    rows = loop.index.cpu()
    _, labels, logits = material()
    before = {name: x.detach().clone() for name, x in loop.network.named_parameters()}
    out = loop.network(loop.views().float().sub(127.5).div(76.5)).detach()

    loop.step()

    assert loop.loss.item() == pytest.approx(plain_loss(out, logits[rows], labels[rows]), abs=1e-5)
    for name, x in loop.network.named_parameters():
        assert x.grad is not None
        expected = before[name] - 1e-4 * (x.grad + 5e-4 * before[name])
        # One rounding of float32: a GPU's kernel multiplies and adds at once.
        torch.testing.assert_close(x.detach(), expected, rtol=2e-7, atol=1e-8)


@pytest.mark.usefixtures("device")
def test_a_plain_epoch_sees_every_image_once_but_for_the_last_batch() -> None:
    loop = plain()
    seen: list[int] = []
    take = loop._take

    def watched() -> object:
        seen.extend(loop.index.tolist())
        assert 0 <= int(loop.corner.min()) <= int(loop.corner.max()) <= 2 * PADDING
        return take()

    loop._take = watched
    assert loop.epoch() == 6
    assert len(set(seen)) == 6
    assert loop.epoch() == 6
    assert seen[6:] != seen[:6]  # another order


# The toolkit's loop.


def toolkit(workers: int = 0) -> Toolkit:
    images, labels, _ = material()
    device = current().device
    return Toolkit(network(), network(1), images.numpy(), labels.numpy(), device, 3, workers)


def test_a_toolkits_image_is_a_normalized_crop() -> None:
    images, labels, _ = material()
    samples = Samples(images.numpy(), labels.numpy())
    padded = np.pad(images[2].numpy(), ((0, 0), (PADDING, PADDING), (PADDING, PADDING))) / 255
    crops = [
        padded[:, top : top + SIZE, left : left + SIZE][:, :, ::turn]
        for top in range(2 * PADDING + 1)
        for left in range(2 * PADDING + 1)
        for turn in (1, -1)
    ]
    seen = set()
    for _ in range(20):
        image, label = samples[2]
        near = [
            number for number, crop in enumerate(crops) if np.allclose((crop - 0.5) / 0.3, image, atol=1e-5)
        ]
        assert near
        seen.add(near[0])
        assert label == labels[2]
    assert len(seen) > 1
    assert len(samples) == 7


@pytest.mark.usefixtures("device")
def test_a_toolkits_step_learns_the_loss_of_the_plain_one() -> None:
    made, (_, labels, _) = toolkit(), material()
    image = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    there = image.to(current().device)
    with torch.no_grad():
        out, taught = made.student(there), made.teacher(there)
    before = [x.detach().clone() for x in made.student.parameters()]

    made.step(image, labels[:3])

    assert made.loss.item() == pytest.approx(plain_loss(out, taught, labels[:3]), abs=1e-5)
    assert all(not torch.equal(old, x) for old, x in zip(before, made.student.parameters(), strict=True))
    assert all(x.grad is None for x in made.teacher.parameters())
    assert made.student.training
    assert not made.teacher.training


def test_a_toolkits_rate_counts_its_steps_alone_and_leaves_the_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, calls = toolkit(), list[bool]()
    step = made.step

    def counted(image: Tensor, label: Tensor) -> None:
        calls.append(torch.backends.cudnn.allow_tf32)
        assert not torch.backends.cuda.matmul.allow_tf32
        step(image, label)

    monkeypatch.setattr(made, "step", counted)
    before = torch.backends.cudnn.allow_tf32
    made._ready = 4  # of workers that were idle
    assert made.rate(5) > 0
    assert calls == [True] * 9  # three epochs of two batches, then on
    assert torch.backends.cudnn.allow_tf32 == before


def test_teachers_lie_in_memory_as_a_stage_places_them_and_a_toolkits_as_torch_does(bench: Bench) -> None:
    last = torch.channels_last
    there = replace(bench, machine=replace(bench.machine, channels_last=True))
    for made, expected in (
        (there.teacher("resnet.resnet8").network, True),
        (there.random("resnet.resnet8"), False),
    ):
        weights = [x for x in made.parameters() if x.dim() == 4 and x.shape[1] > 1 and x.shape[2] > 1]
        assert weights
        assert {x.is_contiguous(memory_format=last) for x in weights} == {expected}


# Several students at a time.


def test_side_by_side_divides_all_images_by_the_time_of_all(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captured, students train at the same time, after an epoch that does not count; else one after another."""
    given: list[list[Training]] = []
    rows = iter([[{"seconds": 9.0}, {"seconds": 2.0}], [{"seconds": 9.0}, {"seconds": 3.0}]] * 2)

    def run(trainings: list[Training]) -> list[Any]:
        given.append(trainings)
        return [next(rows) for _ in trainings]

    monkeypatch.setattr(step, "run", run)
    batches = step.training_batches(bench, 8)
    learners = [step.Learner({"student": network()}, lambda: None)] * 2  # type: ignore[arg-type]  # never called
    captured = replace(bench, machine=replace(bench.machine, captured=True))
    assert step.side_by_side(captured, learners, batches)() == pytest.approx(2 * 8 / 3)
    assert step.side_by_side(bench, learners, batches)() == pytest.approx(2 * 8 / 5)
    assert [(one.captured, one.num_epochs) for run in given for one in run] == [(True, 2)] * 2 + [
        (False, 1)
    ] * 2
    assert len({one.identity for run in given for one in run}) == 4


def test_a_training_that_fails_is_no_measurement(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "run", lambda trainings: [DivergedError("term 'ce' is nan")])
    learner = step.Learner({"student": network()}, lambda: None)  # type: ignore[arg-type]  # never called
    with pytest.raises(DivergedError, match="ce"):
        step.side_by_side(bench, [learner], step.training_batches(bench, 8))()


# Records.


def by_name(records: list[Record]) -> dict[str, Record]:
    assert len({each.name for each in records}) == len(records)
    return {each.name: each for each in records}


@pytest.mark.usefixtures("device")
def test_loops_are_compared_with_targets_of_their_own(bench: Bench) -> None:
    found = by_name(gpu.loops(bench))
    targets = {
        "plain": None,
        "one": ">= 0.9",
        "cohort": ">= 1.6",
        "toolkit": None,
        "one_of_toolkit": ">= 7",
        "cohort_of_toolkit": ">= 11",
    }
    assert {name: each.target for name, each in found.items()} == {
        f"gpu/resnet14-resnet8/{name}": target for name, target in targets.items()
    }
    assert all(each.value is not None and math.isfinite(each.value) for each in found.values())


@pytest.mark.usefixtures("device")
def test_methods_are_compared_captured_and_eager(bench: Bench) -> None:
    found = by_name(gpu.methods(bench))
    names = ("letkd1 of 4,096 words", "dskd", "slkd")
    assert list(found) == [f"captured/resnet8/{name}" for name in names]
    assert {each.target for each in found.values()} == {">= 2"}
    assert all(each.value is not None and math.isfinite(each.value) for each in found.values())


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(("measure", "branches"), [(gpu.methods, [1, 1, 1]), (gpu.loops, [1, gpu.COHORT])])
def test_what_is_timed_as_captured_is_captured(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    measure: Callable[[Bench], list[Record]],
    branches: list[int],
) -> None:
    """On a CPU by a stand-in; eager steps would be said on standard error."""
    kind, made = graphs.Graph if current().device.type == "cuda" else StandIn, list[int]()

    def graph(works: list[Callable[[], None]]) -> Any:
        made.append(len(works))
        return kind(works)

    monkeypatch.setattr(graphs, "Graph", graph)
    sizes = replace(TINY, rounds=1, method_steps=5, images=5 * TINY.batch_size)
    measure(Bench(sizes, replace(bench.machine, captured=True), bench.folder))
    # One round warms up, and one counts; those of a round may follow each other in either order.
    assert sorted(made) == sorted(2 * branches)
    assert "eagerly" not in capsys.readouterr().err


def test_eager_steps_are_eager_and_the_others_the_machines(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines: list[bool] = []

    def timed(here: Bench, *args: Any, **how: Any) -> Callable[[], float]:
        captured = here.machine.captured
        machines.append(captured)
        return lambda: 6.0 if captured else 2.0

    monkeypatch.setattr(gpu, "distillation", timed)
    monkeypatch.setattr(gpu, "_taught", lambda bench: {"kd": gpu.Taught(gpu.Given({}), {})})
    there = replace(bench, machine=replace(bench.machine, captured=True))
    (found,) = gpu.methods(there)
    assert machines == [False, True]
    assert (found.value, found.holds, found.note) == (3, True, "6 images/s")


@pytest.mark.parametrize("name", ["gpu", "captured"])
def test_without_a_gpu_it_is_said_that_nothing_was_measured(name: str, tmp_path: Path) -> None:
    (found,) = suite.measure(name, Bench(TINY, Machine(CPU), tmp_path))
    assert (found.name, found.value, found.holds) == (name, None, None)
    assert found.note == "not measured: it compares what a GPU does; give --device cuda"


def test_a_gpu_has_sizes_and_targets_of_its_own() -> None:
    cuda = torch.device("cuda")
    assert [scale(device, quick) for device in (CPU, cuda) for quick in (False, True)] == [
        FULL,
        QUICK,
        FULL_GPU,
        QUICK_GPU,
    ]
    assert step.TARGET == {"cpu": 0.95, "cuda": 0.97}
    # What a method is timed with on a CPU is what everything is timed with.
    assert (FULL.compared, QUICK.compared) == (FULL.trained, QUICK.trained)
    assert QUICK_GPU.pairs[0] == ("resnet.resnet32x4", "resnet.resnet8x4")
    assert QUICK_GPU.images == 50_000


# Precisions.


@pytest.mark.usefixtures("device")
def test_precisions_are_compared_on_digits_and_on_a_folder(bench: Bench, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            for number in range(3):
                pixels = draw.integers(0, 256, (40, 36, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")

    found = by_name(precision.precision(replace(bench, data=tmp_path / "pets")))

    names = list(precision.machines(bench.machine))
    assert names[0] == "float32"
    expected = [f"precision/speed/{name}" for name in names]
    for data in ("digits", "pets"):
        for name in names:
            expected.append(f"precision/{data}/{name}")
            expected += [f"precision/{data}/{name}_difference"] * (name != "float32")
        expected.append(f"precision/{data}/auto")
    assert list(found) == expected
    for data in ("digits", "pets"):
        assert 0 <= (found[f"precision/{data}/bfloat16"].value or -1) <= 100
        assert found[f"precision/{data}/bfloat16_difference"].note.startswith("95 % interval ")


def test_without_a_folder_it_is_said(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "speeds", lambda bench: {"float32": 1.0})
    monkeypatch.setattr(precision, "accuracies", lambda bench, course: {"float32": [90.0, 91.0]})
    found = precision.precision(bench)
    assert [each.name for each in found if each.value is None] == ["precision/folder"]
    assert found[-1].note == "not measured: no image folder; give --data"


def test_auto_is_the_fastest_precision_whose_interval_shows_no_loss() -> None:
    exact = [90.0, 91.0, 92.0]
    accuracy = {"float32": exact, "tf32": [90.1, 90.8, 92.1], "bfloat16": [89.0, 90.1, 90.9]}
    rates = {"float32": 10.0, "tf32": 20.0, "bfloat16": 40.0}
    found = by_name(precision.judged("digits", accuracy, rates))  # type: ignore[arg-type]  # names of precisions

    assert found["precision/digits/float32"].value == pytest.approx(91)
    loss = gain(accuracy["bfloat16"], exact)
    assert found["precision/digits/bfloat16_difference"].value == pytest.approx(-1)
    low, high = loss.mean - (loss.half or 0), loss.mean + (loss.half or 0)
    assert high < 0
    assert found["precision/digits/bfloat16_difference"].note == f"95 % interval {low:+.2f} to {high:+.2f}"
    assert found["precision/digits/auto"].value == 2
    kept = gain(accuracy["tf32"], exact)
    assert found["precision/digits/auto"].note == (
        "auto should be tf32: the fastest whose interval does not show a loss, and it excludes losses above "
        f"{(kept.half or 0) - kept.mean:.2f}"
    )


def test_a_precision_that_gains_is_no_loss_and_float32_is_always_there() -> None:
    better, worse, none = estimate([1.0, 1.1]), estimate([-1.0, -1.1]), estimate([0.0, 0.0])
    rates = {"float32": 2.0, "bfloat16": 1.0}
    assert precision.fastest({"float32": none, "bfloat16": better}, rates) == "float32"
    assert (
        precision.fastest({"float32": none, "bfloat16": better}, {"float32": 1, "bfloat16": 2}) == "bfloat16"
    )
    assert precision.fastest({"float32": none, "bfloat16": worse}, {"float32": 1, "bfloat16": 2}) == "float32"


def test_seeds_start_alike_in_every_precision(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, order and views: the differences are paired."""
    starts: list[tuple[Tensor, int]] = []

    def run(trainings: list[Training]) -> list[float]:
        for training in trainings:
            weights = torch.cat([x.detach().flatten() for x in training.modules["student"].parameters()])
            starts.append((weights, training.batches.seed))
        return [0.0] * len(trainings)

    monkeypatch.setattr(precision, "_run", run)
    data = precision.digits(bench.folder)
    course = precision.Course("digits", data, precision.DIGITS, seeds=2, epochs=1)
    precision.accuracies(replace(bench, machine=Machine(CPU)), course)
    teacher, *students = starts
    assert teacher[1] == 0
    assert [seed for _, seed in students] == [0, 1, 0, 1]
    for exact, rounded in zip(students[:2], students[2:], strict=True):
        assert torch.equal(exact[0], rounded[0])
    assert not torch.equal(students[0][0], students[1][0])


# Start-up.


def test_the_parts_of_a_start_follow_each_other() -> None:
    moments = first_step.main(str(current().device), 64)
    assert tuple(moments) == first_step.MOMENTS
    assert all(later >= earlier for earlier, later in pairwise(moments.values()))


def test_the_parts_of_a_start_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(
        [0.0, 9.0, 100.0, 110.0, 200.0, 211.0]
    )  # start and end of three rounds, the first of which only warms
    later = iter([0.0, 100.0, 200.0])

    class Done:
        def __init__(self) -> None:
            start = next(later)
            moments = {name: start + number for number, name in enumerate(first_step.MOMENTS, start=1)}
            self.stdout = json.dumps(moments)

    monkeypatch.setattr(startup, "_started", lambda arguments: Done)
    monkeypatch.setattr(startup.time, "time", lambda: next(now))
    found = {each.name: each.value for each in startup.first_step("cuda", 64, 2)}
    parts = {f"startup/cuda/{name}": 1000 for name in first_step.MOMENTS}
    assert found == parts | {"startup/cuda/exit": 3500, "startup/cuda/all": 10_500}

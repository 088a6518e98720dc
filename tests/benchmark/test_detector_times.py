"""What a machine is asked of detectors: that it measures what stages run, scales by pixels, and gives up in words."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from detection_fixtures import SETTINGS, VIEWS
from device_fixtures import current
from feature_fixtures import run_stage
from rich.console import Console
from ruamel.yaml import YAML

from pipeline.benchmark import detector_page, detector_steps, detector_times, made_up
from pipeline.benchmark.detector_steps import Job
from pipeline.benchmark.detector_times import Measured, Speed
from pipeline.data.annotated import MEAN, STD, Expected
from pipeline.detection.prepared import Prepared
from pipeline.detection.spec import DetectorSpec
from pipeline.params.detection import ScaleFlip
from pipeline.params.plug import Plug
from pipeline.params.recipe import Recipe
from pipeline.runs.detector_planning import BoxPlan, Scene, Work
from pipeline.runs.detector_training import Lesson, Training
from stages import plan as stage

pytest.importorskip("pycocotools")
EXPECTED = Expected(3, {"train": 6, "test": 4}, {"train": 12, "test": 8}, ((48, 64), (64, 48)))
SCENE = Scene(VIEWS, MEAN, STD, EXPECTED, prepared=False, bytes=0, files=0)
NETWORK = DetectorSpec(
    network="faster_rcnn_resnet10x0.25",
    classes=3,
    settings=SETTINGS.resolved(loaded=False),
    views=VIEWS,
    mean=MEAN,
    std=STD,
)
ALONE = Training(dataset="toys", network=NETWORK, recipe=Recipe(epochs=1, batch_size=4, milestones=()))
MIMICRY = Plug.of("mimicry", student_tap="stage4_pre", teacher_feature="stage4_pre", reduction="sum")
# As a permutation leaves them: 128 channels of the teacher's 512.
LESSON = Lesson(
    methods=(MIMICRY,), taps=("stage4_pre",), features=("stage4_pre",), seen={"stage4_pre": (128, 4, 4)}
)
TAUGHT = ALONE.model_copy(
    update={"teacher": NETWORK.model_copy(update={"network": "faster_rcnn_resnet10"}), "lesson": LESSON}
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    made_up.make(EXPECTED, 8, 4, tmp_path / "toys")
    return tmp_path / "toys"


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure two of each thing: what is looked at is what is measured, not how long it takes."""
    monkeypatch.setattr(detector_steps, "ENOUGH", 0.0)


def job(data: Path, training: Training, **more: Any) -> Job:
    asked: dict[str, Any] = {"batch_pixels": 4.0 * 64 * 64, "plain_pixels": 64.0 * 64}
    return Job(training=training, data=str(data), device=str(current().device), **asked | more)


def measured(asked: Job, free: int | None = None) -> dict[str, Any]:
    """Return all that was said, what came later in the place of what came before."""
    said: dict[str, Any] = {}
    for piece in detector_steps.measure(Job.model_validate_json(asked.model_dump_json()), free):
        said |= piece
    return json.loads(json.dumps(said)) if said else said


@pytest.mark.cpu
def test_made_up_data_are_like_those_that_they_stand_for(data: Path) -> None:
    prepared = Prepared.open(data)
    assert prepared.meta.samples == {"train": 8, "test": 4}
    assert prepared.meta.boxes == {"train": 16, "test": 8}
    for split in prepared.splits.values():
        assert {tuple(size) for size in split.sizes.tolist()} <= {(48, 64), (64, 48)}
        for row in range(len(split)):
            height, width = split.sizes[row].tolist()
            boxes = split.target(row).boxes
            assert (boxes[:, :2] >= 0).all()
            assert (boxes[:, 2] <= width).all()
            assert (boxes[:, 3] <= height).all()
            assert (boxes[:, :2] < boxes[:, 2:]).all()
            assert split.image(row).size == (width, height)


@pytest.mark.usefixtures("device")
def test_a_detector_alone_is_measured(data: Path) -> None:
    said = measured(job(data, ALONE))
    assert said["images"] == 4  # a whole batch
    assert said["step"] > 0
    assert said["evaluated"] > 0
    assert said["memory"] > 10**6
    assert "paired" not in said
    assert said["device"] == current().hardware


@pytest.mark.usefixtures("device")
def test_with_a_teacher_beside_it_both_backbones_are_measured(data: Path) -> None:
    assert measured(job(data, TAUGHT))["paired"] > 0


@pytest.mark.usefixtures("device")
def test_what_would_not_fit_is_scaled_from_few_images(data: Path) -> None:
    said = measured(job(data, ALONE), free=-(10**15))
    assert said["images"] == 2
    # Some 60,000 times the pixels.
    more = measured(job(data, ALONE, batch_pixels=10**9), free=-(10**15))
    assert more["step"] > said["step"]


@pytest.mark.cpu
def test_memory_is_scaled_by_hand() -> None:
    # 30 of the step's 100 are gradients and weights, and 70 grow with the images.
    assert (
        detector_steps.scaled(held=20, peak=100, gradients=10, moments=10, ratio=4.0) == 20 + 10 + 10 + 70 * 4
    )
    assert detector_steps.scaled(held=20, peak=20, gradients=10, moments=20, ratio=4.0) == 50


@pytest.mark.cpu
def test_weights_are_not_downloaded_and_stay_finite() -> None:
    """Frozen batch norms that were never trained normalize nothing: over a hundred layers maps would overflow."""
    spec = NETWORK.model_copy(
        update={"network": "faster_rcnn_resnet152", "settings": SETTINGS.resolved(loaded=True)}
    )
    detector = detector_steps._built(spec, current())
    last = detector.maps([torch.randn(3, 64, 64)], ["stage4_pre"])["stage4_pre"]
    assert last.isfinite().all()
    assert last.abs().max() < 1e6


@pytest.mark.cpu
def test_pixels_of_batches_by_hand() -> None:
    plain = ScaleFlip(space="scale_flip", short=(64,), longest=96)
    one = replace(SCENE, views=plain, expected=replace(EXPECTED, sizes=((48, 64),)))
    # 64 by 85, which is padded to 64 by 96.
    assert detector_times.plain_pixels(one) == 64 * 96
    assert detector_times.batch_pixels(one, 4) == 4 * 64 * 96
    # One that stands beside one that lies pads both to 96 by 96.
    both = replace(SCENE, views=plain)
    assert detector_times.plain_pixels(both) == 64 * 96
    assert 4 * 64 * 96 < detector_times.batch_pixels(both, 4) < 4 * 96 * 96


@pytest.mark.cpu
def test_stages_by_hand() -> None:
    speed = Speed(batch=4, start=5.0, step=2.0, evaluated=0.5, paired=0.25)
    known = Measured({"teacher a": speed, "student b": replace(speed, step=None, start=7.0)}, {"toys": 0.01})
    train = Work("a", ("train_teacher@a",), "teacher a", "toys", shown=40, evaluated=12)
    assert detector_times.seconds(train, known) == 6 + 40 / 4 * 2 + 12 * 0.5
    pairs = Work("p", ("match_channels@p",), "student b", "toys", paired=100)
    assert detector_times.seconds(pairs, known) == 6 + 25
    assert (
        detector_times.seconds(Work("toys", ("prepare_data@toys",), None, "toys", listed=300), known) == 6 + 3
    )
    # Its step is not known.
    assert detector_times.seconds(replace(train, training="student b"), known) is None


@pytest.mark.cpu
def test_a_measurement_that_is_cut_short_keeps_what_it_has_said() -> None:
    lines = [
        '{"start": 3.0, "cores": 2, "threads": 1}',
        '{"step": 8.0, "images": 2, "memory": 5}',
        '{"step": 6.0}',
    ]
    speed = detector_times.read(lines, 16, "it was killed")
    assert (speed.step, speed.images, speed.memory, speed.evaluated) == (6.0, 2, 5, None)
    assert (speed.facts, speed.why) == ({"cores": 2, "threads": 1}, "it was killed")
    assert detector_times.read(['{"why": "no such thing"}'], 16).why == "no such thing"


@pytest.mark.cpu
def test_what_takes_too_long_or_fails_costs_the_plan_nothing_else(data: Path) -> None:
    slow = detector_times._try(job(data, ALONE), limit=0.01)
    assert (slow.step, slow.why) == (None, "it took more than 0 s to measure, and was ended")
    assert detector_times._reason(-9, "") == "it was killed, as happens where the memory does not suffice"
    assert (
        detector_times._reason(1, "Traceback\nRuntimeError: out of memory\n") == "RuntimeError: out of memory"
    )


@pytest.mark.cpu
def test_the_page_says_how_long_and_by_what() -> None:
    works = (
        Work("a", ("train_teacher@a",), "teacher a", "toys", shown=160, evaluated=0),
        Work("b", ("pretrain_student@b-0", "pretrain_student@b-1"), "student alone b", "toys", shown=16),
    )
    planned = BoxPlan((), {"teacher a": ALONE, "student alone b": ALONE}, works)
    facts = {"device": "cpu", "cores": 2, "threads": 1, "load_before": 0.5}
    speed = Speed(
        batch=16, start=0.0, step=3600.0, images=1, memory=10**9, evaluated=2.0, share=0.25, facts=facts
    )
    file = io.StringIO()
    known = Measured(
        {"teacher a": speed, "student alone b": replace(speed, images=0, step=None, why="slow")}, {}
    )
    detector_page.show(Console(file=file, width=200), planned, known, {"pretrain_student@b-0"})
    rows = [line.split() for line in file.getvalue().splitlines()]
    assert ["teacher", "a", "16", "1", "image", "0.00444", "1.0", "GB", "0.5"] in rows
    assert ["train_teacher", "a", "1", "10", "h", "10", "h"] in rows
    assert ["pretrain_student", "b", "1", "not", "known"] in rows
    text = " ".join(file.getvalue().split())
    assert "Measured on cpu (2 cores, 1 thread, load 0.5)" in text
    assert "a thread had a core for 25% of the time" in text
    assert "scaled by the pixels of a batch" in text
    assert "take 10 h on this machine, and those that are not known." in text


@pytest.mark.cpu
def test_spans() -> None:
    said = [detector_page.span(x) for x in (0.5, 119, 600, 7200, 47 * 3600, 4 * 86400, 1234 * 86400)]
    assert said == ["0.5 s", "119 s", "10 min", "2.0 h", "47 h", "4.0 days", "1,234 days"]


@pytest.mark.cpu
def test_the_command_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network = {
        "dataset": "toys",
        "network": NETWORK.network,
        "recipe": "quick",
        "detector": SETTINGS.model_dump(),
    }
    recipe = {"epochs": 1, "batch_size": 4, "learning_rate": 0.02, "milestones": []}
    source = {"shapes": {"train": 6, "test": 3, "smallest": 48, "largest": 64}}
    content = {
        "seeds": [],
        "recipes": {"quick": recipe},
        "datasets": {"toys": {"source": source, "views": {"scale_flip": {"short": [48], "longest": 96}}}},
        "teachers": {"finder": network},
        "distill": [],
    }
    YAML().dump(content, tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    # In this process: what a process of its own does beside it is shown above.
    monkeypatch.setattr(detector_times, "_try", in_this_process)
    assert run_stage(monkeypatch, stage.main, "--measure", "--json", "--device", "cpu") == 0
    printed = json.loads(capsys.readouterr().out)["measured"]
    assert printed["trainings"]["teacher finder"]["images"] == 4
    assert printed["stages"]["train_teacher@finder"] > 0
    assert printed["machine"]["device"] == "cpu"

    assert run_stage(monkeypatch, stage.main, "--measure", "--device", "nowhere") == 1
    assert capsys.readouterr().err.count("\n") <= 2


def in_this_process(asked: Job, limit: float) -> Speed:
    lines = [json.dumps(piece) for piece in detector_steps.measure(asked)]
    return detector_times.read(lines, asked.training.recipe.batch_size)

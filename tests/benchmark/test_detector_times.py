"""What a machine is asked of detectors: that it measures what stages run, scales by pixels, and gives up in words."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detection_fixtures import SETTINGS, VIEWS
from device_fixtures import current
from feature_fixtures import run_stage
from pydantic import ValidationError
from rich.console import Console
from ruamel.yaml import YAML

from pipeline.benchmark import detector_page, detector_steps, detector_times, made_up, process
from pipeline.benchmark.detector_steps import Job
from pipeline.benchmark.detector_times import Measured, Speed
from pipeline.data.annotated import MEAN, STD, Expected
from pipeline.detection.prepared import Prepared
from pipeline.detection.spec import DetectorSpec
from pipeline.params.detection import ScaleFlip
from pipeline.params.plug import Plug
from pipeline.params.recipe import Recipe
from pipeline.runs.detector_planning import BoxPlan, Work
from pipeline.runs.detector_scenes import Scene
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


def job(data: Path, training: Training, **more: Any) -> Job:
    """Return a job of two of each thing: what is looked at is what is measured, not how long it takes."""
    asked: dict[str, Any] = {
        "batch": 4,
        "enough": 0.0,
        "batch_pixels": 4.0 * 64 * 64,
        "plain_pixels": 64.0 * 64,
    }
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
def test_what_would_not_fit_is_scaled_from_few_images(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The peak is that of all tests which this process has run: a step of a tiny detector need not exceed it.
    monkeypatch.setattr(process, "held", lambda where: 0)
    said = measured(job(data, ALONE), free=-(10**15))
    assert said["images"] == 2
    # Some 61,000 times the pixels; how exact a time of milliseconds is depends on the neighbors.
    more = measured(job(data, ALONE, batch_pixels=10**9), free=-(10**15))
    assert more["step"] > 1000 * said["step"]
    assert more["memory"] > 1000 * said["memory"]


@pytest.mark.cpu
def test_memory_is_scaled_by_hand() -> None:
    # 30 of the step's 100 are gradients and weights, and 70 grow with the images.
    assert process.scaled(held=20, peak=100, gradients=10, moments=10, ratio=4.0) == 20 + 10 + 10 + 70 * 4
    assert process.scaled(held=20, peak=20, gradients=10, moments=20, ratio=4.0) == 50


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
    # It was not measured.
    assert detector_times.seconds(replace(train, training="student c"), known) is None
    # Nobody knows how long a process takes to start.
    alone = Measured({"teacher a": replace(speed, start=None)}, {"toys": 0.01})
    assert detector_times.seconds(train, alone) is None


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
    assert detector_times._reason(3, "\n") == "it ended with 3"
    with pytest.raises(ValidationError) as error:
        Recipe(batch_size=1)
    assert detector_times._reason(1, str(error.value)).startswith(
        "Input should be greater than or equal to 2"
    )


@pytest.mark.cpu
def test_a_process_of_its_own_measures(data: Path) -> None:
    """What is tried is the process, with its imports and `detector_steps.main`, and little of the detector."""
    speed = detector_times._try(job(data, ALONE), limit=60)
    assert speed.why == ""
    assert (speed.batch, speed.images) == (4, 4)
    assert speed.start is not None
    assert speed.start > 0
    assert speed.step is not None
    assert speed.step > 0
    assert speed.memory is not None
    assert speed.memory > 10**6
    assert speed.facts["device"] == current().hardware


@pytest.mark.cpu
def test_one_training_image_is_a_batch(data: Path) -> None:
    """No recipe has a batch of one, and yet that is what is trained with."""
    one = replace(SCENE, expected=replace(EXPECTED, samples={"train": 1, "test": 4}))
    asked = detector_times._job(ALONE, one, data, detector_times.Options(device="cpu"))
    assert asked.batch == 1
    said = measured(asked.model_copy(update={"enough": 0.0}))
    assert said["images"] == 1
    assert said["step"] > 0


@pytest.mark.cpu
def test_the_share_of_a_core_by_hand(tmp_path: Path) -> None:
    file = tmp_path / "schedstat"
    file.write_text("300 100 7\n")
    assert process.turns(file) == (300, 100)
    # 60 on a core, 20 ready without one; what it waited for otherwise is not said.
    assert process.share((300, 100), (360, 120)) == 0.75
    assert process.share((300, 100), (300, 100)) is None
    assert process.share(None, (360, 120)) is None
    file.write_text("0 0 0\n")
    assert process.turns(file) is None
    assert process.turns(tmp_path / "nothing") is None


@pytest.mark.cpu
def test_threads_without_work_are_not_taken_for_neighbors(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On many threads, what one of them does alone leaves the others idle."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    turns = iter([(10, 0), (30, 5)])
    monkeypatch.setattr(process, "turns", lambda: next(turns))
    assert measured(job(data, ALONE))["share"] == 0.8


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
    assert "Each stage of dvc repro also starts a process, which takes 0.0 s here" in text
    assert "a thread had a core for 25% of the time" in text
    assert "scaled by the pixels of a batch" in text
    assert "take 10 h on this machine, plus those that are not known." in text


@pytest.mark.cpu
def test_the_page_says_what_is_not_known() -> None:
    works = (
        Work("toys", ("prepare_data@toys",), None, "toys", listed=9),
        Work("a", ("train_teacher@a",), "teacher a", "toys", shown=160),
        Work("b", ("train_teacher@b",), "teacher b", "toys", shown=160),
    )
    known = Measured({"teacher a": Speed(batch=16, why="it was killed")}, {"toys": 0.01})
    file = io.StringIO()
    plan = BoxPlan((), {"teacher a": ALONE, "teacher b": ALONE}, works)
    detector_page.show(Console(file=file, width=200), plan, known, {"train_teacher@b"})
    rows = [line.split() for line in file.getvalue().splitlines()]
    assert ["prepare_data", "toys", "1", "not", "known"] in rows
    assert ["train_teacher", "a", "1", "not", "known"] in rows
    assert ["train_teacher", "b", "0"] in rows  # nobody asked
    text = " ".join(file.getvalue().split())
    assert "0.0 s" not in text
    assert text.endswith("the stages of detectors that are to be made take on this machine is not known.")


@pytest.mark.cpu
def test_spans() -> None:
    said = [detector_page.span(x) for x in (0.5, 119, 600, 7200, 47 * 3600, 4 * 86400, 1234 * 86400)]
    assert said == ["0.5 s", "119 s", "10 min", "2.0 h", "47 h", "4.0 days", "1,234 days"]


def toys(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Enter a folder whose params.yaml has a teacher that finds boxes; without seeds, a student is not trained."""
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
        "students": {"small": network},
        "distill": [],
    }
    YAML().dump(content, folder / "params.yaml")
    monkeypatch.chdir(folder)


@pytest.mark.cpu
def test_the_command_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toys(tmp_path, monkeypatch)
    # In this process, which is quicker; that a process of its own says as much is shown above.
    monkeypatch.setattr(detector_times, "_try", in_this_process)
    assert run_stage(monkeypatch, stage.main, "--measure", "--json", "--device", "cpu") == 0
    printed = json.loads(capsys.readouterr().out)["measured"]
    assert printed["trainings"].keys() == {"teacher finder"}
    assert printed["trainings"]["teacher finder"]["images"] == 4
    assert printed["stages"]["train_teacher@finder"] > 0
    assert printed["machine"]["device"] == "cpu"

    assert run_stage(monkeypatch, stage.main, "--measure", "--device", "nowhere") == 1
    assert capsys.readouterr().err.count("\n") <= 2


@pytest.mark.cpu
def test_nothing_is_measured_where_the_disk_is_too_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toys(tmp_path, monkeypatch)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))
    monkeypatch.setattr(detector_times, "_try", not_wanted)
    assert run_stage(monkeypatch, stage.main, "--measure", "--device", "cpu") == 1
    printed = capsys.readouterr()
    assert "train_teacher" not in printed.out
    assert "teacher" in printed.out  # the plan, as it is
    assert "error: The plan needs" in printed.err


@pytest.mark.cpu
def test_only_what_is_to_be_made_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toys(tmp_path, monkeypatch)
    monkeypatch.setattr(detector_times, "_try", not_wanted)
    made = frozenset({"prepare_data@toys", "train_teacher@finder", "evaluate_teacher@finder"})
    monkeypatch.setattr(stage, "_state", lambda params: stage.State(made))
    assert run_stage(monkeypatch, stage.main, "--measure", "--device", "cpu") == 0
    warned = "There is nothing to measure: no detector is left to train or to evaluate.\n"
    assert warned in capsys.readouterr().err


def in_this_process(asked: Job, limit: float) -> Speed:
    lines = [json.dumps(piece) for piece in detector_steps.measure(asked.model_copy(update={"enough": 0.0}))]
    return detector_times.read(lines, asked.batch)


def not_wanted(asked: Job, limit: float) -> Speed:
    raise AssertionError("nothing is to be measured")

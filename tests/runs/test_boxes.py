"""What params.yaml may ask for of data sets with boxes, what is refused, and what an edit reruns."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from dvc_project import make
from error_fixtures import one_line
from run_fixtures import left, run, stages_of

from pipeline.artifacts import closure
from pipeline.detection.spec import DetectorBlock
from pipeline.errors import StillhouseError
from pipeline.params import tasks
from pipeline.params.detection import ScaleFlip
from pipeline.runs.blocks import blocks, unasked
from pipeline.runs.check import check, project

Params = dict[str, Any]
DETECTOR = {
    "pyramid_width": 16,
    "head_width": 16,
    "smallest_anchor": 8,
    "proposals": 20,
    "sampled_anchors": 32,
    "sampled_proposals": 16,
}
TEACHER = {
    "dataset": "toys",
    "network": "faster_rcnn_resnet10x0.25",
    "recipe": "quick",
    "detector": DETECTOR,
}
PARAMS: Params = {
    "seeds": [0],
    "recipes": {"quick": {"epochs": 1, "batch_size": 2, "learning_rate": 0.02, "milestones": []}},
    "datasets": {
        "toys": {
            "source": {"shapes": {"train": 4, "test": 2, "smallest": 48, "largest": 64}},
            "views": {"scale_flip": {"short": [48], "longest": 96}},
        },
        "digits": {"source": "digits"},
    },
    "teachers": {
        "finder": TEACHER,
        "reader": {"dataset": "digits", "network": "resnet8", "recipe": "quick"},
    },
    "tables": {"words": {"kmeans": {"feature": "last", "clusters": 4}}},
    "distill": [],
}
STUDENT = {
    "dataset": "toys",
    "network": "faster_rcnn_resnet10x0.25",
    "recipe": "quick",
    "detector": DETECTOR,
}


def edited(place: str, value: Any) -> Params:
    """Return the params with another value at a place, "teachers.finder.network"."""
    content = deepcopy(PARAMS)
    *path, last = place.split(".")
    at = content
    for key in path:
        at = at.setdefault(key, {})
    at[last] = value
    return content


def test_a_detector_gets_a_block_of_its_own_kind() -> None:
    made = project(PARAMS)
    every = blocks(made)
    train = every["teachers/finder/train"]
    assert isinstance(train, DetectorBlock)
    assert train.views == ScaleFlip(space="scale_flip", short=(48,), longest=96)
    assert train.settings.smallest_anchor == 8
    assert unasked(made) == ["teachers/finder/extract", "teachers/finder/check"]
    asked = every["teachers/finder/asked"].model_dump()
    assert (asked["tables"], asked["codes"], asked["matched"]) == ({"words": None}, {"words": None}, ())
    assert every["datasets/toys"].model_dump()["task"] == "detection"
    # As it was before there was any other task.
    assert "task" not in every["datasets/digits"].model_dump()


WRONG: list[tuple[str, Any, tuple[str, ...]]] = [
    ("students", {"sam": STUDENT | {"network": "resnet8"}}, ("Unknown detector of students.sam.network: 'resnet8'",)),
    ("students", {"sam": STUDENT | {"weights": "imagenet"}}, ("students.sam.weights", "has no 'imagenet' weights")),
    ("students", {"sam": STUDENT | {"detector": {"anchor": 8}}}, ("unknown key 'students.sam.detector.anchor'",)),
    (
        "students",
        {"sam": STUDENT | {"recipe": {"quick": {"label_smoothing": 0.1}}}},
        ("the recipe of students.sam has label_smoothing",),
    ),
    (
        "students",
        {"sam": STUDENT | {"dataset": "digits", "network": "resnet8"}},
        ("students.sam.detector has settings of detectors", "'digits' has no boxes"),
    ),
    (
        "assistants",
        {"a": {"teacher": "finder", "network": "resnet8", "recipe": "quick", "follows": "teacher"}},
        ("assistants.a has the teacher 'finder', which finds boxes",),
    ),
    ("teachers.reader.detector", DETECTOR, ("teachers.reader.detector has settings", "'digits' has no boxes")),
    ("teachers.finder.features", {"logits": {}}, ("teachers.finder.features is about what is stored",)),
    ("teachers.finder.tables", {"words": {}}, ("teachers.finder.tables is about what is stored",)),
    ("teachers.finder.checkpoints", ["best"], ("teachers.finder.checkpoints is about what is stored",)),
    ("teachers.finder.head", "linear", ("teachers.finder.head is 'linear'", "classifier")),
    ("teachers.finder.weights", "imagenet", ("teachers.finder.weights", "has no 'imagenet' weights")),
    ("teachers.finder.weights", "missing.pt", ("missing.pt do not exist",)),
    ("teachers.finder.network", "resnet8", ("Unknown detector of teachers.finder.network: 'resnet8'", "retinanet")),
    ("teachers.finder.detector", {"anchor": 8}, ("unknown key 'teachers.finder.detector.anchor'",)),
    ("teachers.finder.detector", {"proposals": 0}, ("teachers.finder.detector.proposals",)),
    ("recipes.quick.sampling", "balanced", ("the recipe of teachers.finder has sampling",)),
    ("recipes.quick.label_smoothing", 0.1, ("the recipe of teachers.finder has label_smoothing",)),
    ("datasets.toys.views", "crop_flip", ("datasets.toys.views has 'crop_flip', which moves no boxes",)),
    ("datasets.digits.views", "scale_flip", ("datasets.digits.views has 'scale_flip'", "the data set has none")),
    ("datasets.toys.source", {"shapes": {"smallest": 200}}, ("datasets.toys.source.shapes",)),
    ("datasets.toys.source", {"shapes": {"holdout": 0.1}}, ("unknown key 'datasets.toys.source.shapes.holdout'",)),
    ("datasets.toys.source", {"coco": {}}, ("'datasets.toys.source.coco.path' is missing",)),
]  # fmt: skip


@pytest.mark.parametrize(("place", "value", "parts"), WRONG, ids=[place for place, _, _ in WRONG])
def test_what_detectors_lack_is_refused_before_anything_runs(
    place: str, value: Any, parts: tuple[str, ...]
) -> None:
    with pytest.raises(StillhouseError) as error:
        check(edited(place, value))
    one_line(error, *parts)


@pytest.mark.parametrize(
    "stage",
    [
        *(
            "prepare_data",
            "train_teacher",
            "evaluate",
            "extract_features",
            "check_features",
            "teacher_inputs",
        ),
        *("student_inputs", "pretrain_student", "match_channels", "inputs", "distill"),
    ],
)
def test_an_edit_of_detection_reruns_no_classifier(stage: str) -> None:
    files = {path.as_posix() for path in closure.closure([f"stages.{stage}"])}
    own = (
        "pipeline/detection/",
        "pipeline/training/detectors",
        "pipeline/training/box_",
        "pipeline/training/detector_",
        "pipeline/evaluation/boxes",
        "pipeline/matching/detectors",
        "pipeline/runs/detector_",
        "pipeline/distillation/map_lesson",
    )
    assert not {file for file in files if file.startswith(own)}


@pytest.mark.parametrize("stage", [stage for stage in tasks.modules() if not stage.endswith("inputs")])
def test_what_a_stage_runs_of_detection_is_in_its_hash(stage: str) -> None:
    files = {path.as_posix() for path in closure.closure([tasks.module(stage)])}
    assert "pipeline/detection/prepared.py" in files or "pipeline/detection/layout.py" in files
    if stage != "prepare_data":
        assert {"pipeline/detection/detector.py", "pipeline/detection/views.py"} <= files


@pytest.mark.slow
def test_data_with_boxes_go_through_every_stage(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    made = make(tmp_path, PARAMS)
    ran = made.repro()
    assert {"prepare_data@toys", "train_teacher@finder", "evaluate_teacher@finder", "report"} <= ran
    metrics = json.loads((tmp_path / "artifacts/metrics/teachers/finder.json").read_text())
    assert 0 <= metrics["AP"] <= 100
    assert "finder" in (tmp_path / "artifacts/report/index.html").read_text()
    assert not made.repro()

    # An edit of detection reruns detectors, and no classifier.
    made.append("pipeline/detection/images.py", "\nMORE = 1\n")
    assert made.repro() == {"params", "train_teacher@finder", "evaluate_teacher@finder", "report"}


KCD: Params = {"student_tap": "stage4_pre", "teacher_feature": "stage4_pre"}
MIMICRY: Params = {
    "source": "online",
    "methods": {"mimicry": KCD | {"reduction": "sum", "weights": {"mimic": 1e-4}}},
}


@pytest.mark.slow
def test_a_detector_is_distilled_by_every_stage(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    params = PARAMS | {
        "teachers": {"finder": TEACHER | {"seed": 7}},
        "students": {"small": STUDENT},
        "pairs": {"pair": {"teacher": "finder", "student": "small"}},
        "matchings": {"kcd": KCD},
        "runs": {
            "mimic": MIMICRY,
            "kcd": MIMICRY | {"transform": {"permutation": {"features": ["stage4_pre"]}}},
        },
        "tables": {},
        "distill": ["pair/mimic", "pair/kcd"],
    }
    made = make(tmp_path, params)
    ran = made.repro()
    assert {
        "pretrain_student@small-0",
        "match_channels@pair",
        "distill@pair/kcd-0",
        "evaluate@pair/kcd-0",
    } <= ran
    for path in ("pretrained/small/0", "students/pair/mimic/0", "students/pair/kcd/0"):
        assert 0 <= json.loads((tmp_path / f"artifacts/metrics/{path}.json").read_text())["AP"] <= 100
    assert not made.repro()

    # A method's edit reruns its students, and another teacher all that learn from it.
    made.append("pipeline/distillation/methods/mimicry.py", "\nMORE = 1\n")
    students = {f"{stage}@pair/{name}-0" for stage in ("distill", "evaluate") for name in ("mimic", "kcd")}
    assert made.repro() == {"params", "student_inputs@small", "inputs@pair", "report"} | students
    made.edit(lambda content: content["teachers"]["finder"].update(seed=8))
    ran = stages_of(run(made))  # two at a time
    assert {"match_channels@pair"} | students <= ran
    assert not {"pretrain_student@small-0", "prepare_data@toys", "train_teacher@reader"} & ran
    assert not made.repro()
    assert json.loads(made.run("dvc", "status", "--json")) == {}

    # DVC makes the same bits of all of it.
    before, again = left(made), {"train_teacher@finder", "match_channels@pair"} | students
    assert made.repro("--force", "--single-item", *again) == again
    assert left(made) == before

"""The plan of detectors: bytes that the disk holds, steps and images by hand, data that are not there yet."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from detection_fixtures import KCD, MIMIC, NETWORK, PROJECT, SETTINGS, tiny_data
from error_fixtures import one_line
from feature_fixtures import run_stage
from ruamel.yaml import YAML
from safetensors.torch import save_file

from pipeline.data.datasets import coco
from pipeline.detection.detector import build
from pipeline.errors import MissingArtifactError
from pipeline.params.recipe import Recipe
from pipeline.runs.check import project
from pipeline.runs.detector_planning import BoxPlan, plan
from pipeline.runs.detector_scenes import scenes
from stages import plan as stage

pytestmark = pytest.mark.cpu  # nothing is computed
Params = dict[str, Any]
SOURCE = {"shapes": {"train": 6, "test": 3, "smallest": 48, "largest": 72}}
PARAMS: Params = PROJECT | {
    # An epoch of 6 images is a batch of 4 and one of 2.
    "recipes": {"quick": {"epochs": 3, "batch_size": 4, "learning_rate": 0.02, "milestones": []}},
    "datasets": {"toys": PROJECT["datasets"]["toys"] | {"source": SOURCE}},
    "runs": {"mimic": MIMIC, "kcd": KCD | {"recipe": {"iterations": 5, "milestones": []}}},
}


def planned(content: Params, prepared: Path) -> BoxPlan:
    checked = project(content)
    return plan(checked, scenes(checked, prepared))


def test_steps_and_images_by_hand(tmp_path: Path) -> None:
    works = {work.stages[0]: work for work in planned(PARAMS, tmp_path).works}
    assert works["prepare_data@toys"].listed == 9
    for name in ("train_teacher@finder", "pretrain_student@small-0", "distill@pair/mimic-0"):
        assert (works[name].shown, works[name].evaluated, works[name].paired) == (3 * 6, 3 * 3, 0)
    # Five steps are two whole epochs and one that is cut short, and each of the three is evaluated.
    assert (works["distill@pair/kcd-0"].shown, works["distill@pair/kcd-0"].evaluated) == (6 + 6 + 4, 9)
    assert works["match_channels@pair"].paired == 2 * 6  # two seeds, all training images
    # The last and the best weights; of distilled students how far their maps are from the teacher's, too.
    assert (works["evaluate_teacher@finder"].evaluated, works["evaluate_teacher@finder"].paired) == (6, 0)
    assert (works["evaluate@pair/kcd-0"].evaluated, works["evaluate@pair/kcd-0"].paired) == (6, 3)
    assert works["distill@pair/kcd-0"].stages == ("distill@pair/kcd-0", "distill@pair/kcd-1")


def test_a_long_training_is_evaluated_some_twenty_times(tmp_path: Path) -> None:
    content = deepcopy(PARAMS)
    content["recipes"]["quick"]["epochs"] = 41  # every third epoch, 13 times, and the last one
    works = {work.kind: work for work in planned(content, tmp_path).works}
    assert works["train_teacher"].evaluated == 14 * 3


def test_without_seeds_no_student_is_trained(tmp_path: Path) -> None:
    assert planned(PARAMS, tmp_path).trainings.keys() == {
        "teacher finder",
        "student alone small",
        "student pair/mimic",
        "student pair/kcd",
    }
    made = planned(PARAMS | {"seeds": [], "distill": []}, tmp_path)
    assert made.trainings.keys() == {"teacher finder"}


def test_speeds_are_missing_of_what_is_to_be_made(tmp_path: Path) -> None:
    whole = planned(PARAMS, tmp_path)
    made = {name for work in whole.works for name in work.stages}
    assert whole.missing(()) == whole.trainings
    assert whole.missing(made) == {}
    assert whole.missing(made - {"evaluate@pair/kcd-1"}).keys() == {"student pair/kcd"}
    # It runs the networks of the first run.
    assert whole.missing(made - {"match_channels@pair"}).keys() == {"student pair/mimic"}
    assert whole.missing(made - {"prepare_data@toys"}) == {}


def test_forward_passes_of_the_teacher(tmp_path: Path) -> None:
    items = {(item.kind, item.name): item for item in planned(PARAMS, tmp_path).items}
    assert items["student", "pair/mimic"].forwards == 3 * 6
    assert items["student", "pair/kcd"].forwards == 6 + 6 + 4
    assert items["matchings", "pair"].forwards == 2 * 6
    assert items["teacher", "finder"].forwards == items["student alone", "small"].forwards == 0


def test_weights_take_what_was_planned(tmp_path: Path) -> None:
    content = deepcopy(PARAMS)
    content["teachers"]["finder"]["anchors"] = [0.5]
    items = {item.kind: item for item in planned(content, tmp_path).items}
    detector = build(NETWORK, 3, 0, SETTINGS)
    save_file(detector.state_dict(), tmp_path / "weights")
    size = (tmp_path / "weights").stat().st_size
    assert items["teacher"].bytes == pytest.approx(4 * size, rel=0.05)  # the header is not planned
    assert items["student alone"].bytes == pytest.approx(3 * size, rel=0.05)
    assert (items["teacher"].files, items["student alone"].files) == (4 + 3, 3 + 4)


def test_data_are_planned_as_they_will_be_prepared(tmp_path: Path) -> None:
    checked = project(PARAMS)
    before = scenes(checked, tmp_path)["toys"]
    tiny_data(tmp_path / "toys")
    after = scenes(checked, tmp_path)["toys"]
    assert (before.prepared, after.prepared) == (False, True)
    assert before.expected.samples == after.expected.samples == {"train": 6, "test": 3}
    assert before.expected.classes == after.expected.classes == 3
    assert after.bytes == sum(
        path.stat().st_size for path in (tmp_path / "toys").rglob("*") if path.is_file()
    )
    assert before.bytes == pytest.approx(after.bytes, rel=0.4)  # nine images of any sizes
    assert before.files == pytest.approx(after.files, abs=1)  # raw.json, where there are raw files
    assert len(after.expected.sizes) == 9
    assert {
        48 <= side <= 72 for size in (*before.expected.sizes, *after.expected.sizes) for side in size
    } == {True}


def test_coco_is_planned_before_it_is_there(tmp_path: Path) -> None:
    content = deepcopy(PARAMS)
    content["datasets"]["toys"] = {"source": {"coco": {"path": "nowhere"}}, "views": "scale_flip"}
    content["recipes"]["quick"] = Recipe(iterations=180_000, batch_size=16, milestones=()).model_dump(
        mode="json"
    )
    content["teachers"]["finder"] |= {
        "network": "faster_rcnn_resnet18",
        "detector": {},
        "weights": "imagenet",
    }
    content["distill"] = []
    made = planned(content, tmp_path)
    training = made.trainings["teacher finder"]
    # What has weights to start from is frozen as in Detectron, though nothing is downloaded to plan it.
    assert (training.network.classes, training.network.settings.norm) == (80, "frozen")
    works = {work.kind: work for work in made.works}
    # 7,393 steps an epoch, the last of them of 15 images: 24 epochs and the better part of another.
    assert works["train_teacher"].shown == 180_000 * 16 - 24
    # Of 25 epochs, every second one and the last are evaluated.
    assert works["train_teacher"].evaluated == 13 * 5_000
    (data,) = (item for item in made.items if item.kind == "data")
    assert 20e6 < data.bytes < 60e6  # lists and boxes; the images stay where they are


def test_other_data_have_to_be_prepared_first(tmp_path: Path) -> None:
    own = {"images": "val", "instances": "val.json"}
    config = coco.Config.model_validate({"path": Path("nowhere"), "test": own})
    assert coco.expected(config) is None
    content = deepcopy(PARAMS)
    content["datasets"]["toys"] = {
        "source": {"coco": {"path": "nowhere", "test": own}},
        "views": "scale_flip",
    }
    with pytest.raises(MissingArtifactError) as error:
        planned(content, tmp_path)
    one_line(error, "dvc repro prepare_data@toys")


# The command.


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter a folder with a params.yaml."""
    YAML().dump(deepcopy(PARAMS), tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_plans_detectors(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_stage(monkeypatch, stage.main) == 0
    printed = capsys.readouterr()
    rows = {tuple(line.split()[:2]): line.split() for line in printed.out.splitlines() if line.strip()}
    assert rows["teacher", "finder"][2:4] == ["0", "1"]
    assert rows["student", "pair/kcd"][-1] == "32"  # forward passes of both seeds
    assert printed.out.endswith("python -m stages.plan --measure\n")
    assert printed.err == "warning: Not prepared yet, and planned as its source expects it: toys.\n"

    tiny_data(folder / "data/prepared/toys")
    assert run_stage(monkeypatch, stage.main, "--json") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    content = json.loads(printed.out)
    assert "measured" not in content
    assert {item["kind"] for item in content["items"]} >= {
        "data",
        "teacher",
        "student alone",
        "student",
        "matchings",
    }

"""Average precision: cases whose value is known on paper, and pycocotools itself on boxes in files."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from detection_fixtures import detected, target
from error_fixtures import one_line

from pipeline import seeding
from pipeline.detection.average_precision import MEASURES, average_precision, evaluated
from pipeline.detection.sample import Detected, Target
from pipeline.errors import DataError, MachineError

SMALL, MEDIUM, LARGE = (10.0, 10.0, 30.0, 30.0), (40.0, 40.0, 100.0, 100.0), (120.0, 0.0, 260.0, 150.0)
ELSEWHERE = (300.0, 300.0, 340.0, 340.0)
SIZE = (400, 400)


def measured(truth: Sequence[Target], found: Sequence[Detected], classes: int = 1) -> dict[str, float]:
    return average_precision(truth, [SIZE] * len(truth), found, classes)


def test_perfect_detections_score_one_in_every_size() -> None:
    boxes = [SMALL, MEDIUM, LARGE]
    measures = measured([target(boxes)], [detected(boxes, [0.9, 0.8, 0.7])])
    assert measures == pytest.approx(dict.fromkeys(MEASURES, 1.0), abs=1e-12)


def test_half_of_the_objects_give_the_recalls_up_to_one_half() -> None:
    measures = measured([target([SMALL, MEDIUM])], [detected([MEDIUM], [0.9])])
    # 51 of the 101 recalls are 0 to 0.5.
    assert measures["AP"] == pytest.approx(51 / 101, abs=1e-12)
    assert measures["AP_small"] == 0
    assert measures["AP_medium"] == pytest.approx(1, abs=1e-12)
    assert "AP_large" not in measures


def test_a_surer_false_box_halves_the_precision_and_a_less_sure_one_does_nothing() -> None:
    truth = [target([MEDIUM])]
    assert measured(truth, [detected([ELSEWHERE, MEDIUM], [0.9, 0.8])])["AP"] == pytest.approx(0.5, abs=1e-12)
    assert measured(truth, [detected([ELSEWHERE, MEDIUM], [0.7, 0.8])])["AP"] == pytest.approx(1, abs=1e-12)


def test_a_box_that_overlaps_by_62_percent_counts_at_three_of_ten_thresholds() -> None:
    left, top, right, bottom = MEDIUM
    found = detected([(left, top, right, top + 0.62 * (bottom - top))], [0.9])
    measures = measured([target([MEDIUM])], [found])
    assert measures["AP"] == pytest.approx(0.3, abs=1e-12)
    assert measures["AP50"] == pytest.approx(1, abs=1e-12)
    assert measures["AP75"] == 0


def test_what_is_found_in_a_crowd_is_neither_right_nor_wrong() -> None:
    within = (130.0, 10.0, 150.0, 30.0)
    found = [detected([within, MEDIUM], [0.9, 0.8])]
    crowded = target([MEDIUM, LARGE], crowd=[False, True])
    assert measured([crowded], found)["AP"] == pytest.approx(1, abs=1e-12)
    assert measured([target([MEDIUM])], found)["AP"] == pytest.approx(0.5, abs=1e-12)


def test_a_class_that_no_object_has_is_not_of_the_mean() -> None:
    found = detected([MEDIUM, SMALL, LARGE], [0.9, 0.8, 0.7], [0, 1, 2])
    evaluation = evaluated([target([MEDIUM, ELSEWHERE], [0, 2])], [SIZE], [found], 3)
    assert evaluation.measures["AP"] == pytest.approx(0.5, abs=1e-12)
    np.testing.assert_allclose(evaluation.by_class, [1, np.nan, 0], atol=1e-12)


def test_what_is_found_in_an_image_without_objects_is_wrong() -> None:
    truth = [target([]), target([MEDIUM])]
    assert measured(truth, [detected([SMALL], [0.9]), detected([MEDIUM], [0.8])])["AP"] == pytest.approx(0.5)
    assert measured(truth, [detected([], []), detected([MEDIUM], [0.8])])["AP"] == pytest.approx(1)


def test_nothing_found_scores_zero_and_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    measures = measured([target([MEDIUM]), target([])], [detected([], []), detected([], [])])
    assert measures == {"AP": 0.0, "AP50": 0.0, "AP75": 0.0, "AP_medium": 0.0}
    assert capsys.readouterr() == ("", "")


def test_curves_are_the_precision_at_each_recall() -> None:
    # Right, wrong, right: precision 1 up to recall 1/2, then 2/3.
    found = detected([MEDIUM, ELSEWHERE, SMALL], [0.9, 0.8, 0.7])
    evaluation = evaluated([target([SMALL, MEDIUM])], [SIZE], [found], 1)
    expected = np.where(evaluation.recalls <= 0.5, 1, 2 / 3)
    for name in ("AP", "AP50", "AP75"):
        np.testing.assert_allclose(evaluation.precisions[name], expected, atol=1e-12)
        assert evaluation.precisions[name].mean() == pytest.approx(evaluation.measures[name], abs=1e-12)


def test_random_boxes_score_what_pycocotools_reads_from_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, found = random_boxes(images=12, classes=4)
    evaluation = evaluated(truth, [SIZE] * 12, found, 4)

    reference = summary_of_files(tmp_path, truth, found, 4)
    capsys.readouterr()
    assert 0.05 < evaluation.measures["AP"] < 0.95
    assert [evaluation.measures[name] for name in MEASURES] == reference  # to the bit


def test_images_without_any_object_have_no_average_precision() -> None:
    with pytest.raises(DataError) as error:
        measured([target([]), target([MEDIUM], crowd=[True])], [detected([], []), detected([], [])])
    one_line(error, "2 images", "object")


def test_missing_pycocotools_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pycocotools", "pycocotools.cocoeval"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MachineError) as error:
        measured([target([MEDIUM])], [detected([], [])])
    one_line(error, "pycocotools", "'.[detection]'")


def random_boxes(images: int, classes: int) -> tuple[list[Target], list[Detected]]:
    """Return objects of all sizes, some of them crowds, and boxes near them and elsewhere; some images have none."""
    draws = seeding.generator(3, "boxes")
    truth, found = [], []
    for image in range(images):
        count = 0 if image == 5 else 6
        corner = 250 * torch.rand(count, 2, generator=draws)
        boxes = torch.cat([corner, corner + 5 + 140 * torch.rand(count, 2, generator=draws)], 1)
        labels = torch.randint(0, classes - 1, (count,), generator=draws)
        crowd = torch.rand(count, generator=draws) < 0.15
        area = (boxes[:, 2:] - boxes[:, :2]).prod(1) * (0.5 + 0.5 * torch.rand(count, generator=draws))
        truth.append(Target(boxes, labels, crowd, area))

        near = boxes + 6 * torch.randn(count, 4, generator=draws)
        near[:, 2:] = torch.maximum(near[:, 2:], near[:, :2] + 1)
        wrong = torch.tensor([[5.0, 5.0, 60.0, 70.0], [300.0, 20.0, 380.0, 90.0]])
        boxes_found = torch.cat([near, near[:2] + 1, wrong])
        of_wrong = torch.randint(0, classes, (2,), generator=draws)
        found_labels = torch.cat([labels, labels[:2], of_wrong])
        found.append(Detected(boxes_found, torch.rand(len(boxes_found), generator=draws), found_labels))
    return truth, found


def summary_of_files(folder: Path, truth: list[Target], found: list[Detected], classes: int) -> list[float]:
    """Return what pycocotools says of files in its own format."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def sides(box: list[float]) -> list[float]:
        return [box[0], box[1], box[2] - box[0], box[3] - box[1]]

    annotations = [
        {"id": 100 * image + k + 1, "image_id": image, "category_id": int(each.labels[k]) + 7,
         "bbox": sides(each.boxes[k].tolist()), "area": float(each.area[k]), "iscrowd": int(each.crowd[k])}
        for image, each in enumerate(truth) for k in range(len(each.labels))
    ]  # fmt: skip
    results = [
        {"image_id": image, "category_id": int(each.labels[k]) + 7, "bbox": sides(each.boxes[k].tolist()),
         "score": float(each.scores[k])}
        for image, each in enumerate(found) for k in range(len(each.labels))
    ]  # fmt: skip
    (folder / "truth.json").write_text(
        json.dumps(
            {
                "images": [{"id": image, "height": 400, "width": 400} for image in range(len(truth))],
                "annotations": annotations,
                "categories": [{"id": k + 7, "name": str(k)} for k in range(classes)],
            }
        )
    )
    (folder / "found.json").write_text(json.dumps(results))

    coco = COCO(str(folder / "truth.json"))
    evaluation = COCOeval(coco, coco.loadRes(str(folder / "found.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return [float(value) for value in evaluation.stats[: len(MEASURES)]]

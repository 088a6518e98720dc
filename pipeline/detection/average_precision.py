"""Average precision as COCO measures it: pycocotools computes it, from boxes in memory.

What is small, medium or large is measured in the pixels that boxes are given in. COCO's numbers are of images as they
were taken, so boxes that were found in a scaled image are to be scaled back before.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.detection.sample import Detected, Target
from pipeline.errors import DataError, MachineError

if TYPE_CHECKING:
    from torch import Tensor

Annotation = dict[str, Any]

# In the order of pycocotools' summary.
MEASURES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
_OVERLAPS = {"AP50": 0, "AP75": 5}  # of pycocotools' ten thresholds, 0.5 to 0.95
_UNDEFINED = -1.0  # pycocotools' mark of a mean over nothing


@dataclass(frozen=True)
class Evaluation:
    """How well boxes were found.

    Attributes:
        measures: by name, 0 to 1; a size that no object has is left out.
        by_class: AP of each class, (K,); NaN of a class that no object has.
        recalls: where curves are sampled, (101,), 0 to 1.
        precisions: mean over the classes at each recall, (101,), by "AP" (mean over ten overlaps), "AP50", "AP75".
    """

    measures: dict[str, float]
    by_class: NDArray[np.float64]
    recalls: NDArray[np.float64]
    precisions: dict[str, NDArray[np.float64]]


def average_precision(
    truth: Sequence[Target], sizes: Sequence[tuple[int, int]], detected: Sequence[Detected], classes: int
) -> dict[str, float]:
    """Return the measures of `evaluated` alone."""
    return evaluated(truth, sizes, detected, classes).measures


def evaluated(
    truth: Sequence[Target], sizes: Sequence[tuple[int, int]], detected: Sequence[Detected], classes: int
) -> Evaluation:
    """Compare detections with the truth, at most 100 of an image, the surest.

    Args:
        truth: annotated boxes of each image.
        sizes: height and width of each image, in pixels.
        detected: boxes that were found in each image, in the same pixels.
        classes: K.

    Raises:
        DataError: there is no object to find.
        MachineError: pycocotools is not installed.
    """
    require()
    if not any(bool((~target.crowd).any()) for target in truth):
        raise DataError(
            f"None of the {len(truth)} images has an object to find, so there is no average precision. "
            "Name a split that has some in params.yaml, then: dvc repro"
        )

    from pycocotools.cocoeval import COCOeval

    # pycocotools reports its steps, which nobody reads here.
    with redirect_stdout(io.StringIO()):
        evaluation = COCOeval(
            _dataset(_of_truth(truth), sizes, classes),
            _dataset(_of_detections(detected), sizes, classes),
            "bbox",
        )
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()

    measures = dict(zip(MEASURES, map(float, evaluation.stats), strict=False))
    # Of all sizes, with the largest number of detections: (overlaps, recalls, classes).
    precision: NDArray[np.float64] = evaluation.eval["precision"][:, :, :, 0, -1]
    present = precision[0, 0] != _UNDEFINED
    by_class = np.where(present, precision.mean(axis=(0, 1)), np.nan)
    curves = precision[:, :, present].mean(axis=2)
    return Evaluation(
        {name: value for name, value in measures.items() if value != _UNDEFINED},
        by_class,
        np.array(evaluation.params.recThrs),
        {"AP": curves.mean(axis=0), **{name: curves[index] for name, index in _OVERLAPS.items()}},
    )


def require() -> None:
    """Check that average precision can be computed, before anything expensive runs.

    Raises:
        MachineError: pycocotools is not installed.
    """
    try:
        import pycocotools.cocoeval  # noqa: F401  # whether it can be imported
    except ModuleNotFoundError:
        raise MachineError(
            "Average precision needs pycocotools, which is not installed. Install it with: "
            "pip install -e '.[detection]'"
        ) from None


def _dataset(annotations: list[Annotation], sizes: Sequence[tuple[int, int]], classes: int) -> Any:
    """Return pycocotools' view of boxes; an annotation's id starts from 1, since 0 means no match there."""
    from pycocotools.coco import COCO

    dataset = COCO()
    dataset.dataset = {
        "images": [{"id": i, "height": height, "width": width} for i, (height, width) in enumerate(sizes)],
        "annotations": [{"id": i, **annotation} for i, annotation in enumerate(annotations, start=1)],
        "categories": [{"id": k, "name": str(k)} for k in range(classes)],
    }
    dataset.createIndex()
    return dataset


def _of_truth(truth: Sequence[Target]) -> list[Annotation]:
    annotations = []
    for image, target in enumerate(truth):
        columns = zip(
            _by_side(target.boxes),
            target.labels.tolist(),
            target.crowd.tolist(),
            target.area.tolist(),
            strict=True,
        )
        for box, label, crowd, area in columns:
            annotations.append(_annotation(image, box, label) | {"iscrowd": int(crowd), "area": area})
    return annotations


def _of_detections(detected: Sequence[Detected]) -> list[Annotation]:
    annotations = []
    for image, found in enumerate(detected):
        columns = zip(_by_side(found.boxes), found.labels.tolist(), found.scores.tolist(), strict=True)
        for box, label, score in columns:
            annotations.append(
                _annotation(image, box, label) | {"iscrowd": 0, "area": box[2] * box[3], "score": score}
            )
    return annotations


def _annotation(image: int, box: list[float], label: int) -> Annotation:
    return {"image_id": image, "category_id": label, "bbox": box}


def _by_side(boxes: Tensor) -> list[list[float]]:
    """Return boxes (n, 4) as left, top, width and height."""
    corners = boxes.double()
    sides: list[list[float]] = [
        [left, top, right - left, bottom - top] for left, top, right, bottom in corners.tolist()
    ]
    return sides

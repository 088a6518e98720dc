"""Running a detector over a split: what is found, in the images' own pixels, and how good that is."""

from __future__ import annotations

import torch

from pipeline.compute.machine import Machine
from pipeline.data.normalize import Normalize
from pipeline.detection.average_precision import Evaluation, evaluated
from pipeline.detection.detector import Detector
from pipeline.detection.images import BoxImages
from pipeline.detection.prepared import Split
from pipeline.detection.sample import Detected
from pipeline.detection.views import BoxSpace, back


@torch.no_grad()
def detections(
    network: Detector, split: Split, space: BoxSpace, normalize: Normalize, machine: Machine
) -> list[Detected]:
    """Return what a detector finds in the plain views of a split, on the CPU and in the images' own pixels.

    One image at a time: what another one in the batch is padded with would decide on what is found at the edges.

    Args:
        network: the detector, on the device.
        split: the images.
        space: gives their plain view.
        normalize: what images go through.
        machine: where it runs.
    """
    images = BoxImages(split, space, normalize, machine.device)
    found = []
    rows = torch.split(torch.arange(len(split)), 1)
    for (picture,), (height, width) in zip(images.views(0, rows), split.sizes.tolist(), strict=True):
        with machine.autocast():
            (one,) = network.detect([picture.image])
        boxes = back(one.boxes.float().cpu(), height, width, picture.shown)
        found.append(Detected(boxes, one.scores.float().cpu(), one.labels.cpu()))
    return found


def precision(split: Split, detected: list[Detected], classes: int) -> dict[str, float]:
    """Return the average precisions of detections, in percent, by name; see `evaluation`."""
    return percent(evaluation(split, detected, classes))


def evaluation(split: Split, detected: list[Detected], classes: int) -> Evaluation:
    """Compare detections with the truth.

    Args:
        split: the images.
        detected: what was found in each.
        classes: number of classes.
    """
    truth = [split.target(row) for row in range(len(split))]
    sizes = [(height, width) for height, width in split.sizes.tolist()]
    return evaluated(truth, sizes, detected, classes)


def percent(measured: Evaluation) -> dict[str, float]:
    """Return the average precisions of an evaluation, in percent, by name."""
    return {name: 100 * value for name, value in measured.measures.items()}

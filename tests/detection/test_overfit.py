"""The smallest detector learns eight images by heart."""

from __future__ import annotations

import pytest
import torch
from detection_fixtures import shapes

from pipeline.detection.average_precision import average_precision
from pipeline.detection.detector import build
from pipeline.detection.detector_settings import DetectorSettings
from pipeline.detection.sampling import keyed

SMALL = DetectorSettings(
    pyramid_width=64,
    head_width=128,
    smallest_anchor=8,
    proposals=200,
    sampled_anchors=64,
    sampled_proposals=64,
)
STEPS = 240


@pytest.mark.slow
def test_eight_images_are_learned_to_an_average_precision_above_nine_tenths() -> None:
    images, targets = shapes(8)
    detector = build("faster_rcnn_resnet10x0.25", 2, 0, SMALL).train()
    optimizer = torch.optim.SGD(detector.parameters(), 0.02, momentum=0.9, weight_decay=1e-4)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * min(1, (step + 1) / 20) * (0.1 if step >= 0.8 * STEPS else 1)
        half = slice(4 * (step % 2), 4 * (step % 2) + 4)
        with keyed("cpu", 0, step):
            losses, _ = detector.losses(images[half], targets[half])
        optimizer.zero_grad()
        torch.stack([*losses.values()]).sum().backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
        optimizer.step()

    sizes = [(image.shape[1], image.shape[2]) for image in images]
    measures = average_precision(targets, sizes, detector.detect(images), 2)
    assert measures["AP"] > 0.9, measures

"""torchvision's Faster R-CNN and RetinaNet over a pyramid, with the taps of our networks.

Labels are 0 to K-1 outside and 1 to K inside, where 0 is the background, so that torchvision's own loop and state
dicts are matched. Images come resized and normalized, of any sizes; here they are padded to the largest of
a batch and to a multiple of 32, with zeros at the right and below.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.poolers import initLevelMapper

from pipeline import seeding
from pipeline.detection.backbone import BACKBONES, Backbone, Body
from pipeline.detection.detector_settings import DetectorSettings, Norm
from pipeline.detection.sample import Detected, Target
from pipeline.errors import unknown_name
from pipeline.networks.network import Tap, Taps

MODELS = ("faster_rcnn", "retinanet")
NETWORKS = tuple(f"{model}_{backbone}" for model in MODELS for backbone in BACKBONES)
_RATIOS = (0.5, 1.0, 2.0)  # height by width of the anchors
_LEVELS = 5
_PADDED_TO = 32  # pixels


class Padding(GeneralizedRCNNTransform):  # type: ignore[misc]  # torchvision is untyped
    """torchvision's batching alone: the views have resized and normalized the images before."""

    def __init__(self) -> None:
        super().__init__(1, 1, [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], size_divisible=_PADDED_TO)

    def normalize(self, image: Tensor) -> Tensor:
        """Return the image (3, H, W) as it is."""
        return image

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Return the image (3, H, W) and its boxes as they are."""
        return image, target


class Detector(nn.Module):
    """A detector: what it loses, what it finds, and what its backbone computes.

    Args:
        network: its name, one of `NETWORKS`.
        model: torchvision's, over our backbone.
    """

    def __init__(self, network: str, model: FasterRCNN | RetinaNet) -> None:
        super().__init__()
        self.network = network
        self.model = model

    @property
    def backbone(self) -> Backbone:
        """The ResNet and its pyramid."""
        backbone: Backbone = self.model.backbone
        return backbone

    @property
    def strides(self) -> dict[str, int]:
        """Pixels from one value to the next, by tap; all taps, from the input to the output."""
        return self.backbone.strides

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target], record: Collection[str] = ()
    ) -> tuple[dict[str, Tensor], Taps]:
        """Return what `losses` does."""
        return self.losses(images, targets, record)

    def losses(
        self, images: Sequence[Tensor], targets: Sequence[Target], record: Collection[str] = ()
    ) -> tuple[dict[str, Tensor], Taps]:
        """Return the losses by torchvision's names, unweighted, and the taps of `record`.

        Faster R-CNN draws the boxes that it learns from: see `sampling.keyed`. Regions of crowds are left out. The
        network is in training.

        Args:
            images: normalized images, each (3, H, W).
            targets: their boxes.
            record: names of taps.

        Raises:
            UnknownNameError: a tap that the network does not have.
        """
        tap = self._tap(record)
        with self.backbone.recording(tap):
            losses: dict[str, Tensor] = self.model(list(images), [_learned(target) for target in targets])
        return losses, tap.kept

    @torch.no_grad()
    def detect(self, images: Sequence[Tensor]) -> list[Detected]:
        """Return what is found in each image, the surest first; the network evaluates for it.

        Args:
            images: normalized images, each (3, H, W).
        """
        training = self.training
        self.eval()
        try:
            return [_found(boxes) for boxes in self.model(list(images))]
        finally:
            self.train(training)

    def maps(self, images: Sequence[Tensor], record: Collection[str]) -> Taps:
        """Return the taps of `record`: the backbone alone runs, and its pyramid only where one of its levels is read.

        Args:
            images: normalized images, each (3, H, W).
            record: names of taps.

        Raises:
            UnknownNameError: a tap that the network does not have.
        """
        tap = self._tap(record)
        batch, _ = self.model.transform(list(images))
        maps = self.backbone.body(batch.tensors, tap)
        if any(name.startswith("fpn") for name in record):
            self.backbone.levels(maps, tap)
        return tap.kept

    def inside(self, sizes: Sequence[tuple[int, int]], tap: str) -> Tensor:
        """Return which values of a tap lie over an image, bool (B, 1, H, W): the others are of the padding.

        Args:
            sizes: height and width of each image of the batch, in pixels.
            tap: its name.
        """
        stride = self.strides[tap]
        height, width = padded(sizes)
        inside = torch.zeros(len(sizes), 1, -(-height // stride), -(-width // stride), dtype=torch.bool)
        for mask, (of_height, of_width) in zip(inside, sizes, strict=True):
            # Every layer of stride 2 rounds up, and so do all of them together.
            mask[:, : -(-of_height // stride), : -(-of_width // stride)] = True
        return inside

    def _tap(self, record: Collection[str]) -> Tap:
        for name in record:
            if name not in self.strides:
                raise unknown_name("tap", name, self.strides)
        return Tap(record)


def padded(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the height and width that images of these heights and widths are padded to in a batch, in pixels."""
    height, width = (_PADDED_TO * -(-max(side) // _PADDED_TO) for side in zip(*sizes, strict=True))
    return height, width


def parts(network: str) -> tuple[str, str]:
    """Return the model and the backbone of a network's name, for instance "faster_rcnn" and "resnet18".

    Raises:
        UnknownNameError: there is no such network.
    """
    if network not in NETWORKS:
        raise unknown_name("detector", network, NETWORKS)
    model, _, backbone = network.rpartition("_")
    return model, backbone


def build(
    network: str,
    classes: int,
    seed: int | str,
    settings: DetectorSettings | None = None,
    *,
    loaded: bool = False,
) -> Detector:
    """Build a detector; its parameters depend on the seed alone.

    Args:
        network: one of `NETWORKS`.
        classes: K, without the background.
        seed: of the drawn parameters.
        settings: torchvision's where there are none.
        loaded: weights are filled in afterwards (`first_weights.fill`), which decides what is frozen by default.

    Raises:
        UnknownNameError: there is no such network.
    """
    settings = (settings or DetectorSettings()).resolved(loaded)
    model, backbone = parts(network)
    norm, frozen = settings.norm, settings.frozen_stages
    assert norm is not None
    assert frozen is not None

    with seeding.scope(seed, "network"):
        body = Body(BACKBONES[backbone], partial(_norm, norm))
        body.freeze(frozen)
        make = _faster_rcnn if model == "faster_rcnn" else _retinanet
        return Detector(network, make(body, classes, settings))


def _faster_rcnn(body: Body, classes: int, settings: DetectorSettings) -> FasterRCNN:
    backbone = Backbone(body, 1, settings.pyramid_width, LastLevelMaxPool())
    sizes = tuple((settings.smallest_anchor << k,) for k in range(_LEVELS))
    model = FasterRCNN(
        backbone,
        rpn_anchor_generator=AnchorGenerator(sizes, (_RATIOS,) * _LEVELS),
        rpn_pre_nms_top_n_train=settings.proposals,
        rpn_pre_nms_top_n_test=settings.proposals // 2,
        rpn_post_nms_top_n_train=settings.proposals,
        rpn_post_nms_top_n_test=settings.proposals // 2,
        rpn_batch_size_per_image=settings.sampled_anchors,
        box_roi_pool=_pooling(backbone),
        box_head=TwoMLPHead(settings.pyramid_width * 7 * 7, settings.head_width),
        box_predictor=FastRCNNPredictor(settings.head_width, classes + 1),
        box_score_thresh=settings.lowest_score,
        box_detections_per_img=settings.detections,
        box_batch_size_per_image=settings.sampled_proposals,
    )
    model.transform = Padding()
    return model


def _pooling(backbone: Backbone) -> MultiScaleRoIAlign:
    """Return the pooling of boxes.

    torchvision guesses the strides from the images of the first batch and keeps them: small images, which padding
    enlarges most, would leave wrong ones, and a training that resumes might guess others.
    """
    pooling = MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=7, sampling_ratio=2)
    pooling.scales = [1 / backbone.strides[f"fpn{k}"] for k in range(4)]
    pooling.map_levels = initLevelMapper(2, 5)  # of strides 2^2 to 2^5
    return pooling


def _retinanet(body: Body, classes: int, settings: DetectorSettings) -> RetinaNet:
    width = settings.pyramid_width
    sides = [settings.smallest_anchor << k for k in range(_LEVELS)]
    sizes = tuple((side, int(side * 2 ** (1 / 3)), int(side * 2 ** (2 / 3))) for side in sides)
    model = RetinaNet(
        Backbone(body, 2, width, LastLevelP6P7(width, width)),
        classes + 1,
        anchor_generator=AnchorGenerator(sizes, (_RATIOS,) * _LEVELS),
        score_thresh=settings.lowest_score,
        detections_per_img=settings.detections,
    )
    model.transform = Padding()
    return model


def _norm(norm: Norm, channels: int) -> nn.Module:
    if norm == "group":
        return nn.GroupNorm(gcd(32, channels), channels)
    return FrozenBatchNorm2d(channels) if norm == "frozen" else nn.BatchNorm2d(channels)


def _learned(target: Target) -> dict[str, Tensor]:
    """Return the boxes that torchvision learns: single objects, labels from 1.

    Of a box far below a pixel a scaled or mirrored view may leave no area, which torchvision refuses to learn.
    """
    left, top, right, bottom = target.boxes.unbind(1)
    kept = ~target.crowd & (left < right) & (top < bottom)
    return {"boxes": target.boxes[kept], "labels": target.labels[kept] + 1}


def _found(boxes: dict[str, Any]) -> Detected:
    """Return detections without those of the background, which RetinaNet scores as a class that nothing teaches."""
    of_object = boxes["labels"] > 0
    return Detected(boxes["boxes"][of_object], boxes["scores"][of_object], boxes["labels"][of_object] - 1)

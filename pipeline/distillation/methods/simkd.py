"""SimKD: the teacher's own classifier (Chen, Mei, Zhang, Wang, Feng and Chen 2022, arXiv:2203.14001).

L = w_map MSE(r(f_s), f_t), the mean over all elements

f are the maps that are pooled. The projector r, two 1x1 convolutions around a 3x3 one, is put behind the student's and
stays at inference; what is pooled of it goes through the teacher's classifier, which is copied and never trained. There
is no label in the loss, and no other term. A larger map is averaged to the size of the smaller one.

What differs: the authors' projector reads the last stage, which in MobileNetV2 and ShuffleNetV2 stands before the last
1x1 convolution; here it reads `final` of every network. They replace WRNs by ResNets because of their raw sums; `final`
of a WRN stands behind its last ReLU.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch.nn.functional as F

from pipeline.distillation.mean import require_mean
from pipeline.distillation.method import (
    BaseMethod,
    Batch,
    Known,
    MethodConfig,
    Needs,
    Operations,
    Tables,
    Terms,
    Weights,
)
from pipeline.errors import ParamsError
from pipeline.networks.layer import LayerSpec
from pipeline.networks.network import Shape, Taps

LAYERS = ("projector",)
PLACE = "final"  # of both: what is pooled, and read by the classifier


class Config(MethodConfig):
    """Settings of SimKD."""

    weights: Weights = {"map": 1.0}

    def resolved(self, known: Known) -> Self:
        """Return these settings with all names in full.

        Raises:
            ParamsError: the teacher's classifier does not read the mean of its last map.
        """
        require_mean("SimKD", "teacher", known.teacher)
        return super().resolved(known)


class Method(BaseMethod[Config]):
    """SimKD: the student learns to speak to the teacher's classifier."""

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Return the last maps of both, and the teacher's classifier."""
        return Needs((PLACE,), (PLACE,), network=True)

    @classmethod
    def operations(
        cls, config: Config, student: Mapping[str, Shape], teacher: Mapping[str, Shape], tables: Tables
    ) -> Operations:
        """Return the projector, and that the classifier is the teacher's.

        Raises:
            ParamsError: another layer is to be inserted at the same place.
        """
        if PLACE in config.insert:
            raise ParamsError(
                f"SimKD puts its projector at '{PLACE}' of the student, and 'insert' names another layer there. Leave "
                "it out, in the run's settings in params.yaml."
            )
        channels, height, width = teacher[PLACE]
        layer = LayerSpec.of("projector", outputs=channels, height=height, width=width)
        return Operations(config.insert | {PLACE: layer}, classifier_width=channels, teacher_classifier=True)

    @classmethod
    def compared(cls, config: Config) -> tuple[str, str]:
        """Return the last maps."""
        return PLACE, PLACE

    def forward(self, student: Taps, batch: Batch) -> Terms:
        """Return `map`."""
        s, t = student[PLACE], batch.teacher[PLACE]  # (B, C, h, w), (B, C, H, W)
        if s.shape != t.shape:  # the student's is the smaller one: the projector has seen to it
            t = F.adaptive_avg_pool2d(t, (s.shape[2], s.shape[3]))
        return {"map": F.mse_loss(s, t)}

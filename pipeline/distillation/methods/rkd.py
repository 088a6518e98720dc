"""Relational knowledge distillation (Park, Kim, Lu and Cho 2019, arXiv:1904.05068).

L = w_ce CE(s, y) + w_distance h(d_s, d_t) + w_angle h(a_s, a_t), h = smooth L1, the mean over all pairs or triples

d are the Euclidean distances of the pooled features of every two samples of a batch, divided by their mean over pairs
that differ; a_ijk are the cosines of the angle at sample i between j and k. 25 and 50 as in CRD's tables; KCD's table
has 10 in all, which is read as 10 and 20, the paper's own 1 : 2. Of a batch of one sample both terms are 0.

Several processes each compare the samples of their own part of the batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.distillation.method import BaseMethod, Batch, Needs, Terms, Weights
from pipeline.distillation.places import PlaceConfig
from pipeline.networks.network import Taps


class Config(PlaceConfig):
    """Settings of RKD.

    Attributes:
        student_tap: what is compared of the student, a vector a sample.
        teacher_feature: what is compared of the teacher.
    """

    student_tap: str = "pooled"
    teacher_feature: str = "pooled"
    weights: Weights = {"ce": 1.0, "distance": 25.0, "angle": 50.0}


class Method(BaseMethod[Config]):
    """RKD: distances and angles between samples are the teacher's."""

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Return the student's logits, its tap and the teacher's feature."""
        return config.needs

    def forward(self, student: Taps, batch: Batch) -> Terms:
        """Return `ce`, `distance` and `angle`."""
        s = student[self.config.student_tap].flatten(1)  # (B, D_S)
        t = batch.teacher[self.config.teacher_feature].flatten(1)  # (B, D_T)
        return {
            "ce": batch.cross_entropy(student["logits"]),
            "distance": F.smooth_l1_loss(distances(s), distances(t)),
            "angle": F.smooth_l1_loss(angles(s), angles(t)),
        }


def distances(x: Tensor) -> Tensor:
    """Return the distances (B, B) of vectors (B, D), divided by the mean of those that are not 0."""
    # Not by inner products, which lose the digits of what is near; the gradient of a distance of 0 is 0.
    d = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    # The mean without picking elements: how many there are is a value that a step must not read.
    mean = d.sum() / (d > 0).sum().clamp(min=1)
    return d / mean.clamp(min=torch.finfo(d.dtype).tiny)


def angles(x: Tensor) -> Tensor:
    """Return the cosines (B, B, B) of the angles at the first sample between the two others, of vectors (B, D)."""
    to_others = F.normalize(x[None] - x[:, None], dim=2)  # (B, B, D)
    return to_others @ to_others.transpose(1, 2)

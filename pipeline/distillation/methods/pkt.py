"""Probabilistic knowledge transfer (Passalis and Tefas 2018, arXiv:1803.10837).

L = w_ce CE(s, y) + w_probability mean P_t log((P_t + e) / (P_s + e)), P = (1 + cos) / 2 with rows that sum to 1

cos (B, B) are the cosines of the pooled features of every two samples of a batch; the mean is over all B^2 of them,
with weight 30000, and e = 1e-7, as in CRD's tables.

Several processes each compare the samples of their own part of the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.distillation.method import BaseMethod, Batch, Needs, Terms, Weights
from pipeline.distillation.places import PlaceConfig
from pipeline.networks.network import Taps

LEAST = 1e-7  # added to probabilities and norms


class Config(PlaceConfig):
    """Settings of PKT.

    Attributes:
        student_tap: what is compared of the student, a vector a sample.
        teacher_feature: what is compared of the teacher.
    """

    student_tap: str = "pooled"
    teacher_feature: str = "pooled"
    weights: Weights = {"ce": 1.0, "probability": 30000.0}


class Method(BaseMethod[Config]):
    """PKT: the chance that a sample picks another as its neighbor is the teacher's."""

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Return the student's logits, its tap and the teacher's feature."""
        return config.needs

    def forward(self, student: Taps, batch: Batch) -> Terms:
        """Return `ce` and `probability`."""
        s = neighbors(student[self.config.student_tap])  # (B, B)
        t = neighbors(batch.teacher[self.config.teacher_feature])
        divergence = (t * ((t + LEAST).log() - (s + LEAST).log())).mean()
        return {"ce": batch.cross_entropy(student["logits"]), "probability": divergence}


def neighbors(x: Tensor) -> Tensor:
    """Return the probabilities (B, B) with which each of the samples (B, ...) picks another one."""
    rows = x.flatten(1)
    unit: Tensor = rows / (torch.linalg.vector_norm(rows, dim=1, keepdim=True) + LEAST)
    kernel = (unit @ unit.T + 1) / 2
    return kernel / kernel.sum(dim=1, keepdim=True)

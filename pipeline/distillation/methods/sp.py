"""Similarity preserving (Tung and Mori 2019, arXiv:1907.09682).

L = w_ce CE(s, y) + w_similarity ||G_s - G_t||_F^2 / B^2, G = F F^T with rows of norm 1

F (B, C H W) are the flattened maps of the last stage, so G (B, B) says which samples of a batch are alike, whatever
the shapes of the maps. Weight 3000 as in CRD's tables. Of a batch of one sample the term is 0.

Several processes each compare the samples of their own part of the batch.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from pipeline.distillation.method import BaseMethod, Batch, Needs, Terms, Weights
from pipeline.distillation.places import PlaceConfig
from pipeline.networks.architecture import LAST
from pipeline.networks.network import Taps


class Config(PlaceConfig):
    """Settings of SP.

    Attributes:
        student_tap: what is compared of the student.
        teacher_feature: what is compared of the teacher.
    """

    student_tap: str = LAST
    teacher_feature: str = LAST
    weights: Weights = {"ce": 1.0, "similarity": 3000.0}


class Method(BaseMethod[Config]):
    """SP: what is alike for the teacher is alike for the student."""

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Return the student's logits, its tap and the teacher's feature."""
        return config.needs

    def forward(self, student: Taps, batch: Batch) -> Terms:
        """Return `ce` and `similarity`."""
        s = similarity(student[self.config.student_tap])  # (B, B)
        t = similarity(batch.teacher[self.config.teacher_feature])
        # The mean over all pairs is the sum over B^2.
        return {"ce": batch.cross_entropy(student["logits"]), "similarity": (s - t).square().mean()}


def similarity(x: Tensor) -> Tensor:
    """Return the inner products (B, B) of samples (B, ...), with rows of norm 1."""
    rows = x.flatten(1)
    return F.normalize(rows @ rows.T, dim=1)

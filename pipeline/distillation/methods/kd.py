"""Soft targets (Hinton, Vinyals and Dean 2015, arXiv:1503.02531).

L = w_ce CE(s, y) + w_kd T^2 KL(softmax(t / T) || softmax(s / T)), KL summed over classes, mean over the batch.

Weights 0.1 and 0.9 with T = 4 are those of the tables of CRD, DKD, SLKD and letKD. DSKD's and SimKD's tables
use 1 and 1; ImageNet 0.5 and 0.5 with T = 1. KCD's "CE + 16 KL" is 1 and 1 here: its 16 is T^2.
"""

from __future__ import annotations

from pipeline.distillation.losses import soft_kl
from pipeline.distillation.method import BaseMethod, Batch, MethodConfig, Needs, Terms, Weights
from pipeline.networks.network import Taps
from pipeline.params.numbers import Temperature


class Config(MethodConfig):
    """Settings of KD.

    Attributes:
        temperature: T of both softmaxes.
    """

    temperature: Temperature = 4.0
    weights: Weights = {"ce": 0.1, "kd": 0.9}


class Method(BaseMethod[Config]):
    """KD: the student learns labels and the teacher's softened logits."""

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Return the logits of both."""
        return Needs(student=("logits",), teacher=("logits",))

    def forward(self, student: Taps, batch: Batch) -> Terms:
        """Return `ce` and `kd`."""
        s, t = student["logits"], batch.teacher["logits"]  # (B, K), (B, K)
        return {"ce": batch.cross_entropy(s), "kd": soft_kl(s, t, self.config.temperature)}

"""Cross-view consistency (Zhang, Liu, Cai and Ma 2024, arXiv:2412.16493): each view's teacher for the student of both.

L = w_ce CE(s, y) + w_ce_strong CE(s', y) + w_within L_within + w_cross L_cross

L_within = mean of [c >= tau_weak] (KD(s, t) + KD(s', t'))
L_cross = mean of [c' >= tau_strong] (KD(s', t) + KD(s, t'))

s, t are logits of the weak view, s', t' of the strong one. KD(s, t) = T^2 KL(softmax(t / T) || softmax(s / T)) of a
sample, c the teacher's largest probability of it at T = 1, and a sample of which the teacher is not sure enough counts
as 0 in the mean over the batch.

Weights, T and both thresholds are those of the code: 2 and 0.5, T = 4, 0.9 for what is within a view and 0.2 across. So
is whose confidence decides: the weak view's within both views, the strong view's across both ways. The authors' own
repository could not be read; two copies of it agree in the loss, and one has the numbers. The student sees the views in
two forward passes, the weak one first, as there.
"""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pipeline.distillation.losses import soft_kl_rows
from pipeline.distillation.method import BaseMethod, Batch, MethodConfig, Needs, Terms, Weights
from pipeline.networks.network import Taps
from pipeline.params.numbers import Temperature


class Config(MethodConfig):
    """Settings of CRLD.

    Attributes:
        temperature: T of all softmaxes of the loss.
        tau_weak: least probability of the teacher's on the weak view for what is within views; 0 counts all samples.
        tau_strong: least one on the strong view for what is across views.
    """

    temperature: Temperature = 4.0
    tau_weak: float = Field(default=0.9, ge=0, le=1)
    tau_strong: float = Field(default=0.2, ge=0, le=1)
    weights: Weights = {"ce": 1.0, "ce_strong": 1.0, "within": 2.0, "cross": 0.5}


class Method(BaseMethod[Config]):
    """CRLD: the teacher of each view teaches the student of both, where it is sure."""

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Return the logits of both, of both views."""
        return Needs(student=("logits",), teacher=("logits",), strong=True)

    def forward(self, student: Taps, batch: Batch) -> Terms:
        """Return `ce`, `ce_strong`, `within` and `cross`."""
        strong, temperature = batch.both(), self.config.temperature
        s, t = student["logits"], batch.teacher["logits"]  # (B, K)
        other_s, other_t = strong.student["logits"], strong.teacher["logits"]

        within = soft_kl_rows(s, t, temperature) + soft_kl_rows(other_s, other_t, temperature)  # (B,)
        cross = soft_kl_rows(other_s, t, temperature) + soft_kl_rows(s, other_t, temperature)
        return {
            "ce": batch.cross_entropy(s),
            "ce_strong": batch.cross_entropy(other_s),
            "within": (within * _sure(t, self.config.tau_weak)).mean(),
            "cross": (cross * _sure(other_t, self.config.tau_strong)).mean(),
        }


def _sure(teacher: Tensor, least: float) -> Tensor:
    """Return 1 for samples of which the teacher is sure by its logits (B, K), else 0: (B,)."""
    return (F.softmax(teacher, dim=1).amax(dim=1) >= least).to(teacher.dtype)

"""Transformed teacher matching, and its weighted form (Zheng and Yang 2024, arXiv:2402.11148).

L = w_ce CE(s, y) + w_matching mean_i u_i KL(q_t[i] || softmax(s[i])), q_t ~ p_t^g, p_t = softmax(t), u = 1

The temperature is the teacher's alone: p^g is its softmax at T = 1 / g. Without a temperature of its own the student is
kept from being sure of itself. WTTM (`weighted`) has u_i = sum_k p_t[i, k]^g, so that samples count more whose teacher
is spread over more classes. The authors choose g and the weight for each pair: on CIFAR-100 g = 0.1 and a weight of 45
for TTM of VGG13 to VGG8, which are the defaults; beside CRD g = 0.2 and a weight of 4 for WTTM. Give WTTM both: u is
up to the number of classes^(1 - g), and with TTM's weight the first steps lead astray.
"""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field

from pipeline.distillation.method import BaseMethod, Batch, MethodConfig, Needs, Terms, Weights
from pipeline.networks.network import Taps


class Config(MethodConfig):
    """Settings of TTM.

    Attributes:
        power: g.
        weighted: WTTM instead of TTM.
    """

    power: float = Field(default=0.1, ge=1e-3, le=1)
    weighted: bool = False
    weights: Weights = {"ce": 1.0, "matching": 45.0}


class Method(BaseMethod[Config]):
    """TTM: the student learns a flattened teacher, without being flattened itself."""

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Return the logits of both."""
        return Needs(student=("logits",), teacher=("logits",))

    def forward(self, student: Taps, batch: Batch) -> Terms:
        """Return `ce` and `matching`."""
        powered = self.config.power * F.log_softmax(batch.teacher["logits"], dim=1)  # log p^g (B, K)
        log_p, log_q = F.log_softmax(powered, dim=1), F.log_softmax(student["logits"], dim=1)
        divergence = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)  # (B,)
        if self.config.weighted:
            divergence = powered.exp().sum(dim=1) * divergence
        return {"ce": batch.cross_entropy(student["logits"]), "matching": divergence.mean()}

"""DIST: correlations in the place of KL (Huang, You, Wang, Qian and Xu 2022, arXiv:2205.10536).

L = w_ce CE(s, y) + T^2 [w_inter mean_i (1 - r(p_s[i], p_t[i])) + w_intra mean_k (1 - r(p_s[:, k], p_t[:, k]))]

p = softmax(logits / T) (B, K), and r is Pearson's correlation: of each sample over the classes (`inter`), and of each
class over the batch (`intra`). A strong teacher's probabilities need not be met, only their order and spacing. The
authors set T = 4 and weights of 2 on CIFAR-100, T = 1 on ImageNet. What never varies has a correlation of 0.

Several processes each correlate the samples of their own part of the batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.distillation.method import BaseMethod, Batch, MethodConfig, Needs, Terms, Weights
from pipeline.networks.network import Taps
from pipeline.params.numbers import Temperature

LEAST = 1e-8  # added to a product of norms


class Config(MethodConfig):
    """Settings of DIST.

    Attributes:
        temperature: T of both softmaxes.
    """

    temperature: Temperature = 4.0
    weights: Weights = {"ce": 1.0, "inter": 2.0, "intra": 2.0}


class Method(BaseMethod[Config]):
    """DIST: the student's probabilities go with the teacher's."""

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Return the logits of both."""
        return Needs(student=("logits",), teacher=("logits",))

    def forward(self, student: Taps, batch: Batch) -> Terms:
        """Return `ce`, `inter` and `intra`."""
        temperature = self.config.temperature
        p_s, p_t = (F.softmax(x / temperature, dim=1) for x in (student["logits"], batch.teacher["logits"]))
        return {
            "ce": batch.cross_entropy(student["logits"]),
            "inter": temperature**2 * (1 - pearson(p_s, p_t)).mean(),
            "intra": temperature**2 * (1 - pearson(p_s.T, p_t.T)).mean(),
        }


def pearson(x: Tensor, y: Tensor) -> Tensor:
    """Return the correlation (N,) of the rows of two matrices (N, M)."""
    x, y = (z - z.mean(dim=1, keepdim=True) for z in (x, y))
    norms: Tensor = torch.linalg.vector_norm(x, dim=1) * torch.linalg.vector_norm(y, dim=1)
    return (x * y).sum(dim=1) / (norms + LEAST)

"""Be your own teacher (Zhang et al. 2019, arXiv:1905.08094), as DSKD compares with it.

L = CE(y, z_L) + sum_{l<L} [(1 - a) CE(y, z_l) + a CE(softmax(z_L / T), softmax(z_l / T)) + b |F_l - F_L|]

No teacher: the last classifier teaches the auxiliary heads, and gets no gradient from that. F are the pooled
features, and their distance is Euclidean, the mean over the batch. a = 0.3, T = 3 and b = 0.03 are the authors' code,
without T^2.

What differs: the heads are DSKD's, where the original's are bottlenecks; which settings DSKD used is not known.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field

from pipeline.heads import Heads, HeadsConfig
from pipeline.method import BaseMethod, Batch, Context, Needs, Terms, Weights
from pipeline.network import Taps


class Config(HeadsConfig):
    """Settings of BYOT.

    Attributes:
        temperature: T.
        weights: 1, 1 - a, a and b.
    """

    temperature: float = Field(default=3.0, gt=0)
    weights: Weights = {"ce": 1.0, "ce_shallow": 0.7, "soft": 0.3, "feature": 0.03}


class Method(BaseMethod[Config]):
    """BYOT."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.heads = Heads(config.positions, context)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Return the student's logits and pooled features."""
        return Needs(student=("logits", "pooled"))

    @property
    def taps(self) -> tuple[str, ...]:
        """The logits, the pooled features and the places of the heads."""
        return ("logits", "pooled", *self.heads.positions)

    def forward(self, student: Taps, batch: Batch) -> Terms:
        """Return `ce`, and `ce_shallow`, `soft` and `feature`, the sums over the heads."""
        temperature = self.config.temperature
        p = F.softmax(student["logits"].detach() / temperature, dim=1)  # (B, K)
        pooled = student["pooled"].detach()  # (B, D)
        ce = F.cross_entropy(student["logits"], batch.label)
        terms = {"ce": ce, "ce_shallow": 0 * ce, "soft": 0 * ce, "feature": 0 * ce}
        for head in self.heads(student, ("logits", "pooled")).values():
            distance = torch.linalg.vector_norm(head["pooled"] - pooled, dim=1)  # (B,)
            terms["ce_shallow"] = terms["ce_shallow"] + F.cross_entropy(head["logits"], batch.label)
            terms["soft"] = terms["soft"] + F.cross_entropy(head["logits"] / temperature, p)
            terms["feature"] = terms["feature"] + distance.mean()
        return terms

"""Be your own teacher (Zhang et al. 2019, arXiv:1905.08094), as DSKD compares with it.

L = CE(y, z_L) + sum_{l<L} [(1 - a) CE(y, z_l) + a CE(softmax(z_L / T), softmax(z_l / T))]
    + b sum_{l<L-1} |A_l(F_l) - F_L|

No teacher: the last classifier teaches the auxiliary heads, and gets no gradient from that. F are the pooled features
(B, D). A_l is a linear layer of each head, learned with it and dropped with it. |.| is one Euclidean norm over the
whole batch, which grows with the root of B. The head nearest to the output has no such term. a = 0.3, T = 3 without
T^2, and b = 0.03 with batches of 128 are the authors' code (of their journal version).

What differs: the heads are DSKD's, copies of what follows them in the network; the authors' are separable convolutions
behind an attention map. A student of three stages has two heads and the feature term at one of them, the authors' of
four have three and two. Which settings DSKD used is not known. Several processes each take the norm over their part
of the batch, which makes the term smaller by the root of their number.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from pipeline import seeding
from pipeline.distillation.heads import Heads, HeadsConfig
from pipeline.distillation.method import BaseMethod, Batch, Context, Needs, Terms, Weights
from pipeline.networks.network import Taps
from pipeline.params.numbers import Temperature


class Config(HeadsConfig):
    """Settings of BYOT.

    Attributes:
        temperature: T.
        weights: 1, 1 - a, a and b of the formula.
    """

    temperature: Temperature = 3.0
    weights: Weights = {"ce": 1.0, "ce_shallow": 0.7, "soft": 0.3, "feature": 0.03}


class Method(BaseMethod[Config]):
    """BYOT: the student's last classifier teaches the classifiers of its shallow stages."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.heads = Heads(config.heads, context)

        widths = context.student.width, context.student_shapes["pooled"][0]
        # In the network's order, whatever the order of the settings: the last one has no feature term.
        ordered = [name for name in context.student.units if name in config.heads]
        self.projectors = nn.ModuleDict()
        for position in ordered[:-1]:
            # Keyed by the place, as heads are.
            with seeding.scope(context.seed, "projector", position):
                self.projectors[position] = nn.Linear(*widths)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Return the student's logits, its pooled features and the positions of the heads."""
        return Needs(student=("logits", "pooled", *config.heads))

    def forward(self, student: Taps, batch: Batch) -> Terms:
        """Return `ce`, and `ce_shallow`, `soft` and `feature`, the sums over the heads."""
        temperature = self.config.temperature
        p = F.softmax(student["logits"].detach() / temperature, dim=1)  # (B, K)
        pooled = student["pooled"].detach()  # (B, D)

        ce = batch.cross_entropy(student["logits"])
        # Without heads the terms are 0, and stay terms: the history has one set of columns.
        terms = {"ce": ce, "ce_shallow": 0 * ce, "soft": 0 * ce, "feature": 0 * ce}
        for position, head in self.heads(student, ("logits", "pooled")).items():
            terms["ce_shallow"] = terms["ce_shallow"] + batch.cross_entropy(head["logits"])
            terms["soft"] = terms["soft"] + F.cross_entropy(head["logits"] / temperature, p)
            if position in self.projectors:
                guided = self.projectors[position](head["pooled"])  # (B, D)
                terms["feature"] = terms["feature"] + torch.linalg.vector_norm(guided - pooled)
        return terms

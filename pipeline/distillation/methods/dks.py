"""Deeply-supervised knowledge synergy (Sun, Yao, Zhou and Zhao 2019, arXiv:1906.00675), as DSKD compares with it.

L = sum_l CE(y, z_l) + w sum_{m != l} KL(softmax(z_m) || softmax(z_l)), over all classifiers, the last among them

No teacher: of every ordered pair of classifiers one teaches the other, and gets no gradient from that. w = 1, without
a temperature. What differs: the heads are DSKD's, where the original draws some wider and some shallower by hand.
"""

from __future__ import annotations

from itertools import permutations

from pipeline.distillation.heads import Heads, HeadsConfig
from pipeline.distillation.losses import soft_kl
from pipeline.distillation.method import BaseMethod, Batch, Context, Needs, Terms, Weights
from pipeline.networks.network import Taps


class Config(HeadsConfig):
    """Settings of DKS."""

    weights: Weights = {"ce": 1.0, "ce_shallow": 1.0, "synergy": 1.0}


class Method(BaseMethod[Config]):
    """DKS: the classifiers of all stages teach each other."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.heads = Heads(config.heads, context)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Return the student's logits and the positions of the heads."""
        return Needs(student=("logits", *config.heads))

    def forward(self, student: Taps, batch: Batch) -> Terms:
        """Return `ce`, `ce_shallow` and `synergy`, sums over the heads and over ordered pairs."""
        shallow = [taps["logits"] for taps in self.heads(student, ("logits",)).values()]
        every = [student["logits"], *shallow]  # each (B, K)

        ce = batch.cross_entropy(student["logits"])
        # What teaches is detached: a classifier learns from the others, and is not pulled by its pupils.
        pairs = (soft_kl(learner, teacher.detach(), 1.0) for teacher, learner in permutations(every, 2))
        return {
            "ce": ce,
            # Sums start at 0 * ce: without heads they are tensors too.
            "ce_shallow": sum((batch.cross_entropy(z) for z in shallow), 0 * ce),
            "synergy": sum(pairs, 0 * ce),
        }

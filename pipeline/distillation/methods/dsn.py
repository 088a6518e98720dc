"""Deeply-supervised nets (Lee, Xie, Gallagher, Zhang and Tu 2015, arXiv:1409.5185), as DSKD compares with them.

L = CE(y, z_L) + w sum_{l<L} CE(y, z_l)

No teacher: the auxiliary heads learn the labels. What differs: the original has squared hinge losses on small heads
that fade; here the heads are DSKD's, and w = 1 is a choice, because DSKD does not state it.
"""

from __future__ import annotations

from pipeline.distillation.heads import Heads, HeadsConfig
from pipeline.distillation.method import BaseMethod, Batch, Context, Needs, Terms, Weights
from pipeline.networks.network import Taps


class Config(HeadsConfig):
    """Settings of DSN."""

    weights: Weights = {"ce": 1.0, "ce_shallow": 1.0}


class Method(BaseMethod[Config]):
    """DSN: every stage learns the labels."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.heads = Heads(config.heads, context)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Return the student's logits and the positions of the heads."""
        return Needs(student=("logits", *config.heads))

    def forward(self, student: Taps, batch: Batch) -> Terms:
        """Return `ce` and `ce_shallow`, the sum over the heads."""
        ce = batch.cross_entropy(student["logits"])
        shallow = self.heads(student, ("logits",)).values()
        # The sum starts at 0 * ce: without heads it is a tensor too.
        return {
            "ce": ce,
            "ce_shallow": sum((batch.cross_entropy(x["logits"]) for x in shallow), 0 * ce),
        }

"""Deep mutual learning (Zhang, Xiang, Hospedales and Lu 2018, arXiv:1706.00384): networks that learn from each other.

L = sum_k [CE(y, z_k) + 1 / (N - 1) sum_{l != k} KL(softmax(z_l) || softmax(z_k))], over N networks, the student first

No teacher: the others, its peers, are fresh networks of the student's own architecture, with its inserted layers, and
are dropped afterwards. T is 1, and all weights are. Who teaches gets no gradient from that.

What differs: the paper updates one network after the other on each batch, and computes the predictions of those that
have been updated anew; here all are updated in one step, as in most public code. Its networks may be of several
architectures; here all are of the student's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from pipeline import seeding
from pipeline.distillation.losses import log_kl
from pipeline.distillation.method import BaseMethod, Batch, Context, MethodConfig, Needs, Terms, Weights
from pipeline.networks.network import Taps


class Config(MethodConfig):
    """Settings of DML.

    Attributes:
        num_peers: networks that learn beside the student, N - 1.
        weights: `ce` and `mutual` are the student's terms, `peer_ce` and `peer_mutual` the sums over the peers.
    """

    num_peers: int = Field(default=1, ge=1, le=64)
    weights: Weights = {"ce": 1.0, "mutual": 1.0, "peer_ce": 1.0, "peer_mutual": 1.0}


class Method(BaseMethod[Config]):
    """DML: what one network takes for likely, the others learn beside the labels."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.autocast = context.autocast
        self.peers = nn.ModuleList()
        for number in range(config.num_peers):
            # A scope each: they start apart from each other and from the student, however many there are.
            with seeding.scope(context.seed, "peer", number):
                self.peers.append(context.student.fresh())

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Return the student's logits."""
        return Needs(student=("logits",))

    def forward(self, student: Taps, batch: Batch) -> Terms:
        """Return `ce` and `mutual`, and `peer_ce` and `peer_mutual`, the sums over the peers."""
        s = student["logits"]  # (B, K)
        with self.autocast():
            peers = [peer(batch.image) for peer in self.peers]
        every = [s, *(z.to(s.dtype) for z in peers)]

        labels = [batch.cross_entropy(z) for z in every]
        log_p = [F.log_softmax(z, dim=1) for z in every]
        mutual = []
        for learner, log_q in enumerate(log_p):
            others = [x.detach() for other, x in enumerate(log_p) if other != learner]
            mutual.append(torch.stack([log_kl(log_q, x, 1.0) for x in others]).mean())

        return {
            "ce": labels[0],
            "mutual": mutual[0],
            "peer_ce": torch.stack(labels[1:]).sum(),
            "peer_mutual": torch.stack(mutual[1:]).sum(),
        }

"""Attention transfer (Zagoruyko and Komodakis 2017, arXiv:1612.03928).

L = w_ce CE(s, y) + w_attention sum_l mean (Q_s^l - Q_t^l)^2, Q = q / ||q||, q = the channel mean of squares

Q is a vector of all pixels of a sample, and the mean is over samples and pixels. It is summed over the stages, with
weight 1000, as in the tables of CRD, SLKD and KCD; DSKD's table adds KL to it. Of maps of two sizes the larger is
averaged before it is squared.

What differs: the original halves the weight and takes a norm over the batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.distillation.method import BaseMethod, Batch, Context, Needs, Terms, Weights
from pipeline.distillation.places import StagesConfig, require_maps, smaller
from pipeline.networks.network import Taps


class Config(StagesConfig):
    """Settings of AT."""

    weights: Weights = {"ce": 1.0, "attention": 1000.0}


class Method(BaseMethod[Config]):
    """AT: the student looks where the teacher looks."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        require_maps("AT", config, context)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Return the student's logits and the maps of both."""
        return config.needs

    def forward(self, student: Taps, batch: Batch) -> Terms:
        """Return `ce` and `attention`, summed over the places."""
        places = []
        for tap, feature in self.config.pairs.items():
            s, t = smaller(student[tap], batch.teacher[feature])
            places.append((attention(s) - attention(t)).square().mean())
        return {"ce": batch.cross_entropy(student["logits"]), "attention": torch.stack(places).sum()}


def attention(x: Tensor) -> Tensor:
    """Return where a map (B, C, H, W) is large: (B, H * W), of norm 1."""
    return F.normalize(x.square().mean(dim=1).flatten(1), dim=1)

"""Refined logits (Sun, Chen, Lin, Chen and Fang 2024, arXiv:2408.07703): the teacher without its mistakes.

L = w_ce CE(s, y) + r [w_confidence T^2 KL(b_t || b_s) + w_correlation T^2 KL(q_t || q_s)], r = min(epoch / 20, 1)

b are (p, 1 - p): of the student, p is its probability of the label; of the teacher, of the class that it is surest of,
whichever that is. q are the softmaxes over the classes that the teacher ranks below the label: the label and what
stands above it are left out. Where nothing stands below it, the second term is 0. Probabilities are of logits / T,
means over the batch, epochs from 1.

Weights, T and the warm-up are the defaults of DKD, on whose code the authors build; what they set for each pair could
not be read.
"""

from __future__ import annotations

import torch.nn.functional as F

from pipeline.distillation.losses import log_kl, one_against_others
from pipeline.distillation.method import (
    BaseMethod,
    Batch,
    MethodConfig,
    Needs,
    StepWeights,
    Terms,
    Weights,
    warmed_up,
)
from pipeline.networks.network import Taps
from pipeline.params.numbers import Epochs, Temperature

FAR = -1e9  # a logit that no softmax sees


class Config(MethodConfig):
    """Settings of RLD.

    Attributes:
        temperature: T of all softmaxes.
        warmup: epochs in which the weights of both terms of the teacher grow; 0 is none.
    """

    temperature: Temperature = 4.0
    warmup: Epochs = 20
    weights: Weights = {"ce": 1.0, "confidence": 1.0, "correlation": 8.0}


class Method(BaseMethod[Config]):
    """RLD: how sure to be, and how to rank what is surely wrong."""

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Return the logits of both, and the label."""
        return Needs(student=("logits",), teacher=("logits",), label=True)

    def weights(self, batch: Batch) -> StepWeights:
        """Return the weights of an epoch: those of the teacher's terms grow over the first ones."""
        return warmed_up(self.config.weights, ("confidence", "correlation"), self.config.warmup, batch)

    def forward(self, student: Taps, batch: Batch) -> Terms:
        """Return `ce`, `confidence` and `correlation`."""
        temperature = self.config.temperature
        s, t = student["logits"] / temperature, batch.teacher["logits"] / temperature  # (B, K)
        pairs = one_against_others(s, batch.label)[0], one_against_others(t, t.argmax(dim=1))[0]

        wrong = t < t.gather(1, batch.label[:, None])  # (B, K): what stands below the label
        q_s, q_t = (F.log_softmax(x.masked_fill(~wrong, FAR), dim=1) for x in (s, t))
        return {
            "ce": batch.cross_entropy(student["logits"]),
            "confidence": log_kl(*pairs, temperature),
            "correlation": log_kl(q_s, q_t, temperature),
        }

"""Multi-level logits (Jin, Wang and Lin, CVPR 2023): what logits say of a sample, of the batch and of the classes.

L = w_ce CE(s, y) + w_ce_strong CE(s', y) + w_instance L_instance + w_batch L_batch + w_class L_class

s, t are logits of the weak view, s', t' of the strong one; p_T, q_T are softmaxes of t / T and s / T, as matrices
(B, K). Sums are over the temperatures T, and the means over the batch.

L_instance = m sum_T KD_T(s, t) + sum_{T in strong} KD_T(s', t') + sum_{T not in strong} KD_T(s, t)
L_batch = m sum_T |p_T p_T^t - q_T q_T^t|^2 / B
L_class = n sum_T |p_T^t p_T - q_T^t q_T|^2 / K

KD_T is T^2 KL(p_T || q_T). Both factors are by softmax(t): m is the share of samples whose largest probability is no
larger than the median one, n the share of classes whose sum over the batch is no larger than the median sum.

All is as the authors' code has it, weights and temperatures too, also where it may not be what they meant: masks of
samples and classes are applied to a mean, and so are the factors m and n of whole terms; by two temperatures KD is the
weak view's again, and not the strong one's; and the batch and the classes are compared on the weak view alone: what the
code computes of the strong one is left out of its sum. The student sees the views in two forward passes, the weak one
first. What the tables of others have is by Sun et al. 2024 (arXiv:2403.01427), who ran that code again.
"""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from pipeline.distillation.losses import soft_kl
from pipeline.distillation.method import BaseMethod, Batch, MethodConfig, Needs, Terms, Weights
from pipeline.networks.network import Taps
from pipeline.params.numbers import Temperature

Temperatures = Annotated[tuple[Temperature, ...], Field(min_length=1)]


class Config(MethodConfig):
    """Settings of MLLD.

    Attributes:
        temperatures: all T.
        strong: those of them by which the strong view's logits are compared; the weak view's are by the others, again.
    """

    temperatures: Temperatures = (2.0, 3.0, 4.0, 5.0, 6.0)
    strong: tuple[Temperature, ...] = (3.0, 4.0, 5.0)
    weights: Weights = {"ce": 0.1, "ce_strong": 0.1, "instance": 0.9, "batch": 0.9, "class": 0.9}

    @model_validator(mode="after")
    def _among_them(self) -> Config:
        others = [temperature for temperature in self.strong if temperature not in self.temperatures]
        if others:
            raise ValueError(f"strong has {others[0]:g}, expected one of its temperatures")
        return self


class Method(BaseMethod[Config]):
    """MLLD: predictions of samples, and how samples and classes resemble each other by them."""

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Return the logits of both, of both views."""
        return Needs(student=("logits",), teacher=("logits",), strong=True)

    def forward(self, student: Taps, batch: Batch) -> Terms:
        """Return `ce`, `ce_strong`, `instance`, `batch` and `class`."""
        strong = batch.both()
        weak = student["logits"], batch.teacher["logits"]  # each (B, K)
        other = strong.student["logits"], strong.teacher["logits"]

        p = F.softmax(weak[1], dim=1)
        samples, classes = _unsure(p.amax(dim=1)), _unsure(p.sum(dim=0))
        every, of_strong = self.config.temperatures, self.config.strong

        instance = samples * sum(soft_kl(*weak, t) for t in every)
        instance = instance + sum(soft_kl(*(other if t in of_strong else weak), t) for t in every)
        return {
            "ce": batch.cross_entropy(weak[0]),
            "ce_strong": batch.cross_entropy(other[0]),
            "instance": instance,
            "batch": samples * sum(_between(*weak, t, of_classes=False) for t in every),
            "class": classes * sum(_between(*weak, t, of_classes=True) for t in every),
        }


def _unsure(confidence: Tensor) -> Tensor:
    """Return the share of values (n,) that are no larger than their median, a scalar; no value is read."""
    ordered, count = confidence.sort().values, len(confidence)
    median = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    return (confidence <= median).to(confidence.dtype).mean()


def _between(student: Tensor, teacher: Tensor, temperature: float, *, of_classes: bool) -> Tensor:
    """Return how far products of predictions are apart: between the samples of a batch, or between the classes.

    Args:
        student: logits (B, K).
        teacher: logits (B, K).
        temperature: T of both softmaxes.
        of_classes: between classes.
    """
    p, q = (F.softmax(x / temperature, dim=1) for x in (teacher, student))
    if of_classes:
        p, q = p.T, q.T
    return (p @ p.T - q @ q.T).square().sum() / len(p)

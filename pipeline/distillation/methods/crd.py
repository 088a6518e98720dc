"""Contrastive representation distillation (Tian, Krishnan and Isola 2020, arXiv:1910.10699).

L = w_ce CE(s, y) + w_contrast (c(v_s, M_t) + c(v_t, M_s))
c(v, M) = -1/B sum_i [log h(v_i, M_i) + sum_j log(1 - h(v_i, M_j))], h(v, m) = P / (P + K / N), P = exp(v m / 0.07) / Z

v are the pooled features of either network, taken to 128 values by a linear layer and to norm 1; both layers are
learned. M holds one such vector a training sample, M <- normalized 0.5 M + 0.5 v whenever the sample is seen. Each
sample is told apart from K = 16384 samples of other classes, drawn anew in each step; Z is fixed by the first batch, so
that P has a mean of 1 / N there. Weight 0.8.

A draw is without replacement, unless a class leaves fewer than K others. All N products of a batch are taken in one
matrix product and those of the draw are picked: the same numbers as of gathered vectors, for a tenth of the memory. For
large N a step costs B N draws; a smaller `negatives` does not change that.

The memories are part of the training's checkpoint (51 MB for 50,000 samples). Several processes would each keep a part
of them, and are refused.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline import seeding
from pipeline.distillation.method import (
    BaseMethod,
    Batch,
    Context,
    Needs,
    Terms,
    Weights,
)
from pipeline.distillation.places import PlaceConfig
from pipeline.networks.network import Taps
from pipeline.params.numbers import Temperature, Width

LEAST = 1e-7  # added to denominators


class Config(PlaceConfig):
    """Settings of CRD.

    Attributes:
        student_tap: what is contrasted of the student, a vector a sample.
        teacher_feature: what is contrasted of the teacher.
        width: values of an embedding.
        negatives: K.
        temperature: of the products.
        momentum: share of a memory that stays when its sample is seen.
    """

    student_tap: str = "pooled"
    teacher_feature: str = "pooled"
    width: Width = 128
    negatives: int = Field(default=16384, ge=1, le=2**20)
    temperature: Temperature = 0.07
    momentum: float = Field(default=0.5, ge=0, lt=1)
    weights: Weights = {"ce": 1.0, "contrast": 0.8}


class Method(BaseMethod[Config]):
    """CRD: student and teacher see the same sample in what the other has made of it."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        shapes = context.student_shapes[config.student_tap], context.teacher_shapes[config.teacher_feature]
        with seeding.scope(context.seed, "embedding"):
            self.student, self.teacher = (Memory(math.prod(x), context.num_samples, config) for x in shapes)
        self.negatives = Negatives(context.labels, context.num_classes, config.negatives)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Return the student's logits, its tap and the teacher's feature, and the label."""
        return config.needs | Needs(student=(), label=True)

    def forward(self, student: Taps, batch: Batch) -> Terms:
        """Return `ce` and `contrast`, the sum of both directions."""
        s = self.student.embed(student[self.config.student_tap])  # (B, width)
        t = self.teacher.embed(batch.teacher[self.config.teacher_feature])

        rows = torch.cat(
            [batch.index[:, None], self.negatives(batch)], dim=1
        )  # (B, 1 + K), its own sample first
        contrast = self.teacher.contrast(s, rows) + self.student.contrast(t, rows)
        self.student.remember(s, batch.index)
        self.teacher.remember(t, batch.index)
        return {"ce": batch.cross_entropy(student["logits"]), "contrast": contrast}


class Memory(nn.Module):
    """One network's embedding, and what it has made of every training sample.

    Args:
        features: values that are embedded.
        samples: number of training samples.
        config: the method's settings.
    """

    vectors: Tensor
    scale: Tensor

    def __init__(self, features: int, samples: int, config: Config) -> None:
        super().__init__()
        self.config = config
        self.layer = nn.Linear(features, config.width)
        bound = 1 / math.sqrt(config.width / 3)
        self.register_buffer("vectors", torch.empty(samples, config.width).uniform_(-bound, bound))
        self.register_buffer(
            "scale", torch.zeros(())
        )  # Z of the other network's vectors; 0 before the first batch

    def embed(self, x: Tensor) -> Tensor:
        """Return vectors (B, width) of norm 1 of features (B, ...)."""
        embedded: Tensor = self.layer(x.flatten(1))
        return F.normalize(embedded, dim=1)

    def contrast(self, vectors: Tensor, rows: Tensor) -> Tensor:
        """Return c: the loss of the other network's vectors against what is remembered here.

        Args:
            vectors: of the other network (B, width).
            rows: samples, the own one first, int64 (B, 1 + K).
        """
        samples, negatives = len(self.vectors), rows.shape[1] - 1
        # A copy: the memory changes before the gradients are taken.
        products = vectors @ self.vectors.clone().T  # (B, N)
        p = (products.gather(1, rows) / self.config.temperature).exp()  # (B, 1 + K)
        with torch.no_grad():
            scale = torch.where(self.scale == 0, samples * p.mean(), self.scale)
            self.scale.copy_(scale)
        p = p / scale

        noise = negatives / samples
        own = (p[:, 0] / (p[:, 0] + noise + LEAST)).log()  # (B,)
        others = (noise / (p[:, 1:] + noise + LEAST)).log()  # (B, K)
        return -(own.sum() + others.sum()) / len(p)

    @torch.no_grad()
    def remember(self, vectors: Tensor, index: Tensor) -> None:
        """Take in the vectors (B, width) of the samples `index` int64 (B,)."""
        kept = self.config.momentum * self.vectors[index] + (1 - self.config.momentum) * vectors
        self.vectors.index_copy_(0, index, F.normalize(kept, dim=1).to(self.vectors.dtype))


class Negatives(nn.Module):
    """Draws samples of other classes than a sample's own.

    Args:
        labels: of the training samples, int64 (N,).
        classes: number of classes.
        count: K, how many are drawn.
    """

    labels: Tensor
    order: Tensor
    first: Tensor
    counts: Tensor

    def __init__(self, labels: Tensor, classes: int, count: int) -> None:
        super().__init__()
        counts = torch.bincount(labels, minlength=classes)
        self.count = count
        # How many others every class leaves is known now: a step must not look at a value.
        self.distinct = count <= len(labels) - int(counts.max())
        self.register_buffer("labels", labels, persistent=False)
        self.register_buffer("order", labels.argsort(stable=True), persistent=False)
        self.register_buffer("first", counts.cumsum(0) - counts, persistent=False)
        self.register_buffer("counts", counts, persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        """Return samples int64 (B, K), none of the class of its row."""
        size, samples = len(batch.index), len(self.labels)
        if self.distinct:
            # The K least of uniform keys are a draw without replacement.
            keys = batch.uniform(size, samples).masked_fill(self.labels == batch.label[:, None], 2.0)
            return keys.topk(self.count, largest=False).indices

        own = self.counts[batch.label][:, None]  # (B, 1)
        # Samples in the order of their classes, of which the own class is passed over.
        place = (batch.uniform(size, self.count) * (samples - own)).long()
        return self.order[place + own * (place >= self.first[batch.label][:, None])]

"""Tree-like decision distillation (Song et al., CVPR 2021), beside soft targets (arXiv:1503.02531).

L = w_ce CE(s, y) + w_kd T^2 KL(softmax(t / T) || softmax(s / T)) + w_coarse sum_l CE_w(h_l(s_l), c_l(y))

s_l are the student's stages, averaged over height and width; h_l is a linear layer, learned with the student and
dropped afterwards. c_l(y) is the coarse label of the sample's class in the teacher's stage l, of the table `coarse`: so
each stage of the student learns to tell apart what that stage of the teacher does. In CE_w a coarse label of n classes
weighs 1 / n, and the mean over the batch is weighted too. Weights 0.1, 0.9 and 0.1 with T = 4 are the authors' example,
CIFAR-10 (zju-vipa/KamalEngine); what they set for CIFAR-100 is not known.

`places` has a table for each stage. TDD+CRD of letKD's tables is `{tdd: {}, crd: {}}`.
"""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline import seeding
from pipeline.distillation.losses import soft_kl
from pipeline.distillation.method import (
    BaseMethod,
    Batch,
    Context,
    Known,
    MethodConfig,
    Needs,
    Terms,
    Weights,
    resolved_taps,
)
from pipeline.distillation.places import key
from pipeline.distillation.targets import Arrays, fitted
from pipeline.errors import ParamsError
from pipeline.networks.network import Shape, Taps
from pipeline.params.numbers import Temperature


class Config(MethodConfig):
    """Settings of TDD.

    Attributes:
        temperature: T of both softmaxes of `kd`.
        places: key of `tables` by student tap: the coarse labels that the tap learns.
    """

    temperature: Temperature = 4.0
    weights: Weights = {"ce": 0.1, "kd": 0.9, "coarse": 0.1}
    places: dict[str, str] = Field(
        default={"stage1": "coarse1", "stage2": "coarse2", "stage3": "coarse3"}, min_length=1
    )

    def resolved(self, known: Known) -> Self:
        """Return these settings with taps in full.

        Raises:
            ParamsError: a table is not there, or two names are the same tap.
        """
        places = resolved_taps("places", self.places, known.student)
        for tap, table in places.items():
            fitted(tap, table, known)
        return super().resolved(known).model_copy(update={"places": places})


class Method(BaseMethod[Config]):
    """TDD: every stage of the student tells apart what that stage of the teacher does."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.heads = nn.ModuleDict()
        for tap, table in config.places.items():
            _check(tap, table, context.tables[table], context.num_classes)
            # Keyed by the place.
            with seeding.scope(context.seed, "coarse", tap):
                self.heads[key(tap)] = Head(context.student_shapes[tap], context.tables[table])

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Return the logits of both, the places and their tables, and the label."""
        tables = tuple(dict.fromkeys(config.places.values()))
        return Needs(("logits", *config.places), ("logits",), tables, label=True)

    def forward(self, student: Taps, batch: Batch) -> Terms:
        """Return `ce`, `kd` and `coarse`, the sum over the places."""
        s, t = student["logits"], batch.teacher["logits"]  # (B, K), (B, K)
        places = [self.heads[key(tap)](student[tap], batch.label) for tap in self.config.places]
        return {
            "ce": batch.cross_entropy(s),
            "kd": soft_kl(s, t, self.config.temperature),
            "coarse": torch.stack(places).sum(),
        }


class Head(nn.Module):
    """A linear layer on one place, and its loss against coarse labels.

    Args:
        student: shape of the student's map or vector (C, ...).
        arrays: of the table.
    """

    coarse: Tensor
    weight: Tensor

    def __init__(self, student: Shape, arrays: Arrays) -> None:
        super().__init__()
        self.layer = nn.Linear(student[0], len(arrays["sizes"]))
        # Not saved: the table is an artifact of its own.
        self.register_buffer("coarse", torch.as_tensor(arrays["coarse"]), persistent=False)
        self.register_buffer("weight", 1 / torch.as_tensor(arrays["sizes"]).float(), persistent=False)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """Return the loss, a scalar, of a map (B, C, H, W) or a vector (B, C) with labels int64 (B,)."""
        scores = self.layer(x.flatten(2).mean(dim=2) if x.ndim > 2 else x)  # (B, M)
        return F.cross_entropy(scores, self.coarse[label], weight=self.weight)


def _check(tap: str, table: str, arrays: Arrays, num_classes: int) -> None:
    if "coarse" not in arrays:
        raise ParamsError(
            f"Place '{tap}' learns the table '{table}', which holds {', '.join(sorted(arrays))}: no coarse labels. "
            "Name a table that coarse made, in params.yaml."
        )
    if len(arrays["coarse"]) != num_classes:
        raise ParamsError(
            f"Place '{tap}' learns the table '{table}' of {len(arrays['coarse'])} classes, and the student has "
            f"{num_classes}. Name a table of its own data set, in params.yaml."
        )

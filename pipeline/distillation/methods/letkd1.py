"""letKD-1 (Görgün, Gürbüz and Alatan 2023, arXiv:2309.02843): a layer that lets the student decide.

At each place a layer g = 1x1 - BN - ReLU - 1x1 is inserted, x + alpha g(x), and stays at inference. The scores of
its first 1x1 learn p_T, what the teacher's pixels are:

L = CE + sum over places of KL(p_T || softmax(scores)), mean over pixels, all weights 1, no logit term

The place is `final`, where the student learns the words of the teacher's penultimate pixels. A second place is
letKD-1 (2) of Table 4; words of a table made by `kernels` are Table 3. letkd2.py learns sub-classes beside them.

What differs: t = 1 in p_T = softmax(-t d^2) is the authors' code, the paper gives neither sign nor t. One SGD
trains all, where their code has one a module with equal settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.distillation.method import (
    BaseMethod,
    Batch,
    Context,
    MethodConfig,
    Needs,
    Operations,
    Tables,
    Terms,
    Weights,
)
from pipeline.distillation.targets import Lesson, Target, Words, needs, outcomes
from pipeline.networks.layer import LayerSpec
from pipeline.networks.network import Shape, Taps

LAYERS = ("kd_layer",)


class Config(MethodConfig):
    """Settings.

    Attributes:
        weights: of `ce` and `words` (and `subclasses`); the terms of all places of one kind are summed.
        places: what the layer after each student tap learns.
        alpha: weight of g in x + alpha g(x), by place; 1 where it is not named.
    """

    weights: Weights = {"ce": 1.0, "words": 1.0}
    places: dict[str, Lesson] = Field(default={"final": Words()}, min_length=1)
    alpha: dict[str, float] = {}

    @model_validator(mode="after")
    def _check_places(self) -> Self:
        idle = sorted(self.alpha.keys() - self.places.keys())
        if idle:
            raise ValueError(f"alpha is given for '{idle[0]}', and the places are {', '.join(self.places)}")
        twice = sorted(self.insert.keys() & self.places.keys())
        if twice:
            raise ValueError(f"insert has a layer at '{twice[0]}', where the method puts its own")
        return self


class Method(BaseMethod[Config]):
    """letKD-1, and with sub-classes among its places letKD-2."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.targets = nn.ModuleDict(
            {
                place: Target(place, lesson, context, f"{place}.scores")
                for place, lesson in config.places.items()
            }
        )

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Logits and the layers' scores, and what the lessons read of the teacher."""
        return needs(config.places, tuple(f"{place}.scores" for place in config.places))

    @classmethod
    def operations(
        cls, config: Config, student: Mapping[str, Shape], teacher: Mapping[str, Shape], tables: Tables
    ) -> Operations:
        """Insert a layer at every place, as wide as its table."""
        layers = {
            place: LayerSpec(
                layer="kd_layer",
                settings={"words": outcomes(lesson, tables), "alpha": config.alpha.get(place, 1.0)},
            )
            for place, lesson in config.places.items()
        }
        return Operations(insert={**config.insert, **layers})

    def forward(self, student: Taps, batch: Batch) -> Terms:
        """Return `ce`, and `words` and `subclasses` where a place learns them."""
        terms: dict[str, Tensor] = {"ce": F.cross_entropy(student["logits"], batch.label)}
        for place, lesson in self.config.places.items():
            loss = self.targets[place](student[f"{place}.scores"], batch.teacher[lesson.feature], batch.label)
            terms[lesson.learns] = terms.get(lesson.learns, 0.0) + loss
        return terms

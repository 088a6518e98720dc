"""letKD (Görgün, Gürbüz and Alatan 2023, arXiv:2309.02843): layers that let the student decide.

At each place a layer g = 1x1 - BN - ReLU - 1x1 is inserted, x + alpha g(x), and stays at inference: what follows
reads its output. The scores of its first 1x1 learn p_T, what the teacher's pixels are:

L = CE + sum over places of KL(p_T || softmax(scores)), mean over pixels, all weights 1, no logit term

The kind of a place's table says what is learned there. The paper's runs are settings of `places`:

* letKD-1 (the default): `final` learns the words of the teacher's penultimate pixels. Words that `kernels` made are
  Table 3.
* letKD-1 (2) of Table 4: a second place, `last_block1`, learns words of its own.
* letKD-2: `last_block1`, the place after the first block of the last stage, learns a table of `subclasses`, with which
  sub-classes the teacher confuses a pixel's own one. In the space of an LDA, h1 is a pixel's nearest sub-class within
  the image's class, and p_T = p(h2 | h1(z, y)) the share of such pixels that lie nearest to sub-class h2. Labels are
  needed for the target, not for the prediction.

What differs: t = 1 in p_T = softmax(-t d^2) is the authors' code, the paper gives neither sign nor t. One SGD
trains all, where their code has one a module with equal settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.distillation.method import (
    BaseMethod,
    Batch,
    Context,
    Known,
    MethodConfig,
    Needs,
    Operations,
    Tables,
    Terms,
    Weights,
    resolved_taps,
)
from pipeline.distillation.targets import Place, Target, learned, needs, outcomes, resolved_places
from pipeline.errors import ParamsError
from pipeline.networks.layer import LayerSpec
from pipeline.networks.network import Shape, Taps
from pipeline.params.numbers import Weight

LAYERS = ("kd_layer",)


class Config(MethodConfig):
    """Settings of letKD.

    Attributes:
        weights: the weights of `ce`, `words` and `subclasses`; the terms of all places of one kind are summed.
        places: what the layer after each student tap learns: a table, or {table, encoding, temperature}.
        alpha: weight of g in x + alpha g(x), 0 or above, by place; 1 where a place is not named.
    """

    weights: Weights = {"ce": 1.0, "words": 1.0, "subclasses": 1.0}
    places: dict[str, Place] = Field(default={"final": Place(table="words")}, min_length=1)
    alpha: dict[str, Weight] = {}

    @model_validator(mode="after")
    def _check_places(self) -> Self:
        idle = sorted(self.alpha.keys() - self.places.keys())
        if idle:
            raise ValueError(f"alpha is given for '{idle[0]}', and the places are {', '.join(self.places)}")
        if taken := self._taken():
            raise ValueError(taken)
        return self

    def resolved(self, known: Known) -> Self:
        """Return these settings with taps in full, and the feature that each place learns from."""
        config = super().resolved(known)
        places = resolved_places(self.places, known)
        alpha = resolved_taps("alpha", self.alpha, known.student)
        config = config.model_copy(update={"places": places, "alpha": alpha})

        # Two names of one tap meet only now.
        if taken := config._taken():
            raise ParamsError(f"letkd: {taken}. Drop it from 'insert' of the run, in params.yaml.")
        return config

    def _taken(self) -> str:
        taken = sorted(self.insert.keys() & self.places.keys())
        return f"insert has a layer at '{taken[0]}', where the method puts its own" if taken else ""


class Method(BaseMethod[Config]):
    """letKD: the student's own layers learn the teacher's decisions, and the student uses them."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        # An inserted layer records its scores as "<tap>.scores".
        self.targets = nn.ModuleDict(
            {tap: Target(tap, place, context, f"{tap}.scores") for tap, place in config.places.items()}
        )
        self.kinds = {tap: learned(tap, place, context.tables) for tap, place in config.places.items()}

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Return the logits and the layers' scores, and what the places read of the teacher."""
        return needs(config.places, tuple(f"{tap}.scores" for tap in config.places))

    @classmethod
    def operations(
        cls, config: Config, student: Mapping[str, Shape], teacher: Mapping[str, Shape], tables: Tables
    ) -> Operations:
        """Insert a layer at every place, as wide as its table."""
        layers = {
            tap: LayerSpec.of(
                "kd_layer", words=outcomes(tap, place, tables), alpha=config.alpha.get(tap, 1.0)
            )
            for tap, place in config.places.items()
        }
        return Operations(insert={**config.insert, **layers})

    def forward(self, student: Taps, batch: Batch) -> Terms:
        """Return `ce`, and `words` and `subclasses` where a place learns them."""
        terms: dict[str, Tensor] = {"ce": batch.cross_entropy(student["logits"])}
        for tap, place in self.config.places.items():
            loss = self.targets[tap](student[f"{tap}.scores"], batch.teacher[place.source], batch.label)
            kind = self.kinds[tap]
            # Places of one kind share a term, and with it a weight.
            terms[kind] = terms.get(kind, 0.0) + loss
        return terms

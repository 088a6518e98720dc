"""QuEST: predict the teacher's words (Jain, Gidaris, Komodakis, Pérez and Cord 2020, arXiv:1912.01540).

L = CE + KL(p_T || softmax(scores)), p_T = softmax(-t ||f_T - word||^2), summed over words, mean over pixels. The
scores are scaled cosines of the student's pixels; their predictor is trained beside the student and dropped, and
the path to the logits does not lead through it. It is letKD-1 with alpha = 0 but for t, which is 5 at every place.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field
from torch import nn

from pipeline.distillation import targets
from pipeline.distillation.method import (
    BaseMethod,
    Batch,
    Context,
    Known,
    MethodConfig,
    Needs,
    Terms,
    Weights,
)
from pipeline.distillation.targets import Target, learned, needs, outcomes, resolved_places
from pipeline.errors import ParamsError
from pipeline.networks.cosine import CosineScores
from pipeline.networks.network import Taps
from pipeline.params.numbers import Factor


class Place(targets.Place):
    """What a place learns: settings as of letKD's words, but for the default of t.

    Attributes:
        temperature: t. It was chosen for distances: of kernels, whose activations t multiplies, give 1.
    """

    encoding: Literal["nearest", "top4"] | None = None
    temperature: Factor = 5.0


class Config(MethodConfig):
    """Settings of QuEST.

    Attributes:
        weights: the weights of `ce` and `words`.
        places: what each student tap learns: a table, or {table, encoding, temperature}. A second place is QUEST (2)
            of letKD's Table 4.
        scale: what the learnable scale of the scores starts at.
    """

    weights: Weights = {"ce": 1.0, "words": 1.0}
    places: dict[str, Place] = Field(default={"final": Place(table="words")}, min_length=1)
    scale: Factor = 3.0

    def resolved(self, known: Known) -> Self:
        """Return these settings with taps in full, and the feature that each place learns from."""
        return super().resolved(known).model_copy(update={"places": resolved_places(self.places, known)})


class Method(BaseMethod[Config]):
    """QuEST: the student predicts the teacher's words, and its predictors are dropped afterwards."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.targets, self.predictors = nn.ModuleDict(), nn.ModuleDict()
        for tap, place in config.places.items():
            if learned(tap, place, context.tables) != "words":
                raise ParamsError(
                    f"Place '{tap}' learns the table '{place.table}', which holds sub-classes, and QuEST learns words. "
                    "Name a table that kmeans or kernels made, or the method letkd, in params.yaml."
                )
            # Scores have the size of the tap that they are made of, which is checked in their place.
            self.targets[tap] = Target(tap, place, context, tap)
            channels = context.student_shapes[tap][0]
            words = outcomes(tap, place, context.tables)
            self.predictors[tap] = CosineScores(channels, words, config.scale)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Return the logits and the places, and what they learn of the teacher."""
        return needs(config.places, tuple(config.places))

    def forward(self, student: Taps, batch: Batch) -> Terms:
        """Return `ce` and `words`, summed over the places."""
        words = []
        for tap, place in self.config.places.items():
            scores = self.predictors[tap](student[tap])  # (B, K, H, W)
            words.append(self.targets[tap](scores, batch.teacher[place.source], batch.label))
        return {"ce": batch.cross_entropy(student["logits"]), "words": torch.stack(words).sum()}

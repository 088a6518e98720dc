"""QuEST: predict the teacher's words (Jain, Gidaris, Komodakis, Pérez and Cord 2020, arXiv:1912.01540).

L = CE + KL(p_T || softmax(scores)), p_T = softmax(-t ||f_T - word||^2), summed over words, mean over pixels. The
scores are scaled cosines of the student's pixels; their predictor is trained beside the student and dropped, and
the path to the logits does not lead through it. It is letKD-1 with alpha = 0 but for t, which is 5 at every place.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from pipeline.distillation.method import BaseMethod, Batch, Context, MethodConfig, Needs, Terms, Weights
from pipeline.distillation.targets import Target, Words, needs, outcomes
from pipeline.networks.cosine import CosineScores
from pipeline.networks.network import Taps


class Place(Words):
    """What a place learns: settings as of letKD's words, but for the default of t.

    Attributes:
        temperature: t. It was chosen for distances: of kernels, whose activations t multiplies, give 1.
    """

    temperature: float = Field(default=5.0, gt=0)


class Config(MethodConfig):
    """Settings.

    Attributes:
        weights: of `ce` and `words`.
        places: what each student tap learns; the second place is QUEST (2) of letKD's Table 4.
        scale: what the learnable scale of the scores starts at.
    """

    weights: Weights = {"ce": 1.0, "words": 1.0}
    places: dict[str, Place] = Field(default={"final": Place()}, min_length=1)
    scale: float = 3.0


class Method(BaseMethod[Config]):
    """QuEST."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.targets, self.predictors = nn.ModuleDict(), nn.ModuleDict()
        for place, words in config.places.items():
            self.targets[place] = Target(place, words, context, place)
            channels = context.student_shapes[place][0]
            self.predictors[place] = CosineScores(channels, outcomes(words, context.tables), config.scale)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Logits and the places, and what they learn of the teacher."""
        return needs(config.places, tuple(config.places))

    def forward(self, student: Taps, batch: Batch) -> Terms:
        """Return `ce` and `words`, summed over the places."""
        words = []
        for place, lesson in self.config.places.items():
            scores = self.predictors[place](student[place])  # (B, K, H, W)
            words.append(self.targets[place](scores, batch.teacher[lesson.feature], batch.label))
        return {"ce": F.cross_entropy(student["logits"], batch.label), "words": torch.stack(words).sum()}

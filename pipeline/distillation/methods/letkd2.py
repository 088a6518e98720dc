"""letKD-2 (Görgün, Gürbüz and Alatan 2023, arXiv:2309.02843): letKD-1, and the teacher's decisions further in.

After the first block of the last stage a second layer is inserted, whose output is fed onward. Its scores learn
with which sub-classes the teacher confuses a pixel's own one. In the space of an LDA, h1 is a pixel's nearest
sub-class within the image's class, and p(h2 | h1) the share of such pixels that lie nearest to sub-class h2:

L = CE + KL(p_T || softmax(s_final)) + KL(p(h2 | h1(z, y)) || softmax(s_inner)), mean over pixels, all weights 1

Labels are needed for the target, not for the prediction.
"""

from __future__ import annotations

from pydantic import Field

from pipeline.distillation.method import Weights
from pipeline.distillation.methods import letkd1
from pipeline.distillation.targets import Lesson, Subclasses, Words

LAYERS = letkd1.LAYERS


class Config(letkd1.Config):
    """Settings: as letKD-1's, with other defaults."""

    weights: Weights = {"ce": 1.0, "words": 1.0, "subclasses": 1.0}
    places: dict[str, Lesson] = Field(
        default={"final": Words(), "stage3_block1": Subclasses(learns="subclasses", feature="stage3_block1")},
        min_length=1,
    )


class Method(letkd1.Method):
    """letKD-2."""

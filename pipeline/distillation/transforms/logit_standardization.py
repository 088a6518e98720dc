"""Logit standardization (Sun, Ren, Li, Wang and Cao 2024, arXiv:2403.01427): z-scores in the place of logits.

z' = (z - mean(z)) / (e + std(z)), over the classes of each sample; e = 1e-7, and std has K - 1 degrees of freedom

Logits of both, student and teacher, before any method that learns from logits: KD, DKD, DIST. Cross-entropy is of the
student's logits as they are. A temperature then says how far logits spread, alike for both: the authors take T = 2 with
weights 0.1 and 9 for KD, `{kd: {temperature: 2, weights: {ce: 0.1, kd: 9}}}`. Their 78.28 for ResNet32x4 -> ResNet8x4
is of 480 epochs, its KD row of 240.
"""

from __future__ import annotations

from torch import Tensor

from pipeline.distillation.method import Batch
from pipeline.distillation.transform import TeacherTransform, TransformConfig
from pipeline.networks.network import Taps

LOGITS = "logits"
LEAST = 1e-7  # added to a deviation


class Config(TransformConfig):
    """No settings."""


class Transform(TeacherTransform[Config]):
    """Standardizes the logits of both."""

    @classmethod
    def changes(cls, config: Config) -> tuple[str, ...]:
        """Return the logits."""
        return (LOGITS,)

    def student(self, taps: Taps) -> Taps:
        """Return the student's taps with standardized logits."""
        return taps | {LOGITS: standardized(taps[LOGITS])} if LOGITS in taps else taps

    def forward(self, teacher: Taps, batch: Batch) -> Taps:
        """Return the teacher's features with standardized logits."""
        return teacher | {LOGITS: standardized(teacher[LOGITS])} if LOGITS in teacher else teacher


def standardized(logits: Tensor) -> Tensor:
    """Return the z-scores (B, K) of logits (B, K)."""
    mean, deviation = logits.mean(dim=1, keepdim=True), logits.std(dim=1, keepdim=True)
    return (logits - mean) / (deviation + LEAST)

"""Deeply-supervised distillation (DSKD; Luo, Chen and Wang 2022, arXiv:2202.07846): shallow layers learn the teacher.

Each shallow stage l < L gets an auxiliary head c_l, a fresh copy of the rest of the main branch c_L. All of them learn
the teacher's logits z_T and last map F_T, and only c_L learns the labels (eq. 1-9):

L = CE(y, z_L) + alpha (KL_L + sum_{l<L} W^KD_l KL_l) + beta (MSE_L + sum_{l<L} W^Fea_l MSE_l)

KL_l = tau^2 KL(softmax(z_T / tau) || softmax(z_l / tau)), summed over classes; MSE_l = |F_T - r_l(F_l)|^2, the mean
over C, H and W. W_l = own loss / sum of the shallow losses, of each sample and for both kinds apart; then the mean over
the batch. alpha = 1 and beta = 30 stand in `weights`: `kd` and `kd_shallow`, `map` and `map_shallow`.

What differs: nothing is known of the code. The paper writes no tau^2; with it the paper's KD has the accuracy of the
group's own code. The weights are detached (`detach`): else a term is sum l^2 / sum l, with another gradient.
F is the map that the last stage ends in, which is WRN's raw sum: with a WRN teacher set `relu: false`, because
its maps are negative too. With `map: final` and `teacher_feature: final` it is the map that is pooled, after BN and
ReLU.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Literal, Self

import torch
from torch import Tensor, nn

from pipeline.distillation.epoch_values import Gathered
from pipeline.distillation.heads import Heads, HeadsConfig, Projector
from pipeline.distillation.losses import soft_kl_rows
from pipeline.distillation.method import BaseMethod, Batch, Context, Known, Needs, Terms, Weights
from pipeline.errors import ParamsError
from pipeline.networks.architecture import LAST
from pipeline.networks.network import Taps
from pipeline.params.numbers import Temperature
from pipeline.params.recipe import Epoch


class Config(HeadsConfig):
    """Settings of DSKD.

    Attributes:
        temperature: tau.
        maps: learn the teacher's last map too; without it there is nothing of it to store (Table 3).
        teacher_feature: that map; "last" is the map that the teacher's last stage ends in.
        map: where the student and its heads learn it: at the end of the last `stage`, or at `final`.
        student_tap: the tap that `map` means. It depends on the network, and is not for params.yaml.
        relu: end the projectors with a ReLU.
        balance: how the shallow losses are weighted: by `loss`, or `equal`.
        detach: keep gradients from the weights.
    """

    temperature: Temperature = 4.0
    maps: bool = True
    teacher_feature: str = LAST
    map: Literal["stage", "final"] = "stage"
    student_tap: str | None = None
    relu: bool = True
    balance: Literal["loss", "equal"] = "loss"
    detach: bool = True
    weights: Weights = {"ce": 1.0, "kd": 1.0, "kd_shallow": 1.0, "map": 30.0, "map_shallow": 30.0}

    @property
    def tap(self) -> str:
        """The student tap where the map is learned, once it is known."""
        assert self.student_tap is not None, "settings are resolved before they are read"
        return self.student_tap

    def resolved(self, known: Known) -> Self:
        """Return these settings with the heads' positions, the teacher's map and the student's tap for it.

        Raises:
            ParamsError: as `HeadsConfig.resolved`, or `student_tap` was given and is another tap.
        """
        config = super().resolved(known)
        tap = known.student.resolved(LAST) if self.map == "stage" else "final"
        # A run's json of inputs holds the tap; params.yaml chooses it by `map`.
        if self.student_tap not in (None, tap):
            raise ParamsError(
                f"dskd has student_tap '{self.student_tap}', and its map is learned at '{tap}'. Set 'map' to stage or "
                "final instead, in params.yaml."
            )
        feature = known.teacher.resolved(self.teacher_feature)
        return config.model_copy(update={"teacher_feature": feature, "student_tap": tap})


class Method(BaseMethod[Config]):
    """DSKD: every stage of the student learns what the teacher ends in."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.heads = Heads(config.heads, context)
        self.projectors = nn.ModuleDict()
        if config.maps:
            shapes = context.student_shapes[config.tap], context.teacher_shapes[config.teacher_feature]
            for name in (*self.heads.positions, "last"):
                self.projectors[name] = Projector(*shapes, relu=config.relu)
        self.gathered = Gathered(context.num_samples)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Return the logits and last maps of both, and the positions of the heads."""
        maps = (config.tap,) if config.maps else ()
        features = (config.teacher_feature,) if config.maps else ()
        return Needs(("logits", *config.heads, *maps), ("logits", *features))

    def forward(self, student: Taps, batch: Batch) -> Terms:
        """Return `ce`, `kd`, `map`, and `kd_shallow` and `map_shallow` where there are heads."""
        names = ("logits", self.config.tap) if self.config.maps else ("logits",)
        shallow = self.heads(student, names)

        t, tau = batch.teacher["logits"], self.config.temperature  # (B, K)
        terms: Terms = {
            "ce": batch.cross_entropy(student["logits"]),
            "kd": soft_kl_rows(student["logits"], t, tau).mean(),
        }
        if shallow:
            terms["kd_shallow"] = self._balanced(
                "kd", {name: soft_kl_rows(taps["logits"], t, tau) for name, taps in shallow.items()}, batch
            )

        if self.config.maps:
            hint = batch.teacher[self.config.teacher_feature]  # (B, C, H, W)
            terms["map"] = self._distance("last", student, hint).mean()
            if shallow:
                distances = {name: self._distance(name, taps, hint) for name, taps in shallow.items()}
                terms["map_shallow"] = self._balanced("map", distances, batch)
        return terms

    def diagnose(self) -> dict[str, float]:
        """Return quantiles over an epoch's samples of the weights of Figure 2, "weight.<kind>.<position>.<percent>"."""
        return self.gathered.quantiles()

    def start(self, epoch: Epoch) -> Hashable:
        """Begin to gather the weights of an epoch."""
        self.gathered.reset()
        return None

    def check(self, batch: Batch) -> None:
        """Refuse a teacher's map that is negative in places, where the projectors end in a ReLU."""
        if self.config.maps and self.config.relu and (batch.teacher[self.config.teacher_feature] < 0).any():
            raise ParamsError(
                f"Teacher feature '{self.config.teacher_feature}' is negative in places, which projectors that end "
                "in a ReLU cannot be. Set relu: false in the run's settings, in params.yaml."
            )

    def _distance(self, name: str, taps: Taps, hint: Tensor) -> Tensor:
        """Return the mean squared error of every sample (B,)."""
        guided: Tensor = self.projectors[name](taps[self.config.tap])  # (B, C, H, W)
        return (guided - hint).square().flatten(1).mean(dim=1)

    def _balanced(self, kind: str, losses: dict[str, Tensor], batch: Batch) -> Tensor:
        """Return the mean over samples of the weighted sum of shallow losses (B,), by position."""
        stacked = torch.stack(list(losses.values()))  # (L - 1, B)
        if self.config.balance == "equal":
            return stacked.mean()

        # Losses that are all 0 have weights of 0, not NaN.
        weights = stacked / stacked.sum(dim=0).clamp(min=torch.finfo(stacked.dtype).tiny)
        weights = weights.detach() if self.config.detach else weights
        self.gathered.add(
            batch, {f"weight.{kind}.{name}": w for name, w in zip(losses, weights, strict=True)}
        )
        return (weights * stacked).sum(dim=0).mean()

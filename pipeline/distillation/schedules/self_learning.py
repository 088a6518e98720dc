"""Self-learning teachers (SLKD, arXiv:2304.11923): untrained copies of the teacher learn beside the student.

With KL_tau(p, q) = tau^2 KL(softmax(p / tau) || softmax(q / tau)), summed over classes, mean over the batch:

L = L_method(T, s) + sum_j [lambda CE(c_j) + (1 - lambda) KL_tau(T, c_j)] + beta [a CE(s) + b KL_tau(sum_j w_j c_j, s)]

T are the logits of the teacher, s of the student, c_j of the j-th self-learning teacher, which are fused before the
softmax. The defaults are the published code with `method: kd` at its own defaults: two of them, w = 0.5, tau = 4,
lambda = 0.1, beta = a = b = 1, so that the student's loss is 1.1 CE + 0.9 KL_tau(T) + KL_tau(fused). The paper's own
form of the last term has a, b = lambda, 1 - lambda: `student_weights: {ce: 0.1, kd: 0.9}`.

What differs: the paper teaches one way, the published code lets the student pull the self-learning teachers, because
the fused target is not detached; `detach` chooses. One SGD trains all, where the code has three of equal settings. The
last term is the student's own, so it composes with every method; `lesson: method` applies the method itself to the
fused logits instead.
"""

from __future__ import annotations

from collections.abc import Hashable
from itertools import combinations
from typing import Literal, Self, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline import seeding
from pipeline.distillation.epoch_values import Gathered
from pipeline.distillation.losses import soft_kl
from pipeline.distillation.method import Batch, Context, Needs, Terms, Weights
from pipeline.distillation.schedule import Lesson, ScheduleConfig, TeacherSchedule, Teaching, of_teacher
from pipeline.errors import ParamsError
from pipeline.networks.network import Network, Taps
from pipeline.params.numbers import Temperature, Weight
from pipeline.params.recipe import Epoch

LABELS = ("ce",)  # the methods' terms that are left when the teacher does not teach


class FusedConfig(ScheduleConfig):
    """Settings of what a student learns from fused logits.

    Attributes:
        temperature: tau of all terms of this schedule.
        student_weights: a and b of the student's `ce` and `kd` from the fused logits; with `lesson: method`, of
            the method's terms.
        beta: weight of what the student learns from the fused logits.
        fusion: w of the first of two (the other's is 1 - w), or a weight each; they are equal by default.
        teachers: who teaches the student: both; `self`, the self-learning teachers alone, beside the method's labels;
            `teacher`, which leaves them to be watched.
        lesson: what is learned from the fused logits: the logits, or what the method makes of them.
    """

    temperature: Temperature = 4.0
    student_weights: Weights = {"ce": 1.0, "kd": 1.0}
    beta: Weight = 1.0
    fusion: float | tuple[float, ...] | None = None
    teachers: Literal["both", "self", "teacher"] = "both"
    lesson: Literal["logits", "method"] = "logits"

    @property
    def number(self) -> int:
        """How many networks there are."""
        raise NotImplementedError(f"{type(self).__module__} does not say how many networks it has")

    @property
    def shares(self) -> tuple[float, ...]:
        """The weight of each network's logits."""
        if self.fusion is None:
            return (1 / self.number,) * self.number
        return (self.fusion, 1 - self.fusion) if isinstance(self.fusion, float) else self.fusion

    @model_validator(mode="after")
    def _check_fusion(self) -> Self:
        if self.lesson == "logits":
            named("student_weights", self.student_weights)
        if isinstance(self.fusion, float) and self.number != 2:
            raise ValueError(f"fusion is one number, which is for two networks; give a list of {self.number}")
        if len(self.shares) != self.number:
            raise ValueError(f"fusion has {len(self.shares)} weights, expected {self.number}, one a network")
        if not all(0 <= share <= 1 for share in self.shares) or abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError(f"fusion is {self.fusion}; weights are within [0, 1], and a list's sum is 1")
        return self


def named(name: str, weights: Weights) -> None:
    """Refuse weights that are not of `ce` and `kd`.

    Raises:
        ValueError: they name something else.
    """
    if weights.keys() != {"ce", "kd"}:
        raise ValueError(f"{name} must name ce and kd, and it names {', '.join(weights) or 'nothing'}")


class Config(FusedConfig):
    """Settings of the self-learning teachers, beside those of their fused logits.

    Attributes:
        num_networks: how many there are.
        weights: lambda and 1 - lambda, of a self-learning teacher's own `ce` and `kd`.
        detach: keep the student's loss from reaching the self-learning teachers.
    """

    num_networks: int = Field(default=2, ge=1, le=64)
    weights: Weights = {"ce": 0.1, "kd": 0.9}
    detach: bool = False

    @property
    def number(self) -> int:
        """How many networks there are."""
        return self.num_networks

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        named("weights", self.weights)
        return self


FC = TypeVar("FC", bound=FusedConfig)


class Fused(TeacherSchedule[FC]):
    """The base of schedules that fuse networks: the teacher's lesson, and what is learned from the fused logits."""

    def __init__(self, config: FC, context: Context) -> None:
        super().__init__(config, context)
        self.gathered = Gathered(context.num_samples)

    @classmethod
    def check(cls, config: FC, needs: Needs) -> None:
        """Refuse to teach by methods that read no logits of the teacher."""
        if config.lesson == "method" and config.teachers != "teacher" and "logits" not in needs.teacher:
            raise ParamsError(
                f"The method reads {', '.join(needs.teacher) or 'nothing'} of the teacher, and self-learning teachers "
                "teach by logits. Set 'lesson' of the run's schedule to logits, in params.yaml."
            )

    def teach(self, student: Taps, batch: Batch, learned: list[Tensor], *, detach: bool = False) -> Teaching:
        """Return the lessons, and the student's terms `fused_ce` and `fused_kd` unless a lesson has them.

        Args:
            student: taps of the student.
            batch: the batch.
            learned: logits (B, K) of every network.
            detach: keep the student's loss from reaching them.
        """
        config, s, fused = self.config, student["logits"], self.fused(learned)
        self.gathered.add(
            batch, _distances({"student": s, "self": fused, "teacher": batch.teacher["logits"]})
        )

        own = of_teacher(batch.teacher)
        lessons = (Lesson(own, terms=LABELS if config.teachers == "self" else None),)
        if config.teachers == "teacher":
            return Teaching(lessons)

        target = fused.detach() if detach else fused
        if config.lesson == "method":
            taught = own | {"logits": target}
            return Teaching((*lessons, Lesson(taught, config.beta, "fused", config.student_weights)))

        terms = {
            "fused_ce": batch.cross_entropy(s),
            "fused_kd": soft_kl(s, target, config.temperature),
        }
        weights = {f"fused_{name}": config.beta * x for name, x in config.student_weights.items()}
        return Teaching(lessons, terms, weights)

    def fused(self, learned: list[Tensor]) -> Tensor:
        """Return the weighted sum of logits (B, K) of every network."""
        return torch.stack([w * c for w, c in zip(self.config.shares, learned, strict=True)]).sum(dim=0)

    def start(self, epoch: Epoch) -> Hashable:
        """Begin to gather the distances of an epoch."""
        self.gathered.reset()
        return None

    def diagnose(self) -> dict[str, float]:
        """Return the mean distances of Figure 2, "distance.<first>-<second>"."""
        return self.gathered.means()


class Schedule(Fused[Config]):
    """Untrained copies of the teacher learn from it beside the student, and teach it."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        assert context.teacher is not None  # `needs` asks for it
        networks = []
        for number in range(config.num_networks):
            # A scope each: they start apart from each other, and alike whatever else is drawn.
            with seeding.scope(context.seed, "self_learning", number):
                networks.append(context.teacher.fresh())
            _check_drawn(networks[-1], context.teacher)
        self.networks = nn.ModuleList(networks)
        self.autocast = context.autocast

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Return the logits of both, and the teacher's own network."""
        return Needs(student=("logits",), teacher=("logits",), network=True)

    def forward(self, student: Taps, batch: Batch) -> Teaching:
        """Return the lessons, with the terms `slt<j>_ce` and `slt<j>_kd` of the networks themselves first."""
        config, t = self.config, batch.teacher["logits"]  # (B, K)
        with self.autocast():
            learned = [network(batch.image) for network in self.networks]
        learned = [x.float() for x in learned]

        terms: Terms = {}
        weights: dict[str, float | Tensor] = {}
        for number, c in enumerate(learned, start=1):
            terms[f"slt{number}_ce"] = batch.cross_entropy(c)
            terms[f"slt{number}_kd"] = soft_kl(c, t, config.temperature)
            weights |= {f"slt{number}_{name}": weight for name, weight in config.weights.items()}

        teaching = self.teach(student, batch, learned, detach=config.detach)
        return Teaching(teaching.lessons, terms | teaching.terms, weights | dict(teaching.weights))


def _distances(outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return how far the probabilities of every two outputs lie apart, a Euclidean distance (B,)."""
    p = {name: logits.detach().softmax(dim=1) for name, logits in outputs.items()}
    return {
        f"distance.{first}-{second}": torch.linalg.vector_norm(p[first] - p[second], dim=1)
        for first, second in combinations(p, 2)
    }


def _check_drawn(network: Network, teacher: Network) -> None:
    """Refuse a teacher with parameters that cannot be drawn anew: its copy would not be untrained."""
    trained = dict(teacher.named_parameters())
    for name, x in network.named_parameters():
        same = torch.equal(x.detach(), trained[name].detach().cpu())
        # Equal constants prove nothing: a batch norm's scale is 1 in every fresh network.
        if same and (x != x.flatten()[0]).any():
            raise ParamsError(
                f"The teacher's '{name}' cannot be drawn anew, so it has no self-learning copies. Choose a teacher "
                "of a family in pipeline/networks/families that is built here, in params.yaml."
            )

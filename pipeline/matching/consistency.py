"""How consistent each channel of a teacher is with each of a student (KCD, arXiv:2103.16844, section 3.2).

Both are globally average-pooled features over the same N samples: a (N, c_T) and b (N, c_S). M (c_T, c_S) is

    l1, l2        1 / ||a_i - b_j||_p
    cosine        a_i . b_j / (||a_i|| ||b_j||)
    correlation   Pearson's coefficient of a_i and b_j, with its sign
    kl            -KL(p_i || q_j), p_i = a_i / sum a_i and q_j = b_j / sum b_j: distributions over the samples

The paper writes batches and means the data set; a mean of the batches' coefficients would be biased. So sums are
kept, in float64 and in one pass; their memory is that of M. Centered sums are merged by the formula of Chan, Golub
and LeVeque 1983 ("Algorithms for computing the sample variance"), so nothing is lost where means are large.

What the paper leaves open: a channel that never varies (dead after a ReLU) has correlation 0, a channel of zeros
cosine 0, and two dead channels l1 and l2 of 0, where equal ones would be 1 / 0. Other equal channels have
1 / `FLOOR`. `kl` adds `SMOOTHING` to every value, for a channel that is 0 on some sample has no logarithm.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.errors import ParamsError
from pipeline.params.matchings import Measure

FLOOR = 1e-12  # of a distance
SMOOTHING = 1e-6  # of kl
STILL = 1e-9  # a deviation smaller than this share of the mean is rounding


class Statistics(nn.Module):
    """Sums over samples from which M follows. They are buffers: they move, are saved and resumed with a module.

    Args:
        teacher: c_T.
        student: c_S.
        measure: what M is to be.
    """

    count: Tensor
    teacher_mean: Tensor
    student_mean: Tensor
    teacher_square: Tensor
    student_square: Tensor
    product: Tensor
    own: Tensor
    crossed: Tensor

    def __init__(self, teacher: int, student: int, measure: Measure) -> None:
        super().__init__()
        self.measure = measure
        shapes = {
            "count": (),
            "teacher_mean": (teacher,),
            "student_mean": (student,),
            "teacher_square": (teacher,),  # sum (a - mean)^2
            "student_square": (student,),
            "product": (teacher, student),  # sum (a - mean) (b - mean)
            "own": (teacher if measure == "kl" else 0,),  # sum a log a
            "crossed": (teacher, student) if measure in ("l1", "kl") else (0, 0),  # sum |a - b|, or a log b
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    def reset(self) -> None:
        """Forget all samples."""
        for buffer in self.buffers():
            buffer.zero_()

    @torch.no_grad()
    def add(self, teacher: Tensor, student: Tensor) -> None:
        """Add samples.

        Args:
            teacher: pooled features (n, c_T).
            student: pooled features of the same samples (n, c_S).

        Raises:
            ParamsError: the measure is `kl` and a value is negative.
        """
        a, b = teacher.double(), student.double()
        if len(a) == 0:
            return
        if self.measure == "kl":
            self._add_logarithms(a, b)
        elif self.measure == "l1":
            self.crossed += torch.cdist(a.T.contiguous(), b.T.contiguous(), p=1)

        # Two groups of samples: each one's own sums, and how far their means lie apart.
        total = self.count + len(a)
        mean_a, mean_b = a.mean(dim=0), b.mean(dim=0)
        step_a, step_b = mean_a - self.teacher_mean, mean_b - self.student_mean
        share = self.count * len(a) / total
        a, b = a - mean_a, b - mean_b

        self.teacher_square += (a**2).sum(dim=0) + share * step_a**2
        self.student_square += (b**2).sum(dim=0) + share * step_b**2
        self.product += a.T @ b + share * torch.outer(step_a, step_b)
        self.teacher_mean += step_a * len(a) / total
        self.student_mean += step_b * len(a) / total
        self.count.copy_(total)

    def dead(self) -> tuple[Tensor, Tensor]:
        """Return which channels never vary, bool (c_T,) of the teacher and (c_S,) of the student."""
        return (
            self._still(self.teacher_square, self.teacher_mean),
            self._still(self.student_square, self.student_mean),
        )

    def matrix(self) -> Tensor:
        """Return M float64 (c_T, c_S); larger is more consistent."""
        if self.measure == "kl":
            # KL = sum p log p - sum p log q, with the sums that make p and q distributions taken out.
            mass_a = self.count * (self.teacher_mean + SMOOTHING)
            mass_b = self.count * (self.student_mean + SMOOTHING)
            entropy = self.own / mass_a - mass_a.log()
            return -(entropy[:, None] - self.crossed / mass_a[:, None] + mass_b.log()).clamp(min=0)

        dead_a, dead_b = self.dead()
        if self.measure == "correlation":
            scale = torch.outer(self.teacher_square, self.student_square).sqrt()
            return self._ratio(self.product, scale, dead_a[:, None] | dead_b)

        norm_a = self.teacher_square + self.count * self.teacher_mean**2
        norm_b = self.student_square + self.count * self.student_mean**2
        if self.measure == "cosine":
            inner = self.product + self.count * torch.outer(self.teacher_mean, self.student_mean)
            return self._ratio(
                inner, torch.outer(norm_a, norm_b).sqrt(), (norm_a == 0)[:, None] | (norm_b == 0)
            )

        distance = self.crossed
        if self.measure == "l2":
            spread = self.teacher_square[:, None] + self.student_square - 2 * self.product
            apart = self.teacher_mean[:, None] - self.student_mean
            distance = (spread.clamp(min=0) + self.count * apart**2).sqrt()
        return (1 / distance.clamp(min=FLOOR)).masked_fill(dead_a[:, None] & dead_b, 0)

    def _add_logarithms(self, a: Tensor, b: Tensor) -> None:
        for of, values in (("teacher", a), ("student", b)):
            if values.min() < 0:
                raise ParamsError(
                    f"Measure 'kl' needs features that are never negative, and the {of} has {values.min():.3g}. "
                    "Choose a tap after its ReLU, or another measure, in 'matchings' in params.yaml."
                )
        a, b = a + SMOOTHING, b + SMOOTHING
        self.own += (a * a.log()).sum(dim=0)
        self.crossed += a.T @ b.log()

    def _still(self, square: Tensor, mean: Tensor) -> Tensor:
        return (square / self.count.clamp(min=1)).sqrt() <= STILL * mean.abs()

    @staticmethod
    def _ratio(above: Tensor, below: Tensor, void: Tensor) -> Tensor:
        return (above / below.masked_fill(void, 1)).clamp(-1, 1).masked_fill(void, 0)


def pooled(x: Tensor) -> Tensor:
    """Return the global average float64 (B, C) of maps (B, C, H, W), or vectors (B, C) as they are."""
    return x.double() if x.ndim == 2 else x.flatten(2).mean(dim=2, dtype=torch.float64)


def range_of(label: Tensor, ranges: int, classes: int) -> Tensor:
    """Return which of `ranges` contiguous, equal ranges of labels each label int64 (B,) is in, int64 (B,)."""
    return label * ranges // classes

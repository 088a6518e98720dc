"""The shared loss terms, against the formulas in plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from device_fixtures import here
from torch import Tensor

from pipeline.distillation.losses import soft_kl

pytestmark = pytest.mark.usefixtures("device")


def softmax(row: list[float], temperature: float) -> list[float]:
    top = max(row)
    powers = [math.exp((value - top) / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def reference(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """T^2 sum_k p_k (log p_k - log q_k), mean over samples; in Python's own floats."""
    total = 0.0
    for s, t in zip(student.double().tolist(), teacher.double().tolist(), strict=True):
        p, q = softmax(t, temperature), softmax(s, temperature)
        for pk, qk in zip(p, q, strict=True):
            total += pk * (math.log(pk) - math.log(qk))
    return temperature**2 * total / len(student)


def logits(*shape: int, seed: int = 0) -> Tensor:
    return here(3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_soft_kl_is_the_formula(temperature: float) -> None:
    student, teacher = logits(5, 7, seed=1), logits(5, 7, seed=2)
    # float32 against float64; T^2 multiplies the error of a difference of logs.
    expected = reference(student, teacher, temperature)
    assert soft_kl(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-4)


def test_soft_kl_of_equal_logits_is_zero_and_of_others_positive() -> None:
    x = logits(4, 6)
    assert soft_kl(x, x + 5, 4.0).item() == pytest.approx(0, abs=1e-5)  # a shift changes no softmax
    assert soft_kl(x, -x, 4.0).item() > 0.1


def test_soft_kl_is_not_symmetric() -> None:
    student, teacher = logits(4, 6, seed=1), logits(4, 6, seed=2)
    assert soft_kl(student, teacher, 1.0).item() != pytest.approx(
        soft_kl(teacher, student, 1.0).item(), rel=1e-2
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_kl_of_extreme_logits_is_finite(temperature: float) -> None:
    teacher = here(torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]]))
    student = (-teacher).requires_grad_()
    loss = soft_kl(student, teacher, temperature)
    loss.backward()
    # The teacher is one-hot at 0 in row 0, where the student's log-probability is -2e4 / T; in row 1 it is a
    # half at 1 and at 2, where it is -2e4 / T too.
    expected = temperature * 2e4 - temperature**2 * math.log(2) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert student.grad.abs().max().item() == pytest.approx(temperature / 2, rel=1e-5)  # T (q - p) / B


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_gradient_of_soft_kl_is_analytic(temperature: float) -> None:
    student, teacher = logits(5, 7, seed=3).requires_grad_(), logits(5, 7, seed=4)
    soft_kl(student, teacher, temperature).backward()
    rows = zip(student.tolist(), teacher.tolist(), strict=True)
    expected = [
        [
            temperature * (q - p) / 5
            for p, q in zip(softmax(t, temperature), softmax(s, temperature), strict=True)
        ]
        for s, t in rows
    ]
    torch.testing.assert_close(student.grad, here(torch.tensor(expected)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_soft_kl_computes_in_float32(dtype: torch.dtype) -> None:
    student, teacher = logits(5, 7, seed=1).to(dtype), logits(5, 7, seed=2).to(dtype)
    loss = soft_kl(student, teacher, 4.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(reference(student, teacher, 4.0), rel=1e-4)  # of the rounded logits

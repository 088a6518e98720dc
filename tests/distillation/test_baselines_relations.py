"""Methods on relations between samples that the papers compare with, each against a plain reference in float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from baseline_fixtures import EXACT, SIZES, VECTORS, batch, holds, method, taps
from torch import Tensor

from pipeline.distillation.method import Batch, Terms
from pipeline.distillation.methods import crd


@pytest.mark.parametrize(("student", "teacher"), VECTORS)
@pytest.mark.parametrize("size", SIZES)
def test_rkd_is_the_formula(student: tuple[int, ...], teacher: tuple[int, ...], size: int) -> None:
    def huber(a: Any, b: Any) -> Any:
        return 0.5 * (a - b) ** 2 if abs((a - b).item()) < 1 else abs(a - b) - 0.5

    def spread(x: Tensor) -> dict[tuple[int, int], Any]:
        pairs = [(i, j) for i in range(size) for j in range(size) if i != j]
        d = {(i, j): torch.sqrt(((x[i] - x[j]) ** 2).sum()) for i, j in pairs}
        return {pair: value / (sum(d.values()) / len(d)) for pair, value in d.items()}

    def cosine(x: Tensor, i: int, j: int, k: int) -> Any:
        if i in (j, k):
            return torch.zeros((), dtype=torch.float64)
        a, b = x[j] - x[i], x[k] - x[i]
        return (a * b).sum() / torch.sqrt((a**2).sum()) / torch.sqrt((b**2).sum())

    def reference(given: Mapping[str, Tensor], now: Batch) -> Terms:
        s, t, n = given["pooled"], now.teacher["pooled"], range(size)
        none = torch.zeros((), dtype=torch.float64)
        d_s, d_t = spread(s), spread(t)
        distance = sum((huber(d_s[pair], d_t[pair]) for pair in d_s), none) / size**2
        angle = sum((huber(cosine(s, i, j, k), cosine(t, i, j, k)) for i in n for j in n for k in n), none)
        return {"distance": distance, "angle": angle / size**3 + 0 * s.sum()}

    own, other = {"pooled": student}, {"pooled": teacher}
    holds(method("rkd", own, other), own, other, size, reference)


def test_rkd_of_equal_samples_has_finite_gradients() -> None:
    x = torch.ones(3, 4, dtype=torch.float64, requires_grad=True)
    shapes = {"pooled": (4,)}
    given = taps({"logits": (5,)}, 3, "student") | {"pooled": x}
    terms = method("rkd", shapes, shapes)(given, batch(taps(shapes, 3, "teacher")))
    (terms["distance"] + terms["angle"]).backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize(("student", "teacher"), VECTORS)
@pytest.mark.parametrize("size", SIZES)
def test_pkt_is_the_formula(student: tuple[int, ...], teacher: tuple[int, ...], size: int) -> None:
    def chances(x: Tensor) -> list[list[Any]]:
        unit = [row / (torch.sqrt((row**2).sum()) + 1e-7) for row in x]
        kernel = [[((a * b).sum() + 1) / 2 for b in unit] for a in unit]
        return [[k / sum(row) for k in row] for row in kernel]

    def reference(given: Mapping[str, Tensor], now: Batch) -> Terms:
        s, t = chances(given["pooled"]), chances(now.teacher["pooled"])
        total = sum(
            t[i][j] * torch.log((t[i][j] + 1e-7) / (s[i][j] + 1e-7)) for i in range(size) for j in range(size)
        )
        return {"probability": total / size**2}

    own, other = {"pooled": student}, {"pooled": teacher}
    holds(method("pkt", own, other), own, other, size, reference)


@pytest.mark.parametrize("negatives", [4, 300])
@pytest.mark.parametrize("size", SIZES)
def test_crd_is_the_formula_over_three_steps(negatives: int, size: int) -> None:
    own, other = {"pooled": (6,)}, {"pooled": (9,)}
    found = method("crd", own, other, width=3, negatives=negatives)
    samples = len(found.student.vectors)
    memory = [found.student.vectors.clone(), found.teacher.vectors.clone()]
    scales: list[Any] = [None, None]

    def unit(x: Tensor) -> Tensor:
        return x / torch.sqrt((x**2).sum())

    for number in range(3):
        given = taps(own | {"logits": (5,)}, size, f"student {number}")
        now = replace(batch(taps(other, size, f"teacher {number}")), step=torch.tensor(number))
        drawn = found.negatives(now)
        own_loss = found(given, now)["contrast"]
        (gradient,) = torch.autograd.grad(own_loss, given["pooled"])

        vectors = [
            [unit(one.layer.weight @ x + one.layer.bias) for x in features]
            for one, features in ((found.student, given["pooled"]), (found.teacher, now.teacher["pooled"]))
        ]
        expected = torch.zeros((), dtype=torch.float64)
        for side in (0, 1):  # a vector of one network against the memory of the other
            p = [
                [
                    torch.exp((v * memory[1 - side][j]).sum() / 0.07)
                    for j in [int(now.index[i]), *drawn[i].tolist()]
                ]
                for i, v in enumerate(vectors[side])
            ]
            if scales[side] is None:
                scales[side] = samples * sum(sum(row) for row in p).detach() / (size * (negatives + 1))
            noise = negatives / samples
            for row in p:
                first, *rest = (value / scales[side] for value in row)
                expected = expected - torch.log(first / (first + noise + 1e-7)) / size
                expected = expected - sum(torch.log(noise / (q + noise + 1e-7)) for q in rest) / size
        torch.testing.assert_close(own_loss, expected, **EXACT)
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, given["pooled"])[0], **EXACT)

        for side in (0, 1):
            for i, v in enumerate(vectors[side]):
                memory[side][i] = unit(0.5 * memory[side][i] + 0.5 * v.detach())
        torch.testing.assert_close(found.student.vectors, memory[0], **EXACT)
        torch.testing.assert_close(found.teacher.vectors, memory[1], **EXACT)


@pytest.mark.parametrize(("count", "distinct"), [(1, True), (23, True), (24, False), (500, False)])
def test_negatives_are_of_other_classes_and_all_alike(count: int, distinct: bool) -> None:
    labels = torch.tensor([0] * 6 + [1] * 1 + [2] * 11 + [0] * 5 + [3] * 17)  # 40 samples, 11 of class 0
    found = crd.Negatives(labels, 4, count)
    assert found.distinct == distinct  # the largest class leaves 40 - 17
    seen = torch.zeros(4, 40)
    for step in range(2000 // count + 1):
        index = torch.tensor([0, 6, 7, 23])
        now = replace(
            batch({"pooled": torch.zeros(4, 1)}), index=index, label=labels[index], step=torch.tensor(step)
        )
        drawn = found(now)
        assert drawn.shape == (4, count)
        torch.testing.assert_close(drawn, found(now))  # a function of seed, step and sample
        for row, one in enumerate(drawn):
            assert (labels[one] != labels[index[row]]).all()
            assert not found.distinct or len(one.unique()) == count
            seen[row] += torch.bincount(one, minlength=40)
    for row, label in enumerate(labels[index]):
        others = seen[row][labels != label]
        # Of about 2000 / 23 and more expected each, five deviations.
        assert (others - others.mean()).abs().max() < 5 * others.mean().sqrt() + 1

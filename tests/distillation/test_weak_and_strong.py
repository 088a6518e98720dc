"""Methods on a weak and a strong view of each sample, each against a plain reference in float64."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from baseline_fixtures import CLASSES, SIZES, batch, method, taps
from error_fixtures import one_line
from torch import Tensor

from pipeline.distillation.method import Batch, StrongView, Terms
from pipeline.errors import ParamsError
from pipeline.params.base import validate

Rows = list[list[Any]]  # (B, K), of numbers or scalars
NAMES = ("mlld", "crld")
# KD is computed in float32, whatever it is of.
CLOSE = {"rtol": 1e-5, "atol": 1e-7}


def given(size: int, classes: int, scale: float = 2.0) -> tuple[dict[str, Tensor], Batch]:
    """Return logits of the student on the weak view, and the batch with all else; the student's have gradients."""
    shapes = {"logits": (classes,)}
    drawn = [scale * taps(shapes, size, draw)["logits"].detach() for draw in ("s", "t", "s'", "t'")]
    s, t, other_s, other_t = drawn
    s.requires_grad_()
    other_s.requires_grad_()
    now = replace(batch({"logits": t}, classes), teacher={"logits": t})
    return {"logits": s}, replace(now, strong=StrongView(now.image, {"logits": other_s}, {"logits": other_t}))


def leaves(student: dict[str, Tensor], now: Batch) -> dict[str, Tensor]:
    assert now.strong is not None
    parts = {"s": student, "t": now.teacher, "s'": now.strong.student, "t'": now.strong.teacher}
    return {name: x["logits"] for name, x in parts.items()}


def softmax(row: Any, temperature: float) -> list[Any]:
    powers = [torch.exp(z / temperature) for z in row]
    return [p / sum(powers) for p in powers]


def kd(s: Any, t: Any, temperature: float) -> Any:
    """T^2 KL(t || s) of a sample."""
    pairs = zip(softmax(t, temperature), softmax(s, temperature), strict=True)
    return temperature**2 * sum(p * torch.log(p / q) for p, q in pairs)


def labels(logits: Tensor, now: Batch) -> Any:
    rows = zip(logits, now.label.tolist(), strict=True)
    return -sum(torch.log(softmax(row, 1.0)[y]) for row, y in rows) / len(logits)


def products(rows: Rows) -> Rows:
    return [[sum(a * b for a, b in zip(one, other, strict=True)) for other in rows] for one in rows]


def apart(p: Rows, q: Rows) -> Any:
    """Squared distance of the products of rows, by their number."""
    pairs = zip(products(p), products(q), strict=True)
    return sum((a - b) ** 2 for one, other in pairs for a, b in zip(one, other, strict=True)) / len(p)


def turned(rows: Rows) -> Rows:
    return [list(column) for column in zip(*rows, strict=True)]


def unsure(values: list[float]) -> float:
    middle = statistics.median(values)
    return sum(value <= middle for value in values) / len(values)


def mlld(student: dict[str, Tensor], now: Batch) -> Terms:
    x = leaves(student, now)
    s, t, other_s, other_t = (x[name] for name in ("s", "t", "s'", "t'"))
    size = len(s)

    plain = [[p.item() for p in softmax(row, 1.0)] for row in t]
    samples = unsure([max(row) for row in plain])
    classes = unsure([sum(column) for column in turned(plain)])

    instance = similar = related = torch.zeros((), dtype=torch.float64)
    for temperature in (2.0, 3.0, 4.0, 5.0, 6.0):
        weak = sum(kd(a, b, temperature) for a, b in zip(s, t, strict=True)) / size
        strong = sum(kd(a, b, temperature) for a, b in zip(other_s, other_t, strict=True)) / size
        instance = instance + samples * weak + (strong if 3 <= temperature <= 5 else weak)
        p, q = ([softmax(row, temperature) for row in logits] for logits in (t, s))
        similar = similar + samples * apart(p, q)
        related = related + classes * apart(turned(p), turned(q))
    terms = {"instance": instance, "batch": similar, "class": related}
    return {"ce": labels(s, now), "ce_strong": labels(other_s, now)} | terms


def crld(student: dict[str, Tensor], now: Batch) -> Terms:
    x = leaves(student, now)
    within = cross = torch.zeros((), dtype=torch.float64)
    for s, t, other_s, other_t in zip(*(x[name] for name in ("s", "t", "s'", "t'")), strict=True):
        if max(softmax(t, 1.0)) >= 0.9:
            within = within + kd(s, t, 4.0) + kd(other_s, other_t, 4.0)
        if max(softmax(other_t, 1.0)) >= 0.2:
            cross = cross + kd(other_s, t, 4.0) + kd(s, other_t, 4.0)
    size = len(now.label)
    terms = {"within": within / size, "cross": cross / size}
    return {"ce": labels(x["s"], now), "ce_strong": labels(x["s'"], now)} | terms


@pytest.mark.cpu
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "reference"), [("mlld", mlld), ("crld", crld)])
def test_terms_and_gradients_are_those_of_the_formula(
    name: str, reference: Callable[..., Terms], size: int, classes: int
) -> None:
    shapes = {"logits": (classes,)}
    terms: list[Terms] = []
    gradients: list[tuple[Tensor, ...]] = []
    for compute in (method(name, shapes, shapes, classes), reference):
        student, now = given(size, classes)
        terms.append(compute(student, now))
        # Every term by another factor: none makes up for another one.
        total = torch.stack([(i + 1) * terms[-1][key] for i, key in enumerate(sorted(terms[-1]))]).sum()
        x = leaves(student, now)
        gradients.append(torch.autograd.grad(total, [x["s"], x["s'"]]))

    assert terms[0].keys() == terms[1].keys()
    for key, term in terms[0].items():
        torch.testing.assert_close(term, terms[1][key], **CLOSE)
    for own, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(own, expected, **CLOSE)


@pytest.mark.cpu
def test_the_samples_of_the_references_are_sure_and_unsure() -> None:
    """Else no test would see what a threshold does."""
    sure = [torch.softmax(given(7, classes)[1].teacher["logits"], 1).amax(1) >= 0.9 for classes in CLASSES]
    assert {bool(x) for row in sure for x in row} == {True, False}
    x = leaves(*given(7, 10, 0.1))
    assert (torch.softmax(x["t'"], 1).amax(1) < 0.2).all()
    assert method("crld", {"logits": (10,)}, {"logits": (10,)}, 10)(*given(7, 10, 0.1))["cross"] == 0


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("name", "reaches"),
    [
        ("mlld", {"ce": "s", "ce_strong": "s'", "instance": "ss'", "batch": "s", "class": "s"}),
        ("crld", {"ce": "s", "ce_strong": "s'", "within": "ss'", "cross": "ss'"}),
    ],
)
def test_gradients_reach_both_views_of_the_student_as_terms_are_of_them(
    name: str, reaches: dict[str, str]
) -> None:
    shapes = {"logits": (5,)}
    found = method(name, shapes, shapes, 5)
    assert not list(found.parameters())
    for term, wanted in reaches.items():
        student, now = given(7, 5, 4.0)
        found(student, now)[term].backward()
        x = leaves(student, now)
        hit = {
            key: grown is not None and bool(grown.any()) for key, grown in ((k, v.grad) for k, v in x.items())
        }
        expected = {"s": "s" in wanted.replace("s'", ""), "s'": "s'" in wanted, "t": False, "t'": False}
        assert hit == expected, term


@pytest.mark.cpu
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1e-4, 1e2])
@pytest.mark.parametrize("size", SIZES)
def test_what_half_precision_rounds_is_no_nan(name: str, dtype: torch.dtype, scale: float, size: int) -> None:
    shapes = {"logits": (2,)}
    student, now = given(size, 2)
    x = {key: (scale * y.detach()).to(dtype).float() for key, y in leaves(student, now).items()}
    s, other = x["s"].requires_grad_(), x["s'"].requires_grad_()
    view = StrongView(now.image, {"logits": other}, {"logits": x["t'"]})
    now = replace(now, teacher={"logits": x["t"]}, strong=view)
    terms = method(name, shapes, shapes, 2).float()({"logits": s}, now)
    torch.stack(list(terms.values())).sum().backward()
    for value in (*terms.values(), s.grad, other.grad):
        assert value is not None
        assert value.isfinite().all()


@pytest.mark.cpu
def test_of_equal_views_and_networks_the_labels_alone_are_left() -> None:
    for name in NAMES:
        shapes = {"logits": (6,)}
        student, now = given(5, 6)
        view = StrongView(now.image, student, student)
        terms = method(name, shapes, shapes, 6)(student, replace(now, teacher=student, strong=view))
        assert terms["ce"] == terms["ce_strong"]
        assert all(math.isclose(x.item(), 0, abs_tol=1e-12) for key, x in terms.items() if key[:2] != "ce")


@pytest.mark.cpu
def test_a_temperature_of_the_strong_view_is_one_of_all() -> None:
    from pipeline.distillation.methods import mlld as plug_in

    with pytest.raises(ParamsError, match=r"strong has 7, expected one of its temperatures") as e:
        validate(plug_in.Config, {"strong": [7.0]}, "runs.mlld.methods.mlld")
    one_line(e)

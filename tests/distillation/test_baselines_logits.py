"""Methods on logits that the papers compare with, each against a plain reference in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from baseline_fixtures import CLASSES, EXACT, SIZES, batch, holds, method, taps
from device_fixtures import current
from torch import Tensor
from training_fixtures import FixedSource, clock, frozen_teacher

from pipeline import plugin
from pipeline.distillation.method import Batch, Context, Terms
from pipeline.distillation.methods import dkd
from pipeline.distillation.schedule import ScheduleConfig, TeacherSchedule
from pipeline.training.batches import Views
from pipeline.training.distill import Distillation


def softmax(logits: Any) -> list[Any]:
    powers = [torch.exp(z) for z in logits]
    return [p / sum(powers) for p in powers]


def kl(p: list[Any], q: list[Any]) -> Any:
    return sum(
        (a * torch.log(a / b) for a, b in zip(p, q, strict=True)), torch.zeros((), dtype=torch.float64)
    )


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("size", SIZES)
def test_dkd_is_the_formula(classes: int, size: int) -> None:
    def reference(given: Mapping[str, Tensor], now: Batch) -> Terms:
        target = others = torch.zeros((), dtype=torch.float64)
        for i, y in enumerate(now.label.tolist()):
            s, t = (softmax(x["logits"][i] / 4) for x in (given, now.teacher))
            target = target + 16 * kl([t[y], 1 - t[y]], [s[y], 1 - s[y]]) / size
            rest = [[p / (1 - q[y]) for k, p in enumerate(q) if k != y] for q in (t, s)]
            others = others + 16 * kl(*rest) / size
        return {"target": target, "others": others}

    shapes = {"logits": (classes,)}
    holds(method("dkd", shapes, shapes, classes), {}, shapes, size, reference, classes)


def test_dkd_is_kd_where_its_parts_are_weighted_alike() -> None:
    """KD = target + (1 - p_y) others, of every sample: equation 7 of the paper."""
    shapes = {"logits": (6,)}
    given, now = taps(shapes, 1, "student"), batch(taps(shapes, 1, "teacher"), 6)
    terms = method("dkd", shapes, shapes, 6)(given, now)
    p_t = torch.softmax(now.teacher["logits"][0] / 4, dim=0)
    p_s = torch.softmax(given["logits"][0] / 4, dim=0)
    whole = 16 * (p_t * (p_t / p_s).log()).sum()
    assert (terms["target"] + (1 - p_t[0]) * terms["others"]).item() == pytest.approx(whole.item())


def test_dkd_warms_up_over_twenty_epochs_from_one() -> None:
    shapes = {"logits": (5,)}
    found = method("dkd", shapes, shapes)
    shares = {epoch: found.weights(batch(taps(shapes, 2, "t"), epoch=epoch)) for epoch in (0, 9, 19, 29)}
    assert [float(w["others"]) for w in shares.values()] == pytest.approx([8 / 20, 4, 8, 8])
    assert [float(w["target"]) for w in shares.values()] == pytest.approx([1 / 20, 0.5, 1, 1])
    assert {w["ce"] for w in shares.values()} == {1.0}
    assert (
        method("dkd", shapes, shapes, warmup=0).weights(batch(taps(shapes, 2, "t"))) == dkd.Config().weights
    )


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("size", SIZES)
def test_rld_is_the_formula(classes: int, size: int) -> None:
    def reference(given: Mapping[str, Tensor], now: Batch) -> Terms:
        confidence = correlation = 0 * given["logits"].sum()
        for i, y in enumerate(now.label.tolist()):
            s, t = (softmax(x["logits"][i] / 4) for x in (given, now.teacher))
            confidence = confidence + 16 * kl([max(t), 1 - max(t)], [s[y], 1 - s[y]]) / size
            below = [k for k in range(classes) if t[k] < t[y]]
            if below:
                rest = [[p[k] / sum(p[j] for j in below) for k in below] for p in (t, s)]
                correlation = correlation + 16 * kl(*rest) / size
        return {"confidence": confidence, "correlation": correlation}

    shapes = {"logits": (classes,)}
    holds(method("rld", shapes, shapes, classes), {}, shapes, size, reference, classes)


def correlation(x: list[Any], y: list[Any]) -> Any:
    a, b = ([v - sum(z) / len(z) for v in z] for z in (x, y))
    norms = torch.sqrt(sum(v**2 for v in a)) * torch.sqrt(sum(v**2 for v in b))
    return sum(v * w for v, w in zip(a, b, strict=True)) / (norms + 1e-8)


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("size", [2, 3, 7])
def test_dist_is_the_formula(classes: int, size: int) -> None:
    def reference(given: Mapping[str, Tensor], now: Batch) -> Terms:
        s, t = ([softmax(z / 4) for z in x["logits"]] for x in (given, now.teacher))
        inter = sum(1 - correlation(a, b) for a, b in zip(s, t, strict=True)) / size
        columns = zip(zip(*s, strict=True), zip(*t, strict=True), strict=True)
        intra = sum(1 - correlation(list(a), list(b)) for a, b in columns) / classes
        return {"inter": 16 * inter, "intra": 16 * intra}

    shapes = {"logits": (classes,)}
    holds(method("dist", shapes, shapes, classes), {}, shapes, size, reference, classes)


def test_dist_of_one_sample_has_no_correlation_over_the_batch() -> None:
    shapes = {"logits": (5,)}
    given = taps(shapes, 1, "student")
    terms = method("dist", shapes, shapes)(given, batch(taps(shapes, 1, "teacher")))
    assert terms["intra"].item() == 16
    (terms["inter"] + terms["intra"]).backward()
    assert torch.isfinite(given["logits"].grad).all()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("size", SIZES)
def test_ttm_is_the_formula(weighted: bool, classes: int, size: int) -> None:
    power = 0.3

    def reference(given: Mapping[str, Tensor], now: Batch) -> Terms:
        total = torch.zeros((), dtype=torch.float64)
        for s, t in zip(given["logits"], now.teacher["logits"], strict=True):
            powers = [p**power for p in softmax(t)]
            spread = sum(powers)
            total = total + kl([p / spread for p in powers], softmax(s)) * (spread if weighted else 1) / size
        return {"matching": total}

    shapes = {"logits": (classes,)}
    found = method("ttm", shapes, shapes, classes, power=power, weighted=weighted)
    holds(found, {}, shapes, size, reference, classes)


def test_ttm_is_the_teachers_softmax_at_one_over_the_power() -> None:
    shapes = {"logits": (5,)}
    given, now = taps(shapes, 3, "student"), batch(taps(shapes, 3, "teacher"))
    p = torch.softmax(0.1 * now.teacher["logits"], dim=1)
    expected = (p * (p.log() - torch.log_softmax(given["logits"], dim=1))).sum(dim=1).mean()
    assert method("ttm", shapes, shapes)(given, now)["matching"].item() == pytest.approx(expected.item())


@pytest.mark.parametrize("epoch", [0, 3, 10, 25])
@pytest.mark.parametrize("size", SIZES)
def test_ctkd_is_kd_at_its_temperature_which_climbs_the_loss(epoch: int, size: int) -> None:
    shapes = {"logits": (5,)}
    found = method("ctkd", shapes, shapes)
    found.theta.data.fill_(-1.3)
    given, now = taps(shapes, size, "student"), batch(taps(shapes, size, "teacher"), epoch=epoch)
    term = found(given, now)["kd"]

    theta = torch.tensor(-1.3, dtype=torch.float64, requires_grad=True)
    temperature = 1 + 20 / (1 + torch.exp(-theta))
    expected = torch.zeros((), dtype=torch.float64)
    for s, t in zip(given["logits"], now.teacher["logits"], strict=True):
        expected = expected + temperature**2 * kl(softmax(t / temperature), softmax(s / temperature)) / size
    torch.testing.assert_close(term, expected, **EXACT)

    own = torch.autograd.grad(term, [given["logits"], found.theta])
    student, up = torch.autograd.grad(expected, [given["logits"], theta])
    torch.testing.assert_close(own[0], student, **EXACT)
    speed = 0.5 * (1 - math.cos(math.pi * min(epoch, 10) / 10))
    torch.testing.assert_close(own[1], -speed * up, **EXACT)


def test_ctkd_starts_at_a_theta_of_one_and_says_its_temperature() -> None:
    shapes = {"logits": (5,)}
    start = 1 + 20 / (1 + math.exp(-1))
    assert method("ctkd", shapes, shapes).diagnose() == {"temperature.last": pytest.approx(start)}


@pytest.mark.parametrize("classes", CLASSES)
def test_logit_standardization_gives_z_scores_of_both_and_leaves_the_labels_alone(classes: int) -> None:
    """Of a whole step: KD at T = 2 on z-scores, cross-entropy on the logits themselves."""
    shapes = {"logits": (classes,)}
    found = method("kd", shapes, shapes, classes, temperature=2.0, weights={"ce": 0.1, "kd": 9.0})
    given, now = taps(shapes, 4, "student"), batch(taps(shapes, 4, "teacher"), classes)
    module = plugin.load("transforms", "logit_standardization")
    context = Context(classes, torch.arange(40) % classes, frozen_teacher().network, shapes, shapes)
    student = SimpleNamespace(record=lambda image, names: given)
    objective = Distillation(
        student, found, TeacherSchedule(ScheduleConfig(), context), module.Transform(module.Config(), context),  # type: ignore[arg-type]
        FixedSource(now.teacher), current(), 0, taps=("logits",),
    )  # fmt: skip
    objective.machine = SimpleNamespace(autocast=nullcontext)  # type: ignore[assignment]
    _, terms = objective(Views(torch.tensor(1), now.index, now.image, now.label), {}, clock())

    def scores(z: Tensor) -> list[Any]:
        mean = sum(z) / classes
        deviation = torch.sqrt(sum((v - mean) ** 2 for v in z) / (classes - 1))
        return [(v - mean) / (deviation + 1e-7) for v in z]

    soft = ce = torch.zeros((), dtype=torch.float64)
    for s, t, y in zip(given["logits"], now.teacher["logits"], now.label, strict=True):
        p, q = (softmax([v / 2 for v in scores(z)]) for z in (t, s))
        soft, ce = soft + 4 * kl(p, q) / 4, ce - torch.log(softmax(s)[y]) / 4
    # The step computes in float32.
    torch.testing.assert_close(terms["kd"].double(), soft, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(terms["ce"].double(), ce, rtol=1e-5, atol=1e-6)

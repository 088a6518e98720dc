"""Deep supervision: heads on every family, DSKD's equations, the baselines without a teacher, whole runs."""

from __future__ import annotations

import copy
import csv
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from device_fixtures import here
from error_fixtures import one_line
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from training_fixtures import (
    CLASSES,
    STUDENT,
    Assembled,
    World,
    assemble,
    frozen_teacher,
    make_world,
    plug,
)

from pipeline import plugin, seeding
from pipeline.distillation.epoch_values import QUANTILES
from pipeline.distillation.heads import Heads, Projector
from pipeline.distillation.method import Batch, Context, Known
from pipeline.distillation.methods import byot, dskd
from pipeline.distillation.transform import TeacherTransform, TransformConfig
from pipeline.errors import ParamsError, ShapeError, StillhouseError, UnknownNameError
from pipeline.networks.architecture import architecture
from pipeline.networks.network import Network, Taps, build, probe
from pipeline.networks.spec import NetworkSpec
from pipeline.params.base import validate
from pipeline.params.plug import Plug
from pipeline.params.recipe import Epoch
from pipeline.runs.inputs import RunInputs

pytestmark = pytest.mark.usefixtures("device")

HEADED = ("dskd", "dsn", "byot", "dks")
Array = NDArray[np.float64]


def context_of(network: Network, size: int, channels: int = 3, **update: Any) -> Context:
    shapes = probe(network, size, channels)
    context = Context(10, torch.zeros(4, dtype=torch.int64), network, shapes, {"logits": (10,)})
    return replace(context, **update)


def family(name: str, network: str, size: int = 32) -> Network:
    return build(NetworkSpec(family=name, network=network, size=size, channels=3, classes=10), 0)


def known_of(name: str, network: str, teacher: tuple[str, str] | None = None) -> Known:
    """Return what is known of a student, and of a teacher that is the student's own network by default."""
    specs = [NetworkSpec(family=f, network=n, size=32, channels=3, classes=10)
             for f, n in ((name, network), teacher or (name, network))]  # fmt: skip
    return Known(*(architecture(spec) for spec in specs))


# ------------------------------------------------------------------ heads on every family

FAMILIES = [
    ("resnet", "resnet8x4", ("stage1", "stage2"), (256, 8, 8)),
    ("resnet", "resnet20", ("stage1", "stage2"), (64, 8, 8)),
    ("resnet", "resnet50_cifar", ("stage1", "stage2", "stage3"), (2048, 4, 4)),
    ("wrn", "wrn_16_2", ("stage1", "stage2"), (128, 8, 8)),
    ("vgg", "vgg8", ("stage1", "stage2", "stage3"), (512, 4, 4)),
    ("mobilenetv2", "mobilenetv2_half", ("stage1", "stage2", "stage3"), (160, 2, 2)),
    ("shufflenetv1", "shufflenetv1", ("stage1", "stage2"), (960, 4, 4)),
    ("shufflenetv2", "shufflenetv2", ("stage1", "stage2"), (464, 4, 4)),
]


@pytest.mark.cpu
@pytest.mark.parametrize(("name", "network", "positions", "last"), FAMILIES, ids=str)
def test_every_cifar_family_has_heads_of_the_main_branchs_shapes(
    name: str, network: str, positions: tuple[str, ...], last: tuple[int, ...]
) -> None:
    student = family(name, network)
    context = context_of(student, 32)
    config = dskd.Config().resolved(known_of(name, network))
    assert config.heads == positions
    assert config.tap == config.teacher_feature
    assert context.student_shapes[config.tap] == last
    heads = Heads(positions, context)
    taps = student.record(torch.randn(2, 3, 32, 32), (*positions, "logits"))
    found = heads(taps, (config.tap, "final", "pooled", "logits"))
    assert tuple(found) == positions
    for head in found.values():
        assert {tap: tuple(x.shape[1:]) for tap, x in head.items()} == {
            tap: context.student_shapes[tap] for tap in (config.tap, "final", "pooled", "logits")
        }
    # From the shallowest: each head has fewer parameters, all its own.
    sizes = [sum(x.numel() for x in heads.heads[position].parameters()) for position in positions]
    assert all(one > other for one, other in pairwise(sizes))
    assert {id(x) for x in heads.parameters()}.isdisjoint(id(x) for x in student.parameters())
    pointers = {x.data_ptr() for x in student.parameters()}
    assert pointers.isdisjoint(x.data_ptr() for x in heads.parameters())


def test_wrns_last_map_is_the_raw_sum_and_final_is_after_the_relu() -> None:
    student = here(family("wrn", "wrn_16_2"))
    heads = here(Heads(("stage1", "stage2"), context_of(student, 32)))
    taps = student.record(here(torch.randn(2, 3, 32, 32)), heads.positions)
    for head in heads(taps, ("stage3", "final")).values():
        assert head["stage3"].min() < 0
        assert head["final"].min() == 0


@pytest.mark.cpu
def test_a_head_starts_alike_whichever_others_there_are() -> None:
    torch.manual_seed(1)
    both = Heads(("stage1", "stage2"), context_of(family("resnet", "resnet8"), 32))
    torch.manual_seed(2)
    one = Heads(("stage2",), context_of(family("resnet", "resnet8"), 32))
    for name, x in one.heads["stage2"].state_dict().items():
        assert torch.equal(x, both.heads["stage2"].state_dict()[name])
    other = Heads(("stage2",), context_of(family("resnet", "resnet8"), 32, seed=1))
    assert not torch.equal(
        other.heads["stage2"].classifier.weight,
        one.heads["stage2"].classifier.weight,
    )


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("name", "network", "positions", "error", "match"),
    [
        ("resnet", "resnet8", ("stage3",), UnknownNameError, "unit to attach a head to 'stage3'"),
        ("resnet", "resnet8", ("stage9",), UnknownNameError, "Known: stage1, stage2, stem"),
        ("resnet", "resnet8", ("last",), UnknownNameError, "unit to attach a head to 'stage3'"),
        ("resnet", "resnet8", ("stage1_block1",), UnknownNameError, "Known: stage1, stage2, stem"),
        ("resnet", "resnet8", ("stage1", "stage1"), ParamsError, "name each once"),
        (
            "timm",
            "mobilenetv3_small_050",
            None,
            ParamsError,
            "The student has the units none, and auxiliary heads",
        ),
    ],
)
def test_places_that_have_no_head_are_reported_in_one_line(
    name: str, network: str, positions: tuple[str, ...] | None, error: type[Exception], match: str
) -> None:
    if name == "timm":
        pytest.importorskip("timm")
    known = known_of(name, network)
    for method in HEADED:
        config = plugin.load("methods", method).Config(positions=positions)
        with pytest.raises(error, match=match) as raised:
            config.resolved(known)
        one_line(raised)


@pytest.mark.cpu
@pytest.mark.parametrize("method", HEADED)
def test_what_a_headed_method_reads_is_known_before_there_is_a_network(method: str) -> None:
    module = plugin.load("methods", method)
    read = module.Method.needs(module.Config().resolved(known_of("vgg", "vgg8"))).student
    assert set(read) >= {"logits", "stage1", "stage2", "stage3"}
    assert ("stage4" in read) == (method == "dskd")
    read = module.Method.needs(module.Config(positions=("stem",)).resolved(known_of("vgg", "vgg8"))).student
    assert "stem" in read
    assert "stage1" not in read


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("settings", "tap", "feature"),
    [
        ({}, "stage4", "stage4"),
        ({"map": "final"}, "final", "stage4"),
        ({"teacher_feature": "final"}, "stage4", "final"),
        ({"teacher_feature": "last_pre", "relu": False}, "stage4", "stage4_pre"),
    ],
)
def test_dskd_of_vgg_learns_the_last_stage(settings: dict[str, Any], tap: str, feature: str) -> None:
    """VGG13 -> VGG8 has four stages: the third is not what either ends in."""
    known = known_of("vgg", "vgg8", ("vgg", "vgg13"))
    config = dskd.Config(**settings).resolved(known)
    needs = dskd.Method.needs(config)
    assert needs.teacher == ("logits", feature)
    assert needs.student == ("logits", "stage1", "stage2", "stage3", tap)
    student, teacher = family("vgg", "vgg8"), family("vgg", "vgg13")
    image, label = torch.randn(2, 3, 32, 32, generator=seeding.generator("vgg")), torch.tensor([1, 0])
    with torch.no_grad():
        features = teacher.eval().record(image, needs.teacher)
    context = context_of(student, 32, teacher_shapes={k: tuple(x.shape[1:]) for k, x in features.items()})
    method = dskd.Method(config, context)
    batch = replace(assemble("kd").batch(2), image=image, label=label, teacher=features)
    taps = student.record(image, needs.student)
    taps[tap].retain_grad()
    method(taps, batch)["map"].backward()
    assert taps[tap].grad is not None
    assert (taps[tap].grad != 0).any()
    guided = method.projectors["last"](taps[tap])
    assert method(taps, batch)["map"].item() == pytest.approx(F.mse_loss(guided, features[feature]).item())


@pytest.mark.cpu
def test_a_mixed_pair_has_each_networks_own_last_stage() -> None:
    config = dskd.Config().resolved(known_of("resnet", "resnet8", ("vgg", "vgg13")))
    assert (config.tap, config.teacher_feature) == ("stage3", "stage4")
    assert config.heads == ("stage1", "stage2")


@pytest.mark.cpu
def test_the_tap_of_the_map_is_not_for_params() -> None:
    known = known_of("resnet", "resnet8")
    assert dskd.Config(student_tap="stage3").resolved(known) == dskd.Config().resolved(known)
    with pytest.raises(
        ParamsError, match="dskd has student_tap 'stage2', and its map is learned at 'stage3'"
    ) as e:
        dskd.Config(student_tap="stage2").resolved(known)
    one_line(e)


# ------------------------------------------------------------------ projectors


@pytest.mark.parametrize(
    ("student", "teacher"), [((6, 8, 8), (5, 4, 4)), ((6, 4, 4), (5, 8, 8)), ((6, 4, 4), (5, 4, 4))]
)
@pytest.mark.parametrize("relu", [True, False])
def test_a_projector_makes_the_teachers_shape(
    student: tuple[int, ...], teacher: tuple[int, ...], relu: bool
) -> None:
    with seeding.scope("projector"):
        projector = here(Projector(student, teacher, relu=relu))
    x = here(torch.randn(3, *student, generator=seeding.generator("map")))
    y = projector(x)
    assert tuple(y.shape[1:]) == teacher
    assert (y.min() < 0) == (not relu)
    # By hand: average 2x2, or stretch; then the convolution as a sum over channels; then BN over the batch.
    a = array(x)
    if student[1] > teacher[1]:
        a = a.reshape(3, 6, 4, 2, 4, 2).mean(axis=(3, 5))
    elif student[1] < teacher[1]:
        a = stretched(stretched(a).swapaxes(2, 3)).swapaxes(2, 3)
    weight = array(projector.body[0].weight)[:, :, 0, 0]  # (C_T, C)
    z = np.einsum("oc,bchw->bohw", weight, a)
    z = (z - z.mean(axis=(0, 2, 3), keepdims=True)) / np.sqrt(z.var(axis=(0, 2, 3), keepdims=True) + 1e-5)
    expected = np.maximum(z, 0) if relu else z
    np.testing.assert_allclose(array(y), expected, rtol=1e-4, atol=1e-4)  # float32 against float64


def stretched(x: Array) -> Array:
    """Return (B, C, H, W) with H doubled: output i lies at (i + 0.5) / 2 - 0.5, and the border is held."""
    height = x.shape[2]
    rows = []
    for i in range(2 * height):
        at = min(max((i + 0.5) / 2 - 0.5, 0), height - 1)
        low = math.floor(at)
        high = min(low + 1, height - 1)
        rows.append((1 - (at - low)) * x[:, :, low] + (at - low) * x[:, :, high])
    return np.stack(rows, axis=2)


@pytest.mark.cpu
def test_a_projector_of_what_is_no_map_is_reported() -> None:
    with pytest.raises(ShapeError, match="pairs two maps") as error:
        Projector((64,), (5, 4, 4), relu=True)
    one_line(error)


# ------------------------------------------------------------------ DSKD's equations


def softmax(z: Array, temperature: float) -> Array:
    e = np.exp(z / temperature - (z / temperature).max(axis=1, keepdims=True))
    found: Array = e / e.sum(axis=1, keepdims=True)
    return found


def ce(z: Array, label: Array) -> float:
    return -float(np.mean([math.log(softmax(z, 1)[i, int(y)]) for i, y in enumerate(label)]))


def kl(target: Array, z: Array, temperature: float) -> Array:
    """Return tau^2 KL of every sample, sums by loops."""
    p, q = softmax(target, temperature), softmax(z, temperature)
    found = [
        sum(a * math.log(a / b) for a, b in zip(one, two, strict=True)) for one, two in zip(p, q, strict=True)
    ]
    return temperature**2 * np.array(found)


def array(x: Tensor) -> Array:
    found: Array = x.detach().cpu().double().numpy()
    return found


def heads_of(found: Assembled) -> Heads:
    heads = found.method.heads
    assert isinstance(heads, Heads)
    return heads


def parts(found: Assembled, batch: Batch) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return logits, and projected maps, of every classifier; the last one's name is "last"."""
    taps, method = found.taps(batch), found.method
    names = ("logits", method.config.tap)
    every = heads_of(found)(taps, names) | {"last": {name: taps[name] for name in names}}
    logits = {name: array(head["logits"]) for name, head in every.items()}
    maps = {name: array(method.projectors[name](head[method.config.tap])) for name, head in every.items()}
    return logits, maps


def reference(found: Assembled, batch: Batch, balance: str) -> dict[str, float]:
    """Return the terms of equations 1 to 9, sample by sample."""
    logits, maps = parts(found, batch)
    z, hint = array(batch.teacher["logits"]), array(batch.teacher["stage3"])
    label = array(batch.label)
    losses = {
        "kd": {name: kl(z, x, 4.0) for name, x in logits.items()},
        "map": {
            name: np.array([((a - b) ** 2).mean() for a, b in zip(x, hint, strict=True)])
            for name, x in maps.items()
        },
    }
    terms = {"ce": ce(logits["last"], label)}
    for kind, by_name in losses.items():
        terms[kind] = float(by_name.pop("last").mean())
        total = 0.0
        for i in range(len(label)):
            shallow = [x[i] for x in by_name.values()]
            if balance == "loss":
                total += sum(loss / sum(shallow) * loss for loss in shallow)
            else:
                total += sum(loss / len(shallow) for loss in shallow)
        terms[f"{kind}_shallow"] = total / len(label)
    return terms


@pytest.mark.parametrize("balance", ["loss", "equal"])
@pytest.mark.parametrize("detach", [True, False])
def test_dskd_is_equations_1_to_9(balance: str, detach: bool) -> None:
    found = assemble("dskd", {"balance": balance, "detach": detach})
    batch = found.batch(5)
    terms = found.method(found.taps(batch), batch)
    expected = reference(found, batch, balance)
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value, rel=1e-4), name  # float32 against float64
    total = sum(found.method.config.weights[name] * term.item() for name, term in terms.items())
    one, two = (expected["kd"] + expected["kd_shallow"], expected["map"] + expected["map_shallow"])
    assert total == pytest.approx(expected["ce"] + one + 30 * two, rel=1e-4)


@pytest.mark.parametrize("position", ["stage1", "stage2"])
def test_a_single_position_has_weight_one(position: str) -> None:
    found = assemble("dskd", {"positions": (position,)})
    assert found.needs.student == ("logits", position, "stage3")
    batch = found.batch(5)
    terms = found.method(found.taps(batch), batch)
    logits, maps = parts(found, batch)
    expected = kl(array(batch.teacher["logits"]), logits[position], 4.0).mean()
    assert terms["kd_shallow"].item() == pytest.approx(expected, rel=1e-4)
    expected = ((maps[position] - array(batch.teacher["stage3"])) ** 2).mean()
    assert terms["map_shallow"].item() == pytest.approx(expected, rel=1e-4)


def test_no_position_leaves_the_last_layers_terms() -> None:
    found = assemble("dskd", {"positions": ()})
    batch = found.batch(5)
    terms = found.method(found.taps(batch), batch)
    assert terms.keys() == {"ce", "kd", "map"}  # the first column of Table 2


def test_without_maps_nothing_of_them_is_read() -> None:
    found = assemble("dskd", {"maps": False})
    assert found.needs.teacher == ("logits",)
    assert found.needs.student == ("logits", "stage1", "stage2")
    assert not list(found.method.projectors)
    batch = found.batch(5)
    assert found.method(found.taps(batch), batch).keys() == {"ce", "kd", "kd_shallow"}


@pytest.mark.parametrize("detach", [True, False])
def test_the_gradient_of_the_weighted_sum(detach: bool) -> None:
    """Detached, a loss's gradient is its weight; else that of sum l^2 / sum l, by differences in float64."""
    found = assemble("dskd", {"detach": detach})
    generator = seeding.generator("losses")
    losses = {
        name: here(torch.rand(4, generator=generator)).requires_grad_() for name in ("stage1", "stage2")
    }
    found.method._balanced("kd", losses, found.batch(4)).backward()
    start = np.stack([array(x) for x in losses.values()])  # (2, B)
    weights = start / start.sum(axis=0)
    for place, x in enumerate(losses.values()):
        for i in range(4):
            ends = []
            for change in (1e-6, -1e-6):
                moved = start.copy()
                moved[place, i] += change
                w = weights if detach else moved / moved.sum(axis=0)
                ends.append((w * moved).sum(axis=0).mean())
            assert x.grad is not None
            assert x.grad[i].item() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-6)


def test_losses_of_zero_have_weights_that_are_finite() -> None:
    found = assemble("dskd")
    losses = {name: here(torch.zeros(3)).requires_grad_() for name in ("stage1", "stage2")}
    loss = found.method._balanced("kd", losses, found.batch(3))
    loss.backward()
    assert loss.item() == 0
    assert all(torch.isfinite(x.grad).all() for x in losses.values() if x.grad is not None)


def test_weights_sum_to_one_and_are_reported_by_quantiles() -> None:
    found = assemble("dskd")
    assert found.method.diagnose() == {}
    batch = found.batch(7)
    found.method.start(Epoch("main", 0, 2))
    found.method(found.taps(batch), batch)
    held = found.method.gathered._all()
    assert set(held) == {f"weight.{kind}.{place}" for kind in ("kd", "map") for place in ("stage1", "stage2")}
    logits, maps = parts(found, batch)
    z, hint = array(batch.teacher["logits"]), array(batch.teacher["stage3"])
    for kind in ("kd", "map"):
        total = held[f"weight.{kind}.stage1"] + held[f"weight.{kind}.stage2"]
        torch.testing.assert_close(total, torch.ones(7), rtol=1e-6, atol=1e-6)
        each = {
            name: kl(z, logits[name], 4.0)
            if kind == "kd"
            else ((maps[name] - hint) ** 2).mean(axis=(1, 2, 3))
            for name in ("stage1", "stage2")
        }
        expected = each["stage1"] / (each["stage1"] + each["stage2"])
        told = found.method.diagnose()
        for percent in QUANTILES:
            value = np.quantile(expected, percent / 100)
            assert told[f"weight.{kind}.stage1.{percent}"] == pytest.approx(value, rel=1e-4)
    assert assemble("dskd", {"balance": "equal"}).method.diagnose() == {}


def test_auxiliary_heads_learn_nothing_from_labels() -> None:
    found = assemble("dskd")
    batch = found.batch()
    other = replace(batch, label=(batch.label + 1) % CLASSES)
    grads = []
    for one in (batch, other):
        found.method.zero_grad()
        weights = found.method.weights(one)
        terms = found.method(found.taps(one), one)
        torch.stack([weights[name] * term for name, term in terms.items()]).sum().backward()
        grads.append([x.grad.clone() for x in found.method.parameters() if x.grad is not None])
    assert len(grads[0]) == len(list(found.method.parameters()))
    for one, two in zip(*grads, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["dsn", "byot", "dks"])
def test_the_baselines_heads_learn_from_labels(name: str) -> None:
    found = assemble(name)
    batch = found.batch()
    found.method(found.taps(batch), batch)["ce_shallow"].backward()
    for key, x in found.method.heads.named_parameters():
        assert x.grad is not None, key
        assert (x.grad != 0).any() or "bias" in key or x.ndim == 1, key


def test_a_map_that_is_negative_asks_for_projectors_without_a_relu() -> None:
    found = assemble("dskd")
    batch = found.batch()
    negative = replace(batch, teacher=batch.teacher | {"stage3": batch.teacher["stage3"] - 1})
    with pytest.raises(ParamsError, match=r"'stage3' is negative in places.*Set relu: false") as error:
        found.method.check(negative)
    one_line(error)
    found.method.check(batch)
    linear = assemble("dskd", {"relu": False})
    linear.method.check(negative)
    assert math.isfinite(linear.method(linear.taps(batch), negative)["map"].item())
    assert (linear.method.projectors["last"](linear.taps(batch)["stage3"]) < 0).any()


@pytest.mark.parametrize("method", HEADED)
def test_the_teacher_never_learns_and_the_student_does(method: str) -> None:
    found = assemble(method)
    batch = found.batch()
    weights = found.method.weights(batch)
    terms = found.method(found.taps(batch), batch)
    torch.stack([weights[name] * term for name, term in terms.items()]).sum().backward()
    assert not any(x.requires_grad for x in batch.teacher.values())
    assert not any(x.requires_grad for x in frozen_teacher().network.parameters())
    for name, x in found.student.named_parameters():
        assert x.grad is not None, name
    assert all(x.grad is not None for x in found.method.parameters())


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"balance": "best"}, "'loss' or 'equal'"),
        ({"map": "pooled"}, "'stage' or 'final'"),
        ({"temperature": 0}, "greater than or equal to 0.01"),
        ({"position": ["stage1"]}, "Did you mean 'positions'"),
    ],
)
def test_settings_that_cannot_be_are_reported(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ParamsError, match=match) as error:
        validate(dskd.Config, settings, "runs.dskd.config")
    one_line(error)


@pytest.mark.cpu
def test_defaults_are_the_papers() -> None:
    config = dskd.Config()
    assert (config.temperature, config.balance, config.detach, config.positions) == (4.0, "loss", True, None)
    assert config.weights == {"ce": 1.0, "kd": 1.0, "kd_shallow": 1.0, "map": 30.0, "map_shallow": 30.0}
    assert byot.Config().weights == {"ce": 1.0, "ce_shallow": 0.7, "soft": 0.3, "feature": 0.03}


# ------------------------------------------------------------------ DSN, BYOT, DKS


def every_logits(found: Assembled, batch: Batch) -> list[Array]:
    """Return the logits of the last classifier and of the heads."""
    taps = found.taps(batch)
    heads = heads_of(found)(taps, ("logits",)).values()
    return [array(taps["logits"]), *(array(head["logits"]) for head in heads)]


def test_dsn_is_the_formula() -> None:
    found = assemble("dsn")
    batch = found.batch(5)
    terms = found.method(found.taps(batch), batch)
    last, *shallow = every_logits(found, batch)
    assert terms["ce"].item() == pytest.approx(ce(last, array(batch.label)), rel=1e-4)
    assert terms["ce_shallow"].item() == pytest.approx(
        sum(ce(z, array(batch.label)) for z in shallow), rel=1e-4
    )


OUT_OF_ORDER = ("stage2", "stem", "stage1")  # stage2 is nearest to the output


@pytest.mark.parametrize(("positions", "guided"), [(None, ["stage1"]), (OUT_OF_ORDER, ["stem", "stage1"])])
def test_byot_is_the_formula(positions: tuple[str, ...] | None, guided: list[str]) -> None:
    found = assemble("byot", {"positions": positions})
    batch = found.batch(5)
    taps = found.taps(batch)
    terms = found.method(taps, batch)
    last, *shallow = every_logits(found, batch)
    p = softmax(last, 3.0)
    soft = -sum((p * np.log(softmax(z, 3.0))).sum() / 5 for z in shallow)
    main, feature = array(taps["pooled"]), 0.0
    heads = heads_of(found)(taps, ("pooled",))
    for position in guided:
        linear, pooled = found.method.projectors[position], array(heads[position]["pooled"])
        weight, bias = array(linear.weight), array(linear.bias)
        square = 0.0  # of all samples and widths together
        for i in range(5):
            for d in range(len(bias)):
                learned = sum(weight[d, c] * pooled[i, c] for c in range(pooled.shape[1])) + bias[d]
                square += (learned - main[i, d]) ** 2
        feature += math.sqrt(square)
    expected = {
        "ce": ce(last, array(batch.label)),
        "ce_shallow": sum(ce(z, array(batch.label)) for z in shallow),
        "soft": soft,
        "feature": feature,
    }
    assert {name: x.item() for name, x in terms.items()} == pytest.approx(expected, rel=1e-4)
    assert set(found.method.projectors) == set(guided)


def test_byots_gradients_are_those_of_a_plain_loss_in_float64() -> None:
    found = assemble("byot", {"positions": OUT_OF_ORDER})
    batch = found.batch(5)
    student, method = copy.deepcopy(found.student).double(), copy.deepcopy(found.method).double()
    terms = found.method(found.taps(batch), batch)
    weights = found.method.weights(batch)
    loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
    loss.backward()

    main = student.record(batch.image.double(), (*OUT_OF_ORDER, "pooled", "logits"))
    rows = range(5)
    label = batch.label.tolist()
    target = [(main["logits"][i].detach() / 3).exp() for i in rows]
    plain = -sum(main["logits"][i].log_softmax(0)[label[i]] for i in rows) / 5
    for position in OUT_OF_ORDER:
        head = method.heads.heads[position].record(main[position], ("pooled", "logits"))
        for i in rows:
            plain = plain - 0.7 * head["logits"][i].log_softmax(0)[label[i]] / 5
            p = target[i] / target[i].sum()
            plain = plain - 0.3 * (p * (head["logits"][i] / 3).log_softmax(0)).sum() / 5
        if position != "stage2":
            linear = method.projectors[position]
            apart = [
                linear.weight @ head["pooled"][i] + linear.bias - main["pooled"][i].detach() for i in rows
            ]
            plain = plain + 0.03 * sum((x * x).sum() for x in apart).sqrt()
    plain.backward()

    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    for ours, reference in ((found.student, student), (found.method, method)):
        expected = dict(reference.named_parameters())
        for name, x in ours.named_parameters():
            wanted = expected[name].grad
            assert x.grad is not None, name
            assert wanted is not None, name
            # float32 against float64, relative to the parameter's largest gradient.
            torch.testing.assert_close(
                x.grad.double(), wanted, rtol=0, atol=1e-4 * wanted.abs().max().item(), msg=name
            )


def test_byots_feature_term_is_one_norm_over_the_batch() -> None:
    """A batch that is shown twice has the statistics of one, and root 2 of its norm."""
    found = assemble("byot")
    once = found.batch(4)
    twice = replace(
        once, **{name: torch.cat([getattr(once, name)] * 2) for name in ("image", "label", "index")}
    )
    one, two = (found.method(found.taps(batch), batch) for batch in (once, twice))
    assert two["feature"].item() == pytest.approx(math.sqrt(2) * one["feature"].item(), rel=1e-4)
    for name in ("ce", "ce_shallow", "soft"):
        assert two[name].item() == pytest.approx(one[name].item(), rel=1e-4)


@pytest.mark.parametrize("positions", [("stage1",), ()], ids=str)
def test_byots_only_head_is_the_nearest_to_the_output(positions: tuple[str, ...]) -> None:
    found = assemble("byot", {"positions": positions})
    batch = found.batch()
    assert found.method(found.taps(batch), batch)["feature"].item() == 0
    assert not list(found.method.projectors.parameters())


@pytest.mark.cpu
def test_byots_projector_starts_alike_whichever_other_heads_there_are() -> None:
    one, other = assemble("byot").method, assemble("byot", {"positions": OUT_OF_ORDER}).method
    assert torch.equal(one.projectors["stage1"].weight, other.projectors["stage1"].weight)
    assert not torch.equal(other.projectors["stem"].weight, other.projectors["stage1"].weight)


def reached(module: nn.Module) -> set[str]:
    """Return the parameters that a gradient has reached."""
    return {name for name, x in module.named_parameters() if x.grad is not None and (x.grad != 0).any()}


@pytest.mark.parametrize("term", ["soft", "feature"])
def test_byots_last_classifier_does_not_learn_from_its_heads(term: str) -> None:
    found = assemble("byot")
    batch = found.batch()
    found.method(found.taps(batch), batch)[term].backward()
    learners = {name.split(".")[1] for name in reached(found.student)}
    # `feature` stands at stage1 alone: the head at stage2 is the nearest to the output.
    assert learners == {"stem", "stage1"} | ({"stage2"} if term == "soft" else set())
    heads = {name.split(".")[2] for name in reached(found.method) if name.startswith("heads.")}
    assert heads == {"stage1"} | ({"stage2"} if term == "soft" else set())


def test_dks_is_the_formula() -> None:
    found = assemble("dks")
    batch = found.batch(5)
    terms = found.method(found.taps(batch), batch)
    every = every_logits(found, batch)
    assert len(every) == 3
    synergy = sum(
        kl(teacher, learner, 1.0).mean()
        for m, teacher in enumerate(every)
        for n, learner in enumerate(every)
        if m != n
    )
    assert terms["synergy"].item() == pytest.approx(synergy, rel=1e-4)
    assert terms["ce_shallow"].item() == pytest.approx(
        sum(ce(z, array(batch.label)) for z in every[1:]), rel=1e-4
    )


def test_dkss_gradient_is_that_of_learners_alone() -> None:
    """For KL(p || q) with p held, the gradient by the learner's logits is q - p; here of the last classifier."""
    found = assemble("dks")
    batch = found.batch(5)
    taps = found.taps(batch)
    taps["logits"].retain_grad()
    found.method(taps, batch)["synergy"].backward()
    last, *shallow = every_logits(found, batch)
    expected = sum(softmax(last, 1) - softmax(z, 1) for z in shallow) / 5
    assert taps["logits"].grad is not None
    np.testing.assert_allclose(array(taps["logits"].grad), expected, rtol=1e-3, atol=1e-6)


# ------------------------------------------------------------------ whole runs


@pytest.fixture(scope="module")
def world(device: str, tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def resolved(world: World, name: str, **run: Any) -> RunInputs:
    """Resolve a run of these settings; maps come online, because the small store has none of the last stage."""
    runs = {name: {"source": "online"} | run}
    pair = world.blocks(runs=runs, distill=[f"pair/{name}"]) / "pairs/pair.json"
    found = world.resolve(world.path(f"changed/{name}-out"), block=pair)
    return RunInputs.model_validate_json(found[name])


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def check_learning(folder: Path) -> list[dict[str, str]]:
    rows = history(folder)
    found = [float(row["loss"]) for row in rows]
    assert all(math.isfinite(value) for value in found)
    assert found[-1] < found[0]
    return rows


@pytest.mark.parametrize("method", HEADED)
def test_the_saved_student_is_the_plain_one(world: World, method: str) -> None:
    source = "online" if method == "dskd" else "cached"
    folder = world.distill(method, resolved(world, method, methods=method, source=source))
    rows = check_learning(folder)
    plain = build(STUDENT, 0).state_dict()
    for name in ("init", "last", "best"):
        held = load_file(folder / f"weights/{name}.safetensors")
        assert {key: x.shape for key, x in held.items()} == {key: x.shape for key, x in plain.items()}
    init = load_file(folder / "weights/init.safetensors")
    assert all(torch.equal(x, plain[key]) for key, x in init.items())
    assert not torch.equal(
        load_file(folder / "weights/last.safetensors")["classifier.weight"], init["classifier.weight"]
    )
    if method == "dskd":
        assert {"weight.kd.stage1.50", "weight.map.stage2.95"} <= rows[0].keys()
        assert 0 < float(rows[0]["weight.kd.stage1.50"]) < 1


def test_slkd_with_dskd_trains(world: World) -> None:
    inputs = resolved(world, "slkd-dskd", methods="dskd", schedule="self_learning")
    rows = check_learning(world.distill("slkd-dskd", inputs))
    assert {"kd", "kd_shallow", "map", "map_shallow", "slt1_kd", "slt2_kd", "fused_kd"} <= rows[0].keys()
    assert {"weight.kd.stage1.50", "distance.student-self"} <= rows[0].keys()


def test_dskd_can_be_taught_deeply_by_the_self_learning_teachers(world: World) -> None:
    weights = {"ce": 1.0, "kd": 1.0, "kd_shallow": 1.0, "map": 0.0, "map_shallow": 0.0}
    settings = {"lesson": "method", "student_weights": weights}
    inputs = resolved(world, "slkd-deep", methods="dskd", schedule={"self_learning": settings})
    rows = check_learning(world.distill("slkd-deep", inputs))
    assert {"fused_kd", "fused_kd_shallow"} <= rows[0].keys()


class Reversed(TeacherTransform[TransformConfig]):
    """Turns the order of the channels round, as KCD's permutation would."""

    def forward(self, teacher: Taps, batch: Batch) -> Taps:
        return {name: x.flip(1) if x.ndim == 4 else x for name, x in teacher.items()}


def test_dskd_under_a_permutation_trains(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    plug(monkeypatch, "transforms", "reversed", Config=TransformConfig, Transform=Reversed)
    inputs = resolved(world, "kcd-dskd", methods="dskd")
    plain = check_learning(world.distill("dskd-plain", inputs))
    rows = check_learning(
        world.distill("kcd-dskd", inputs.model_copy(update={"transform": Plug.of("reversed")}))
    )
    assert float(rows[0]["map"]) != pytest.approx(float(plain[0]["map"]), rel=1e-4)


@pytest.mark.cpu
def test_methods_without_a_teacher_read_none(world: World) -> None:
    inputs = resolved(world, "no-teacher", methods="dsn", source="cached")
    assert (inputs.features, inputs.stored, inputs.weights) == ((), {}, {})


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("positions", "match"), [(["stage3"], "unit to attach a head to 'stage3'"), (["stage"], "Did you mean")]
)
def test_unknown_positions_end_inputs_in_one_line(world: World, positions: list[str], match: str) -> None:
    with pytest.raises(StillhouseError, match=match) as error:
        resolved(world, f"at-{positions[0]}", methods={"dskd": {"positions": positions}})
    one_line(error)


@pytest.mark.cpu
def test_these_methods_are_in_the_catalogue() -> None:
    assert set(HEADED) <= set(plugin.names("methods"))
    assert isinstance(assemble("dskd").method.heads, nn.Module)

"""Scale-decoupled distillation against a plain reference, and by whom a region is classified."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from baseline_fixtures import CLASSES, MAPS, SIZES, batch, cells, holds, method, taps
from device_fixtures import here
from error_fixtures import one_line
from torch import Tensor, nn
from training_fixtures import KNOWN, assemble, assemble_all

from pipeline import plugin
from pipeline.distillation.method import Batch, Terms
from pipeline.distillation.methods import sdd
from pipeline.errors import ParamsError
from pipeline.networks.network import build
from pipeline.networks.spec import NetworkSpec
from pipeline.params.base import validate

pytestmark = pytest.mark.usefixtures("device")

BASES: dict[str, dict[str, Any]] = {"kd": {}, "dkd": {"others": 8.0}, "nkd": {"others": 1.5}}


def classifiers(student: int, teacher: int, classes: int) -> Any:
    """Return stand-ins of two networks, of which a classifier is all that is read."""
    generator = torch.Generator().manual_seed(classes)
    networks = []
    for width in (student, teacher):
        linear = nn.Linear(width, classes).double()
        with torch.no_grad():
            for x in linear.parameters():
                x.copy_(torch.randn(x.shape, generator=generator, dtype=torch.float64))
        networks.append(SimpleNamespace(classifier=linear))
    return tuple(networks)


def softmax(logits: Any) -> list[Any]:
    powers = [torch.exp(z) for z in logits]
    return [p / sum(powers) for p in powers]


def kl(p: list[Any], q: list[Any]) -> Any:
    return sum((a * torch.log(a / b) for a, b in zip(p, q, strict=True)), torch.zeros(()).double())


def of_region(base: str, s: Tensor, t: Tensor, y: int, temperature: float = 4.0) -> Any:
    """Return the loss of one region's logits (K,)."""
    p, q = softmax(t / temperature), softmax(s / temperature)
    if base == "kd":
        return temperature**2 * kl(p, q)
    rests = [[x / (1 - row[y]) for k, x in enumerate(row) if k != y] for row in (p, q)]
    if base == "dkd":
        target = kl([p[y], 1 - p[y]], [q[y], 1 - q[y]])
        return temperature**2 * (target + 8 * kl(*rests))
    of_label = -softmax(t)[y] * torch.log(softmax(s)[y])
    others = sum((a * torch.log(b) for a, b in zip(*rests, strict=True)), torch.zeros(()).double())
    return of_label - 1.5 * temperature**2 * others


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("student", "teacher", "scales"),
    [(*MAPS[0], (1, 2, 4)), (*MAPS[1], (1, 2)), (*MAPS[2], (1, 2, 4)), (*MAPS[3], (2, 3)),
     ((2, 1, 1), (3, 7, 7), (4,))],
)  # fmt: skip
def test_sdd_is_the_formula(
    base: str,
    classes: int,
    size: int,
    student: tuple[int, ...],
    teacher: tuple[int, ...],
    scales: tuple[int, ...],
) -> None:
    own, other = {"final": student}, {"final": teacher}
    networks = classifiers(student[0], teacher[0], classes)
    found = method("sdd", own, other, classes, networks, base=base, scales=scales, **BASES[base])

    def reference(given: Mapping[str, Tensor], now: Batch) -> Terms:
        sums = {name: 0 * given["final"].sum() for name in ("consistent", "complementary")}
        count = size * sum(scale**2 for scale in scales)
        for i, y in enumerate(now.label.tolist()):
            maps = given["final"][i], now.teacher["final"][i]
            whole = networks[1].classifier(maps[1].mean(dim=(1, 2))).argmax()
            for scale in scales:
                for cell in zip(*(cells(x, scale, scale) for x in maps), strict=True):
                    s, t = (network.classifier(x) for network, x in zip(networks, cell, strict=True))
                    agrees = (int(t.argmax()) == y) == (int(whole) == y)
                    name = "consistent" if agrees else "complementary"
                    sums[name] = sums[name] + of_region(base, s, t.detach(), y) / count
        return sums

    holds(found, own, other, size, reference, classes)


def test_a_region_complements_where_the_teacher_is_right_of_one_of_the_two_alone() -> None:
    """Four quarters of an image: the teacher's classes of them and of the whole are written down."""
    student, teacher = nn.Linear(1, 3).double(), nn.Linear(3, 3).double()
    nn.init.eye_(teacher.weight)
    nn.init.zeros_(teacher.bias)
    networks = SimpleNamespace(classifier=student), SimpleNamespace(classifier=teacher)
    shapes = {"final": (1, 2, 2)}, {"final": (3, 2, 2)}
    found = method("sdd", *shapes, 3, networks, base="kd", scales=(2,))
    # A pixel's largest channel is its class: 0, 0, 1 and 2; of all together it is 0.
    classes = torch.tensor([[0, 0], [1, 2]])
    features = F.one_hot(classes).permute(2, 0, 1)[None].double()
    given = taps({"logits": (3,), "final": (1, 2, 2)}, 1, "student")
    parts = {}
    for label in (0, 1, 2):
        now = replace(batch({"final": features}, 3), label=torch.tensor([label]))
        terms = found(given, now)
        rows = [
            of_region("kd", student(given["final"][0, :, a, b]), features[0, :, a, b], label).item() / 4
            for a, b in ((0, 0), (0, 1), (1, 0), (1, 1))
        ]
        parts[label] = [terms[name].item() for name in ("consistent", "complementary")]
        right = {0: (0, 1), 1: (0, 1, 3), 2: (0, 1, 2)}[label]
        assert parts[label][0] == pytest.approx(sum(rows[k] for k in right))
        assert sum(parts[label]) == pytest.approx(sum(rows))


@pytest.mark.parametrize("base", BASES)
def test_of_the_whole_image_it_is_its_base(base: str) -> None:
    """At the scale of the image: KD and DKD as they are, of the logits that the networks give."""
    found = assemble("sdd", {"base": base, "scales": (1,)})
    now = found.batch()
    given = found.taps(now)
    terms = found.method(given, now)
    assert terms["complementary"].item() == 0
    if base == "nkd":
        return
    other = assemble(base)
    alone = other.method(given, replace(now, teacher=other.batch().teacher))
    expected = alone["kd"] if base == "kd" else alone["target"] + 8 * alone["others"]
    torch.testing.assert_close(terms["consistent"], expected, rtol=1e-4, atol=1e-5)


FAMILIES = {"resnet": "resnet8", "wrn": "wrn_16_1", "vgg": "vgg8", "mobilenetv1": "mobilenetv1",
            "mobilenetv2": "mobilenetv2_half", "shufflenetv1": "shufflenetv1", "shufflenetv2": "shufflenetv2",
            "torchvision_resnet": "resnet18", "torchvision_mobilenetv2": "mobilenet_v2", "resnet_pad": "resnet20_pad",
            "imported": "torchvision.models:resnet18"}  # fmt: skip


@pytest.mark.cpu
@pytest.mark.parametrize("family", sorted(set(plugin.names("networks")) - {"timm"}))
@pytest.mark.parametrize("inserted", [{}, {"final": {"kd_layer": {"words": 5}}}], ids=["plain", "layer"])
def test_what_is_pooled_of_every_family_gives_its_logits(family: str, inserted: Any) -> None:
    """Of a WRN behind its last ReLU, of MobileNetV2 and ShuffleNetV2 behind their last convolution."""
    spec = NetworkSpec(
        family=family, network=FAMILIES[family], size=32, channels=3, classes=7, inserted=inserted
    )
    network = build(spec, 0).eval()
    found = network.record(torch.randn(2, 3, 32, 32), ["final", "logits"])
    (whole,) = sdd.regions(found["final"], (1,)).unbind(dim=1)
    torch.testing.assert_close(network.classifier(whole), found["logits"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("term", ["consistent", "complementary"])
@pytest.mark.parametrize("others", [{}, {"letkd": {}}], ids=["alone", "behind a layer"])
def test_it_trains_the_student_with_its_classifier_and_nothing_else(term: str, others: Any) -> None:
    words = {"centers": torch.randn(11, 64).numpy(), "counts": torch.ones(11).numpy()}
    found = assemble_all({"sdd": {}} | others, lambda table: words | {"temperature": torch.ones(()).numpy()})
    own = found.method.methods["sdd"] if others else found.method
    assert not list(own.parameters())
    assert not own.state_dict()
    own.weight.neg_()  # so that regions differ from the whole
    own.weight[:, ::2].mul_(3)
    now = found.batch(16)
    now = replace(now, teacher=now.teacher | {"final": here(torch.randn(16, 64, 2, 2))})
    teacher = found.context.teacher
    assert teacher is not None
    own(found.taps(now), now)[term].backward()
    for name, x in found.student.named_parameters():
        assert x.grad is not None, name
        assert torch.isfinite(x.grad).all(), name
    assert (found.student.classifier.weight.grad != 0).any()
    assert all(x.grad is None for x in teacher.parameters())


def test_the_student_s_classifier_is_the_one_that_is_trained() -> None:
    """A step of the optimizer changes what regions are classified by."""
    found = assemble("sdd", {"base": "kd"})
    now = found.batch()
    given = {name: x.detach() for name, x in found.taps(now).items()}
    before = found.method(given, now)["consistent"].item()
    with torch.no_grad():
        found.student.classifier.weight.add_(torch.randn_like(found.student.classifier.weight))
    assert found.method(given, now)["consistent"].item() != pytest.approx(before, rel=1e-3)


@pytest.mark.cpu
def test_the_teacher_s_terms_warm_up_together() -> None:
    shapes = {"final": (3, 2, 2)}
    found = method("sdd", shapes, shapes, 5, classifiers(3, 3, 5), **BASES["dkd"])
    features = taps(shapes, 2, "t")
    for epoch, share in ((0, 1 / 20), (9, 0.5), (19, 1), (29, 1)):
        weights = found.weights(batch(features, epoch=epoch))
        expected = {"ce": 1.0, "consistent": share, "complementary": 2 * share}
        assert {name: float(w) for name, w in weights.items()} == pytest.approx(expected)


@pytest.mark.cpu
def test_the_weight_of_other_classes_is_filled_in_where_there_is_one() -> None:
    assert sdd.Config().resolved(KNOWN).others == 8
    assert sdd.Config(base="nkd", others=0.5).resolved(KNOWN).others == 0.5
    assert sdd.Config(base="kd").resolved(KNOWN).others is None
    with pytest.raises(ParamsError, match="'others' weighs a part of dkd and nkd, and base is kd") as error:
        validate(sdd.Config, {"base": "kd", "others": 8.0}, "runs.x.methods.sdd")
    one_line(error)


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"scales": []}, "Name one at least"),
        ({"scales": [0]}, "greater than or equal to 1"),
        ({"scales": [1, 2, 2]}, "It has 2 twice"),
        ({"scales": [1000]}, "less than or equal to 32"),
        ({"base": "dist"}, "'kd', 'dkd' or 'nkd'"),
    ],
)
def test_settings_out_of_bounds_are_one_line(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ParamsError, match=text) as error:
        validate(sdd.Config, settings, "runs.x.methods.sdd")
    one_line(error)


@pytest.mark.cpu
@pytest.mark.parametrize(("name", "role"), [("sdd", "student"), ("sdd", "teacher"), ("simkd", "teacher")])
def test_a_network_whose_classifier_reads_something_else_is_refused(name: str, role: str) -> None:
    known = replace(KNOWN, **{role: replace(getattr(KNOWN, role), averages=False)})
    with pytest.raises(ParamsError, match=f"the {role}'s classifier, which does not read the mean") as error:
        plugin.load("methods", name).Config().resolved(known)
    one_line(error)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("scale", [0.0, 1e-4, 1e4])
def test_what_half_precision_rounds_is_finite_under_every_base(base: str, scale: float) -> None:
    found = assemble("sdd", {"base": base})
    now = found.batch()
    given = {
        name: (scale * x.detach()).bfloat16().float().requires_grad_() for name, x in found.taps(now).items()
    }
    now = replace(now, teacher={name: (scale * x).bfloat16().float() for name, x in now.teacher.items()})
    terms = found.method(given, now)
    torch.stack(list(terms.values())).sum().backward()
    assert all(torch.isfinite(x) for x in terms.values())
    assert all(x.grad is not None and torch.isfinite(x.grad).all() for x in given.values())

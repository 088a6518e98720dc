"""Methods on maps that the papers compare with, each against a plain reference in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from baseline_fixtures import (
    MAPS,
    SIZES,
    VECTORS,
    Shapes,
    averaged,
    batch,
    cells,
    holds,
    method,
    of_one_size,
    taps,
)
from error_fixtures import one_line
from scipy.stats import truncnorm
from torch import Tensor, nn
from training_fixtures import KNOWN, RECIPE, TEACHER, assemble

from pipeline import plugin
from pipeline.distillation.method import Batch, Terms
from pipeline.distillation.methods import ofd
from pipeline.errors import ParamsError, ShapeError
from pipeline.networks.architecture import architecture
from pipeline.networks.network import Tap


@pytest.mark.parametrize(("student", "teacher"), MAPS)
@pytest.mark.parametrize("size", SIZES)
def test_at_is_the_formula(student: tuple[int, ...], teacher: tuple[int, ...], size: int) -> None:
    places = {"stage1": "stage1", "stage2": "last_map"}
    own = {"stage1": student, "stage2": (2, 2, 2)}
    other = {"stage1": teacher, "last_map": (3, 2, 2)}

    def reference(given: Mapping[str, Tensor], now: Batch) -> Terms:
        total = torch.zeros((), dtype=torch.float64)
        for tap, feature in places.items():
            for i in range(size):
                q = []
                for x in of_one_size(given[tap][i], now.teacher[feature][i]):
                    pixels = [(x[:, a, b] ** 2).mean() for a in range(x.shape[1]) for b in range(x.shape[2])]
                    norm = torch.sqrt(sum(p**2 for p in pixels))
                    q.append([p / norm for p in pixels])
                errors = [(a - b) ** 2 for a, b in zip(*q, strict=True)]
                total = total + sum(errors) / (size * len(errors))
        return {"attention": total}

    holds(method("at", own, other, places=places), own, other, size, reference)


@pytest.mark.parametrize(("student", "teacher"), [*MAPS, *VECTORS])
@pytest.mark.parametrize("size", SIZES)
def test_sp_is_the_formula(student: tuple[int, ...], teacher: tuple[int, ...], size: int) -> None:
    def rows(x: Tensor) -> list[list[Tensor]]:
        gram = [[(x[i].flatten() * x[j].flatten()).sum() for j in range(size)] for i in range(size)]
        return [[g / torch.sqrt(sum(v**2 for v in row)) for g in row] for row in gram]

    def reference(given: Mapping[str, Tensor], now: Batch) -> Terms:
        s, t = rows(given["a"]), rows(now.teacher["b"])
        total = sum((s[i][j] - t[i][j]) ** 2 for i in range(size) for j in range(size))
        return {"similarity": total / size**2}

    own, other = {"a": student}, {"b": teacher}
    holds(method("sp", own, other, student_tap="a", teacher_feature="b"), own, other, size, reference)


@pytest.mark.parametrize(("student", "teacher"), MAPS)
@pytest.mark.parametrize("size", SIZES)
def test_vid_is_the_formula(student: tuple[int, ...], teacher: tuple[int, ...], size: int) -> None:
    own, other = {"stage1": student, "stage2": (2, 2, 2)}, {"stage1": teacher, "stage2": (3, 2, 2)}
    found = method("vid", own, other, places={"stage1": "stage1", "stage2": "stage2"})
    for predictor in found.predictors.values():
        with torch.no_grad():  # one a channel: a mix-up of channels would show
            predictor.rho += torch.linspace(-6, 1, len(predictor.rho))

    def reference(given: Mapping[str, Tensor], now: Batch) -> Terms:
        total = torch.zeros((), dtype=torch.float64)
        for tap, predictor in found.predictors.items():
            first, second, third = (layer.weight[:, :, 0, 0] for layer in predictor.mean[::2])
            variance = torch.log(1 + torch.exp(predictor.rho)) + 1e-5
            terms = []
            for i in range(size):
                s, t = of_one_size(given[tap][i], now.teacher[tap][i])
                for a in range(s.shape[1]):
                    for b in range(s.shape[2]):
                        hidden = torch.relu(second @ torch.relu(first @ s[:, a, b]))
                        error = third @ hidden - t[:, a, b]
                        terms.append(0.5 * (error**2 / variance + torch.log(variance)))
            total = total + torch.stack(terms).mean()
        return {"information": total}

    holds(found, own, other, size, reference)


def test_vid_learns_its_variances_which_start_at_five() -> None:
    shapes = {"stage1": (3, 4, 4)}
    found = method("vid", shapes | {"logits": (5,)}, shapes, places={"stage1": "stage1"})
    rho = found.predictors["stage1"].rho
    assert torch.log(1 + rho.exp()).tolist() == pytest.approx([5 - 1e-5] * 3)
    found(taps(shapes | {"logits": (5,)}, 2, "student"), batch(taps(shapes, 2, "teacher")))[
        "information"
    ].backward()
    assert (rho.grad != 0).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("phase", ["boundary", "main"])
def test_ab_is_the_formula(size: int, phase: str) -> None:
    own = {"stage1_pre": (3, 4, 4), "stage2_pre": (4, 2, 2), "stage3_pre": (4, 2, 2)}
    other = {"stage1_pre": (3, 4, 4), "stage2_pre": (4, 2, 2), "stage3_pre": (5, 2, 2)}
    found = method(
        "ab", own, other, places={tap: tap for tap in own}, epochs=30 if phase == "boundary" else 0
    )
    found.eval()  # the connector's BN, of a batch of one sample too
    assert [type(one) for one in found.connectors.values()][:2] == [nn.Identity] * 2

    def reference(given: Mapping[str, Tensor], now: Batch) -> Terms:
        total = torch.zeros((), dtype=torch.float64)
        for number, tap in enumerate(own):
            x = given[tap]
            if tap == "stage3_pre":
                convolution, norm = found.connectors[tap][:2]
                x = torch.einsum("oc,bchw->bohw", convolution.weight[:, :, 0, 0], x)
                x = (x + convolution.bias.view(1, -1, 1, 1)) / math.sqrt(1 + norm.eps)
            for s, t in zip(x.flatten(), now.teacher[tap].flatten(), strict=True):
                if t > 0 and s <= 1:
                    total = total + 2.0 ** (number - 2) * (s - 1) ** 2
                if t <= 0 and s > -1:
                    total = total + 2.0 ** (number - 2) * (s + 1) ** 2
        return {"boundary": 3 / 1000 * total / size}

    holds(found, own, other, size, reference, phase=phase)


def bn(channels: int, seed: int) -> nn.BatchNorm2d:
    """Return a BN with weights of both signs, one of them 0, and a channel that is hardly ever below 0."""
    generator = torch.Generator().manual_seed(seed)
    norm = nn.BatchNorm2d(channels).double()
    with torch.no_grad():
        norm.weight.copy_(torch.randn(channels, generator=generator, dtype=torch.float64))
        norm.bias.copy_(torch.randn(channels, generator=generator, dtype=torch.float64))
        norm.weight[0], norm.bias[0] = -0.3, 1.2
    return norm


def mean_below_0(norm: nn.BatchNorm2d) -> list[float]:
    """Return the margin of each channel, by SciPy's truncated normal distribution."""
    margins = []
    for g, b in zip(norm.weight.abs().tolist(), norm.bias.tolist(), strict=True):
        rare = 0.5 * math.erfc(b / g / math.sqrt(2)) <= 0.001
        margins.append(-3 * g if rare else float(truncnorm.mean(-math.inf, -b / g, loc=b, scale=g)))
    return margins


@pytest.mark.parametrize(("student", "teacher"), [*MAPS, ((3, 4, 4), (1, 4, 4)), ((1, 1, 1), (4, 7, 7))])
@pytest.mark.parametrize("size", SIZES)
def test_ofd_is_the_formula(student: tuple[int, ...], teacher: tuple[int, ...], size: int) -> None:
    own = {"stage1_pre": student, "stage2": (2, 2, 2), "stage3_pre": (4, 2, 2)}
    other = {"stage1_pre": teacher, "stage2_pre": (3, 2, 2), "stage3_pre": (4, 4, 4)}
    places = {"stage1_pre": "stage1_pre", "stage2": "stage2_pre", "stage3_pre": "stage3_pre"}
    norms = {tap: bn(shape[0], seed) for seed, (tap, shape) in enumerate(other.items())}
    networks = None, SimpleNamespace(norms=lambda: norms)
    found = method("ofd", own, other, networks=networks, places=places)
    found.eval()  # the connectors' BNs, of a batch of one sample too

    def reference(given: Mapping[str, Tensor], now: Batch) -> Terms:
        total = torch.zeros((), dtype=torch.float64)
        for number, (tap, feature) in enumerate(places.items()):
            convolution, norm = found.connectors[tap]
            margins = mean_below_0(norms[feature])
            for i in range(size):
                x = given[tap][i]
                s = torch.einsum("oc,chw->ohw", convolution.weight[:, :, 0, 0], x) / math.sqrt(1 + norm.eps)
                t = torch.stack(cells(now.teacher[feature][i], *x.shape[1:]), dim=1)  # (C, h * w)
                for c, margin in enumerate(margins):
                    for a, b in zip(s[c].flatten(), t[c], strict=True):
                        target = max(float(b), margin)
                        if b > 0 or a > target:
                            total = total + 2.0 ** (number - 2) * (a - target) ** 2 / size
        return {"overhaul": total}

    holds(found, own, other, size, reference)


def test_ofd_s_margin_is_the_mean_of_what_the_relu_cuts_off() -> None:
    norm = bn(50, 3)
    margins = ofd.margin(norm)
    expected = torch.tensor(mean_below_0(norm), dtype=torch.float64)
    torch.testing.assert_close(margins, expected, rtol=1e-9, atol=1e-9)
    assert margins[0].item() == pytest.approx(-0.9)  # a mean of 4 deviations
    with torch.no_grad():
        norm.weight.zero_()
        norm.bias[:3] = torch.tensor([-2.0, 0.0, 2.0])
    torch.testing.assert_close(ofd.margin(norm)[:3], torch.tensor([-2.0, 0, 0]).double(), rtol=0, atol=1e-9)


def test_ofd_reads_the_last_bn_of_a_block_and_trains_the_student_and_its_connectors_alone() -> None:
    found = assemble("ofd")
    teacher = found.context.teacher
    assert teacher is not None
    batch = found.batch()
    terms = found.method(found.taps(batch), batch)
    for k in (1, 2, 3):
        last: Any = list(teacher.units[f"stage{k}"])[-1]
        margins = getattr(found.method, f"margin_stage{k}_pre")
        torch.testing.assert_close(margins[:, 0, 0], ofd.margin(last.conv2[1]))
        assert margins.max() < 0
    terms["overhaul"].backward()
    assert all(x.grad is None for x in teacher.parameters())
    reached = {name for name, x in found.student.named_parameters() if x.grad is not None}
    assert reached == {name for name, _ in found.student.named_parameters() if "classifier" not in name}
    assert len(list(found.method.parameters())) == 9
    assert all((x.grad != 0).any() for x in found.method.parameters())
    assert not found.method.connectors["stage1_pre"].state_dict().keys() & {"0.bias"}


def test_ofd_leaves_alone_what_both_do_not_activate() -> None:
    """A student that lies below the margin has no gradient, wherever the teacher is negative."""
    target = torch.tensor([[[[-1.0, 2.0, -1.0, 0.5]]]])
    student = torch.tensor([[[[-3.0, -3.0, 0.5, 4.0]]]], requires_grad=True)
    loss = ofd.partial(student, target)
    loss.backward()
    assert loss.item() == 25 + 1.5**2 + 3.5**2
    assert student.grad is not None
    assert student.grad.flatten().tolist() == [0, -10, 3, 7]


def other_teacher(family: str, network: str) -> Any:
    """Return what is known of a pair with another teacher."""
    spec = TEACHER.model_copy(update={"family": family, "network": network, "size": 32, "channels": 3})
    return replace(KNOWN, teacher=architecture(spec))


def test_ofd_pairs_the_last_stages() -> None:
    assert ofd.Config().resolved(KNOWN).places == {f"stage{n}_pre": f"stage{n}_pre" for n in (1, 2, 3)}
    longer = ofd.Config().resolved(other_teacher("vgg", "vgg8")).places
    assert longer == {"stage1_pre": "stage2_pre", "stage2_pre": "stage3_pre", "stage3_pre": "stage4_pre"}
    linear = ofd.Config().resolved(other_teacher("mobilenetv2", "mobilenetv2_half")).places
    assert linear == {"stage1_pre": "stage2", "stage2_pre": "stage3", "stage3_pre": "stage4"}
    known = other_teacher("vgg", "vgg8")
    shorter = replace(known, student=known.teacher, teacher=known.student)
    assert ofd.Config().resolved(shorter).places == {f"stage{n + 1}_pre": f"stage{n}_pre" for n in (1, 2, 3)}


@pytest.mark.parametrize("feature", ["stage2_pre:halved", "stage2", "stage2_block1", "final"])
def test_ofd_refuses_a_feature_without_a_bn_before_it(feature: str) -> None:
    with pytest.raises(ParamsError, match=f"before teacher feature '{feature}'") as error:
        ofd.Config(places={"stage2_pre": feature}).resolved(KNOWN)
    assert "stem_pre, stage1_pre, stage2_pre, stage3_pre" in one_line(error)


def test_ofd_refuses_a_teacher_whose_channels_have_no_bn_in_common() -> None:
    with pytest.raises(ParamsError, match="before stem_pre, final_pre") as error:
        ofd.Config().resolved(other_teacher("shufflenetv2", "shufflenetv2"))
    one_line(error, "a teacher of another family")


@pytest.mark.parametrize("size", SIZES)
def test_fsp_is_the_formula(size: int) -> None:
    own = {"stem": (3, 4, 4), "stage1": (2, 4, 4), "stage2": (4, 2, 2)}
    other = {"stem": (3, 8, 8), "stage1": (2, 4, 4), "stage2": (4, 4, 4)}

    def products(maps: list[Tensor]) -> list[Any]:
        result = []
        for a, b in itertools.pairwise(maps):
            x, y = of_one_size(a, b)
            pixels = [(h, w) for h in range(x.shape[1]) for w in range(x.shape[2])]
            for i in range(len(x)):
                for j in range(len(y)):
                    mean = sum(x[i, h, w] * y[j, h, w] for h, w in pixels) / len(pixels)
                    result.append((len(x) * len(y), mean))
        return result

    def reference(given: Mapping[str, Tensor], now: Batch) -> Terms:
        total = torch.zeros((), dtype=torch.float64)
        for n in range(size):
            flows = (products([x[tap][n] for tap in own]) for x in (given, now.teacher))
            for (count, s), (_, t) in zip(*flows, strict=True):
                total = total + (s - t) ** 2 / (count * size)
        return {"flow": total}

    holds(
        method("fsp", own, other, places={tap: tap for tap in own}), own, other, size, reference, phase="flow"
    )


@pytest.mark.parametrize(("name", "term"), [("ab", "boundary"), ("fsp", "flow")])
def test_the_first_phase_teaches_the_features_alone_at_one_rate(name: str, term: str) -> None:
    shapes = {"stem": (3, 8, 8), "stage1": (3, 4, 4)}
    places = {"places": {tap: tap for tap in shapes}}
    found = method(name, shapes, shapes, **places)
    first, second = found.phases(RECIPE)
    assert (first.name, first.recipe.epochs, first.recipe.milestones) == (term, 30, ())
    assert first.frozen == ("classifier",)
    assert (second.name, second.recipe) == ("main", RECIPE)

    given = taps(shapes | {"logits": (5,)}, 2, "student")
    terms = {phase: found(given, batch(taps(shapes, 2, "t"), phase=phase)).keys() for phase in (term, "main")}
    assert terms == {term: {term}, "main": {"ce"}}
    at_once = method(name, shapes, shapes, epochs=0, **places)
    assert [phase.name for phase in at_once.phases(RECIPE)] == ["main"]
    assert at_once(given, batch(taps(shapes, 2, "t"))).keys() == {term, "ce"}


@pytest.mark.parametrize(
    ("student", "teacher", "text"),
    [({"stem": (3, 8, 8)}, {"stem": (3, 8, 8)}, "stem alone"),
     ({"stem": (3, 8, 8), "stage1": (3, 4, 4)}, {"stem": (3, 8, 8), "stage1": (6, 4, 4)}, "as many channels")],
)  # fmt: skip
def test_fsp_refuses_what_does_not_fit(student: Shapes, teacher: Shapes, text: str) -> None:
    with pytest.raises(ShapeError, match=text) as error:
        method("fsp", student, teacher, places={tap: tap for tap in student})
    one_line(error)


@pytest.mark.parametrize("size", [2, 5])
@pytest.mark.parametrize("shapes", [((3, 8, 8), (2, 8, 8)), ((3, 8, 8), (4, 4, 4)), ((3, 2, 2), (2, 4, 4))])
def test_reviewkd_is_the_formula(shapes: tuple[tuple[int, ...], tuple[int, ...]], size: int) -> None:
    own = {"stage1": shapes[0], "stage2": (4, 2, 2), "pooled": (6,)}
    other = {"stage1_pre": shapes[1], "stage2_pre": (5, 2, 2), "pooled": (7,)}
    found = method("reviewkd", own, other, places={"stage1": "stage1_pre", "stage2": "stage2_pre"})
    found.eval()

    def normed(x: Tensor, layers: Any) -> Tensor:
        kernel = layers[0].weight
        x = nn.functional.pad(x, [kernel.shape[-1] // 2] * 4)
        patches = x.unfold(2, kernel.shape[-1], 1).unfold(3, kernel.shape[-1], 1)
        return torch.einsum("bchwij,ocij->bohw", patches, kernel) / math.sqrt(1 + layers[1].eps)

    def stretched(x: Tensor, height: int, width: int) -> Tensor:
        rows = [row * x.shape[2] // height for row in range(height)]
        columns = [column * x.shape[3] // width for column in range(width)]
        return x[:, :, rows][:, :, :, columns]

    def reference(given: Mapping[str, Tensor], now: Batch) -> Terms:
        total, behind = torch.zeros((), dtype=torch.float64), torch.empty(0)
        for tap, feature in [("pooled", "pooled"), ("stage2", "stage2_pre"), ("stage1", "stage1_pre")]:
            level = found.levels[tap]
            x, t = given[tap], now.teacher[feature]
            if tap == "pooled":
                x, t = x[:, :, None, None], t[:, :, None, None]
            x = normed(x, level.enter)
            if tap != "pooled":
                behind = stretched(behind, *x.shape[2:])
                both, convolution = torch.cat([x, behind], dim=1), level.join[0]
                scores = torch.einsum("bchw,oc->bohw", both, convolution.weight[:, :, 0, 0])
                gates = 1 / (1 + torch.exp(-scores - convolution.bias.view(1, -1, 1, 1)))
                x = x * gates[:, 0, None] + behind * gates[:, 1, None]
            behind = stretched(x, *t.shape[2:])
            u = normed(behind, level.leave)

            errors = [(1.0, ((u - t) ** 2).mean())]
            for pool in (4, 2, 1):
                if pool < t.shape[2]:
                    a, b = (torch.stack([averaged(m, pool, pool) for m in maps]) for maps in (u, t))
                    errors.append((errors[-1][0] / 2, ((a - b) ** 2).mean()))
            total = total + sum(w * e for w, e in errors) / sum(w for w, _ in errors)
        return {"review": total}

    holds(found, own, other, size, reference)


def test_reviewkd_pairs_the_students_maps_with_the_teachers_before_their_relu() -> None:
    config = plugin.load("methods", "reviewkd").Config().resolved(KNOWN)
    assert config.places == {f"stage{n}": f"stage{n}_pre" for n in (1, 2, 3)}
    assert config.needs.student == ("logits", "stage1", "stage2", "stage3")
    module = plugin.load("methods", "reviewkd")
    assert module.Method.needs(config).teacher == ("stage1_pre", "stage2_pre", "stage3_pre", "pooled")
    assert plugin.load("methods", "ab").Config().resolved(KNOWN).places == {
        f"stage{n}_pre": f"stage{n}_pre" for n in (1, 2, 3)
    }


@pytest.mark.parametrize("size", [2, 5])
@pytest.mark.parametrize("teacher", [(5, 4, 4), (5, 2, 2), (5, 8, 8), (1, 4, 4)])
def test_simkd_is_the_formula_and_its_projector_has_the_teachers_shape(
    teacher: tuple[int, ...], size: int
) -> None:
    module = plugin.load("methods", "simkd")
    operations = module.Method.operations(module.Config(), {"final": (3, 4, 4)}, {"final": teacher}, {})
    layer = operations.insert["final"]
    assert operations.classifier_width == teacher[0]
    assert operations.teacher_classifier

    projector = plugin.load("layers", layer.name).build("final", 3, **layer.settings).double().eval()
    x = taps({"final": (3, 4, 4)}, size, "student")["final"]
    projected = projector(x, Tap(()))
    side = min(4, teacher[1])
    assert projected.shape == (size, teacher[0], side, side)
    kernels = [m.weight.shape for m in projector.body if isinstance(m, nn.Conv2d)]
    half = max(1, teacher[0] // 2)
    assert kernels == [(half, 3, 1, 1), (half, half, 3, 3), (teacher[0], half, 1, 1)]
    assert (projected >= 0).all()

    def reference(given: Mapping[str, Tensor], now: Batch) -> Terms:
        errors = []
        for s, t in zip(given["final"], now.teacher["final"], strict=True):
            errors += [
                (a - b) ** 2 for a, b in zip(s.flatten(), averaged(t, side, side).flatten(), strict=True)
            ]
        return {"map": sum(errors) / len(errors)}

    own = {"final": (teacher[0], side, side)}
    holds(method("simkd", own, {"final": teacher}), own, {"final": teacher}, size, reference)


def test_simkd_and_another_layer_at_its_place_are_refused() -> None:
    module = plugin.load("methods", "simkd")
    config = module.Config(insert={"final": {"kd_layer": {"words": 3}}})
    with pytest.raises(ParamsError, match="'insert' names another layer there"):
        module.Method.operations(config, {"final": (3, 4, 4)}, {"final": (5, 4, 4)}, {})


@pytest.mark.parametrize("name", ["at", "vid"])
def test_stages_pair_in_their_order(name: str) -> None:
    config = plugin.load("methods", name).Config()
    assert config.resolved(KNOWN).places == {f"stage{n}": f"stage{n}" for n in (1, 2, 3)}
    given = plugin.load("methods", name).Config(places={"last": "last", "stage1": "stage2"})
    assert given.resolved(KNOWN).places == {"stage3": "stage3", "stage1": "stage2"}


@pytest.mark.parametrize("name", ["at", "vid"])
@pytest.mark.parametrize(
    ("places", "text"),
    [({"stage1": "pooled"}, "pairs two maps"), ({"logits": "stage1"}, "pairs two maps"), ({}, "none in common")],
)  # fmt: skip
def test_places_that_are_no_maps_are_refused(name: str, places: dict[str, str], text: str) -> None:
    shapes = {"logits": (5,), "pooled": (8,), "stage1": (3, 4, 4)}
    with pytest.raises(ShapeError, match=text) as error:
        method(name, shapes, shapes, places=places)
    one_line(error)

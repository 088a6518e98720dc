"""The methods that the papers compare with, each against a plain reference: loops in float64, from its paper."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from device_fixtures import current
from error_fixtures import one_line
from torch import Tensor, nn
from training_fixtures import KNOWN, RECIPE, FixedSource, clock, frozen_teacher

from pipeline import plugin, seeding
from pipeline.distillation.method import Batch, Context, Terms
from pipeline.distillation.methods import crd, dkd
from pipeline.distillation.schedule import ScheduleConfig, TeacherSchedule
from pipeline.errors import ParamsError, ShapeError
from pipeline.networks.network import Tap
from pipeline.training.batches import Views
from pipeline.training.distill import Distillation

Shapes = Mapping[str, tuple[int, ...]]
Both = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]
EXACT = {"rtol": 1e-5, "atol": 1e-9}


def method(name: str, student: Shapes, teacher: Shapes, classes: int = 5, **settings: Any) -> Any:
    """Return a method on networks of which the shapes are all that is known."""
    module = plugin.load("methods", name)
    context = Context(classes, torch.arange(40) % classes, frozen_teacher().network, student, teacher)
    return module.Method(module.Config(**settings), context).double()


def taps(shapes: Shapes, size: int, draw: str) -> dict[str, Tensor]:
    """Draw taps (B, ...) in float64, with gradients."""
    generator = seeding.generator(0, draw)
    return {
        name: torch.randn(size, *shape, generator=generator, dtype=torch.float64).requires_grad_()
        for name, shape in shapes.items()
    }


def batch(teacher: Mapping[str, Tensor], classes: int = 5, epoch: int = 0, phase: str = "main") -> Batch:
    size = len(next(iter(teacher.values())))
    features = {name: x.detach() for name, x in teacher.items()}
    return Batch(
        image=torch.zeros(size, 1, 8, 8), label=torch.arange(size) % classes, index=torch.arange(size),
        teacher=features, epoch=torch.tensor(epoch), epochs=30, step=torch.tensor(0), phase=phase, seed=0,
    )  # fmt: skip


def holds(
    found: Any,
    student: Shapes,
    teacher: Shapes,
    size: int,
    reference: Callable[..., Terms],
    classes: int = 5,
    phase: str = "main",
) -> None:
    """Compare every term but the labels', and its gradients, with those of a reference on the same taps."""
    student = {"logits": (classes,), **student}
    terms: list[Terms] = []
    gradients: list[list[Tensor]] = []
    for compute in (found, reference):
        given = taps(student, size, "student")
        now = batch(taps(teacher, size, "teacher"), classes, phase=phase)
        result = {name: term for name, term in compute(given, now).items() if name != "ce"}
        terms.append(result)
        total = torch.stack([(number + 1) * result[name] for number, name in enumerate(sorted(result))]).sum()
        if total.requires_grad:
            grown = torch.autograd.grad(total, list(given.values()), allow_unused=True)
            gradients.append([x if x is not None else torch.zeros(()) for x in grown])

    assert terms[0].keys() == terms[1].keys()
    for name, term in terms[0].items():
        torch.testing.assert_close(term, terms[1][name], **EXACT)
    for own, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(own, expected, **EXACT)


SIZES = [1, 2, 7]
# Student wider and narrower, larger and smaller than the teacher.
MAPS = [((3, 4, 4), (5, 4, 4)), ((6, 8, 8), (2, 4, 4)), ((2, 2, 2), (4, 8, 8)), ((3, 4, 6), (3, 4, 3))]
VECTORS = [((4,), (9,)), ((7,), (7,)), ((6,), (2,))]
CLASSES = [2, 3, 10]


def averaged(x: Tensor, height: int, width: int) -> Tensor:
    """Return the means of equal blocks of a map (C, H, W), of a size that its own is a multiple of."""
    rows, columns = x.shape[1] // height, x.shape[2] // width
    return x.reshape(x.shape[0], height, rows, width, columns).mean(dim=(2, 4))


def of_one_size(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    height, width = min(s.shape[1], t.shape[1]), min(s.shape[2], t.shape[2])
    return averaged(s, height, width), averaged(t, height, width)


# ------------------------------------------------------------------ maps


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


# ------------------------------------------------------------------ relations between samples


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


# ------------------------------------------------------------------ logits


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


# ------------------------------------------------------------------ all of them


EXTREME = {
    **{name: {"logits": (5,)} for name in ("kd", "ctkd", "dkd", "dist", "rld", "ttm")},
    "rkd": {"pooled": (4,)}, "pkt": {"pooled": (4,)}, "sp": {"stage3": (3, 2, 2)},
    "at": {"stage3": (3, 2, 2)}, "vid": {"stage3": (3, 2, 2)},
}  # fmt: skip


@pytest.mark.parametrize("name", EXTREME)
@pytest.mark.parametrize("scale", [0.0, 1e-4, 1e2])
def test_what_half_precision_rounds_is_no_nan(name: str, scale: float) -> None:
    """Values that bfloat16 has rounded, zero ones and large ones among them, have finite losses and gradients."""
    shapes = EXTREME[name]
    settings: dict[str, Any] = {"places": {"stage3": "stage3"}} if name in ("at", "vid") else {}
    if name == "sp":
        settings = {"student_tap": "stage3", "teacher_feature": "stage3"}
    found = method(name, shapes, shapes, **settings).float()
    drawn = [
        {tap: (scale * x.detach()).bfloat16().float() for tap, x in taps(wanted, 4, draw).items()}
        for wanted, draw in (({"logits": (5,), **shapes}, "student"), (shapes, "teacher"))
    ]
    given = {tap: x.requires_grad_() for tap, x in drawn[0].items()}
    terms = found(given, batch(drawn[1]))
    torch.stack(list(terms.values())).sum().backward()
    for term in terms.values():
        assert math.isfinite(term.item())
    for x in given.values():
        assert x.grad is None or torch.isfinite(x.grad).all()

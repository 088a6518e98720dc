"""letKD-1, letKD-2 and QuEST against loops over pixels in float64, written from their papers' formulas."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from device_fixtures import current, here
from error_fixtures import one_line
from numpy.typing import NDArray
from torch import Tensor, nn
from training_fixtures import CLASSES, KNOWN, Assembled, assemble

from pipeline import plugin, seeding
from pipeline.distillation.losses import pixel_kl
from pipeline.distillation.method import Batch, Context, Known
from pipeline.distillation.methods import letkd, quest
from pipeline.distillation.targets import Place, Target
from pipeline.errors import ParamsError, ShapeError
from pipeline.evaluation import cost
from pipeline.features import codebook
from pipeline.features.encoding import Feature
from pipeline.features.teacher import Teacher, on_device
from pipeline.networks.architecture import architecture
from pipeline.networks.layer import LayerSpec
from pipeline.networks.layers.kd_layer import KDLayer
from pipeline.networks.network import Tap, build, probe
from pipeline.networks.spec import NetworkSpec
from pipeline.params.base import validate

pytestmark = pytest.mark.usefixtures("device")

Array = NDArray[Any]
CLOSE = {"rel": 2e-5}  # float32 against float64
WIDTH, WORDS, PER_CLASS, AXES = 64, 11, 2, 3
INNER = "stage3_block1"
PLACES = {"final": "words", "last_block1": "inner"}  # each learns the words of its own pixels
TWO = {"final": "words", "last_block1": "subclasses"}  # letKD-2


def draw(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    return here(scale * torch.randn(*shape, generator=seeding.generator(seed, "letkd", *map(str, shape))))


def words_table(width: int = WIDTH, words: int = WORDS, scale: float = 0.3) -> dict[str, Array]:
    return {
        "centers": draw(words, width, scale=scale, seed=1).abs().cpu().numpy(),
        "counts": np.ones(words, np.int64),
        "temperature": np.float32(1),
    }


def subclass_table(width: int = WIDTH, classes: int = CLASSES) -> dict[str, Array]:
    number = classes * PER_CLASS
    random = np.random.default_rng(2)
    return {
        "mean": random.normal(size=width),
        "scalings": random.normal(size=(width, AXES)),
        "centers": random.normal(size=(number, AXES)) * 4,
        "scores": random.dirichlet(np.ones(number), number),
        "counts": np.ones(number, np.int64),
        "per_class": np.int64(PER_CLASS),
    }


def tables(name: str) -> dict[str, Array]:
    return subclass_table() if name == "subclasses" else words_table()


def ready(name: str, settings: dict[str, Any] | None = None) -> tuple[Assembled, Batch]:
    """Return a method whose layers are not in their first state, and a batch with soft features."""
    found = assemble(name, settings, tables)
    with torch.no_grad():
        for module in found.student.modules():
            if isinstance(module, KDLayer):
                module.norm.weight.copy_(1 + draw(len(module.norm.weight), scale=0.3))
                module.norm.bias.copy_(draw(len(module.norm.bias), scale=0.5, seed=3))
                module.scores.scale.fill_(2.5)
                module.value_scale.fill_(1.7)
    maps = {
        key: draw(6, *shape, scale=0.3, seed=4).abs() for key, shape in found.context.teacher_shapes.items()
    }
    return found, found.batch(6, teacher=maps)


# ------------------------------------------------------------------ the formulas, by loops


def pixels(x: Tensor) -> list[list[float]]:
    """Return (B, C, H, W) as B * H * W vectors."""
    moved: list[list[float]] = x.detach().double().movedim(1, -1).reshape(-1, x.shape[1]).tolist()
    return moved


def unit(vector: list[float]) -> list[float]:
    length = max(math.sqrt(sum(v * v for v in vector)), 1e-12)
    return [v / length for v in vector]


def dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def squared(one: list[float], other: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))


def softmax(scores: list[float]) -> list[float]:
    top = max(scores)
    exps = [math.exp(s - top) for s in scores]
    return [e / sum(exps) for e in exps]


def kl(p: list[list[float]], scores: list[list[float]]) -> float:
    """Return the mean over pixels of sum_k p_k (log p_k - log softmax(s)_k)."""
    found = 0.0
    for row, s in zip(p, scores, strict=True):
        q = softmax(s)
        found += sum(a * (math.log(a) - math.log(b)) for a, b in zip(row, q, strict=True) if a > 0)
    return found / len(p)


def words_of(x: Tensor, centers: Tensor, t: float) -> list[list[float]]:
    found: list[list[float]] = centers.double().tolist()
    return [softmax([-t * squared(pixel, c) for c in found]) for pixel in pixels(x)]


def layer_by_loops(layer: KDLayer, x: Tensor) -> tuple[list[list[float]], list[list[float]]]:
    """Return the scores and the output of the layer in training mode, both by pixel."""
    inputs = pixels(x)
    kernels = [unit(row) for row in layer.scores.kernels.double().tolist()]
    scores = [[layer.scores.scale.item() * dot(unit(pixel), k) for k in kernels] for pixel in inputs]
    active = [[0.0] * len(kernels) for _ in inputs]
    for k in range(len(kernels)):
        column = [row[k] for row in scores]
        mean = sum(column) / len(column)
        variance = sum((v - mean) ** 2 for v in column) / len(column)
        for i, v in enumerate(column):
            normed = (v - mean) / math.sqrt(variance + layer.norm.eps)
            active[i][k] = max(0.0, layer.norm.weight[k].item() * normed + layer.norm.bias[k].item())
    filters = [unit(row) for row in layer.values.double().tolist()]
    output = []
    for pixel, a in zip(inputs, active, strict=True):
        seen = unit(a)
        g = [layer.value_scale.item() * dot(f, seen) for f in filters]
        output.append([v + layer.alpha * w for v, w in zip(pixel, g, strict=True)])
    return scores, output


def subclass_by_loops(x: Tensor, table: dict[str, Array], label: Tensor) -> list[int]:
    found = []
    per_image = x.shape[2] * x.shape[3]
    for i, pixel in enumerate(pixels(x)):
        shifted = [v - m for v, m in zip(pixel, table["mean"], strict=True)]
        z = [dot(shifted, list(column)) for column in table["scalings"].T]
        own = range(PER_CLASS * int(label[i // per_image]), PER_CLASS * (int(label[i // per_image]) + 1))
        found.append(min(own, key=lambda k: squared(z, list(table["centers"][k]))))
    return found


# ------------------------------------------------------------------ the layer


@pytest.mark.parametrize("alpha", [1.0, 0.1])
def test_the_layer_is_its_formula(alpha: float) -> None:
    layer = here(KDLayer("here", 5, 7, alpha, 3.0, 1.0)).train()
    with torch.no_grad():
        layer.norm.weight.copy_(1 + draw(7, scale=0.3))
        layer.norm.bias.copy_(draw(7, seed=1))
        layer.scores.scale.fill_(2.5)
        layer.value_scale.fill_(1.7)
    tap, x = Tap(None), draw(3, 5, 2, 4)
    found = layer(x, tap)
    scores, output = layer_by_loops(layer, x)
    np.testing.assert_allclose(pixels(tap.kept["here.scores"]), scores, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pixels(found), output, rtol=1e-5, atol=1e-6)
    assert torch.equal(tap.kept["here.input"], x)


@pytest.mark.cpu
def test_the_layer_starts_as_the_authors_code_does() -> None:
    layer = plugin.load("layers", "kd_layer").build("here", 200, words=300)
    assert (layer.alpha, layer.scores.scale.item(), layer.value_scale.item()) == (1.0, 3.0, 1.0)
    # 60,000 draws: their deviation is known to 0.3 %.
    assert layer.scores.kernels.std().item() == pytest.approx(math.sqrt(2 / 200), rel=0.02)
    assert layer.values.std().item() == pytest.approx(math.sqrt(2 / 300), rel=0.02)
    assert layer.norm.weight.eq(1).all()
    assert layer.norm.bias.eq(0).all()
    names = {name for name, _ in layer.named_parameters()}
    assert names == {"scores.kernels", "scores.scale", "norm.weight", "norm.bias", "values", "value_scale"}


def test_a_dead_pixel_is_passed_on() -> None:
    layer = here(KDLayer("here", 5, 7, 1.0, 3.0, 1.0)).train()
    nn.init.constant_(layer.norm.bias, -100)  # every word is cut off by the ReLU
    x = draw(2, 5, 3, 3).requires_grad_()
    found = layer(x, Tap())
    assert torch.equal(found, x)
    found.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_a_fresh_network_draws_its_layers_anew() -> None:
    network = assemble("letkd", tables=tables).student.cpu()  # where it is drawn anew
    network.inserted["final"].value_scale.data.fill_(9)
    with seeding.scope("other"):
        other = network.fresh()
    for name, parameter in other.inserted["final"].named_parameters():
        same = torch.equal(parameter, network.inserted["final"].get_parameter(name))
        assert same == name.startswith(("norm", "scores.scale")), name
    assert other.inserted["final"].value_scale == 1


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("family", "network", "inner", "added", "ratio", "more"),
    [
        ("resnet", "resnet20", "stage3_block1", 532_482, 2.9, 800 * 128 + 1602),
        ("wrn", "wrn_16_2", "stage3_block1", 1_056_770, 2.5, 800 * 256 + 1602),
        ("resnet", "resnet8x4", "stage3_block1", 2_105_346, 2.7, 800 * 512 + 1602),
        ("shufflenetv1", "shufflenetv1", "stage3_block1", 7_872_514, 9.3, 800 * 1920 + 1602),
        ("mobilenetv2", "mobilenetv2_half", "stage4_block1", 10_493_954, 13.9, 800 * 160 + 1602),
    ],
)
def test_parameters_and_macs_of_the_paper_s_sizes(
    family: str, network: str, inner: str, added: int, ratio: float, more: int
) -> None:
    def counted(**words: int) -> tuple[int, int, dict[str, tuple[int, ...]]]:
        layers = {tap: LayerSpec.of("kd_layer", words=k) for tap, k in words.items()}
        spec = NetworkSpec(family=family, network=network, size=32, channels=3, classes=100, inserted=layers)
        with torch.device("meta"):
            built = build(spec, 0)
        return cost.num_params(built), cost.macs(built, 32, 3), probe(built, 32, 3)

    plain, macs, shapes = counted()
    one, one_macs, _ = counted(final=4096)
    two, two_macs, _ = counted(**{"final": 4096, inner: 800})
    assert one - plain == added
    assert one / plain == pytest.approx(ratio, abs=0.05)
    assert two - one == more
    width, height, side = shapes["final"]
    assert one_macs - macs == 2 * 4096 * width * height * side
    width, height, side = shapes[inner]
    assert two_macs - one_macs == 2 * 800 * width * height * side


# ------------------------------------------------------------------ the teacher's side


@pytest.mark.parametrize("t", [1.0, 5.0])
def test_words_are_a_softmax_of_minus_t_squared_distances(t: float) -> None:
    x, centers = draw(3, 5, 2, 2, scale=0.5), draw(6, 5, scale=0.5, seed=1)
    p = codebook.log_words(x, centers, t).exp()
    np.testing.assert_allclose(pixels(p), words_of(x, centers, t), rtol=2e-5)
    nearest = [min(range(6), key=lambda k: squared(v, centers[k].tolist())) for v in pixels(x)]
    assert p.argmax(dim=1).flatten().tolist() == nearest  # the sign: near is likely
    assert codebook.nearest_word(x, centers).flatten().tolist() == nearest


def test_words_of_large_maps_are_distances_not_their_rounding() -> None:
    """Words 0.1 apart around pixels of norm 100: full float32 tells them apart, TF32 could not."""
    middle = 10 * draw(1, 100)
    centers = middle + 0.01 * draw(8, 100, seed=1)
    x = (centers[:5] + 0.001 * draw(5, 100, seed=2)).view(5, 100, 1, 1)
    assert codebook.nearest_word(x, centers).flatten().tolist() == [0, 1, 2, 3, 4]


def test_the_sub_class_is_the_nearest_one_of_the_true_class() -> None:
    table, x, label = subclass_table(5), draw(6, 5, 3, 2, scale=2), here(torch.tensor([0, 3, 1, 1, 2, 0]))
    found = codebook.subclass(x, on_device({"subclasses": table}, current())["subclasses"], label)
    expected = subclass_by_loops(x, table, label)
    assert found.flatten().tolist() == expected
    assert len(set(expected)) > 5  # not all the first of their class


def test_kl_is_summed_over_words_and_averaged_over_pixels() -> None:
    p, scores = draw(3, 4, 2, 5).softmax(dim=1), draw(3, 4, 2, 5, seed=1)
    p[0, :, 0, 0] = here(torch.tensor([0.0, 1.0, 0.0, 0.0]))  # what is 0 adds nothing
    assert pixel_kl(p, scores).item() == pytest.approx(kl(pixels(p), pixels(scores)), **CLOSE)
    assert pixel_kl(scores.softmax(dim=1), scores).item() == pytest.approx(0, abs=1e-6)


# ------------------------------------------------------------------ the methods


def test_letkd1_is_the_formula() -> None:
    found, batch = ready(
        "letkd", {"places": {"final": {"table": "words", "temperature": 2.0}}, "alpha": {"final": 0.5}}
    )
    taps = found.student.record(batch.image, None)
    terms = found.method(taps, batch)
    assert terms.keys() == {"ce", "words"}
    layer = found.student.inserted["final"]
    assert isinstance(layer, KDLayer)
    assert layer.alpha == 0.5
    scores, output = layer_by_loops(layer, taps["final.input"])
    np.testing.assert_allclose(pixels(taps["final"]), output, rtol=1e-4, atol=1e-5)
    p = words_of(batch.teacher["final"], torch.from_numpy(words_table()["centers"]), 2.0)
    assert 0.15 < max(p[0]) < 0.9, "soft: the test would see another temperature"
    assert terms["words"].item() == pytest.approx(kl(p, scores), **CLOSE)
    logits = taps["logits"].detach().double().log_softmax(dim=1)
    ce = -sum(float(logits[i, y]) for i, y in enumerate(batch.label.tolist())) / len(logits)
    assert terms["ce"].item() == pytest.approx(ce, **CLOSE)
    assert found.method.weights(batch) == {"ce": 1.0, "words": 1.0, "subclasses": 1.0}
    assert letkd.Config().places == {"final": Place(table="words")}


def test_letkd1_of_two_places_sums_them() -> None:
    found, batch = ready("letkd", {"places": PLACES})
    taps = found.student.record(batch.image, None)
    expected = sum(
        kl(words_of(batch.teacher[place], torch.from_numpy(words_table()["centers"]), 1.0),
           pixels(taps[f"{place}.scores"]))
        for place in ("final", INNER)
    )  # fmt: skip
    assert found.method(taps, batch)["words"].item() == pytest.approx(expected, **CLOSE)
    assert set(found.student.inserted) == {"final", INNER}
    assert found.needs.teacher == ("final", INNER)


def test_letkd2_is_the_formula() -> None:
    found, batch = ready("letkd", {"places": TWO})
    taps = found.student.record(batch.image, None)
    terms = found.method(taps, batch)
    table = subclass_table()
    h1 = subclass_by_loops(batch.teacher["stage3_block1"], table, batch.label)
    scores, output = layer_by_loops(found.student.inserted["stage3_block1"], taps["stage3_block1.input"])
    target = [list(table["scores"][k]) for k in h1]
    assert terms["subclasses"].item() == pytest.approx(kl(target, scores), **CLOSE)
    # Its output is what the rest of the stage reads.
    np.testing.assert_allclose(pixels(taps["stage3_block1"]), output, rtol=1e-4, atol=1e-5)
    p = words_of(batch.teacher["final"], torch.from_numpy(words_table()["centers"]), 1.0)
    assert terms["words"].item() == pytest.approx(kl(p, pixels(taps["final.scores"])), **CLOSE)
    assert found.method.weights(batch) == {"ce": 1.0, "words": 1.0, "subclasses": 1.0}


def test_quest_is_the_formula() -> None:
    found, batch = ready("quest", {"places": PLACES})
    taps = found.taps(batch)
    expected = other = 0.0
    for place in ("final", INNER):
        predictor = found.method.predictors[place]
        predictor.scale.data.fill_(2.0)
        kernels = [unit(row) for row in predictor.kernels.double().tolist()]
        scores = [[2.0 * dot(unit(pixel), k) for k in kernels] for pixel in pixels(taps[place])]
        at_five, at_one = (
            words_of(batch.teacher[place], torch.from_numpy(words_table()["centers"]), t) for t in (5.0, 1.0)
        )
        expected += kl(at_five, scores)
        other += kl(at_one, scores)
    terms = found.method(taps, batch)
    assert terms["words"].item() == pytest.approx(expected, **CLOSE)
    assert terms["words"].item() != pytest.approx(other, rel=1e-2)  # letKD's t
    assert not found.student.inserted  # the predictor is dropped
    logits = taps["logits"].detach().double().log_softmax(dim=1)
    assert terms["ce"].item() == pytest.approx(-logits[range(6), batch.label].mean().item(), **CLOSE)


@pytest.mark.cpu
@pytest.mark.parametrize(
    "place",
    ["words", {"table": "words"}, {"table": "other"}, {"table": "words", "encoding": None},
     {"table": "words", "encoding": "nearest"}, {"table": "words", "encoding": "top4"}],
    ids=str,
)  # fmt: skip
def test_a_place_that_is_written_out_keeps_its_methods_temperature(place: str | dict[str, Any]) -> None:
    for method, t in ((quest, 5.0), (letkd, 1.0)):
        assert method.Config().places["final"].temperature == t
        config = validate(method.Config, {"places": {"final": place, "stage2": place}}, "runs.r.letkd")
        assert [written.temperature for written in config.places.values()] == [t, t]
        settings = {"table": place} if isinstance(place, str) else place
        config = validate(method.Config, {"places": {"final": settings | {"temperature": 2}}}, "runs.r.letkd")
        assert config.places["final"].temperature == 2


@pytest.mark.parametrize("encoding", [None, "nearest", "top4"])
@pytest.mark.parametrize(("method", "t", "other"), [("quest", 5.0, 1.0), ("letkd", 1.0, 5.0)])
def test_codes_are_learned_at_the_methods_temperature(
    method: str, t: float, other: float, encoding: str | None
) -> None:
    def loss(**written: float) -> float:
        place = {"table": "words", "encoding": encoding} | written
        found = assemble(method, {"places": {"final": place}}, tables)
        batch = found.batch(6)
        return found.method(found.taps(batch), batch)["words"].item()

    # A GPU adds up the pixels of a hard code in an order of its own each time.
    assert loss() == pytest.approx(loss(temperature=t), rel=1e-6)
    # One word is the nearest at any temperature.
    assert (loss() == pytest.approx(loss(temperature=other), rel=1e-6)) == (encoding == "nearest")


def test_kernels_are_a_softmax_of_scaled_activations() -> None:
    """Table 3: p_T = softmax(t a) of the teacher's own 3x3 kernels, at the table's scale."""
    table = {"counts": np.ones(WIDTH, np.int64), "scale": np.float32(0.7)}
    settings = {"places": {"final": {"table": "kernels", "temperature": 2.0}}}
    found = assemble("letkd", settings, lambda name: table)
    batch = found.batch(6)
    taps = found.student.record(batch.image, None)
    assert taps["final.scores"].shape[1] == WIDTH
    p = [softmax([2.0 * 0.7 * v for v in pixel]) for pixel in pixels(batch.teacher["stage3_conv"])]
    assert found.method(taps, batch)["words"].item() == pytest.approx(
        kl(p, pixels(taps["final.scores"])), **CLOSE
    )


def test_alpha_0_leaves_the_plain_student_s_logits() -> None:
    found, batch = ready("letkd", {"places": PLACES, "alpha": {"final": 0.0, "last_block1": 0.0}})
    plain = assemble("kd").student
    for mode in (True, False):
        found.student.train(mode)
        plain.train(mode)
        torch.testing.assert_close(found.student(batch.image), plain(batch.image), rtol=0, atol=0)


# ------------------------------------------------------------------ gradients


def reached(found: Assembled, batch: Batch, term: str) -> set[str]:
    """Return which parameters of the student the gradient of a term reaches."""
    found.student.zero_grad()
    found.method(found.student.record(batch.image, None), batch)[term].backward()
    return {
        name for name, x in found.student.named_parameters() if x.grad is not None and (x.grad != 0).any()
    }


def test_every_term_trains_the_templates_and_the_backbone() -> None:
    found, batch = ready("letkd", {"places": TWO})
    every = {name for name, _ in found.student.named_parameters()}
    assert reached(found, batch, "ce") == every
    own = {f"inserted.final.scores.{name}" for name in ("kernels", "scale")}
    final = {name for name in every if name.startswith("inserted.final.")}
    head = {"classifier.weight", "classifier.bias"}
    # BN, ReLU and the values stand on another branch than the scores that are supervised.
    assert reached(found, batch, "words") == every - head - final | own
    inner = {f"inserted.stage3_block1.scores.{name}" for name in ("kernels", "scale")}
    before = {name for name in every if name.startswith("units.")}
    assert reached(found, batch, "subclasses") == before | inner  # resnet8 has one block a stage


@pytest.mark.cpu
def test_tables_and_features_are_not_trained() -> None:
    found, batch = ready("letkd", {"places": TWO})
    assert not list(found.method.parameters())
    assert not found.method.state_dict()  # the tables are artifacts of their own
    assert not any(x.requires_grad for x in found.method.buffers())
    assert len(list(found.method.buffers())) == 1 + 4  # `per_class` is a number
    assert not any(x.requires_grad for x in found.batch(3).teacher.values())  # as they come in training
    before = {name: x.clone() for name, x in found.method.named_buffers()}
    terms = found.method(found.student.record(batch.image, None), batch)
    torch.stack(list(terms.values())).sum().backward()
    for name, x in found.method.named_buffers():
        assert x.grad is None
        assert torch.equal(x, before[name])


# ------------------------------------------------------------------ codes


def target(place: Place, table: dict[str, Array], shape: tuple[int, ...], words: int = WORDS) -> Target:
    found = assemble("kd").context
    place = place.resolved("final", replace(KNOWN, fitted={"words": "final", "subclasses": "final"}))
    context = Context(
        num_classes=CLASSES, labels=found.labels, student=found.student, tables={place.table: table},
        student_shapes={"final.scores": (words, 4, 4)}, teacher_shapes={place.source: shape},
    )  # fmt: skip
    return here(Target("final", place, context, "final.scores"))


def encoded(name: str, x: Tensor, table: dict[str, Array], label: Tensor | None = None) -> Tensor:
    asked = Feature.parse(name)
    assert asked.table is not None
    return asked.encode(x, on_device({asked.table: table}, current()), label)


def losses(
    one: Target, feature: Tensor, other: Target, code: Tensor, label: Tensor, words: int
) -> tuple[Tensor, ...]:
    """Return both losses of the same scores, and both gradients."""
    results = []
    for place, given in ((one, feature), (other, code)):
        scores = draw(len(feature), words, 4, 4, scale=3, seed=9).requires_grad_()
        loss = place(scores, given, label)
        loss.backward()
        assert scores.grad is not None
        results += [loss.detach(), scores.grad]
    return results[0], results[2], results[1], results[3]


LABEL = torch.tensor([0, 3, 1])


def test_the_nearest_word_is_the_full_form_of_far_words() -> None:
    table = words_table(5, scale=30)
    centers = here(torch.from_numpy(table["centers"]))
    which = here(torch.randint(WORDS, (3, 4, 4), generator=seeding.generator(5)))
    x = centers[which].movedim(-1, 1) + draw(3, 5, 4, 4, scale=0.1)
    code = encoded("final:nearest@words", x, table)
    assert code.dtype == torch.uint16
    assert torch.equal(code.long(), which)
    full, hard, gradient, same = losses(
        target(Place(table="words"), table, (5, 4, 4)), x,
        target(Place(table="words", encoding="nearest"), table, (4, 4)), code, here(LABEL), WORDS,
    )  # fmt: skip
    torch.testing.assert_close(hard, full, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(same, gradient, rtol=1e-5, atol=1e-8)


def test_sub_class_codes_are_the_full_form() -> None:
    table, x = subclass_table(5), draw(3, 5, 4, 4, scale=2)
    number = CLASSES * PER_CLASS
    code = encoded("final:subclass@subclasses", x, table, here(LABEL))
    full, hard, gradient, same = losses(
        target(Place(table="subclasses"), table, (5, 4, 4), number), x,
        target(Place(table="subclasses", encoding="subclass"), table, (4, 4), number),
        code, here(LABEL), number,
    )  # fmt: skip
    torch.testing.assert_close(hard, full, rtol=0, atol=0)
    torch.testing.assert_close(same, gradient, rtol=0, atol=0)


@pytest.mark.parametrize("words", [WORDS, 3])
def test_four_words_are_renormalised(words: int) -> None:
    t, table, x = 2.0, words_table(5, words), draw(3, 5, 4, 4, scale=0.3).abs()
    code = encoded("final:top4@words", x, table)
    kept = min(4, words)
    assert (code.dtype, code.shape) == (torch.uint16, (3, 2 * kept, 4, 4))
    full = words_of(x, torch.from_numpy(table["centers"]), t)
    soft = []
    for row in full:
        best = sorted(range(words), key=lambda k: -row[k])[:kept]
        mass = sum(row[k] for k in best)
        soft.append([row[k] / mass if k in best else 0.0 for k in range(words)])
    scores = draw(3, words, 4, 4, scale=3, seed=9)
    place = Place(table="words", encoding="top4", temperature=t)
    loss = target(place, table, (2 * kept, 4, 4), words)(scores, code, here(LABEL)).item()
    # A distance is rounded by 2^-11 of itself, so p by t d 2^-11: here less than 1 in 500.
    assert loss == pytest.approx(kl(soft, pixels(scores)), rel=2e-3)
    if words == kept:  # nothing is left out
        assert loss == pytest.approx(kl(full, pixels(scores)), rel=2e-3)
    else:
        assert loss != pytest.approx(kl(full, pixels(scores)), rel=2e-2)


def test_what_codes_lose_is_the_divergence_from_all_words() -> None:
    table, x = words_table(5) | {"temperature": np.float32(2)}, draw(3, 5, 4, 4, scale=0.3).abs()
    arrays = on_device({"words": table}, current())["words"]
    full = words_of(x, torch.from_numpy(table["centers"]), 2.0)
    hard = [-math.log(max(row)) for row in full]
    soft = [-math.log(sum(sorted(row)[-4:])) for row in full]
    for name, expected in (("nearest", hard), ("top4", soft)):
        found = plugin.load("encodings", name).lost(x, arrays)
        assert found.shape == (3, 4, 4)
        np.testing.assert_allclose(found.flatten().cpu(), expected, rtol=1e-4, atol=1e-6)


def test_four_words_are_packed_with_the_precision_of_float16() -> None:
    ids = here(torch.tensor([[0, 4095, 40_000, 65_535]])).view(1, 4, 1, 1)
    distances = here(torch.tensor([[0.0, 1.2345678, 4321.5, 1e6]])).view(1, 4, 1, 1)
    code = codebook.pack(ids, distances, 4096)
    assert (code.dtype, code.shape) == (torch.uint16, (1, 8, 1, 1))
    same, near = codebook.unpack(code)
    assert torch.equal(same, ids)
    torch.testing.assert_close(near[:, :3], distances[:, :3], rtol=2**-11, atol=0)
    assert near[0, 3].isinf()  # beyond float16: probability 0, and the loss stays finite
    p = (-1e-3 * near).softmax(dim=1)
    scores = draw(1, 70_000, 1, 1).requires_grad_()
    loss = pixel_kl(p, scores, same)
    loss.backward()
    assert loss.isfinite()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


# ------------------------------------------------------------------ pairs of the paper


PAIRS = [  # letKD's Table 1
    ("wrn_40_2", "wrn_16_2"), ("wrn_40_2", "wrn_40_1"), ("resnet56", "resnet20"), ("resnet110", "resnet20"),
    ("resnet110", "resnet32"), ("resnet32x4", "resnet8x4"), ("wrn_40_2", "shufflenetv1"),
    ("resnet32x4", "shufflenetv1"), ("resnet32x4", "shufflenetv2"), ("resnet50_cifar", "mobilenetv2_half"),
]  # fmt: skip
HALVED = {"shufflenetv1", "shufflenetv2", "mobilenetv2_half"}
FAMILY = {
    name: family for family in plugin.names("networks") for name in plugin.load("networks", family).NETWORKS
}


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_every_pair_of_the_paper_fits(teacher: str, student: str) -> None:
    words, classes = 5, 3

    def spec(name: str) -> NetworkSpec:
        return NetworkSpec(family=FAMILY[name], network=name, size=32, channels=3, classes=classes)

    def inner(name: str) -> str:
        return "stage4_block1" if name in ("mobilenetv2_half", "resnet50_cifar") else "stage3_block1"

    suffix = ":halved" if student in HALVED else ""
    fitted = {"words": f"final{suffix}", "subclasses": f"last_block1{suffix}"}
    known = Known(architecture(spec(student)), architecture(spec(teacher)), fitted)
    config = letkd.Config.model_validate({"places": TWO}).resolved(known)
    assert set(config.places) == {"final", inner(student)}
    needs = letkd.Method.needs(config)
    assert needs.teacher == (f"final{suffix}", f"{inner(teacher)}{suffix}")
    image = draw(2, 3, 32, 32)
    label = here(torch.tensor([2, 0]))
    features = Teacher(build(spec(teacher), 0), current()).features(image, needs.teacher, label)
    shapes = {name: tuple(x.shape[1:]) for name, x in features.items()}
    arrays = {
        "words": words_table(shapes[f"final{suffix}"][0], words),
        "subclasses": subclass_table(shapes[f"{inner(teacher)}{suffix}"][0], classes),
    }
    with torch.device("meta"):
        plain = probe(build(spec(student), 0), 32, 3)
    assert plain["final"][1:] == shapes[f"final{suffix}"][1:]
    operations = letkd.Method.operations(config, plain, shapes, arrays)
    network = here(build(spec(student).model_copy(update={"inserted": dict(operations.insert)}), 0))
    context = Context(
        num_classes=classes, labels=label, student=network, student_shapes=probe(network, 32, 3),
        teacher_shapes=shapes, tables=arrays,
    )  # fmt: skip
    method = here(letkd.Method(config, context))
    batch = replace(assemble("kd").batch(2), image=image, label=label, teacher=features)
    terms = method(network.record(image, needs.student), batch)
    assert terms.keys() == {"ce", "words", "subclasses"}
    assert all(term.isfinite() for term in terms.values())
    if suffix:
        far = {"final": (*shapes[f"final{suffix}"][:1], *(2 * side for side in plain["final"][1:]))}
        whole = letkd.Config().resolved(replace(known, fitted={"words": "final"}))
        with pytest.raises(ShapeError, match=r"Fit the table to 'final:halved', in params.yaml") as error:
            letkd.Method(whole, replace(context, teacher_shapes=far))
        one_line(error)


# ------------------------------------------------------------------ refusals


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"alpha": {"finale": 0.1}}, "alpha is given for 'finale', and the places are final"),
        ({"insert": {"final": "kd_layer"}}, "insert has a layer at 'final'"),
        ({"places": {}}, "Name one at least"),
        ({"places": {"final": {"table": "words", "encoding": "halved"}}}, "'nearest', 'top4' or 'subclass'"),
        ({"places": {"final": {"table": "words", "learns": "words"}}}, "unknown key"),
        ({"places": {"final": {"encoding": "nearest"}}}, "table' is missing"),
        ({"places": {"final": {"table": "words", "temperature": 0}}}, "greater than or equal to 0.000001"),
        ({"weights": {"word": 1.0}}, "Its terms are ce, words, subclasses"),
    ],
)  # fmt: skip
def test_wrong_settings_are_told_in_one_line(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError, match=message) as error:
        validate(letkd.Config, config, "runs.letkd.letkd")
    one_line(error)
    assert "runs.letkd.letkd" in str(error.value)


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"places": {"final": "wrds"}}, r"table 'wrds', and 'tables' in params.yaml has words, inner, kernels, sub"),
        ({"places": {"final": {"table": "words", "feature": "stage2"}}}, r"its table and encoding give 'final'"),
        ({"places": {"last": "words", "stage3": "words"}}, r"'stage3' of the student under two names"),
        ({"places": {"last": "words"}, "insert": {"stage3": "kd_layer"}}, r"insert has a layer at 'stage3'"),
    ],
)  # fmt: skip
def test_places_that_do_not_fit_the_networks_are_told_in_one_line(
    config: dict[str, Any], message: str
) -> None:
    settings = validate(letkd.Config, config, "runs.letkd.letkd")
    with pytest.raises(ParamsError, match=message) as error:
        settings.resolved(KNOWN)
    one_line(error)


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("place", "feature"),
    [
        ("words", "final:halved"),
        ({"table": "words", "encoding": "top4"}, "final:halved:top4@words"),
        ("subclasses", "stage3_block1"),
        ({"table": "subclasses", "encoding": "subclass"}, "stage3_block1:subclass@subclasses"),
    ],
    ids=str,
)
def test_a_place_reads_its_tables_feature(place: Any, feature: str) -> None:
    known = replace(KNOWN, fitted={"words": "final:halved", "subclasses": "last_block1"})
    for method in (letkd, quest)[: 1 if "subclasses" in str(place) else 2]:
        config = validate(method.Config, {"places": {"last": place}}, "runs.x").resolved(known)
        assert method.Method.needs(config).teacher == (feature,)
        assert list(config.places) == ["stage3"]


CATALOG = [
    (family, network)
    for family in plugin.names("networks")
    if not getattr(plugin.load("networks", family), "OPEN", False)
    for network in plugin.load("networks", family).NETWORKS
]


@pytest.mark.cpu
@pytest.mark.parametrize(("family", "network"), CATALOG)
def test_letkds_inner_place_is_after_the_first_block_of_the_last_stage(family: str, network: str) -> None:
    spec = NetworkSpec(family=family, network=network, size=32, channels=3, classes=10)
    student = architecture(spec)
    last = max(tap for tap in student.taps if tap.startswith("stage") and "_" not in tap)
    config = letkd.Config(places={"last_block1": "words"}).resolved(
        Known(student, student, {"words": "final"})
    )
    table = {"words": words_table(student.taps["final"][0], 3)}
    operations = letkd.Method.operations(config, student.taps, {"final": student.taps["final"]}, table)
    assert list(operations.insert) == [f"{last}_block1"]
    with torch.device("meta"):
        network_with = build(spec.model_copy(update={"inserted": dict(operations.insert)}), 0)
        taps = probe(network_with, 32, 3)
    scores = f"{last}_block1.scores"
    assert letkd.Method.needs(config).student == ("logits", scores)
    assert taps[scores] == (3, *student.taps[f"{last}_block1"][1:])


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("method", "place", "table", "message"),
    [
        ("letkd", "words", {"mean": np.zeros(64), "std": np.ones(64)}, r"mean, std: neither words nor sub-classes"),
        ("letkd", "words", words_table(width=32), r"'final' with 64 channels, and table 'words' was fitted to 32"),
        (
            "letkd",
            {"table": "words", "encoding": "subclass"},
            words_table(),
            r"Encoding 'subclass' reads 'mean', and table 'words' holds",
        ),
        (
            "letkd",
            {"table": "words", "encoding": "nearest"},
            {"counts": np.ones(64), "scale": np.float32(1)},
            r"Encoding 'nearest' reads 'centers', and table 'words' holds counts, scale",
        ),
        (
            "letkd",
            {"table": "subclasses", "temperature": 2.0},
            subclass_table(),
            r"its table 'subclasses' holds sub-classes, which have none",
        ),
        ("quest", "subclasses", subclass_table(), r"'subclasses', which holds sub-classes, and QuEST learns words"),
    ],
)  # fmt: skip
def test_a_table_of_another_kind_is_told_in_one_line(
    method: str, place: Any, table: dict[str, Array], message: str
) -> None:
    with pytest.raises(ParamsError, match=message) as error:
        assemble(method, {"places": {"final": place}}, lambda name: table)
    one_line(error)


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("encoding", "table", "message"),
    [
        ("nearest", subclass_table(), r"table 'here' holds subclasses, whose encodings are subclass"),
        ("top4", subclass_table(), r"holds subclasses, whose encodings are subclass"),
        ("subclass", words_table(), r"'subclass', and its table 'here' holds words, whose encodings are nearest, top4"),
        ("nearest", {"counts": np.ones(64), "scale": np.float32(1)}, r"holds words, whose encodings are none"),
    ],
)  # fmt: skip
def test_an_encoding_of_another_kind_is_told_before_a_store_is_read(
    encoding: Any, table: dict[str, Array], message: str
) -> None:
    known = replace(KNOWN, fitted={"here": "final"})
    config = letkd.Config(places={"final": Place(table="here", encoding=encoding)}).resolved(known)
    with pytest.raises(ParamsError, match=message) as error:
        letkd.Method.operations(config, {}, {}, {"here": table})
    one_line(error)


@pytest.mark.cpu
def test_layers_with_other_settings_are_told_in_one_line() -> None:
    with pytest.raises(ParamsError, match=r"Layer 'kd_layer' at 'stage2': 'words' is missing") as error:
        assemble("kd", {"insert": {"stage2": LayerSpec.of("kd_layer", alpha=1.0)}})
    one_line(error)

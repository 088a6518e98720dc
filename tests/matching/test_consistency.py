"""KCD's mathematics: measures against loops, streams against two passes, strategies against brute force."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from error_fixtures import one_line
from numpy.typing import NDArray
from torch import Tensor

from pipeline import seeding
from pipeline.artifacts import advice, arrays
from pipeline.errors import DamagedArtifactError, MissingArtifactError, ParamsError, ShapeError
from pipeline.matching.assignment import assign, score
from pipeline.matching.consistency import FLOOR, SMOOTHING, Statistics, pooled, range_of
from pipeline.matching.learned import SubNet, trace
from pipeline.matching.matching import Matching, Origin
from pipeline.params.base import validate
from pipeline.params.matchings import MatchingParams, Measure, Wanted

MEASURES: tuple[Measure, ...] = get_args(Measure)
STRATEGIES = ("bipartite", "greedy", "random", "identity")
Array = NDArray[Any]


def draw(seed: int, *shape: int) -> Tensor:
    """Return what a ReLU might leave: never negative, some of it zero, channels of other sizes."""
    generator = seeding.generator(seed, "features")
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (x + torch.rand(shape[1], generator=generator, dtype=torch.float64)).clamp(min=0) * (
        1 + torch.arange(shape[1])
    )


def statistics(measure: Measure, a: Tensor, b: Tensor, block: int) -> Statistics:
    found = Statistics(a.shape[1], b.shape[1], measure)
    for one, other in zip(torch.split(a, block), torch.split(b, block), strict=True):
        found.add(one, other)
    return found


def reference(measure: str, a: list[float], b: list[float]) -> float:
    """M of two channels, number by number, in two passes."""
    n = len(a)
    if measure == "l1":
        return 1 / math.fsum(abs(x - y) for x, y in zip(a, b, strict=True))
    if measure == "l2":
        return 1 / math.sqrt(math.fsum((x - y) ** 2 for x, y in zip(a, b, strict=True)))
    if measure == "cosine":
        inner = math.fsum(x * y for x, y in zip(a, b, strict=True))
        return inner / math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))
    if measure == "correlation":
        mean_a, mean_b = math.fsum(a) / n, math.fsum(b) / n
        covariance = math.fsum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
        spread = math.fsum((x - mean_a) ** 2 for x in a) * math.fsum((y - mean_b) ** 2 for y in b)
        return covariance / math.sqrt(spread)
    a, b = [x + SMOOTHING for x in a], [y + SMOOTHING for y in b]
    total_a, total_b = math.fsum(a), math.fsum(b)
    p, q = [x / total_a for x in a], [y / total_b for y in b]
    return -math.fsum(x * math.log(x / y) for x, y in zip(p, q, strict=True))


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("block", [1, 7, 60])
def test_streamed_measure_is_the_formula_in_two_passes(measure: Measure, block: int) -> None:
    a, b = draw(0, 60, 5), draw(1, 60, 4)
    found = statistics(measure, a, b, block).matrix()
    for i, j in itertools.product(range(5), range(4)):
        expected = reference(measure, a[:, i].tolist(), b[:, j].tolist())
        assert found[i, j].item() == pytest.approx(expected, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("measure", ["l1", "l2", "cosine", "correlation"])
def test_nothing_is_lost_where_means_are_large(measure: Measure) -> None:
    a, b = draw(0, 400, 3) + 1e6, draw(1, 400, 3) + 1e6
    found = statistics(measure, a, b, 32).matrix()
    for i, j in itertools.product(range(3), range(3)):
        expected = reference(measure, a[:, i].tolist(), b[:, j].tolist())
        assert found[i, j].item() == pytest.approx(expected, rel=1e-9, abs=1e-10)  # of values near 1e6


@pytest.mark.parametrize("measure", MEASURES)
def test_channels_that_never_vary_are_counted_and_harmless(measure: Measure) -> None:
    a, b = draw(0, 50, 4), draw(1, 50, 4)
    a[:, 1], b[:, 0], b[:, 2] = 0, 0, 0.3
    found = statistics(measure, a, b, 9)
    dead_a, dead_b = found.dead()
    assert dead_a.tolist() == [False, True, False, False]
    assert dead_b.tolist() == [True, False, True, False]
    matrix = found.matrix()
    assert torch.isfinite(matrix).all()
    if measure == "correlation":
        assert (matrix[1] == 0).all()
        assert (matrix[:, [0, 2]] == 0).all()
    elif measure == "cosine":
        assert (matrix[1] == 0).all()
        assert (matrix[:, 0] == 0).all()
        assert matrix[0, 2] > 0  # a constant that is not zero has a direction
    elif measure in ("l1", "l2"):
        assert matrix[1, 0] == 0
        assert matrix[1, 1] > 0


def test_equal_channels_have_a_finite_distance() -> None:
    a = draw(0, 30, 3)
    for measure in ("l1", "l2"):
        matrix = statistics(measure, a, a, 7).matrix()
        assert matrix.diagonal().tolist() == [1 / FLOOR] * 3


def test_kl_of_negative_features_is_refused_in_one_line() -> None:
    with pytest.raises(ParamsError, match=r"never negative, and the student has -0\.5") as error:
        Statistics(2, 2, "kl").add(torch.ones(3, 2), torch.full((3, 2), -0.5))
    one_line(error)
    assert "another measure" in str(error.value)


def test_statistics_survive_a_checkpoint_and_forget() -> None:
    a, b = draw(0, 40, 3), draw(1, 40, 3)
    for measure in MEASURES:
        whole, half = statistics(measure, a, b, 10), statistics(measure, a[:20], b[:20], 10)
        again = Statistics(3, 3, measure)
        again.load_state_dict(half.state_dict())
        for start in (20, 30):
            again.add(a[start : start + 10], b[start : start + 10])
        assert torch.equal(again.matrix(), whole.matrix())  # bit for bit
        again.reset()
        assert all((x == 0).all() for x in again.buffers())


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("channels", [8, 11])
def test_a_planted_permutation_is_recovered(measure: Measure, channels: int) -> None:
    teacher = draw(0, 300, channels)
    planted = torch.randperm(channels, generator=seeding.generator(7))[:8]
    noise = torch.rand(300, 8, generator=seeding.generator(8), dtype=torch.float64)
    student = teacher[:, planted] * (1 + 0.05 * noise) + 0.01 * noise
    matrix = statistics(measure, teacher, student, 64).matrix().numpy()
    found = assign(matrix, "bipartite", seeding.generator(0))
    assert found.tolist() == planted.tolist()  # out[:, j] = x[:, found[j]]
    for j in range(8):
        torch.testing.assert_close(teacher[:, found][:, j], student[:, j], rtol=0.1, atol=0.02)
    if channels == 8:  # the inverse of the student's shuffle of the teacher
        assert np.argsort(np.argsort(found)).tolist() == planted.tolist()


# ------------------------------------------------------------------ strategies


@pytest.mark.parametrize(("teacher", "student"), [(4, 4), (6, 4), (5, 5)])
@pytest.mark.parametrize("seed", range(4))
def test_bipartite_is_the_best_of_all_and_greedy_the_best_with_repeats(
    teacher: int, student: int, seed: int
) -> None:
    matrix = np.random.default_rng(seed).normal(size=(teacher, student))
    one = [score(matrix, np.array(p)) for p in itertools.permutations(range(teacher), student)]
    repeated = [score(matrix, np.array(p)) for p in itertools.product(range(teacher), repeat=student)]
    bipartite = assign(matrix, "bipartite", seeding.generator(0))
    greedy = assign(matrix, "greedy", seeding.generator(0))
    assert score(matrix, bipartite) == pytest.approx(max(one), rel=1e-12)
    assert score(matrix, greedy) == pytest.approx(max(repeated), rel=1e-12)
    assert len(set(bipartite.tolist())) == student


@pytest.mark.parametrize("seed", range(6))
def test_bipartite_is_at_least_greedy_without_repeats(seed: int) -> None:
    matrix = np.random.default_rng(seed).normal(size=(9, 7))
    left, total = set(range(9)), 0.0
    for j in range(7):
        best = max(left, key=lambda i: matrix[i, j])
        left.remove(best)
        total += matrix[best, j]
    assert score(matrix, assign(matrix, "bipartite", seeding.generator(0))) >= total


def test_gamma_is_the_trace_of_the_transformed_matrix() -> None:
    matrix = np.random.default_rng(0).normal(size=(6, 4))
    for strategy in STRATEGIES:
        permutation = assign(matrix, strategy, seeding.generator(0))
        assert score(matrix, permutation) == pytest.approx(np.trace(matrix[permutation]), rel=1e-12)


def test_random_and_identity_are_what_they_say() -> None:
    matrix = np.zeros((9, 9))
    drawn = [assign(matrix, "random", seeding.generator(seed)) for seed in (0, 0, 1)]
    assert sorted(drawn[0].tolist()) == list(range(9))
    assert (drawn[0] == drawn[1]).all()
    assert (drawn[0] != drawn[2]).any()
    assert len(set(assign(matrix[:, :5], "random", seeding.generator(3)).tolist())) == 5
    assert assign(matrix[:, :5], "identity", seeding.generator(0)).tolist() == [0, 1, 2, 3, 4]


def test_fewer_teacher_channels_are_refused_but_for_greedy() -> None:
    matrix = np.random.default_rng(0).normal(size=(3, 5))
    for strategy in ("bipartite", "random", "identity"):
        with pytest.raises(
            ShapeError, match="5 channels a channel of its own, and the teacher has 3"
        ) as error:
            assign(matrix, strategy, seeding.generator(0))
        assert "strategy greedy, fc or residual" in str(error.value)
    assert assign(matrix, "greedy", seeding.generator(0)).tolist() == matrix.argmax(axis=0).tolist()


# ------------------------------------------------------------------ pooling, ranges, learned networks


def test_pooling_is_the_mean_of_the_map() -> None:
    x = torch.randn(3, 2, 4, 5, generator=seeding.generator(0), dtype=torch.float64)
    by_hand = [[sum(x[n, c].flatten().tolist()) / 20 for c in range(2)] for n in range(3)]
    torch.testing.assert_close(pooled(x), torch.tensor(by_hand, dtype=torch.float64), rtol=1e-12, atol=1e-14)
    assert torch.equal(pooled(x[:, :, 0, 0]), x[:, :, 0, 0])


@pytest.mark.parametrize(("ranges", "classes"), [(1, 10), (2, 10), (10, 10), (3, 10)])
def test_ranges_are_contiguous_and_even(ranges: int, classes: int) -> None:
    found = range_of(torch.arange(classes), ranges, classes).tolist()
    assert found == sorted(found)
    assert set(found) == set(range(ranges))
    sizes = [found.count(k) for k in range(ranges)]
    assert max(sizes) - min(sizes) <= (classes % ranges > 0)


def test_trace_is_the_sum_of_coefficients() -> None:
    a, b = draw(0, 20, 4), draw(1, 20, 4)
    b[:, 3] = 0
    expected = sum(reference("correlation", a[:, j].tolist(), b[:, j].tolist()) for j in range(3))
    a.requires_grad_()
    found = trace(a, b)
    assert found.item() == pytest.approx(expected, abs=1e-5)  # float32
    found.backward()
    assert a.grad is not None
    assert torch.isfinite(a.grad).all()
    assert (a.grad[:, 3] == 0).all()


def test_subnets_are_what_the_paper_says() -> None:
    x = torch.randn(3, 6, 4, 4, generator=seeding.generator(0))
    with seeding.scope(0, "subnet"):
        linear, block = SubNet("fc", 6, 4), SubNet("residual", 6, 4).eval()
    weight = linear.straight.weight[:, :, 0, 0]
    torch.testing.assert_close(linear(x), torch.einsum("oc,bchw->bohw", weight, x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(linear(x[:, :, 0, 0]), x[:, :, 0, 0] @ weight.T, rtol=1e-5, atol=1e-6)
    first, norm, _, last, end = block.branch
    y = last(torch.relu(norm(first(x))))
    torch.testing.assert_close(block(x), end(y) + block.straight(x))
    assert sum(p.numel() for p in linear.parameters()) == 24  # no bias
    assert block(x[:, :, 0, 0]).shape == (3, 4)


# ------------------------------------------------------------------ recipe and artifact


def test_recipes_defaults_are_the_papers() -> None:
    recipe = MatchingParams()
    assert (recipe.measure, recipe.strategy, recipe.ranges) == ("correlation", "bipartite", 1)
    assert (recipe.student_tap, recipe.teacher_feature) == ("final", "final")


@pytest.mark.parametrize("update", [{"ranges": 2}, {"measure": "l2"}])
def test_learned_networks_take_neither_ranges_nor_measures(update: dict[str, Any]) -> None:
    with pytest.raises(ParamsError, match="strategy fc learns one network by correlation") as error:
        validate(MatchingParams, {"strategy": "fc", **update}, "matchings.x")
    one_line(error)


HINT = "dvc repro match_channels@pair-kcd"


def a_matching(**arrays: Array) -> Matching:
    origin = Origin(
        made_by="match_channels@p", teacher="t", student="s", seed=0, recipe=MatchingParams(), theta0="0",
        student_weights="1", teacher_weights="2", digest="3", data="4", classes=10, channels=3,
    )  # fmt: skip
    return Matching(origin, arrays or {"permutation": np.array([[2, 0, 1]])})


def test_a_matching_survives_the_disk_bit_for_bit(tmp_path: Path) -> None:
    made = a_matching()
    made.save(tmp_path / "a.npz")
    made.save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    found = Matching.load(tmp_path / "a.npz", HINT)
    assert (found.origin, found.width) == (made.origin, 3)
    np.testing.assert_array_equal(found.arrays["permutation"], [[2, 0, 1]])


def test_a_file_that_is_no_matching_is_reported_in_one_line(tmp_path: Path) -> None:
    path, origin = tmp_path / "somewhere" / "0.npz", a_matching().origin.model_dump(mode="json")
    with pytest.raises(MissingArtifactError, match=HINT):
        Matching.load(path, HINT)
    path.parent.mkdir()
    path.write_bytes(b"nothing")
    with pytest.raises(DamagedArtifactError, match="cannot be read") as error:
        Matching.load(path, HINT)
    one_line(error)

    others = ({"permutation": np.zeros((1, 3))}, None), ({}, {}), ({"permutation": np.zeros((1, 0))}, origin)
    for content, about in others:
        arrays.write(path, content, about)
        with pytest.raises(DamagedArtifactError) as error:
            Matching.load(path, HINT)
        assert str(error.value).endswith(advice.again(HINT))


def test_what_a_run_asks_for_has_a_name_of_its_own() -> None:
    wanted = [
        Wanted(matching="kcd", teacher=teacher, seed=seed)
        for teacher in (None, "other")
        for seed in (None, 1)
    ]
    assert [one.key for one in wanted] == ["kcd", "kcd@1", "other/kcd", "other/kcd@1"]

"""K-means of pixels, held to scikit-learn and to loops in float64."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from error_fixtures import one_line
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from table_fixtures import MapStream, apart, digit_maps, pixel_rows
from threadpoolctl import threadpool_limits

from pipeline.errors import DivergedError, ParamsError
from pipeline.tables import clustering, exemplars, pixels
from pipeline.tables.fits import kmeans
from pipeline.tables.pixels import Block, Pixels
from pipeline.tables.table import FitContext, Fitted

Array = NDArray[Any]

CONTEXT = FitContext(num_classes=10)


def fit(stream: MapStream, **settings: Any) -> Fitted:
    return kmeans.fit(stream, kmeans.Config(feature="stage3", **settings), CONTEXT)


def points(x: Array, size: int = 300) -> list[Block]:
    """Return rows (n, C) as blocks."""
    x = x.astype(np.float32)
    zeros = np.zeros(len(x), np.int64)
    return [
        Block(x[i : i + size], zeros[i : i + size], np.arange(i, min(i + size, len(x))))
        for i in range(0, len(x), size)
    ]


def squared(x: Array, centers: Array) -> Array:
    """Return squared distances (n, K) in float64."""
    return np.array([[((row - center) ** 2).sum() for center in centers] for row in x])


def same(one: Fitted, other: Fitted) -> None:
    assert one.quality == other.quality
    assert one.arrays.keys() == other.arrays.keys()
    for name, array in one.arrays.items():
        np.testing.assert_array_equal(other.arrays[name], array, err_msg=name)


# Against scikit-learn.


@pytest.mark.parametrize("clusters", [2, 10, 50, 300])
def test_the_inertia_is_scikit_learns(clusters: int) -> None:
    """Within 1 %, of the same rows and the same draws."""
    stream = digit_maps(300)
    x = pixel_rows(stream)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        known = KMeans(
            clusters, n_init=1, max_iter=20, tol=0, random_state=clustering.state(0), algorithm="lloyd"
        ).fit(x)
    found = fit(stream, clusters=clusters)
    assert found.quality["inertia"] == pytest.approx(known.inertia_, rel=0.01)
    assert found.quality["clusters"] == clusters


def test_a_start_from_a_sample_serves_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 1 % of scikit-learn's mean, though k-means++ sees an eighth of the rows.

    The means are over 20 seeds: one seed's inertia strays by 1 % (over 40 seeds the means differ by 0.5 %).
    """
    stream = digit_maps(800)
    x = pixel_rows(stream)
    monkeypatch.setattr(clustering, "START_ROWS", len(x) // 8)
    known = [KMeans(100, n_init=1, max_iter=20, tol=0, random_state=i).fit(x).inertia_ for i in range(20)]
    found = [fit(stream, clusters=100, seed=i).quality["inertia"] for i in range(20)]
    assert np.mean(found) == pytest.approx(np.mean(known), rel=0.01)


@pytest.mark.parametrize("offset", [0.0, 300.0])
@pytest.mark.parametrize("streamed", [True, False])
def test_the_engine_is_scikit_learns_from_the_same_start(streamed: bool, offset: float) -> None:
    """To 1e-5, from the store and from memory, and far from the origin."""
    stream = apart(digit_maps(60))
    stream.values += np.float32(offset)
    x = pixel_rows(stream)
    # Among unlike pixels: in all iterations the second center is farther than the nearest by 3e-4 at least.
    unlike = np.sort(np.unique((x - offset).round(1), axis=0, return_index=True)[1])
    first = x[unlike[:: len(unlike) // 20][:20]]
    known = KMeans(20, init=first, n_init=1, max_iter=7, tol=0).fit(x)
    mean = x.mean(axis=0)
    moved = Pixels.of(stream, "stage3").map(lambda values: (values - mean).astype(np.float32), 12)
    rows = moved if streamed else pixels.in_memory(moved, len(x), 12)
    assert isinstance(rows, Pixels) == streamed
    found = clustering.lloyd(rows, (first - mean).astype(np.float32), 7)
    np.testing.assert_allclose(found.centers + mean, known.cluster_centers_, atol=1e-5 * (1 + offset))
    assert found.iterations == known.n_iter_


def test_empty_clusters_go_where_scikit_learn_puts_them() -> None:
    """To 1e-5: three of the first centers lie where no row is."""
    x = np.random.default_rng(0).normal(size=(500, 3))
    first = np.concatenate([x[:5], np.full((3, 3), 50.0) + np.arange(3)[:, None]])
    known = KMeans(8, init=first, n_init=1, max_iter=5, tol=0).fit(x)
    found = clustering.lloyd(points(x), first.astype(np.float32), 5)
    order = np.lexsort(known.cluster_centers_.T)
    np.testing.assert_allclose(
        found.centers[np.lexsort(found.centers.T)], known.cluster_centers_[order], atol=1e-5
    )
    assert found.relocated == 3
    assert (clustering.members(points(x), found.centers).counts > 0).all()


# Against loops.


def test_one_iteration_is_the_loop() -> None:
    """To 1e-6: an assignment, and the mean of each cluster."""
    x = np.random.default_rng(1).normal(size=(700, 4)).astype(np.float32).astype(np.float64)
    first = x[:9]
    label = squared(x, first).argmin(axis=1)
    means = np.array([x[label == k].mean(axis=0) for k in range(9)])
    found = clustering.lloyd(points(x), first.astype(np.float32), 1)
    np.testing.assert_allclose(found.centers, means, atol=1e-6)
    members = clustering.members(points(x), first.astype(np.float32))
    np.testing.assert_array_equal(members.counts, np.bincount(label, minlength=9))
    np.testing.assert_allclose(members.sums, means * members.counts[:, None], atol=1e-9)
    assert members.inertia == pytest.approx(squared(x, first).min(axis=1).sum(), rel=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 5.0])
def test_quality_is_the_loop(temperature: float) -> None:
    """p_T = softmax(-t d), with its sign: counts exact, means to 1e-5."""
    stream = digit_maps(60)
    found = fit(stream, clusters=12, temperature=temperature)
    x, centers = pixel_rows(stream), found.arrays["centers"].astype(np.float64)
    distance = squared(x, centers)
    np.testing.assert_array_equal(found.arrays["counts"], np.bincount(distance.argmin(axis=1), minlength=12))
    largest = entropy = 0.0
    for row in distance:
        weight = [math.exp(-temperature * (d - row.min())) for d in row]
        p = [w / sum(weight) for w in weight]
        largest += max(p) / len(x)
        entropy -= sum(q * math.log(q) for q in p if q > 0) / len(x)
    quality = found.quality
    assert quality["mean_max_probability"] == pytest.approx(largest, rel=1e-5)
    assert quality["mean_entropy"] == pytest.approx(entropy, rel=1e-5, abs=1e-6)
    assert quality["inertia"] == pytest.approx(distance.min(axis=1).sum(), rel=1e-5)
    assert quality["inertia_per_pixel"] == pytest.approx(quality["inertia"] / len(x))
    assert quality["pixels"] == len(x)
    assert quality["largest_share"] == found.arrays["counts"].max() / len(x)
    assert quality["smallest_share"] == found.arrays["counts"].min() / len(x)
    assert found.arrays["temperature"] == np.float32(temperature)


def test_the_gallery_is_the_loop() -> None:
    """The nearest pixels of distinct images, for the largest clusters and for some of the others."""
    stream = digit_maps(80)
    found = fit(stream, clusters=60).arrays
    groups = found["gallery"]
    assert len(groups) == len(set(groups.tolist())) == 24
    order = sorted(range(60), key=lambda k: -found["counts"][k])
    assert groups[:12].tolist() == order[:12]
    assert {order[12], order[-1]} <= set(groups[12:].tolist())
    for shown, group in enumerate(groups):
        nearest = []
        for sample, values in enumerate(stream.values.astype(np.float64)):
            distance = ((values - found["centers"][group][:, None, None]) ** 2).sum(axis=0)
            nearest.append((distance.min(), sample, distance))
        nearest.sort(key=lambda entry: entry[0])
        for place in range(9):
            sample, row, column = (
                found[f"nearest_{axis}"][shown, place] for axis in ("sample", "row", "column")
            )
            distance = next(entry[2] for entry in nearest if entry[1] == sample)
            assert distance[row, column] == pytest.approx(nearest[place][0], abs=1e-4)
        assert len(set(found["nearest_sample"][shown].tolist())) == 9


def test_a_gallery_of_few_images_and_clusters_is_marked() -> None:
    found = fit(digit_maps(4), clusters=3).arrays
    assert found["gallery"].shape == (3,)
    for axis in ("sample", "row", "column"):
        assert (found[f"nearest_{axis}"][:, :4] >= 0).all()
        assert (found[f"nearest_{axis}"][:, 4:] == -1).all()


def test_groups_without_members_are_not_shown() -> None:
    assert exemplars.chosen(np.array([0, 3, 0, 5])).tolist() == [3, 1]
    assert exemplars.chosen(np.arange(1, 15)).tolist() == [*range(13, 1, -1), 1, 0]
    many = exemplars.chosen(np.arange(1000))
    assert (len(many), many[12], many[-1]) == (24, 987, 1)


# Properties.


def test_nothing_depends_on_blocks_threads_or_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit."""
    monkeypatch.setattr(pixels, "BLOCK_BYTES", 4 * 12 * 256)  # many blocks
    monkeypatch.setattr(clustering, "START_ROWS", 1500)
    stream = digit_maps(200)
    whole = fit(stream, clusters=30)
    for size in (1, 7, 200):
        same(fit(replace(stream, size=size), clusters=30), whole)
    for threads in (1, 2, 3):
        with threadpool_limits(threads):
            same(fit(stream, clusters=30), whole)
    monkeypatch.setattr(pixels, "HELD_BYTES", 0)
    streamed = replace(stream, passes=0)
    same(fit(streamed, clusters=30), whole)
    assert streamed.passes > whole.quality["iterations"]
    assert fit(stream, clusters=30, seed=1).quality["inertia"] != whole.quality["inertia"]


def test_it_ends_when_no_center_moves() -> None:
    found = fit(digit_maps(20), clusters=3, iterations=500)
    assert found.quality["iterations"] < 100
    again = clustering.lloyd(
        Pixels.of(digit_maps(20), "stage3"), found.arrays["centers"].astype(np.float32), 1
    )
    np.testing.assert_allclose(again.centers, found.arrays["centers"], atol=1e-6)


def test_fewer_kinds_of_pixels_than_clusters_leave_some_empty() -> None:
    stream = digit_maps(30)
    stream.values[:] = np.sign(stream.values[:, :1]) * np.float32(3)  # two kinds of pixels
    found = fit(stream, clusters=4)
    assert found.quality["empty_clusters"] == 2
    assert found.quality["inertia"] == pytest.approx(0, abs=1e-6)
    assert found.quality["smallest_share"] == 0
    assert found.arrays["counts"].sum() == found.quality["pixels"] == 30 * 16
    assert len(found.arrays["gallery"]) == 2


def test_a_subset_of_images_is_asked_for_and_told() -> None:
    stream = digit_maps(100)
    found = fit(stream, clusters=5, max_samples=17)
    assert (found.quality["samples"], found.quality["pixels"]) == (17, 17 * 16)
    samples = {int(sample) for sample in found.arrays["nearest_sample"].ravel() if sample >= 0}
    assert max(samples) > 17  # they keep their numbers
    same(fit(replace(stream, size=9), clusters=5, max_samples=17), found)
    assert fit(stream, clusters=5).quality["samples"] == 100
    other = fit(stream, clusters=5, max_samples=17, seed=1)
    assert other.quality["inertia"] != found.quality["inertia"]
    same(fit(stream, clusters=5, max_samples=100), fit(stream, clusters=5))


def test_blocks_are_cut_anew_in_order() -> None:
    stream = digit_maps(50)
    stream.size = 11
    (first, *_), x = Pixels.of(stream, "stage3"), pixel_rows(stream)
    assert len(first.x) == len(x)  # they fit one block
    cut = list(pixels.blocked(points(x, 300), pixels.BLOCK_BYTES // 4 // 256))
    assert [len(block.x) for block in cut] == [256, 256, 256, 32]
    np.testing.assert_array_equal(np.concatenate([block.x for block in cut]), x)
    np.testing.assert_array_equal(np.concatenate([block.pixel for block in cut]), np.arange(800))
    np.testing.assert_array_equal(first.x, x)
    np.testing.assert_array_equal(first.label, np.repeat(stream.labels, 16))


# What cannot be fitted.


def spoiled(stream: MapStream) -> MapStream:
    stream.values[33, 2, 1, 3] = np.nan
    return stream


@pytest.mark.parametrize(
    ("stream", "settings", "error", "message"),
    [
        (digit_maps(3), {"clusters": 49}, ParamsError, "has 48 pixels, fewer than 'clusters: 49'"),
        (
            MapStream(np.zeros((8, 10), np.float32), np.zeros(8, int)), {},
            ParamsError, r"Feature 'stage3' has shape \(10,\), and a table of pixels is fitted to a map",
        ),
        (MapStream(np.zeros((80, 2, 9, 9), np.uint16), np.zeros(80, int)), {}, ParamsError, "holds uint16"),
        (digit_maps(9), {"clusters": 4, "max_samples": 10}, ParamsError, "more than the 9 training samples"),
        (spoiled(digit_maps(40)), {"clusters": 4}, DivergedError, "of sample 33 is not finite"),
    ],
)  # fmt: skip
def test_what_cannot_be_clustered_is_reported_in_one_line(
    stream: MapStream, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        fit(stream, **settings)
    one_line(caught)
    assert str(caught.value).endswith("then: dvc repro")

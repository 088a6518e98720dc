"""Sub-classes in LDA space, held to loops in float64 and to scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from error_fixtures import one_line
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from table_fixtures import MapStream, digit_maps, pixel_rows
from threadpoolctl import threadpool_limits

from pipeline import seeding
from pipeline.errors import ParamsError
from pipeline.tables import clustering, pixels
from pipeline.tables import subclasses as engine
from pipeline.tables.fits import lda, subclasses
from pipeline.tables.table import FitContext, Fitted

Array = NDArray[Any]


def space_of(stream: MapStream, components: int = 9) -> Mapping[str, Array]:
    """Return the arrays of the table `lda`."""
    config = lda.Config(feature="stage3", components=components)
    return lda.fit(stream, config, FitContext(10)).arrays


def fit(stream: MapStream, components: int = 9, **settings: Any) -> Fitted:
    config = subclasses.Config(feature="stage3", components=components, **settings)
    return subclasses.fit(stream, config, FitContext(10))


def projected(stream: MapStream, space: Mapping[str, Array]) -> tuple[Array, Array]:
    """Return pixels in LDA space, float64, and their labels."""
    z = (pixel_rows(stream) - space["mean"]) @ space["scalings"]
    return z, np.repeat(stream.labels, stream.shape[2] * stream.shape[3])


def nearest(z: Array, centers: Array, allowed: range) -> int:
    """Return which of the centers that are allowed lies nearest."""
    return min(allowed, key=lambda k: (float(((z - centers[k]) ** 2).sum()), k))


def close_calls(z: Array, centers: Array) -> bool:
    """Tell whether the two nearest centers are equally near, to float32."""
    distance = np.sort(((centers - z) ** 2).sum(axis=1))
    return bool(distance[1] - distance[0] < 1e-4)


def test_scores_are_the_loop() -> None:
    """h1 within the true class by the centers, h2 over all classes by the prototypes, S[i, j] their joint share.

    Exact counts, but for pixels that lie between two centers to 1e-4; there is none of them here.
    """
    stream = digit_maps(120)
    space = space_of(stream)
    found = fit(stream, per_class=3)
    centers, prototypes = (found.arrays[name].astype(np.float64) for name in ("centers", "prototypes"))
    z, label = projected(stream, space)
    joint, members, inertia = np.zeros((30, 30)), np.zeros((30, 9)), 0.0
    for row, c in zip(z, label, strict=True):
        i = nearest(row, centers, range(3 * c, 3 * c + 3))
        joint[i, nearest(row, prototypes, range(30))] += 1
        members[i] += row
        inertia += ((row - centers[i]) ** 2).sum()
        assert not close_calls(row, centers[3 * c : 3 * c + 3])
        assert not close_calls(row, prototypes)
    counts = joint.sum(axis=1)
    np.testing.assert_array_equal(found.arrays["counts"], counts)
    np.testing.assert_allclose(found.arrays["scores"], joint / counts[:, None], atol=1e-7)
    np.testing.assert_allclose(prototypes, members / counts[:, None], atol=1e-4)
    quality = found.quality
    scores = joint / counts[:, None]
    entropy = [-sum(p * math.log(p) for p in row if p > 0) for row in scores]
    in_class = sum(joint[i, j] for i in range(30) for j in range(30) if i // 3 == j // 3)
    assert quality["mean_diagonal"] == pytest.approx(sum(scores[i, i] for i in range(30)) / 30)
    assert quality["true_class_share"] == pytest.approx(in_class / len(z))
    assert quality["mean_row_entropy"] == pytest.approx(sum(entropy) / 30)
    assert quality["inertia"] == pytest.approx(inertia, rel=1e-5)
    assert (quality["subclasses"], quality["empty"], quality["pixels"]) == (30, 0, len(z))
    assert 0 < quality["mean_diagonal"] < 1


def test_each_class_is_clustered_as_scikit_learn_does() -> None:
    """Centers to 1e-4, from the same rows and draws; sub-class K * c + k belongs to class c."""
    stream = digit_maps(150)
    space = space_of(stream)
    found = fit(stream, per_class=4, iterations=30, seed=3)
    z, label = projected(stream, space)
    for c in range(10):
        state = clustering.state(seeding.derive(3, "subclasses", c))
        known = KMeans(4, n_init=1, max_iter=30, tol=0, random_state=state).fit(
            z[label == c].astype(np.float32)
        )
        own = found.arrays["centers"][4 * c : 4 * c + 4]
        np.testing.assert_allclose(
            own[np.lexsort(own.T)], known.cluster_centers_[np.lexsort(known.cluster_centers_.T)], atol=1e-4
        )


def test_the_table_has_the_contract_of_letkd() -> None:
    stream = digit_maps(150)
    arrays = fit(stream, components=5, per_class=2).arrays
    assert arrays["centers"].shape == arrays["prototypes"].shape == (20, 5)
    assert arrays["scores"].shape == (20, 20)
    assert {arrays[name].dtype.name for name in ("centers", "prototypes", "scores")} == {"float32"}
    np.testing.assert_allclose(arrays["scores"].sum(axis=1), 1, atol=1e-6)
    assert (arrays["scores"] >= 0).all()
    assert (int(arrays["per_class"]), arrays["per_class"].dtype.name) == (2, "int64")
    assert arrays["counts"].sum() == 150 * 16  # no remainder is dropped
    for group, samples in zip(arrays["gallery"], arrays["nearest_sample"], strict=True):
        assert set(stream.labels[samples[samples >= 0]].tolist()) == {group // 2}


@pytest.mark.parametrize("size", [7, 50, 1000])
def test_the_pictured_images_have_the_nearest_center_of_their_class_at_each_pixel(size: int) -> None:
    """Against a loop: the first image of six classes that lie evenly among ten, in any blocks of the store."""
    stream = replace(digit_maps(120), size=size)
    found = fit(stream, per_class=3).arrays
    classes = [0, 2, 4, 5, 7, 9]
    assert found["pictured"].tolist() == [stream.labels.tolist().index(c) for c in classes]
    height, width = stream.shape[2:]
    assert found["pictured_subclass"].shape == (6, height, width)
    z = (pixel_rows(stream) - found["mean"]) @ found["scalings"]
    z = z.reshape(-1, height, width, 9)
    for c, sample, assigned in zip(classes, found["pictured"], found["pictured_subclass"], strict=True):
        for row in range(height):
            for column in range(width):
                place = z[sample, row, column]
                assert assigned[row, column] == nearest(place, found["centers"], range(3 * c, 3 * c + 3))
    assert {found[name].dtype.name for name in ("pictured", "pictured_subclass")} == {"int64"}


def test_fewer_than_six_classes_are_all_pictured() -> None:
    stream = digit_maps(150)
    labels = stream.labels % 3
    config = subclasses.Config(feature="stage3", components=2, per_class=2)
    found = subclasses.fit(replace(stream, labels=labels), config, FitContext(3)).arrays
    assert labels[found["pictured"]].tolist() == [0, 1, 2]
    assert (found["pictured_subclass"] // 2 == np.arange(3)[:, None, None]).all()


def test_a_subclass_without_members_is_one_on_itself() -> None:
    """Class 4 has two kinds of pixels, and three sub-classes."""
    stream = digit_maps(120)
    mine = stream.labels == 4
    kinds = np.random.default_rng(0).normal(size=(2, 12)).astype(np.float32)
    stream.values[mine] = kinds[np.arange(16).reshape(4, 4) % 2].transpose(2, 0, 1)
    found = fit(stream, per_class=3)
    (empty,) = np.flatnonzero(found.arrays["counts"] == 0)
    assert empty // 3 == 4
    assert found.quality["empty"] == 1
    scores = found.arrays["scores"]
    np.testing.assert_array_equal(scores[empty], np.eye(30)[empty])
    np.testing.assert_array_equal(np.delete(scores, empty, axis=0)[:, empty], 0)  # h2 never says it
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(found.arrays["prototypes"][empty], found.arrays["centers"][empty])
    assert empty not in found.arrays["gallery"]


def test_nothing_depends_on_blocks_threads_or_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit: all classes in memory, a few at a time, or none."""
    monkeypatch.setattr(pixels, "BLOCK_BYTES", 4 * 12 * 256)
    stream = digit_maps(150)
    whole = fit(stream, per_class=3)

    def same(found: Fitted) -> None:
        assert found.quality == whole.quality
        for name, array in whole.arrays.items():
            np.testing.assert_array_equal(found.arrays[name], array, err_msg=name)

    for size in (1, 7):
        same(fit(replace(stream, size=size), per_class=3))
    for threads in (1, 2, 3):
        with threadpool_limits(threads):
            same(fit(stream, per_class=3))
    passes = []
    for budget in (pixels.HELD_BYTES, 150 * 16 * pixels.row_bytes(9) // 4, 0):
        monkeypatch.setattr(pixels, "HELD_BYTES", budget)
        stream.passes = 0
        same(fit(stream, per_class=3))
        passes.append(stream.passes)
    assert passes[0] < passes[1] < passes[2]


@pytest.mark.parametrize("components", [3, 9])
def test_the_space_is_that_of_the_table_lda(components: int) -> None:
    """Bit for bit: fitted in one go, a table is what `lda`, its projection and the clustering come to one by one."""
    stream = digit_maps(150)
    space = space_of(stream, components)
    whole = fit(stream, components, per_class=3, seed=5)
    for name in ("mean", "scalings"):
        np.testing.assert_array_equal(whole.arrays[name], space[name])
    assert whole.quality["explained"] == space["explained"].sum()

    single = space["scalings"].astype(np.float32)

    def project(x: Array) -> Array:
        with threadpool_limits(1):
            return np.asarray((x - space["mean"]).astype(np.float32) @ single)

    pixel = pixels.Pixels.of(stream, "stage3").map(project, components)
    for c in range(10):
        mine = [engine.of_class(block, c) for block in pixel]
        rows = list(pixels.blocked(mine, components))
        first = clustering.start(rows, sum(len(b.x) for b in rows), 3, seeding.derive(5, "subclasses", c))
        found = clustering.lloyd(rows, first, 20)
        np.testing.assert_array_equal(whole.arrays["centers"][3 * c : 3 * c + 3], found.centers)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"per_class": 257}, r"Class \d has \d+ pixels .* fewer than 'per_class: 25"),
        (
            {"components": 10},
            "'components: 10' is more than the 9 directions .* with 10 classes and 12 channels",
        ),
    ],
)
def test_what_cannot_be_fitted_is_reported_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError, match=message) as caught:
        fit(digit_maps(120), **settings)
    one_line(caught)
    assert str(caught.value).endswith("then: dvc repro")

"""Coarse labels of a stage (TDD), held to loops in float64 over the tree, the neighbors and the cut."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from error_fixtures import one_line
from numpy.typing import NDArray
from table_fixtures import MapStream, digit_maps

from pipeline.errors import DataError, DivergedError, ParamsError
from pipeline.params.base import validate
from pipeline.tables import pixels
from pipeline.tables.fits import coarse
from pipeline.tables.table import FitContext, Fitted

Array = NDArray[Any]
Node = frozenset[int]


def fit(stream: MapStream, classes: int = 10, **settings: Any) -> Fitted:
    return coarse.fit(stream, coarse.Config(feature="stage2", **settings), FitContext(classes))


def blobs(seed: int, classes: int, spread: float = 2.5, channels: int = 4) -> MapStream:
    """Return 5 to 14 maps (C, 2, 3) of each class, around a point of its own, in any order."""
    draw = np.random.default_rng(seed)
    labels = draw.permutation(np.repeat(np.arange(classes), draw.integers(5, 15, classes)))
    points = draw.normal(size=(classes, channels, 1, 1))
    values = points[labels] + spread * draw.normal(size=(len(labels), channels, 2, 3))
    return MapStream(values.astype(np.float32), labels.astype(np.int64), size=7)


def test_a_class_without_a_sample_is_named() -> None:
    with pytest.raises(DataError, match="Class 3 has no training sample"):
        fit(blobs(0, classes=3), classes=4)


def averaged(stream: MapStream) -> list[Array]:
    """Return the mean over all pixels of each sample, float64 (C,)."""
    rows = []
    for sample in stream.values.astype(np.float64):
        total = np.zeros(len(sample))
        for row in range(sample.shape[1]):
            for column in range(sample.shape[2]):
                total += sample[:, row, column]
        rows.append(total / (sample.shape[1] * sample.shape[2]))
    return rows


def merges(means: list[Array]) -> list[tuple[Node, Node, float]]:
    """Merge, time after time, the two groups of classes whose union grows the squared error least."""
    groups = [frozenset([label]) for label in range(len(means))]
    done = []
    while len(groups) > 1:
        best = None
        for one, other in combinations(groups, 2):
            a = sum(means[c] for c in one) / len(one)
            b = sum(means[c] for c in other) / len(other)
            grown = 2 * len(one) * len(other) / (len(one) + len(other)) * ((a - b) ** 2).sum()
            if best is None or grown < best[0]:
                best = grown, one, other
        assert best is not None
        done.append((best[1], best[2], float(best[0] ** 0.5)))
        groups = [group for group in groups if group not in best[1:]] + [best[1] | best[2]]
    return done


def accuracy_of(node: Node, rows: list[Array], labels: Array, neighbors: int) -> float:
    inside = [row for row, label in zip(rows, labels, strict=True) if label in node]
    center = sum(inside) / len(inside)
    distances = [((row - center) ** 2).sum() for row in rows]
    near = sorted(range(len(rows)), key=lambda i: distances[i])[:neighbors]
    return sum(labels[i] in node for i in near) / neighbors


def reference(stream: MapStream, classes: int, neighbors: int, threshold: float) -> tuple[list[Node], Any]:
    """Return the groups of classes that share a label, and every merge with its height and its accuracy."""
    rows = averaged(stream)
    means = []
    for label in range(classes):
        own = [row for row, of in zip(rows, stream.labels, strict=True) if of == label]
        means.append(sum(own) / len(own))
    done = merges(means)
    scores = {one | other: accuracy_of(one | other, rows, stream.labels, neighbors) for one, other, _ in done}
    halves = {one | other: (one, other) for one, other, _ in done}

    kept: list[Node] = []

    def descend(node: Node) -> None:
        if len(node) == 1 or scores[node] < threshold:
            kept.append(node)
        else:
            for half in halves[node]:
                descend(half)

    descend(frozenset(range(classes)))
    return sorted(kept, key=min), [(one | other, height, scores[one | other]) for one, other, height in done]


CASES = [(0, 2, 3, 0.2), (1, 6, 5, 0.9), (2, 9, 20, 0.75), (3, 12, 20, 0.6), (4, 7, 1, 1.0), (5, 8, 20, 0.0)]


@pytest.mark.parametrize(("seed", "classes", "neighbors", "threshold"), CASES)
def test_labels_tree_and_accuracy_are_the_loops(
    seed: int, classes: int, neighbors: int, threshold: float
) -> None:
    """Labels exactly, heights and accuracy to 1e-5: the loops pool in float64, and the fit rounds to float32."""
    stream = blobs(seed, classes)
    neighbors = min(neighbors, len(stream.labels))
    found = fit(stream, classes, neighbors=neighbors, threshold=threshold).arrays
    groups, done = reference(stream, classes, neighbors, threshold)
    labels = {label: number for number, group in enumerate(groups) for label in group}
    assert found["coarse"].tolist() == [labels[label] for label in range(classes)]
    assert found["sizes"].tolist() == [len(group) for group in groups]
    np.testing.assert_allclose(found["linkage"][:, 2], [height for _, height, _ in done], rtol=1e-5)
    assert found["linkage"][:, 3].tolist() == [len(node) for node, _, _ in done]
    np.testing.assert_allclose(found["accuracy"], [score for _, _, score in done], atol=1e-5)


def test_the_cases_share_labels_and_keep_classes_alone() -> None:
    """What the comparison above rests on."""
    sizes = [fit(blobs(seed, k), k, neighbors=n, threshold=t).arrays["sizes"] for seed, k, n, t in CASES]
    assert any((size > 1).any() and (size == 1).any() for size in sizes)
    assert any((size > 2).any() for size in sizes)


@pytest.mark.parametrize("size", [1, 13, 1000])
def test_blocks_change_nothing(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, also where neighbors lie in other blocks than each other."""
    stream = digit_maps(150)
    whole = fit(stream, threshold=0.9)
    monkeypatch.setattr(pixels, "BLOCK_MULTIPLE", 8)
    monkeypatch.setattr(pixels, "BLOCK_BYTES", 4 * 12 * 8)
    parts = fit(replace(stream, size=size), threshold=0.9)
    for name in ("coarse", "sizes", "accuracy"):
        np.testing.assert_array_equal(parts.arrays[name], whole.arrays[name])
    np.testing.assert_allclose(parts.arrays["linkage"], whole.arrays["linkage"], rtol=1e-12)
    again = fit(replace(stream, size=7), threshold=0.9)
    np.testing.assert_array_equal(again.arrays["linkage"], parts.arrays["linkage"])


def test_a_vector_is_its_map_of_equal_pixels() -> None:
    stream = blobs(3, 12)
    pooled = stream.values.mean(axis=(2, 3), dtype=np.float64).astype(np.float32)
    vector, whole = fit(replace(stream, values=pooled), 12), fit(stream, 12)
    for name, array in whole.arrays.items():
        np.testing.assert_array_equal(vector.arrays[name], array, err_msg=name)


def test_what_the_teacher_tells_apart_stands_alone() -> None:
    far, near = blobs(0, 6, spread=1e-3), blobs(0, 6, spread=30.0)
    assert fit(far, 6, neighbors=5, threshold=0.9).arrays["coarse"].tolist() == [0, 1, 2, 3, 4, 5]
    assert fit(near, 6, neighbors=5, threshold=0.9).arrays["sizes"].max() > 1


def test_quality_counts_the_labels() -> None:
    found = fit(blobs(3, 12), 12, threshold=0.5)
    sizes, accuracy = found.arrays["sizes"], found.arrays["accuracy"]
    assert found.quality == {
        "samples": len(blobs(3, 12).labels),
        "classes": 12,
        "coarse_labels": len(sizes),
        "largest": sizes.max(),
        "classes_alone": (sizes == 1).sum(),
        "mean_accuracy": pytest.approx(accuracy.mean()),
    }
    assert {name: array.dtype for name, array in found.arrays.items()} == {
        "coarse": np.int64, "sizes": np.int64, "linkage": np.float64, "accuracy": np.float64,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("values", "error", "told"),
    [
        (np.zeros((30, 9, 2), np.float32), ParamsError, "Feature 'stage2' has shape (9, 2)"),
        (np.zeros((30, 9, 2, 2), np.uint16), ParamsError, "Feature 'stage2' holds uint16"),
        (np.full((30, 9, 2, 2), np.nan, np.float32), DivergedError, "of sample 0 is not finite"),
        (np.zeros((19, 9, 2, 2), np.float32), ParamsError, "'neighbors: 20' is more than the 19 training"),
    ],
)
def test_what_cannot_be_fitted_is_one_line(values: Array, error: type[Exception], told: str) -> None:
    stream = MapStream(values, np.arange(len(values), dtype=np.int64) % 3)
    with pytest.raises(error) as caught:
        fit(stream, 3)
    one_line(caught, told)


def test_infinities_that_cancel_are_told_with_their_sample() -> None:
    stream = blobs(3, 12)
    stream.values[9, 2, 0, :2] = np.inf, -np.inf
    with pytest.raises(DivergedError) as caught:
        fit(stream, 12)
    one_line(caught, "Feature 'stage2' of sample 9 is not finite")


@pytest.mark.parametrize(
    "settings",
    [{"neighbors": 0}, {"neighbors": 10_001}, {"threshold": -0.1}, {"threshold": 1.1}, {"threshold": np.nan}],
    ids=str,
)
def test_settings_beyond_their_bounds_are_one_line(settings: dict[str, Any]) -> None:
    with pytest.raises(ParamsError) as caught:
        validate(coarse.Config, {"feature": "stage2", **settings}, "tables.coarse1.coarse")
    one_line(caught, f"tables.coarse1.coarse.{next(iter(settings))}")


def test_a_device_changes_nothing() -> None:
    stream = blobs(3, 12)
    config, here = coarse.Config(feature="stage2"), fit(stream, 12).arrays
    for name, array in coarse.fit(stream, config, FitContext(12, "cuda:0")).arrays.items():
        np.testing.assert_array_equal(array, here[name], err_msg=name)


def test_the_stand_in_has_the_most_labels_that_a_fit_can_have() -> None:
    planned = coarse.stand_in(coarse.Config(feature="stage2"), 9, 12)
    finest = fit(blobs(3, 12), 12, threshold=0.0).arrays
    for name, array in planned.items():
        np.testing.assert_array_equal(array, finest[name])

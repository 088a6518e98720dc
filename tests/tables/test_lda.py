"""LDA in one pass, held to scikit-learn's solver "svd" in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from error_fixtures import one_line
from numpy.typing import NDArray
from scipy.linalg import subspace_angles
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from table_fixtures import MapStream, digit_maps, pixel_rows

from pipeline.errors import DivergedError, ParamsError
from pipeline.tables import pixels
from pipeline.tables.discriminants import Scatter
from pipeline.tables.fits import lda
from pipeline.tables.table import FitContext, Fitted

Array = NDArray[Any]


def fit(stream: MapStream, components: int, num_classes: int = 10) -> Fitted:
    return lda.fit(stream, lda.Config(feature="stage3", components=components), FitContext(num_classes))


def known(stream: MapStream) -> LinearDiscriminantAnalysis:
    """Fit scikit-learn's to all pixels, each with its image's label."""
    area = stream.shape[2] * stream.shape[3]
    return LinearDiscriminantAnalysis(solver="svd").fit(
        pixel_rows(stream), [label for label in stream.labels for _ in range(area)]
    )


def dead(stream: MapStream) -> MapStream:
    """Kill two channels: ReLU does that."""
    stream.values[:, [1, 5]] = 0
    return stream


def dependent(stream: MapStream) -> MapStream:
    """Make a channel the sum of two others, but for less than the tolerance."""
    noise = np.random.default_rng(0).normal(size=stream.values[:, 3].shape)
    stream.values[:, 3] = stream.values[:, 4] + stream.values[:, 6] + 1e-6 * noise
    return stream


def scaled(stream: MapStream) -> MapStream:
    """Give the channels scales and offsets far apart."""
    stream.values *= np.logspace(-3, 3, stream.shape[1], dtype=np.float32)[:, None, None]
    stream.values += np.logspace(3, -3, stream.shape[1], dtype=np.float32)[:, None, None]
    return stream


def few(stream: MapStream) -> MapStream:
    """Leave three classes."""
    chosen = stream.labels < 3
    return MapStream(stream.values[chosen], stream.labels[chosen])


CASES = {
    "digits": (digit_maps(300), 9),
    "fewer channels than classes": (digit_maps(300, channels=5), 5),
    "dead channels": (dead(digit_maps(300)), 9),
    "dependent channels": (dependent(digit_maps(300)), 9),
    "scales far apart": (scaled(digit_maps(300)), 9),
    "classes without samples": (few(digit_maps(300)), 2),
}


@pytest.mark.parametrize("size", [1, 64, 1000])
@pytest.mark.parametrize("case", CASES)
def test_the_subspace_is_scikit_learns(case: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest principal angle is below 1e-4, for every number of the first directions."""
    monkeypatch.setattr(pixels, "BLOCK_BYTES", 4 * 12 * 512)  # many blocks
    stream, components = CASES[case]
    found, oracle = fit(replace(stream, size=size), components), known(stream)
    scalings = found.arrays["scalings"]
    assert scalings.shape == (stream.shape[1], components)
    assert found.quality["rank"] == oracle.scalings_.shape[1]
    for first in range(1, components + 1):
        angles = subspace_angles(scalings[:, :first], oracle.scalings_[:, :first])
        assert angles.max() < 1e-4
    # Not only the subspace: each direction, but for its sign. scikit-learn's variances within are over N pixels.
    sign = np.sign((scalings * oracle.scalings_[:, :components]).sum(axis=0))
    total = stream.shape[0] * stream.shape[2] * stream.shape[3]
    factor = np.sqrt(total / (total - found.quality["classes"]))
    expected = oracle.scalings_[:, :components]
    np.testing.assert_allclose(scalings * sign * factor, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.arrays["mean"], oracle.xbar_, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(
        found.arrays["explained"], oracle.explained_variance_ratio_[:components], rtol=1e-6, atol=1e-9
    )


def test_quality_tells_rank_and_what_was_dropped() -> None:
    found = fit(*CASES["dead channels"]).quality
    assert (found["dropped_directions"], found["rank"], found["classes"]) == (2, 9, 10)
    assert fit(*CASES["dependent channels"]).quality["dropped_directions"] == 1
    some = fit(*CASES["classes without samples"])
    assert (some.quality["classes"], some.quality["rank"], some.quality["explained"]) == (
        3,
        2,
        pytest.approx(1),
    )
    assert some.arrays["class_means"].shape == (10, 12)
    assert (some.arrays["class_means"][3:] == 0).all()
    part = fit(digit_maps(300), 2)
    assert part.quality["explained"] == pytest.approx(part.arrays["explained"].sum())
    assert part.quality["explained_first"] == part.arrays["explained"][0]
    assert part.quality["explained"] < 1
    assert part.quality["pixels"] == 300 * 16


def test_means_and_scatter_are_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """To 1e-9, over many blocks."""
    monkeypatch.setattr(pixels, "BLOCK_BYTES", 4 * 12 * 256)
    stream = digit_maps(100)
    x, label = pixel_rows(stream), np.repeat(stream.labels, 16)
    scatter = Scatter.empty(10, 12)
    for block in pixels.Pixels.of(stream, "stage3"):
        scatter.add(block.x, block.label)
    within = np.zeros((12, 12))
    for c in range(10):
        mean = x[label == c].mean(axis=0)
        np.testing.assert_allclose(scatter.means[c], mean, rtol=1e-9)
        assert scatter.counts[c] == (label == c).sum()
        for row in x[label == c]:
            within += np.outer(row - mean, row - mean)
    np.testing.assert_allclose(scatter.within, within, rtol=1e-9, atol=1e-9)
    arrays = fit(stream, 9).arrays
    np.testing.assert_allclose(arrays["class_means"], scatter.means, rtol=1e-12)
    np.testing.assert_allclose(arrays["priors"], scatter.counts / len(x), rtol=1e-12)


def test_whitened_pixels_have_unit_scatter_within() -> None:
    """To 1e-6: what the scalings are for. (sum of z z^T within classes) / (N - K) is the identity."""
    stream = digit_maps(200)
    found = fit(stream, 9).arrays
    label = np.repeat(stream.labels, 16)
    z = (pixel_rows(stream) - found["mean"]) @ found["scalings"]
    rest = np.concatenate([z[label == c] - z[label == c].mean(axis=0) for c in range(10)])
    np.testing.assert_allclose(rest.T @ rest / (len(z) - 10), np.eye(9), atol=1e-6)


def test_blocks_change_nothing_and_one_pass_does() -> None:
    """Bit for bit."""
    stream = digit_maps(150)
    whole = fit(stream, 9)
    assert stream.passes == 1
    for size in (1, 13, 150):
        again = fit(replace(stream, size=size), 9)
        for name, array in whole.arrays.items():
            np.testing.assert_array_equal(again.arrays[name], array)
        assert again.quality == whole.quality
    largest = np.abs(whole.arrays["scalings"]).argmax(axis=0)
    assert (whole.arrays["scalings"][largest, np.arange(9)] > 0).all()


def broken(stream: MapStream) -> MapStream:
    stream.values[7, 0, 0, 0] = np.inf
    return stream


@pytest.mark.parametrize(
    ("stream", "components", "error", "message"),
    [
        (digit_maps(100), 10, ParamsError, "'components: 10' is more than the 9 .* with 10 classes and 12 chan"),
        (digit_maps(100, channels=4), 5, ParamsError, "more than the 4 directions"),
        (few(digit_maps(100)), 3, ParamsError, "more than the 2 directions that LDA has with 3 classes with pix"),
        (MapStream(np.ones((50, 4, 2, 2), np.float32), np.arange(50) % 10), 2, ParamsError, "more than the 0"),
        (MapStream(np.zeros((9, 99), np.float32), np.zeros(9, int)), 9, ParamsError, r"has shape \(99,\)"),
        (MapStream(np.zeros((9, 9, 2, 2), np.uint8), np.zeros(9, int)), 3, ParamsError, "holds uint8"),
        (broken(digit_maps(30)), 9, DivergedError, "of sample 7 is not finite"),
    ],
)  # fmt: skip
def test_what_has_no_such_directions_is_reported_in_one_line(
    stream: MapStream, components: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        fit(stream, components)
    one_line(caught)
    assert str(caught.value).endswith("then: dvc repro")

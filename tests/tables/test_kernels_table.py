"""The table of kernels, held to loops in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from table_fixtures import MapStream, digit_maps, pixel_rows

from pipeline.errors import DivergedError, ParamsError
from pipeline.tables import pixels
from pipeline.tables.fits import kernels
from pipeline.tables.table import FitContext, Fitted


def fit(stream: MapStream, scale: float = 1.0) -> Fitted:
    return kernels.fit(stream, kernels.Config(feature="stage3", scale=scale), FitContext(10))


def activations(samples: int, channels: int = 12) -> MapStream:
    """Return maps with negative values too, as before a batch norm."""
    stream = digit_maps(samples, channels)
    stream.values += np.random.default_rng(0).normal(size=stream.values.shape).astype(np.float32)
    return stream


def softmax(row: list[float]) -> list[float]:
    weight = [math.exp(value - max(row)) for value in row]
    return [w / sum(weight) for w in weight]


@pytest.mark.parametrize("scale", [0.25, 1.0, 4.0])
def test_quality_is_the_loop(scale: float) -> None:
    """p_T = softmax(scale * a), with its sign: counts exact, means to 1e-5."""
    stream = activations(50)
    stream.values[:, 3] = -9  # a kernel that never wins
    found = fit(stream, scale)
    x, counts, largest, entropy = pixel_rows(stream), [0] * 12, 0.0, 0.0
    for row in x:
        p = softmax([scale * value for value in row])
        counts[p.index(max(p))] += 1
        largest += max(p) / len(x)
        entropy -= sum(q * math.log(q) for q in p if q > 0) / len(x)
    assert found.arrays["counts"].tolist() == counts
    assert found.quality["mean_max_probability"] == pytest.approx(largest, rel=1e-5)
    assert found.quality["mean_entropy"] == pytest.approx(entropy, rel=1e-5)
    assert found.quality["unused_kernels"] == counts.count(0) >= 1
    assert (found.quality["kernels"], found.quality["pixels"]) == (12, 800)
    assert found.arrays["scale"] == np.float32(scale)
    assert found.arrays["scale"].dtype == np.float32


def test_the_gallery_shows_the_pixels_of_largest_probability() -> None:
    stream = activations(40)
    found = fit(stream, 0.5).arrays
    assert found["gallery"].tolist() == sorted(range(12), key=lambda k: -found["counts"][k])
    for shown, kernel in enumerate(found["gallery"]):
        best = []
        for sample, values in enumerate(stream.values.astype(np.float64)):
            p = np.array([softmax((0.5 * column).tolist()) for column in values.reshape(12, -1).T])
            pixel = int(p[:, kernel].argmax())
            best.append((-p[pixel, kernel], sample, *divmod(pixel, 4)))
        best.sort()
        for axis, part in (("sample", 1), ("row", 2), ("column", 3)):
            assert found[f"nearest_{axis}"][shown].tolist() == [entry[part] for entry in best[:9]]


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit."""
    monkeypatch.setattr(pixels, "BLOCK_BYTES", 4 * 12 * 256)
    stream = activations(60)
    whole = fit(stream)
    for size in (1, 13):
        again = fit(replace(stream, size=size))
        assert again.quality == whole.quality
        for name, array in whole.arrays.items():
            np.testing.assert_array_equal(again.arrays[name], array)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (np.zeros((9, 99), np.float32), ParamsError, r"has shape \(99,\)"),
        (np.zeros((9, 9, 2, 2), np.uint16), ParamsError, "holds uint16"),
        (np.full((9, 9, 2, 2), np.nan, np.float32), DivergedError, "of sample 0 is not finite"),
    ],
)
def test_what_is_no_map_is_reported(values: np.ndarray, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fit(MapStream(values, np.zeros(9, np.int64)))

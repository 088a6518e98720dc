"""Fits by torch on a device, held to the CPU engine, to scikit-learn and to loops in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from device_fixtures import current, here
from numpy.typing import NDArray
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from table_fixtures import MapStream, apart, digit_maps, pixel_rows
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline import plugin
from pipeline.errors import DivergedError, ParamsError
from pipeline.tables import clustering, exemplars
from pipeline.tables.device import gallery, lloyd, nearest, rows, start
from pipeline.tables.device.fixed_point import FixedPoint
from pipeline.tables.device.rows import DeviceRows, Rows
from pipeline.tables.device.scatter import DeviceScatter, scatter
from pipeline.tables.discriminants import Scatter
from pipeline.tables.pixels import Block, Pixels
from pipeline.tables.softness import Softness
from pipeline.tables.table import FitContext, Fitted

Array = NDArray[Any]

pytestmark = pytest.mark.usefixtures("device")

SETTINGS: dict[str, dict[str, Any]] = {
    "kmeans": {"clusters": 30, "iterations": 6},
    "kernels": {"scale": 0.5},
    "lda": {"components": 9},
    "moments": {},
    "subclasses": {"components": 9, "per_class": 3, "iterations": 6},
}


def fit(name: str, stream: MapStream, device: str | None, **settings: Any) -> Fitted:
    module = plugin.load("tables", name)
    config = module.Config(feature="stage3", **(SETTINGS[name] | settings))
    fitted: Fitted = module.fit(stream, config, FitContext(10, device))
    return fitted


def on_device(x: Array, label: Array | None = None, size: int = 300, budget: int | None = None) -> DeviceRows:
    """Return rows (n, D) on the device of the test, read in blocks of `size`."""
    x = x.astype(np.float32)
    label = np.zeros(len(x), np.int64) if label is None else label

    def read() -> list[Rows]:
        whole = Rows(*(here(torch.from_numpy(part)) for part in (x, label, np.arange(len(x)))))
        return [Rows(*(part[i : i + size] for part in whole)) for i in range(0, len(x), size)]

    return DeviceRows(read, len(x), x.shape[1], current().device, budget=budget)


def blocks(x: Array) -> list[Block]:
    return [Block(x.astype(np.float32), np.zeros(len(x), np.int64), np.arange(len(x)))]


def centers_of(x: Array) -> torch.Tensor:
    return here(torch.from_numpy(x.astype(np.float32)))


def squared(x: Array, centers: Array) -> Array:
    """Return squared distances (n, K) in float64."""
    return np.array([[((row - center) ** 2).sum() for center in centers] for row in x.astype(np.float64)])


def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut rows into many blocks, and blocks into many tiles."""
    monkeypatch.setattr(rows, "BLOCK_BYTES", 4 * 12 * 256)
    monkeypatch.setattr(nearest, "TILE_BYTES", 4 * 30 * 100)


# Whole tables against the CPU engine.


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_a_table_is_the_cpu_engines(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays and quality to 1e-5 of their size, integers exactly: no pixel here lies between two centers."""
    small_blocks(monkeypatch)
    stream = apart(digit_maps(120))
    ours, known = fit(name, stream, device), fit(name, stream, None)
    assert ours.arrays.keys() == known.arrays.keys()
    for key, array in known.arrays.items():
        assert ours.arrays[key].dtype == array.dtype
        if array.dtype.kind == "i":
            np.testing.assert_array_equal(ours.arrays[key], array, err_msg=key)
        else:
            scale = np.abs(array).max()
            np.testing.assert_allclose(ours.arrays[key], array, rtol=1e-5, atol=1e-5 * scale, err_msg=key)
    assert ours.quality == pytest.approx(known.quality, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_streamed_is_resident(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, whatever the blocks of the store; moments and LDA go through the rows once in either case."""
    small_blocks(monkeypatch)
    stream = digit_maps(100)
    resident = fit(name, stream, device)

    monkeypatch.setattr(rows, "free_bytes", lambda device: 0)
    streamed = replace(stream, passes=0)
    again = fit(name, streamed, device)
    assert streamed.passes == {"lda": 1, "moments": 1}.get(name, streamed.passes)
    assert streamed.passes > 1 or name in ("lda", "moments")
    assert again.quality == resident.quality
    for key, array in resident.arrays.items():
        np.testing.assert_array_equal(again.arrays[key], array, err_msg=key)

    other = fit(name, replace(stream, size=7), device)
    for key, array in resident.arrays.items():
        if name == "moments":  # merged by the store's blocks, in float64
            np.testing.assert_allclose(other.arrays[key], array, rtol=1e-12)
        else:
            np.testing.assert_array_equal(other.arrays[key], array, err_msg=key)


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_the_same_fit_gives_the_same_bits(name: str, device: str) -> None:
    stream = digit_maps(60)
    first, second = fit(name, stream, device), fit(name, stream, device)
    assert first.quality == second.quality
    for key, array in first.arrays.items():
        np.testing.assert_array_equal(second.arrays[key], array, err_msg=key)


def test_a_subset_of_images_is_the_cpu_engines(device: str) -> None:
    stream = digit_maps(100)
    ours, known = (fit("kmeans", stream, place, clusters=5, max_samples=17) for place in (device, None))
    assert ours.quality["samples"] == 17
    np.testing.assert_array_equal(ours.arrays["counts"], known.arrays["counts"])
    np.testing.assert_array_equal(ours.arrays["nearest_sample"], known.arrays["nearest_sample"])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["kmeans", "kernels", "lda", "subclasses"])
def test_what_is_not_finite_is_reported(name: str, bad: float, device: str) -> None:
    stream = digit_maps(80)
    stream.values[33, 2, 1, 3] = stream.values[50, 0, 0, 0] = bad
    with pytest.raises(DivergedError, match="Feature 'stage3' of sample 33 is not finite"):
        fit(name, stream, device)
    integers = MapStream(np.zeros((80, 12, 2, 2), np.uint16), np.arange(80) % 10)
    with pytest.raises(ParamsError, match="holds uint16"):
        fit(name, integers, device)


# K-means.


def test_an_assignment_and_its_means_are_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Assignments exactly, sums to 1e-12, centers to 1e-6.

    Two centers are copies. Which of both a pixel goes to is the rounding of a product on this CPU.
    """
    monkeypatch.setattr(nearest, "TILE_BYTES", 4 * 11 * 64)
    x = np.random.default_rng(1).normal(size=(700, 4)).astype(np.float32)
    first = np.concatenate([x[:9], x[3:4], x[:1]])
    alike = np.array([*range(9), 3, 0])
    nearest_one = squared(x, first).argmin(axis=1)
    assert nearest_one.max() == 8

    points, centers = on_device(x), centers_of(first)
    unit = FixedPoint.of(points)
    found = lloyd.members(points, centers, unit)
    label = found.cluster.cpu().numpy()
    np.testing.assert_array_equal(alike[label], nearest_one)
    np.testing.assert_array_equal(found.counts.cpu(), np.bincount(label, minlength=11))
    sums = np.array([x[label == k].sum(axis=0, dtype=np.float64) for k in range(11)])
    np.testing.assert_allclose(found.sums.double().cpu() / unit.scale, sums, atol=1e-12)

    moved = lloyd.lloyd(on_device(x), centers_of(x[:9]), 1)
    means = np.array([x[nearest_one == k].mean(axis=0, dtype=np.float64) for k in range(9)])
    np.testing.assert_allclose(moved.centers.cpu(), means, atol=1e-6)


@pytest.mark.parametrize("clusters", [1, 2, 20])
def test_lloyd_is_scikit_learns_from_the_same_start(clusters: int) -> None:
    """To 1e-5, and in as many iterations."""
    x = pixel_rows(digit_maps(200))
    x -= x.mean(axis=0)
    first = x[:: len(x) // clusters][:clusters]
    known = KMeans(clusters, init=first, n_init=1, max_iter=7, tol=0).fit(x)
    found = lloyd.lloyd(on_device(x), centers_of(first), 7)
    np.testing.assert_allclose(found.centers.cpu(), known.cluster_centers_, atol=1e-5)
    assert found.iterations == known.n_iter_


@pytest.mark.parametrize("budget", [0, None])
def test_empty_clusters_go_where_the_cpu_engine_puts_them(budget: int | None) -> None:
    """To 1e-6: three of the first centers lie where no row is, and one row is there twice."""
    x = np.random.default_rng(0).normal(size=(500, 3))
    x[7], x[403] = 9, 9  # two equally far rows: the first is taken
    first = np.concatenate([x[10:15], np.full((3, 3), 50.0) + np.arange(3)[:, None]]).astype(np.float32)
    for iterations in (1, 5):
        known = clustering.lloyd(blocks(x), first, iterations)
        found = lloyd.lloyd(on_device(x, budget=budget), centers_of(first), iterations)
        np.testing.assert_allclose(found.centers.cpu(), known.centers, atol=1e-6)
        assert found.relocated == known.relocated >= 3


def test_fewer_kinds_of_rows_than_clusters_leave_some_empty(device: str) -> None:
    stream = digit_maps(30)
    stream.values[:] = np.sign(stream.values[:, :1]) * np.float32(3)  # two kinds of pixels
    found = fit("kmeans", stream, device, clusters=4)
    assert found.quality["empty_clusters"] == 2
    assert found.quality["inertia"] == pytest.approx(0, abs=1e-6)
    assert found.arrays["counts"].sum() == 30 * 16
    assert len(found.arrays["gallery"]) == 2


@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize("clusters", [1, 7, 200])
def test_the_start_is_scikit_learns(clusters: int, offset: float) -> None:
    """Exactly: the same rows in the same order."""
    x = pixel_rows(digit_maps(120)).astype(np.float32) + np.float32(offset)
    for seed in range(3):
        known, _ = kmeans_plusplus(x, clusters, random_state=clustering.state(seed))
        found = start.plus_plus(centers_of(x), clusters, seed)
        np.testing.assert_array_equal(found.cpu(), known)


def test_the_start_takes_the_cpu_engines_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clustering, "START_ROWS", 300)
    x = pixel_rows(digit_maps(100)).astype(np.float32)
    known = clustering.start(blocks(x), len(x), 20, 5)
    for budget in (0, None):
        np.testing.assert_array_equal(start.start(on_device(x, budget=budget), 20, 5).cpu(), known)


def test_a_start_of_equal_rows_is_possible() -> None:
    found = start.plus_plus(centers_of(np.full((40, 3), 2.5)), 4, 0)
    np.testing.assert_array_equal(found.cpu(), np.full((4, 3), 2.5))


# Sums.


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e20])
def test_sums_depend_on_no_order_and_are_exact(scale: float) -> None:
    """Bit for bit in two orders; to the documented half a unit a row of exact sums."""
    draw = np.random.default_rng(0)
    x = (draw.normal(size=(3000, 3)) * draw.lognormal(0, 3, size=(3000, 3)) * scale).astype(np.float32)
    group, order = draw.integers(0, 4, 3000), draw.permutation(3000)
    unit = FixedPoint.of(on_device(x))

    def sums(places: Array) -> torch.Tensor:
        total = here(torch.zeros(4, 3, dtype=torch.int64))
        rows, groups = centers_of(x[places]), here(torch.from_numpy(group[places]))
        return total.index_add_(0, groups, unit.counted(rows))

    found = sums(np.arange(3000))
    assert torch.equal(found, sums(order))
    exact = np.array([[sum(map(int, column)) for column in _units(x[group == k], unit).T] for k in range(4)])
    np.testing.assert_array_equal(found.cpu(), exact)
    largest = float(np.abs(x).max())
    assert largest * 3000 * unit.scale < 2**62
    assert 0.5 / unit.scale <= largest * 3000 * 2.0**-62 * 2


def _units(x: Array, unit: FixedPoint) -> Array:
    return np.round(x.astype(np.float64) * unit.scale)


def test_rows_of_zeros_have_a_unit() -> None:
    unit = FixedPoint.of(on_device(np.zeros((5, 2))))
    assert np.isfinite(unit.scale)
    assert unit.counted(here(torch.zeros(2, 2))).tolist() == [[0, 0], [0, 0]]


# LDA.


@pytest.mark.parametrize("size", [17, 1000])
def test_the_scatter_is_the_cpu_engines(size: int, device: str) -> None:
    """To 1e-9, over blocks in which classes are missing, and of a class that has no pixels at all."""
    stream = digit_maps(100)
    x, label = pixel_rows(stream), np.repeat(stream.labels, 16)
    kept = label != 4
    known = Scatter.empty(10, 12)
    known.add(x[kept].astype(np.float32), label[kept])

    order = np.argsort(label[kept], kind="stable")  # so that blocks lack classes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.tables.device.scatter.ROWS", size)
        found = scatter(on_device(x[kept][order], label[kept][order]), 10, "LDA")
    np.testing.assert_array_equal(found.counts, known.counts)
    np.testing.assert_allclose(found.means, known.means, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.within, known.within, rtol=1e-9, atol=1e-9)


def test_the_directions_are_scikit_learns(device: str) -> None:
    """To 1e-5, but for the sign and the factor of `test_lda`."""
    stream = digit_maps(300)
    found = fit("lda", stream, device)
    known = LinearDiscriminantAnalysis(solver="svd").fit(pixel_rows(stream), np.repeat(stream.labels, 16))
    scalings, expected = found.arrays["scalings"], known.scalings_[:, :9]
    sign = np.sign((scalings * expected).sum(axis=0))
    factor = np.sqrt(4800 / (4800 - found.quality["classes"]))
    np.testing.assert_allclose(scalings * sign * factor, expected, rtol=1e-5, atol=1e-7)
    assert fit("lda", stream, device, components=4).arrays["scalings"].shape == (12, 4)
    with pytest.raises(ParamsError, match="'components: 10' is more than the 9 directions"):
        fit("lda", stream, device, components=10)


# Sub-classes.


def test_all_classes_at_once_are_each_alone() -> None:
    """Bit for bit: centers, and how many were relocated; class 1 has two kinds of rows and an empty cluster."""
    draw = np.random.default_rng(2)
    x, label = draw.normal(size=(600, 3)), np.arange(600) % 3
    x[label == 1] = np.sign(x[label == 1][:, :1])
    first = np.concatenate([x[label == c][:4] for c in range(3)])
    first[2] = 50  # no row of class 0 is near
    together = lloyd.lloyd(on_device(x, label), centers_of(first), 30, per_class=4)

    relocated = 0
    for c in range(3):
        own = np.zeros((label == c).sum(), np.int64)
        alone = lloyd.lloyd(
            on_device(x[label == c], own), centers_of(first[4 * c : 4 * c + 4]), 30, per_class=4
        )
        assert torch.equal(together.centers[4 * c : 4 * c + 4], alone.centers)
        relocated += alone.relocated
    assert together.relocated == relocated > 0


def test_a_row_goes_to_the_nearest_center_of_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop, exactly; of equally near ones the first."""
    monkeypatch.setattr(nearest, "TILE_BYTES", 4 * 12 * 50)
    draw = np.random.default_rng(3)
    x, label = draw.normal(size=(400, 4)), draw.integers(0, 5, 400)
    centers = draw.normal(size=(15, 4))
    centers[4] = centers[3]
    points = on_device(x, label)
    found = lloyd.members(points, centers_of(centers), FixedPoint.of(points), 3)
    distance = squared(x.astype(np.float32), centers.astype(np.float32))
    expected = [3 * c + row[3 * c : 3 * c + 3].argmin() for row, c in zip(distance, label, strict=True)]
    np.testing.assert_array_equal(found.cluster.cpu(), expected)
    assert int(found.counts[4]) == 0


def test_samples_of_classes_do_not_depend_on_the_memory(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit: one class a pass, and all in one."""
    monkeypatch.setattr(clustering, "START_ROWS", 50)
    stream = digit_maps(150)
    whole = fit("subclasses", stream, device)
    monkeypatch.setattr(rows, "free_bytes", lambda device: 4 * 9 * 50)
    np.testing.assert_array_equal(
        fit("subclasses", stream, device).arrays["centers"], whole.arrays["centers"]
    )
    np.testing.assert_allclose(
        fit("subclasses", stream, None).arrays["centers"], whole.arrays["centers"], atol=1e-4
    )


def test_a_class_with_too_few_pixels_is_reported(device: str) -> None:
    with pytest.raises(ParamsError, match=r"Class \d has \d+ pixels .*, fewer than 'per_class: 900'"):
        fit("subclasses", digit_maps(100), device, per_class=900)


# Rows and exemplars.


def test_rows_are_the_pixels_of_the_cpu_engine(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "BLOCK_BYTES", 4 * 12 * 256)
    stream = replace(digit_maps(50), size=11)
    samples = np.random.default_rng(0).random(50) < 0.7
    for pixels in (Pixels.of(stream, "a"), Pixels(stream, "a", samples)):
        known = [np.concatenate(parts) for parts in zip(*pixels, strict=True)]
        for budget in (0, 1 << 30):
            points = DeviceRows.of(pixels, torch.device(device), budget)
            assert points.resident == (budget > 0)
            for part, expected in zip(zip(*points, strict=True), known, strict=True):
                np.testing.assert_array_equal(torch.cat(part).cpu(), expected)
            assert {len(block.x) for block in points} - {256} == {len(points) % 256}

            places = np.random.default_rng(1).integers(0, len(points), 90)
            taken = points.take(here(torch.from_numpy(places)))
            np.testing.assert_array_equal(taken.cpu(), known[0][places])


def test_the_best_pixel_of_each_image_is_the_loop() -> None:
    """Of blocks that begin and end within an image, of images that are not there, of ties, and of none at all."""
    draw = np.random.default_rng(0)
    pixel = np.concatenate([np.arange(5, 16), np.arange(24, 40), np.arange(72, 75)])
    scores = draw.integers(0, 4, (len(pixel), 3)).astype(np.float32)
    scores[11:19, 2] = -np.inf  # image 3 is not in group 2
    found = exemplars.Gallery(np.arange(3), 2, 4)
    values, first = gallery.best_of_images(centers_of(scores), here(torch.from_numpy(pixel)), 8)
    found.add(values.cpu().numpy(), first.cpu().numpy())

    known = exemplars.exemplars(
        [Block(np.zeros((len(pixel), 1)), np.zeros(len(pixel)), pixel)],
        np.arange(3),
        lambda block: scores,
        2,
        4,
    )
    for name, array in known.items():
        np.testing.assert_array_equal(found.arrays()[name], array)
    for group in range(3):
        best = {int(image): scores[pixel // 8 == image, group].max() for image in np.unique(pixel // 8)}
        shown = [image for image in known["nearest_sample"][group] if image >= 0]
        assert sorted(shown) == [image for image, value in best.items() if value > -np.inf]


# Without a GPU.


@pytest.mark.cpu
def test_a_pass_stays_on_a_gpu_and_never_waits_for_it() -> None:
    """Under torch's fake tensors, which have a device and no values: reading one, or mixing devices, is an error."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    gpu, count = torch.device("cuda"), 5000
    with FakeTensorMode():
        x, label = torch.empty(count, 12, device=gpu), torch.zeros(count, dtype=torch.int64, device=gpu)
        block = Rows(x, label, torch.arange(count, device=gpu))
        points = DeviceRows(lambda: [block], count, 12, gpu, budget=1 << 40)
        assert points.resident
        centers, unit = torch.empty(20, 12, device=gpu), FixedPoint(2.0**30)
        for per_class in (None, 4):
            found = lloyd.members(points, centers, unit, per_class)
            lloyd.distances(points, centers, found.cluster)
            assert unit.mean(found.sums, found.counts).device.type == "cuda"

        sums = DeviceScatter(10, 12, gpu)
        sums.add(x, label)
        softness = Softness()
        softness.add(torch.addmm((centers**2).sum(dim=1), x, centers.T, beta=-1, alpha=2))
        best, first = gallery.best_of_images(torch.empty(count, 3, device=gpu), block.pixel, 16)
        for result in (sums.within, softness.entropy, best, first):
            assert isinstance(result, torch.Tensor)
            assert result.device.type == "cuda"


def test_an_iteration_reads_two_numbers_back() -> None:
    """Whether a cluster is empty, and whether a center has moved: as often in many blocks as in one."""
    x = pixel_rows(digit_maps(60)).astype(np.float32)

    def read_back(iterations: int) -> int:
        points = on_device(x, budget=0, size=100)
        with ReadBack() as seen:
            assert lloyd.lloyd(points, centers_of(x[::100]), iterations).iterations == iterations
        return seen.number

    before = read_back(1)
    with pytest.MonkeyPatch.context() as patch:
        small_blocks(patch)
        assert read_back(1) == before
        assert read_back(4) == before + 3 * 2


class ReadBack(TorchDispatchMode):
    """Counts the operations for whose result Python waits."""

    number = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        waits = ("_local_scalar_dense", "equal", "nonzero", "bincount", "unique_dim", "_unique2")
        self.number += func.overloadpacket.__name__ in waits
        return func(*args, **(kwargs or {}))

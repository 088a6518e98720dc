"""Precision is one choice, and the gate knows what each costs: rounding passes it, and planted errors do not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from device_fixtures import current, here, running_on
from feature_fixtures import CROPS, MADE_BY, no_progress, prepare
from numpy.typing import NDArray
from torch import Tensor

from pipeline.compute import precision as precisions
from pipeline.compute.machine import Machine, machine
from pipeline.compute.precision import NAMES, Precision
from pipeline.data.normalize import Normalize
from pipeline.data.prepared import Prepared
from pipeline.data.views import view_space
from pipeline.errors import MachineError, ParamsError
from pipeline.features import check, difference
from pipeline.features.check import Live
from pipeline.features.difference import Difference
from pipeline.features.extract import Extraction, stored_features
from pipeline.features.manifest import Manifest
from pipeline.features.store import StoredArray, array_path
from pipeline.features.teacher import Teacher
from pipeline.networks.network import Network, build
from pipeline.networks.spec import NetworkSpec

pytestmark = pytest.mark.usefixtures("device")

Array = NDArray[np.float64]

REQUESTED = {"logits": (3, "float32"), "final": (1, "float16"), "stage2:attention": (0, "float32")}
FAMILIES = {"resnet": "resnet20", "wrn": "wrn_16_1", "vgg": "vgg8"}
SPEC = NetworkSpec(family="resnet", network="resnet20", size=16, channels=3, classes=10)


# The choice.


@pytest.mark.cpu
def test_the_same_bits_are_asked_for_within_a_block_alone() -> None:
    def asked() -> tuple[bool, bool]:
        return torch.backends.cudnn.deterministic, torch.are_deterministic_algorithms_enabled()

    before = asked()
    with precisions.same_bits_within():
        assert asked() == (True, True)
        with precisions.same_bits_within():
            pass
        assert asked() == (True, True)  # of the block around it
    assert not before[1]
    assert not asked()[1]


def test_auto_is_float32_on_a_cpu_and_tf32_on_a_gpu() -> None:
    assert precisions.resolve("auto", torch.device("cpu")) == "float32"
    assert precisions.resolve("auto", torch.device("cuda")) == "tf32"
    assert machine("cpu").precision == "float32"
    assert machine("cpu", "bfloat16").precision == "bfloat16"


@pytest.mark.cpu
@pytest.mark.parametrize("name", ["tf32", "float16"])
def test_a_precision_that_a_device_lacks_is_refused(name: str) -> None:
    with pytest.raises(MachineError, match=f"--precision is '{name}'.*Give auto, float32"):
        machine("cpu", name)


def flags() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.mark.cpu
def test_float32_switches_tf32_off_and_the_others_allow_it() -> None:
    """What torch is told, which is the same with and without a GPU."""
    before = flags()
    try:
        for name in NAMES:
            precisions.apply(name)
            assert flags() == ((name != "float32"),) * 2
            with precisions.using("float32"):
                assert flags() == (False, False)
            with precisions.full_products():
                assert flags() == (False, name != "float32")
            assert flags() == ((name != "float32"),) * 2
        machine("cpu")
        assert flags() == (False, False)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_tf32_keeps_ten_bits_of_fraction() -> None:
    x = here(torch.tensor([1.0, 1 + 2**-10, 1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-11 + 2**-20, -3.1415927]))
    expected = [1.0, 1 + 2**-10, 1.0, 1 + 2 * 2**-10, 1 + 2**-10, -3.140625]  # ties to even
    assert check.tf32(x).tolist() == expected


# The gate.


@dataclass(frozen=True)
class Made:
    """A store of one precision, and what it was made from."""

    path: Path
    manifest: Manifest
    prepared: Prepared
    network: Network

    def normalize(self, shift: float = 0.0) -> Normalize:
        meta = self.prepared.meta
        return Normalize([m + shift for m in meta.mean], meta.std, current().device)

    def worst(self, network: Network | None = None, shift: float = 0.0) -> dict[str, Difference]:
        """Return the worst difference of every array of the training split, as a GPU or a CPU finds it."""
        live = Live.of(
            network or self.network, self.manifest.precision, current().device, self.normalize(shift)
        )
        splits, space = {"train": self.prepared.split("train")}, view_space(CROPS)
        found = check.compare(self.path, self.manifest, live, "last", splits, space, rows=96)
        return {
            name: difference.worst(one for one in found if one.array.endswith(name)) for name in REQUESTED
        }

    def altered(self, folder: Path, name: str, change: Callable[[Array], Array]) -> Made:
        """Return a copy whose values of a feature (slots, N, ...) are changed."""
        made = extracted(folder, self.prepared, self.network, self.manifest.precision)
        array = StoredArray(array_path(made.path, "last", "train", name))
        array.write(0, 0, change(array.all().astype(np.float64)).astype(array.dtype))
        return made


def as_trained(spec: NetworkSpec, prepared: Prepared, seed: int) -> Network:
    """Return a network whose batch norms know the images: what an untrained one rounds is beside the point."""
    network = here(build(spec, seed)).train()
    normalize = Normalize(prepared.meta.mean, prepared.meta.std, current().device)
    with torch.no_grad():
        for _ in range(10):
            network(normalize(here(torch.from_numpy(np.array(prepared.split("train").images)))))
    return network.eval()


def extracted(folder: Path, prepared: Prepared, network: Network, precision: Precision) -> Made:
    """Extract features; TF32, where a device does not have it, is a network that rounds its factors."""
    imitated = precision == "tf32" and current().device.type != "cuda"
    rough = check.rounded(network) if imitated else network
    where = replace(current(), precision="float32" if imitated else precision)
    teacher, meta = Teacher(rough, where), prepared.meta
    manifest = Manifest.of(
        meta,
        CROPS,
        SPEC,
        {"last": "0" * 32},
        precision,
        stored_features(REQUESTED, teacher, meta.channels, meta.size),
        teacher="small",
        made_by=MADE_BY,
    )
    normalize = Normalize(meta.mean, meta.std, current().device)
    splits, space = prepared.splits, view_space(CROPS)
    path = folder / "small.zarr"
    # Batches of another size than the gate's: the sums of a product run in another order.
    extraction = Extraction(manifest, {"last": teacher}, splits, space, normalize, batch_size=16)
    with precisions.using(where.precision):
        return Made(path, extraction.run(path, no_progress), prepared, network)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(tmp_path_factory.mktemp("data") / "d", samples=(48, 8), channels=3, size=16)


@pytest.fixture(scope="module")
def teacher(device: str, prepared: Prepared) -> Network:
    return as_trained(SPEC, prepared, 0)


@pytest.fixture(scope="module", params=NAMES)
def made(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    prepared: Prepared,
    teacher: Network,
) -> Made:
    return extracted(tmp_path_factory.mktemp("store"), prepared, teacher, request.param)


def test_what_float16_rounds_is_not_refused() -> None:
    """Of values in its normal range, below it, and of rows larger than the others; what it cannot hold is."""
    draw = np.random.default_rng(0)
    for size, passes in ((1.0, True), (1e-5, True), (1e-8, False)):
        measured = difference.Floats("float32", np.dtype(np.float16))
        rows = np.geomspace(1, 30, 40)[:, None, None] * size * np.abs(draw.normal(size=(40, 6, 4)))
        exact = torch.from_numpy(rows.astype(np.float32))
        measured.add(0, torch.arange(40), exact.numpy().astype(np.float16), exact, exact)
        found = measured.differences("last/train/a")
        assert all(one.share <= 1 for one in found) == passes, list(map(str, found))


@pytest.mark.parametrize("precision", NAMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_rounding_is_never_refused(
    tmp_path: Path, prepared: Prepared, family: str, precision: Precision
) -> None:
    """Trained-like and untrained networks of several families."""
    spec = SPEC.model_copy(update={"family": family, "network": FAMILIES[family]})
    for number, network in enumerate((as_trained(spec, prepared, 1), build(spec, 2).eval())):
        found = extracted(tmp_path / str(number), prepared, network, precision).worst()
        assert all(one.share <= 1 for one in found.values()), list(map(str, found.values()))


@pytest.mark.parametrize("precision", NAMES)
def test_a_store_serves_on_every_device(
    device: str, tmp_path: Path, prepared: Prepared, teacher: Network, precision: Precision
) -> None:
    """Made on one, it passes the gate of the other."""
    for maker, reader in {(device, "cpu"), ("cpu", device)}:
        with running_on(maker):
            made = extracted(tmp_path / f"{maker}-{reader}", prepared, copy.deepcopy(teacher), precision)
        with running_on(reader):
            assert all(one.share <= 1 for one in made.worst().values())


def test_the_manifest_records_the_precision(made: Made) -> None:
    assert made.manifest.precision in NAMES
    assert (
        Teacher(made.network, Machine(current().device, made.manifest.precision)).machine.precision in NAMES
    )


def test_the_weights_of_another_checkpoint_are_found(made: Made, prepared: Prepared) -> None:
    found = made.worst(network=as_trained(SPEC, prepared, 9))
    assert all(one.share > 1 for one in found.values())


def test_slightly_different_weights_are_found(made: Made) -> None:
    """An earlier epoch of the same training: weights that have moved by 5 %."""
    moved = copy.deepcopy(made.network)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for x in moved.parameters():
            if x.ndim > 1:
                x += 0.05 * x.std() * here(torch.randn(x.shape, generator=draw))
    assert made.worst(network=moved)["logits"].share > 1


def test_another_normalization_is_found(made: Made) -> None:
    assert all(one.share > 1 for one in made.worst(shift=0.05).values())


PLANTED: dict[str, Callable[[Array], Array]] = {
    "the view of a neighbor": lambda x: np.roll(x, 1, axis=1),
    "a scale of 1 %": lambda x: 1.01 * x,
    "one swapped channel": lambda x: np.moveaxis(swapped(np.moveaxis(x, 2, 0)), 0, 2),
}


def swapped(x: Array) -> Array:
    """Swap two channels (C, ...): of those that are not dead, the first two."""
    alive = np.flatnonzero(np.abs(x).reshape(len(x), -1).max(axis=1) > 0)
    found = x.copy()
    found[alive[0]], found[alive[1]] = x[alive[1]], x[alive[0]]
    return found


@pytest.mark.parametrize("name", ["logits", "final"])
@pytest.mark.parametrize("error", PLANTED)
def test_a_planted_error_is_found(made: Made, tmp_path: Path, error: str, name: str) -> None:
    found = made.altered(tmp_path, name, PLANTED[error]).worst()
    assert found.pop(name).share > 1
    assert all(one.share <= 1 for one in found.values())


# What a CUDA device cannot do, a CPU can show by its types.


@pytest.mark.cpu
def test_codes_of_too_many_words_are_refused() -> None:
    from pipeline.features import codebook

    ids = torch.zeros(1, 2, 2, dtype=torch.int64)
    assert codebook.as_code(ids, 1 << 16).dtype == torch.uint16
    with pytest.raises(ParamsError, match="65,536 words or sub-classes apart, and the table has 65,537"):
        codebook.as_code(ids, (1 << 16) + 1)


@pytest.mark.cpu
def test_distances_to_words_are_never_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of distances are computed with TF32 off, whatever the machine's precision."""
    from pipeline.features import codebook

    seen: list[bool] = []
    real = torch.Tensor.__matmul__

    def product(a: Tensor, b: Tensor) -> Tensor:
        seen.append(torch.backends.cuda.matmul.allow_tf32)
        return real(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", product)
    with precisions.using("tf32"):
        codebook.nearest_word(torch.ones(1, 3, 2, 2), torch.ones(4, 3))
    assert seen == [False]

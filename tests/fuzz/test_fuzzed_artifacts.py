"""Stores, checkpoints, weights, tables and matchings with flipped bits, cut, or in each other's place.

What is read of a damaged file is what was written, or one line says that it is damaged.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from error_fixtures import one_line
from feature_fixtures import (
    CutOffError,
    Small,
    contents,
    cut_off_bar,
    extraction,
    network,
    prepare,
    small_store,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from training_fixtures import RECIPE, STUDENT, VIEWS, job, prepared_data

from pipeline import progress
from pipeline.artifacts import arrays
from pipeline.errors import StillhouseError
from pipeline.features import extract, verification
from pipeline.features import manifest as manifests
from pipeline.features.source import CachedSource
from pipeline.features.store import StoredArray
from pipeline.features.stream import PlainStream
from pipeline.matching.matching import Matching, Origin
from pipeline.networks.network import build
from pipeline.networks.weights import load
from pipeline.params.matchings import MatchingParams
from pipeline.tables import table
from pipeline.training import checkpoint, result
from pipeline.training.alone import train
from pipeline.training.optimizer import recipe_optimizer

CPU = torch.device("cpu")
HINT = "dvc repro fit_table@T-words"
SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]


def few(share: int) -> settings:
    """Return settings of fewer examples, where one takes long."""
    return settings(max_examples=max(1, settings().max_examples // share), suppress_health_check=SLOW)


@dataclass(frozen=True)
class Damage:
    """What happens to one of several files, drawn as shares so that it fits files of any size.

    Attributes:
        file: which of them.
        kind: "flip", "cut", "swap" (with `other`), "zeros" or "junk".
        place: where in the file.
        bit: of the byte there.
        other: the file whose content it gets, one of equal size where there is one.
    """

    file: float
    kind: str
    place: float
    bit: int
    other: float

    @classmethod
    def drawn(cls, seed: int) -> Damage:
        """Draw evenly: hypothesis itself prefers the first file and the first byte."""
        draw = random.Random(seed)
        kind = draw.choice(["flip", "flip", "flip", "cut", "swap", "swap", "zeros", "junk"])
        return cls(draw.random(), kind, draw.random(), draw.randrange(8), draw.random())

    def of(self, files: list[Path]) -> tuple[Path, bytes]:
        """Return the file and what it holds from now on."""
        path = files[int(self.file * len(files))]
        content = bytearray(path.read_bytes())
        at = int(self.place * len(content))
        match self.kind:
            case "flip" if content:
                content[at] ^= 1 << self.bit
            case "cut":
                del content[at:]
            case "swap":
                others = [other for other in files if other != path]
                alike = [other for other in others if other.stat().st_size == len(content)] or others
                content = bytearray(alike[int(self.other * len(alike))].read_bytes())
            case "zeros":
                content[at : at + 16] = bytes(len(content[at : at + 16]))
            case "junk":
                content[at:at] = b"\xff{[(\x00"
        return path, bytes(content)


DAMAGES = st.integers(0, (1 << 64) - 1).map(Damage.drawn)


@contextmanager
def damaged(files: list[Path], damage: Damage) -> Iterator[None]:
    path, content = damage.of(files)
    kept = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(kept)


def equal_or_refused(read: Callable[[], Any], expected: Any) -> None:
    """Read, and hold that it gives what undamaged files do, or one line."""
    try:
        found = read()
    except StillhouseError as error:
        one_line(error)
    else:
        assert same(found, expected)


def same(found: Any, expected: Any) -> bool:
    """Say whether two values are of one type and equal, arrays bit for bit."""
    if isinstance(expected, Tensor):
        return found.dtype == expected.dtype and torch.equal(found, expected)
    if isinstance(expected, np.ndarray):
        return (found.dtype, found.shape, found.tobytes()) == (
            expected.dtype,
            expected.shape,
            expected.tobytes(),
        )
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(same, found, expected))
    return bool(found == expected)


def below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


# ------------------------------------------------------------------ stores


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small_store(tmp_path_factory.mktemp("small"))


def training(small: Small, resident: int) -> list[Any]:
    """Read every slot of two features at both checkpoints, as a training does."""
    stores = dict.fromkeys(("logits", "stage1:pooled"), small.path)
    index = torch.arange(len(small.prepared.split("train")))
    labels, image = torch.zeros_like(index), torch.zeros(1)
    checkpoints = ("last", "anchor_050")
    source = CachedSource(stores, checkpoints, 3, CPU, resident)
    return [
        source.features(key, torch.tensor(slot), index, image, labels, source.begin(key, slot, index)())
        for key in checkpoints
        for slot in range(4)
    ]


def everything(small: Small) -> list[Any]:
    """Read a store in all ways that stages do."""
    labels = small.prepared.split("train").labels
    return [
        manifests.read(small.path, "dvc repro"),
        training(small, 0),
        training(small, 1 << 30),
        list(PlainStream(small.path, "stage3", labels)),
        StoredArray.of(small.path, "last", "test", "logits").range(0, 0, 7),
    ]


@pytest.fixture(scope="module")
def stored(small: Small) -> list[Any]:
    return everything(small)


@given(damage=DAMAGES)
@few(1)
def test_a_damaged_store_gives_what_was_stored_or_one_line(
    small: Small, stored: list[Any], damage: Damage
) -> None:
    with damaged(below(small.path), damage):
        equal_or_refused(lambda: everything(small), stored)


@given(damage=DAMAGES)
@few(4)
def test_a_store_that_the_gate_accepts_is_whole(small: Small, damage: Damage) -> None:
    arrays = [path for path in below(small.path) if path.name != "zarr.json"]

    def gate() -> Any:
        verification.verify(small.path, manifests.read(small.path, "dvc repro"))
        return {
            path: StoredArray(path.parent).all()
            for path in sorted(small.path.rglob("zarr.json"))
            if '"array"' in path.read_text()
        }

    expected = gate()
    with damaged(arrays, damage):
        equal_or_refused(gate, expected)


@pytest.fixture(scope="module")
def begun(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[extract.Extraction, dict[str, bytes], dict[str, bytes]]:
    """An extraction, what it leaves when it is interrupted, and what it makes undisturbed."""
    folder = tmp_path_factory.mktemp("begun")
    one, spec = network(0)
    work = extraction(prepare(folder / "data"), {"last": one}, spec)
    for name in ("whole", "cut"):
        (folder / name).mkdir()
    extract.fill(folder / "whole", work, "a", "whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "bar", cut_off_bar(11))
        with pytest.raises(CutOffError):
            extract.fill(folder / "cut", work, "a", "cut")
    return work, contents(folder / "cut"), contents(folder / "whole")


@given(damage=DAMAGES)
@few(10)
def test_an_extraction_resumes_to_the_same_bytes_whatever_was_left(
    begun: tuple[extract.Extraction, dict[str, bytes], dict[str, bytes]],
    tmp_path_factory: pytest.TempPathFactory,
    damage: Damage,
) -> None:
    work, left, whole = begun
    folder = tmp_path_factory.mktemp("resumed")
    for name, content in left.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    path, content = damage.of(below(folder))
    path.write_bytes(content)
    extract.fill(folder, work, "a", "resumed")
    assert contents(folder) == whole


# ------------------------------------------------------------------ trainings


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training, with its checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    prepared = prepared_data(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.training.loop.CHECKPOINT_SECONDS", -1.0)
        remove = result.publish.remove
        patch.setattr(
            result.publish, "remove", lambda path: path.name.startswith("checkpoint") or remove(path)
        )
        train(job(folder / "alone"), STUDENT, RECIPE, VIEWS, prepared, 3, {"anchor_050": 0.5})
    assert (folder / "alone/checkpoint.safetensors").exists()
    return folder / "alone"


def resumed(folder: Path) -> Any:
    """Return a checkpoint's state, and all that it fills."""
    path, student = folder / "checkpoint.safetensors", build(STUDENT, 9)
    optimizer = recipe_optimizer(list(student.parameters()), RECIPE)
    told = checkpoint.state(path)
    checkpoint.restore(path, {"student": student}, optimizer)
    momentum = [optimizer.state[x]["momentum_buffer"].clone() for x in student.parameters()]
    return told, {name: x.clone() for name, x in student.state_dict().items()}, momentum


@given(damage=DAMAGES)
@few(1)
def test_a_damaged_checkpoint_is_as_it_was_or_one_line(trained: Path, damage: Damage) -> None:
    expected = resumed(trained)
    files = [trained / "checkpoint.safetensors", trained / "weights/last.safetensors"]
    with damaged(files, damage):
        equal_or_refused(lambda: resumed(trained), expected)


def networks(folder: Path) -> list[Any]:
    return [
        (spec, dict(loaded.state_dict()))
        for loaded, spec in (load(folder / "weights", name) for name in ("init", "last", "anchor_050"))
    ]


@given(damage=DAMAGES)
@few(4)
def test_damaged_weights_are_as_they_were_or_one_line(trained: Path, damage: Damage) -> None:
    """Another one's weights are whole; that they are another's is seen by the training's json."""
    expected = networks(trained)
    with damaged(below(trained / "weights"), damage):
        if damage.kind != "swap":
            equal_or_refused(lambda: networks(trained), expected)


@given(damage=DAMAGES)
@few(1)
def test_a_training_that_is_whole_has_the_files_that_it_left(trained: Path, damage: Damage) -> None:
    assert result.whole(trained)
    files = [*(trained / "weights").glob("*.safetensors"), trained / "history.csv"]
    expected = {path: path.read_bytes() for path in files}
    with damaged(sorted([*files, trained / "training.json"]), damage):
        if result.whole(trained):
            assert {path: path.read_bytes() for path in files} == expected


# ------------------------------------------------------------------ tables and matchings

ORIGIN = Origin(
    made_by="match_channels@PAIR", teacher="T", student="S", seed=0, recipe=MatchingParams(), theta0="1" * 32,
    student_weights="2" * 32, teacher_weights="3" * 32, digest="4" * 32, data="5" * 32, classes=4, channels=6,
)  # fmt: skip


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("archives")
    draw = np.random.default_rng(0)
    fitted = table.Fitted(
        {"centers": draw.normal(size=(5, 3)), "counts": np.arange(5), "t": np.float32(0.5)}, {}
    )
    table.save(folder / "words.npz", fitted, {"teacher": "T", "feature": "stage2", "digest": "a" * 32})
    Matching(ORIGIN, {"permutation": draw.permutation(6)[None, :4]}).save(folder / "matching.npz")
    return {name: folder / f"{name}.npz" for name in ("words", "matching")}


def opened(archives: dict[str, Path]) -> list[Any]:
    matching = Matching.load(archives["matching"], HINT)
    return [
        table.load(archives["words"], HINT),
        table.read_origin(archives["words"], HINT),
        arrays.read(archives["words"], HINT, ("counts", "t")),
        matching.origin,
        matching.arrays,
    ]


@given(damage=DAMAGES)
@few(1)
def test_damaged_tables_and_matchings_are_as_they_were_or_one_line(
    archives: dict[str, Path], damage: Damage
) -> None:
    expected = opened(archives)
    with damaged(list(archives.values()), damage):
        # A matching in a table's place is whole: its origin, which is read as well, is another.
        if damage.kind != "swap":
            equal_or_refused(lambda: opened(archives), expected)


@given(content=st.binary(max_size=300), where=st.sampled_from(["words", "matching"]))
@few(1)
def test_an_archive_of_any_bytes_is_one_line(archives: dict[str, Path], content: bytes, where: str) -> None:
    path = archives[where]
    kept = path.read_bytes()
    path.write_bytes(content)
    try:
        with pytest.raises(StillhouseError):
            opened(archives)
    finally:
        path.write_bytes(kept)

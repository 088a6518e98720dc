"""Prepared data with boxes: what is written is what is read, and what has changed since is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from error_fixtures import one_line

from pipeline.artifacts import publish
from pipeline.data import prepared as boxless
from pipeline.data.annotated import AnnotatedSource
from pipeline.data.dataset import DatasetConfig
from pipeline.data.datasets import digits, shapes
from pipeline.data.preparation import prepare as prepare_boxless
from pipeline.detection.layout import ARRAYS, Meta
from pipeline.detection.preparation import prepare
from pipeline.detection.prepared import Prepared
from pipeline.errors import DamagedArtifactError, DataError, MissingArtifactError, StaleArtifactError

CONFIG = shapes.Config(train=18, test=4)


@pytest.fixture(scope="module")
def source() -> AnnotatedSource:
    return shapes.open_source(CONFIG)


@pytest.fixture
def folder(source: AnnotatedSource, tmp_path: Path) -> Path:
    prepare(source, "shapes", CONFIG, tmp_path / "data")
    return tmp_path / "data"


def edit(folder: Path, **changes: object) -> None:
    """Change `meta.json`, and seal it again."""
    content = json.loads((folder / "meta.json").read_text()) | changes
    meta = Meta.model_validate_json(json.dumps(content))
    publish.write_json(folder / "meta.json", meta.sealed().model_dump(mode="json"))


def test_what_is_read_is_what_was_drawn(folder: Path) -> None:
    data = Prepared.open(folder)
    assert data.meta.samples == {"train": 18, "test": 4}
    assert data.meta.classes == ("disk", "square", "triangle")
    for name, split in data.splits.items():
        for row in range(len(split)):
            drawing, target = shapes.drawn(CONFIG, name, row), split.target(row)
            np.testing.assert_array_equal(np.asarray(split.image(row)), drawing.pixels)
            assert split.sizes[row].tolist() == [*drawing.pixels.shape[:2]]
            assert target.boxes.view(-1, 4).tolist() == [[*map(float, box)] for box in drawing.boxes]
            assert (target.labels.tolist(), target.area.tolist()) == (drawing.labels, drawing.areas)
            assert (target.boxes.dtype, target.labels.dtype) == (torch.float32, torch.int64)
            assert not target.crowd.any()
    assert len(data.splits["train"].target(15).boxes) == 0  # the sixteenth is empty


def test_boxes_are_around_their_shapes(source: AnnotatedSource) -> None:
    for row in range(12):
        drawing = shapes.drawn(CONFIG, "train", row)
        bright = drawing.pixels.max(axis=2) >= 128
        for (left, top, right, bottom), area in zip(drawing.boxes, drawing.areas, strict=True):
            inside = bright[top:bottom, left:right]
            assert inside.sum() == area
            for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
                assert edge.any()
            bright[top:bottom, left:right] = False
        assert not bright.any()


def test_the_same_settings_give_the_same_bytes_and_another_seed_others(folder: Path, tmp_path: Path) -> None:
    again = prepare(shapes.open_source(CONFIG), "shapes", CONFIG, tmp_path / "again")
    assert again == Prepared.open(folder).meta
    for path in folder.rglob("*.*"):
        assert (tmp_path / "again" / path.relative_to(folder)).read_bytes() == path.read_bytes()
    other = CONFIG.model_copy(update={"seed": 1})
    meta = prepare(shapes.open_source(other), "shapes", other, tmp_path / "other")
    assert meta.fingerprint["train"] != again.fingerprint["train"]


@pytest.mark.parametrize("name", [*ARRAYS, "files"])
def test_an_array_that_has_changed_is_refused(folder: Path, name: str) -> None:
    path = folder / f"train_{name}.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedArtifactError) as error:
        Prepared.open(folder)
    one_line(error, "not what was prepared", "dvc repro")


@pytest.mark.parametrize("name", [*ARRAYS, "files"])
def test_an_array_that_is_missing_is_named(folder: Path, name: str) -> None:
    (folder / f"test_{name}.npy").unlink()
    with pytest.raises(MissingArtifactError) as error:
        Prepared.open(folder)
    one_line(error, f"test_{name}.npy", "dvc repro prepare_data")


def test_an_image_that_has_changed_is_refused_when_it_is_read(folder: Path) -> None:
    path = folder / "images" / "train" / "000002.ppm"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    split = Prepared.open(folder).splits["train"]
    split.image(1)
    with pytest.raises(DataError) as error:
        split.image(2)
    one_line(error, "000002.ppm", "not those of the file")


def test_another_layout_and_another_seal_are_refused(folder: Path) -> None:
    edit(folder, schema_version=99)
    with pytest.raises(StaleArtifactError) as stale:
        Prepared.open(folder)
    one_line(stale, "schema version 99")
    edit(folder, schema_version=1)
    text = (folder / "meta.json").read_text()
    (folder / "meta.json").write_text(text.replace('"shapes"', '"shopes"'))
    with pytest.raises(DamagedArtifactError) as damaged:
        Prepared.open(folder)
    one_line(damaged, "'seal'")


def test_data_of_one_task_are_refused_by_the_reader_of_the_other(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StaleArtifactError) as error:
        boxless.Prepared.open(folder)
    one_line(error, str(folder), "data for detection", "one label each")

    prepare_boxless(digits.open_source(digits.Config()), "digits", DatasetConfig(), tmp_path / "digits")
    with pytest.raises(StaleArtifactError) as other:
        Prepared.open(tmp_path / "digits")
    one_line(other, "one label each, expected boxes")

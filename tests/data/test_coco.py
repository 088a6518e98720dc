"""COCO's format, from the json to prepared data; what cannot be right is told in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from error_fixtures import one_line
from PIL import Image

from pipeline.data.datasets import coco
from pipeline.data.raw import record
from pipeline.detection.preparation import prepare
from pipeline.detection.prepared import Prepared
from pipeline.errors import DataError, ParamsError
from pipeline.params.base import validate

Content = dict[str, Any]
TRAIN: Content = {
    "info": {"year": 2026},
    "images": [
        {"id": 7, "file_name": "a.png", "width": 40, "height": 30, "license": 1},
        {"id": 3, "file_name": "b.jpg", "width": 20, "height": 50},
        {"id": 9, "file_name": "sub/c.png", "width": 16, "height": 16},
    ],
    "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}, {"id": 90, "name": "tooth brush"}],
    "annotations": [
        {"id": 5, "image_id": 3, "category_id": 90, "bbox": [2, 4, 10.5, 20], "area": 99.5, "iscrowd": 0},
        {"id": 6, "image_id": 7, "category_id": 1, "bbox": [0, 0, 40, 30], "iscrowd": 1, "area": 1000},
        {"id": 8, "image_id": 3, "category_id": 18, "bbox": [0.25, 0, 1, 50.5]},
    ],
}
TEST: Content = TRAIN | {
    "images": [{"id": 1, "file_name": "t.png", "width": 8, "height": 8}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 18, "bbox": [1, 1, 2, 2], "area": 3, "iscrowd": 0}
    ],
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "raw"
    (root / "annotations").mkdir(parents=True)
    for folder, name, content in (("train2017", "train", TRAIN), ("val2017", "val", TEST)):
        (root / "annotations" / f"instances_{name}2017.json").write_text(json.dumps(content))
        for number, image in enumerate(content["images"]):
            path = root / folder / image["file_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (image["width"], image["height"]), (number, 50, 100)).save(path)
    return root


def change(root: Path, edit: Callable[[Content], Any]) -> None:
    """Change the training json."""
    content = deepcopy(TRAIN)
    edit(content)
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content))


def prepared(root: Path, **settings: Any) -> Prepared:
    config = coco.Config(path=root, **settings)
    prepare(coco.open_source(config), "coco", config, root.parent / "data")
    return Prepared.open(root.parent / "data")


def test_boxes_classes_and_crowds_are_those_of_the_json(root: Path) -> None:
    data = prepared(root)
    assert data.meta.classes == ("person", "dog", "tooth brush")  # by their ids, which have gaps
    train = data.splits["train"]
    assert [train.image(row).size for row in range(3)] == [(40, 30), (20, 50), (16, 16)]
    crowd, several, empty = (train.target(row) for row in range(3))
    assert crowd.boxes.tolist() == [[0, 0, 40, 30]]
    assert (crowd.labels.tolist(), crowd.crowd.tolist(), crowd.area.tolist()) == ([0], [True], [1000])
    # The second sticks out by less than a pixel, and has no area of its own.
    assert several.boxes.tolist() == [[2, 4, 12.5, 24], [0.25, 0, 1.25, 50]]
    assert (several.labels.tolist(), several.crowd.tolist()) == ([2, 1], [False, False])
    assert several.area.tolist() == [99.5, 50]
    assert empty.boxes.shape == (0, 4)
    assert data.splits["test"].target(0).labels.tolist() == [1]


def test_images_are_listed_and_not_copied(root: Path) -> None:
    data = prepared(root)
    assert {path.suffix for path in data.folder.iterdir()} == {".npy", ".json"}
    assert data.meta.root == str(root)
    (root / "train2017" / "a.png").write_bytes(b"another")
    with pytest.raises(DataError) as error:
        data.splits["train"].image(0)
    one_line(error, "a.png", "not those of the file")


def test_a_change_of_the_raw_files_is_told(root: Path) -> None:
    data, config = prepared(root), coco.Config(path=root)
    assert record.change(data.folder, data.meta, config) is None
    change(root, lambda content: content["annotations"][0].update(category_id=18))
    line = record.change(data.folder, data.meta, config)
    assert line is not None
    assert "holds other raw files" in line


def test_the_fingerprint_depends_on_boxes_and_pixels_and_not_on_the_place(root: Path, tmp_path: Path) -> None:
    first = prepared(root).meta
    other = tmp_path / "elsewhere" / "raw"
    other.parent.mkdir()
    root.rename(other)
    second = prepared(other).meta
    assert first.fingerprint == second.fingerprint
    change(other, lambda content: content["annotations"][0].update(area=98))
    assert prepared(other).meta.fingerprint["train"] != first.fingerprint["train"]


def entry(section: str, number: int, **values: Any) -> Callable[[Content], Any]:
    return lambda content: content[section][number].update(values)


def without(section: str, number: int, key: str) -> Callable[[Content], Any]:
    return lambda content: content[section][number].pop(key)


WRONG: list[tuple[Callable[[Content], Any], tuple[str, ...]]] = [
    (lambda content: content.pop("categories"), ("no 'categories'", "expected a list")),
    (lambda content: content.update(images={}), ("a dict as 'images'", "expected a list")),
    (lambda content: content.update(images=[]), ("empty list 'images'",)),
    (lambda content: content["images"].append(3), ("images, entry 3 is of type int",)),
    (without("images", 0, "id"), ("images, entry 0 has no id", "whole number")),
    (entry("images", 0, id=3), ("images, entry 1", "id 3 of an entry before it")),
    (entry("images", 0, file_name="b.jpg"), ("several entries of the file 'b.jpg'",)),
    (entry("images", 0, file_name="./b.jpg"), ("several entries of the file 'b.jpg'",)),
    (entry("images", 0, file_name="../b.jpg"), ("images, id 7", "'../b.jpg'", "below the folder")),
    (without("images", 0, "file_name"), ("images, id 7 has the file_name None",)),
    (without("images", 0, "width"), ("images, id 7 has no width",)),
    (entry("images", 0, height=0), ("images, id 7 is 40x0",)),
    (entry("images", 0, height=31), ("a.png is 40x30", "says 40x31")),
    (entry("images", 0, file_name="gone.png"), ("gone.png does not exist, but",)),
    (entry("images", 0, file_name="x" * 5000), ("xxx... cannot be read", "File name too long", "lists it")),
    (entry("images", 0, file_name="b.jpg/a.png"), ("a.png cannot be read", "Not a directory", "lists it")),
    (entry("categories", 0, id=1), ("categories, entry 1", "id 1 of an entry before it")),
    (entry("categories", 0, name="person"), ("'person'",)),
    (entry("categories", 0, name=""), ("categories, id 18 has the name ''",)),
    (
        entry("categories", 0, name="cat"),
        ("instances_val2017.json has other categories", "id 18 is 'dog', and 'cat'"),
    ),
    (entry("annotations", 0, id=6), ("annotations, entry 1", "id 6 of an entry before it")),
    (entry("annotations", 0, image_id=4), ("annotations, id 5 has image_id 4, which no image has",)),
    (entry("annotations", 0, category_id=2), ("annotations, id 5 has category_id 2, which no category has",)),
    (
        without("annotations", 0, "bbox"),
        ("annotations, id 5 has the bbox None", "left, top, width and height"),
    ),
    (entry("annotations", 0, bbox=[1, 2, 3]), ("annotations, id 5 has the bbox [1, 2, 3]",)),
    (entry("annotations", 0, bbox=[1, 2, 3, float("nan")]), ("annotations, id 5 has the bbox",)),
    (
        entry("annotations", 0, bbox=[1, 2, 3, 0]),
        ("annotations, id 5 has a box of 3 x 0", "some area", "faulty: clip"),
    ),
    (entry("annotations", 0, bbox=[1, 2, -3, 5]), ("has a box of -3 x 5",)),
    (entry("annotations", 0, bbox=[1, 2, 1e-9, 5]), ("annotations, id 5",)),
    (entry("annotations", 0, bbox=[1, 2, 30, 5]), ("id 5", "leaves its image of 20x50", "faulty: clip")),
    (entry("annotations", 0, bbox=[-2, 2, 5, 5]), ("leaves its image",)),
    (entry("annotations", 0, iscrowd=2), ("iscrowd 2, expected 0 or 1",)),
    (entry("annotations", 0, area=-1), ("area -1",)),
    (entry("annotations", 0, area="x"), ("area 'x'",)),
    (entry("annotations", 0, area=1e39), ("area 1e+39",)),  # more than float32 holds
    (entry("annotations", 0, area=10**400), ("annotations, id 5 has the area 1000",)),
    (entry("annotations", 0, bbox=[1, 2, 3, 10**400]), ("annotations, id 5 has the bbox [1, 2, 3, 1000",)),
    (lambda content: content.update(annotations=[]), ("no box of a single object in train",)),
    (
        lambda content: content.update(annotations=content["annotations"][1:2]),
        ("no box of a single object in train",),
    ),
]


@pytest.mark.parametrize(("edit", "parts"), WRONG)
def test_what_cannot_be_right_is_told(
    root: Path, edit: Callable[[Content], Any], parts: tuple[str, ...]
) -> None:
    change(root, edit)
    with pytest.raises(DataError) as error:
        prepared(root)
    one_line(error, *parts)
    assert not (root.parent / "data").exists()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("{", ("is no json",)),
        ("[1]", ("holds a list",)),
        ("[" * 100_000, ("is no json",)),
        ("", ("is no json",)),
    ],
)
def test_what_is_no_json_is_told(root: Path, text: str, parts: tuple[str, ...]) -> None:
    (root / "annotations" / "instances_train2017.json").write_text(text)
    with pytest.raises(DataError) as error:
        prepared(root)
    one_line(error, "instances_train2017.json", *parts)


def test_files_that_are_missing_are_named(root: Path) -> None:
    (root / "train2017" / "b.jpg").write_bytes(b"no image")
    with pytest.raises(DataError) as error:
        prepared(root)
    one_line(error, "b.jpg", "no image")
    with pytest.raises(DataError) as error:
        prepared(root, test=coco.Split(images="val", instances="annotations/instances_val2017.json"))
    one_line(error, "val does not exist", "lists")
    with pytest.raises(DataError) as error:
        prepared(root, test=coco.Split(images="val2017", instances="val.json"))
    one_line(error, "val.json does not exist", "'instances'")
    with pytest.raises(DataError) as error:
        prepared(root / "nowhere")
    one_line(error, "nowhere does not exist")


def test_pixels_of_16_bits_are_refused_without_a_setting_that_is_not_there(root: Path) -> None:
    Image.fromarray(np.zeros((30, 40), np.uint16)).save(root / "train2017" / "a.png")
    with pytest.raises(DataError) as error:
        prepared(root)
    one_line(error, "a.png", "8 bits a channel", "Convert the file, then")


def test_boxes_are_cut_off_where_that_is_asked_for(root: Path) -> None:
    def edit(content: Content) -> None:
        content["annotations"][0]["bbox"] = [-2, 2, 30, 5]
        content["annotations"][1]["bbox"] = [50, 2, 3, 5]  # nothing of it is in the image
        content["annotations"][2]["bbox"] = [1, 2, 3, 0]

    change(root, edit)
    data = prepared(root, faulty="clip")
    assert data.meta.boxes["train"] == 1
    assert data.splits["train"].target(1).boxes.tolist() == [[0, 2, 20, 7]]


def test_a_link_that_leads_out_is_followed_where_that_is_asked_for(root: Path) -> None:
    outside = root.parent / "outside.png"
    (root / "train2017" / "a.png").rename(outside)
    (root / "train2017" / "a.png").symlink_to(outside)
    with pytest.raises(DataError) as error:
        prepared(root)
    one_line(error, "outside.png", "links: anywhere")
    assert np.asarray(prepared(root, links="anywhere").splits["train"].image(0)).shape == (30, 40, 3)


@pytest.mark.parametrize("name", ["/etc", "../x", ""])
def test_places_stay_below_the_path(name: str) -> None:
    split = {"images": name, "instances": "x.json"}
    with pytest.raises(ParamsError) as error:
        validate(coco.Config, {"path": "x", "train": split}, "here")
    one_line(error, "here.train.images", "below that of the data set")

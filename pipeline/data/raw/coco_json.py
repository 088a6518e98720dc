"""The annotations of a split in COCO's format: one json with `images`, `annotations` and `categories`.

Every entry is looked at, and the first that cannot be right is reported by its place. What is read: of an image `id`,
`file_name`, `width` and `height`; of an annotation `id`, `image_id`, `category_id` and `bbox` (left, top, width,
height), and where they are there `iscrowd` and `area`, else the object is single and fills its box.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.data.annotated import Annotations
from pipeline.data.raw import names
from pipeline.errors import DataError

Faulty = Literal["refuse", "clip"]
OVER = 1.0  # pixels that a box may stick out of its image: annotations are rounded
_LISTS = ("images", "annotations", "categories")
_SIDES = 65_536  # pixels of an image's side at most
_LARGEST = 1e12  # of a number of pixels: float32 holds it, and no image has as many


@dataclass(frozen=True)
class Instances:
    """What a json holds.

    Attributes:
        categories: names of the classes by their ids, in the order of the ids, which may have gaps.
        files: names of the images' files, below the folder of images.
        sizes: height and width of each image, int64 (N, 2).
        annotations: the boxes; a label is a position among the categories.
        left_out: boxes of which nothing lies within their image.
    """

    categories: dict[int, str]
    files: tuple[str, ...]
    sizes: NDArray[np.int64]
    annotations: Annotations
    left_out: int


def parse(path: Path, content: bytes, faulty: Faulty) -> Instances:
    """Read the content of a json.

    Args:
        path: its name, for errors.
        content: its bytes.
        faulty: "clip" cuts boxes off at the edges of their image and leaves out those of which nothing remains;
            "refuse" stops at them.

    Raises:
        DataError: it is no json, or an entry cannot be right.
    """
    whole = _loaded(path, content)
    categories = _categories(path, whole["categories"])
    images = _by_id(path, "images", whole["images"])
    sizes = np.array([_size(path, key, entry) for key, entry in images.items()], np.int64).reshape(-1, 2)
    files = tuple(_file_name(path, key, entry) for key, entry in images.items())
    twice, count = Counter(str(PurePosixPath(file)) for file in files).most_common(1)[0]
    if count > 1:
        raise _wrong(path, "images", f"has several entries of the file {_shown(twice)}, expected one")

    rows = {key: row for row, key in enumerate(images)}
    labels = {key: label for label, key in enumerate(categories)}
    boxes: list[list[tuple[list[float], int, bool, float]]] = [[] for _ in rows]
    left_out = 0
    for key, entry in _by_id(path, "annotations", whole["annotations"]).items():
        where = f"annotations, id {key}"
        row = rows.get(_integer(path, where, entry, "image_id"))
        if row is None:
            raise _wrong(path, where, f"has image_id {_shown(entry['image_id'])}, which no image has")
        label = labels.get(_integer(path, where, entry, "category_id"))
        if label is None:
            raise _wrong(
                path, where, f"has category_id {_shown(entry['category_id'])}, which no category has"
            )
        box = _box(path, where, entry, sizes[row].tolist(), faulty)
        if box is None:
            left_out += 1
        else:
            boxes[row].append((box, label, _crowd(path, where, entry), _area(path, where, entry, box)))
    return Instances(categories, files, sizes, _arrays(boxes), left_out)


def _loaded(path: Path, content: bytes) -> dict[str, list[Any]]:
    try:
        whole = json.loads(content)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} is no json ({reason}). Replace the file, then: dvc repro") from None
    if not isinstance(whole, dict):
        raise DataError(
            f"{path} holds a {type(whole).__name__}, expected a mapping with {', '.join(_LISTS)}. Replace the file, "
            "then: dvc repro"
        )
    for key in _LISTS:
        if not isinstance(whole.get(key), list):
            found = f"a {type(whole[key]).__name__} as '{key}'" if key in whole else f"no '{key}'"
            raise DataError(f"{path} has {found}, expected a list. Replace the file, then: dvc repro")
        if not whole[key] and key != "annotations":
            raise DataError(
                f"{path} has an empty list '{key}', expected entries. Replace the file, then: dvc repro"
            )
    return whole


def _by_id(path: Path, section: str, entries: Iterable[Any]) -> dict[int, Mapping[str, Any]]:
    """Return entries by their ids, in their order."""
    found: dict[int, Mapping[str, Any]] = {}
    for number, entry in enumerate(entries):
        where = f"{section}, entry {number}"
        if not isinstance(entry, dict):
            raise _wrong(path, where, f"is of type {type(entry).__name__}, expected a mapping")
        key = _integer(path, where, entry, "id")
        if key in found:
            raise _wrong(path, where, f"has the id {key} of an entry before it, expected another one")
        found[key] = entry
    return found


def _categories(path: Path, entries: list[Any]) -> dict[int, str]:
    found: dict[int, str] = {}
    for key, entry in sorted(_by_id(path, "categories", entries).items()):
        name = entry.get("name")
        if not isinstance(name, str) or not name:
            raise _wrong(path, f"categories, id {key}", f"has the name {_shown(name)}, expected text")
        names.check_class(name, path)
        found[key] = name
    names.by_likeness(found.values(), path)
    return found


def _size(path: Path, key: int, entry: Mapping[str, Any]) -> tuple[int, int]:
    where = f"images, id {key}"
    height, width = (_integer(path, where, entry, side) for side in ("height", "width"))
    if not (0 < height <= _SIDES and 0 < width <= _SIDES):
        raise _wrong(path, where, f"is {width}x{height}, expected sides of 1 to {_SIDES:,} pixels")
    return height, width


def _file_name(path: Path, key: int, entry: Mapping[str, Any]) -> str:
    where, name = f"images, id {key}", entry.get("file_name")
    if not isinstance(name, str) or not name or "\0" in name:
        raise _wrong(path, where, f"has the file_name {_shown(name)}, expected the name of a file")
    names.check_text(name, path)
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise _wrong(
            path, where, f"has the file_name {_shown(name)}, expected one below the folder of images"
        )
    return name


def _box(
    path: Path, where: str, entry: Mapping[str, Any], size: list[int], faulty: Faulty
) -> list[float] | None:
    """Return the edges of a box within its image; None where nothing of it is, and that is no error."""
    given = entry.get("bbox")
    if not isinstance(given, list) or len(given) != 4 or not all(map(_is_number, given)):
        raise _wrong(path, where, f"has the bbox {_shown(given)}, expected left, top, width and height")
    left, top, wide, tall = map(float, given)
    height, width = size
    edges = [max(left, 0.0), max(top, 0.0), min(left + wide, float(width)), min(top + tall, float(height))]
    kept = (
        edges
        if np.float32(edges[0]) < np.float32(edges[2]) and np.float32(edges[1]) < np.float32(edges[3])
        else None
    )
    if faulty == "clip":
        return kept

    cure = ". Mend or remove it, or set faulty: clip for its source in params.yaml"
    if wide <= 0 or tall <= 0:
        raise _wrong(path, where, f"has a box of {wide:g} x {tall:g}, expected some area", cure)
    if min(left, top) < -OVER or left + wide > width + OVER or top + tall > height + OVER or kept is None:
        raise _wrong(
            path, where, f"has the bbox {_shown(given)}, which leaves its image of {width}x{height}", cure
        )
    return kept


def _crowd(path: Path, where: str, entry: Mapping[str, Any]) -> bool:
    crowd = entry.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise _wrong(path, where, f"has iscrowd {_shown(crowd)}, expected 0 or 1")
    return bool(crowd)


def _area(path: Path, where: str, entry: Mapping[str, Any], box: list[float]) -> float:
    area = entry.get("area", (box[2] - box[0]) * (box[3] - box[1]))
    if not _is_number(area) or area < 0:
        raise _wrong(path, where, f"has the area {_shown(area)}, expected a number of pixels")
    return float(area)


def _arrays(boxes: list[list[tuple[list[float], int, bool, float]]]) -> Annotations:
    flat = [one for image in boxes for one in image]
    return Annotations(
        boxes=np.array([box for box, *_ in flat], np.float32).reshape(-1, 4),
        labels=np.array([label for _, label, _, _ in flat], np.int64),
        crowd=np.array([crowd for _, _, crowd, _ in flat], np.bool_),
        area=np.array([area for *_, area in flat], np.float32),
        offsets=np.array([0, *_running(map(len, boxes))], np.int64),
    )


def _running(counts: Iterable[int]) -> Iterator[int]:
    total = 0
    for count in counts:
        total += count
        yield total


def _integer(path: Path, where: str, entry: Mapping[str, Any], key: str) -> int:
    value = entry.get(key)
    if type(value) is not int:  # a bool is an instance of it
        found = f"has no {key}" if key not in entry else f"has the {key} {_shown(value)}"
        raise _wrong(path, where, f"{found}, expected a whole number")
    return value


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= _LARGEST  # no NaN is


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _wrong(path: Path, where: str, what: str, cure: str = ". Mend the file") -> DataError:
    return DataError(f"{path}: {where} {what}{cure}, then: dvc repro")

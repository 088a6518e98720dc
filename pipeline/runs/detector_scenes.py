"""The data sets that detectors learn from, prepared or not: what they hold, and what they take on the disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import plugin
from pipeline.data.annotated import AnnotatedConfig, Expected
from pipeline.data.file_index import record_type
from pipeline.detection.layout import ARRAYS
from pipeline.detection.prepared import Prepared
from pipeline.errors import MissingArtifactError
from pipeline.params.base import validate
from pipeline.params.detection import BoxViews
from pipeline.runs import detection
from pipeline.runs.project import Project

_PATH = 40  # bytes of a file's name, about


@dataclass(frozen=True)
class Scene:
    """A data set with boxes, prepared or not.

    Attributes:
        views: what is seen of it.
        mean: normalization of its images.
        std: as `mean`.
        expected: what it holds.
        prepared: it was read from the prepared data; else it is what its source expects.
        bytes: of the prepared data.
        files: of the prepared data.
    """

    views: BoxViews
    mean: tuple[float, ...]
    std: tuple[float, ...]
    expected: Expected
    prepared: bool
    bytes: int
    files: int


def scenes(project: Project, prepared: Path) -> dict[str, Scene]:
    """Return the data sets that detectors learn from, by name.

    Args:
        project: params.yaml, checked.
        prepared: the folder of all prepared data sets.

    Raises:
        MissingArtifactError: one is not prepared, and its source does not know what it holds.
        StaleArtifactError: what is prepared has no boxes, or another layout.
        DamagedArtifactError: it is not what was prepared.
    """
    params = project.params
    used = {params.teachers[name].dataset for name in detection.detectors(project)}
    used |= {params.students[name].dataset for name in detection.learners(project)}
    return {name: _scene(project, name, prepared / name) for name in sorted(used)}


def _scene(project: Project, name: str, folder: Path) -> Scene:
    source = project.params.datasets[name].source
    module = plugin.load("datasets", source.name)
    config: AnnotatedConfig = validate(module.Config, source.settings, f"datasets.{name}.source")
    views = project.box_views[name]
    try:
        data = Prepared.open(folder)
    except MissingArtifactError:
        expected = module.expected(config) if hasattr(module, "expected") else None
        if expected is None:
            raise
        return Scene(views, config.mean, config.std, expected, False, _bytes(expected), _files(expected))

    meta = data.meta
    sizes = np.concatenate([split.sizes.numpy() for split in data.splits.values()])
    read = Expected(len(meta.classes), meta.samples, meta.boxes, [(int(h), int(w)) for h, w in sizes])
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    return Scene(views, meta.mean, meta.std, read, True, size, len(files))


def _bytes(expected: Expected) -> int:
    """Return the bytes of prepared data: lists, boxes, and images where these are kept."""
    lists = record_type(_PATH).itemsize * sum(expected.samples.values())
    each = {name: np.dtype(dtype).itemsize * int(np.prod(rest)) for name, (dtype, rest) in ARRAYS.items()}
    offsets = each.pop("offsets") * (sum(expected.samples.values()) + 2)
    return lists + sum(each.values()) * sum(expected.boxes.values()) + offsets + expected.kept


def _files(expected: Expected) -> int:
    images = sum(expected.samples.values()) if expected.kept else 0
    return (len(ARRAYS) + 1) * len(expected.samples) + 2 + images  # meta.json, raw.json

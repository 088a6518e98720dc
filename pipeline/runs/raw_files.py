"""Raw files that differ from those that were prepared: DVC does not know them, so it calls such data up to date."""

from __future__ import annotations

from pathlib import Path

from pipeline import plugin
from pipeline.data.prepared import Prepared
from pipeline.data.raw import record
from pipeline.detection import prepared as boxes
from pipeline.errors import StillhouseError
from pipeline.params.base import validate
from pipeline.params.sections import Sections
from pipeline.params.tasks import DETECTION, task_of


def changes(params: Sections, prepared: Path, most: int | None = None) -> list[str]:
    """Return a line for every prepared data set whose raw files have changed since.

    Args:
        params: the checked params.yaml.
        prepared: the folder of all prepared data sets; one that is not there, or not whole, is for others to report.
        most: a data set of more raw files is not looked at: on a slow disk that takes minutes. None is no limit.
    """
    lines = []
    for name, dataset in params.datasets.items():
        folder, source = prepared / name, dataset.source
        module = plugin.load("datasets", source.name)
        reader = boxes.Prepared if task_of(module) == DETECTION else Prepared
        try:
            meta = reader.open(folder).meta
        except (StillhouseError, OSError):
            continue
        if meta.source == source.name:
            config = validate(module.Config, source.settings, f"datasets.{name}.source")
            line = record.change(folder, meta, config, most)
            lines += [line] if line else []
    return lines

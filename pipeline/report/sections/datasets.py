"""The data sets: facts, and one sample of each class."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup

from pipeline.data.layout import Meta
from pipeline.data.raw.place import located
from pipeline.detection.layout import Meta as BoxMeta
from pipeline.params.detection import BoxViews
from pipeline.params.size import sides
from pipeline.params.views import OneView, Stack, TwoViews, weak
from pipeline.report.detectors import BoxData
from pipeline.report.drawing import markup, text
from pipeline.report.drawing.picture import png
from pipeline.report.results import Dataset, Results

TITLE = "Datasets"
LEAD = "whether the images and their labels or boxes are what you expect."
GROUP, ORDER = "closing", 90

MOST_SHOWN = 20  # classes of which a sample is shown
LARGEST = 112  # pixels of it


def section(results: Results) -> Markup:
    """Return what every data set is."""
    parts = [_dataset(dataset) for dataset in results.datasets.values()]
    return Markup().join([*parts, *map(_boxes, results.detection.datasets.values())])


def _dataset(dataset: Dataset) -> Markup:
    meta = dataset.prepared.meta
    strong = _views("strong ", dataset.views.strong) if isinstance(dataset.views, TwoViews) else []
    facts = markup.facts(
        [
            ("source", meta.source),
            ("classes", str(len(meta.classes))),
            *((f"{split} samples", f"{number:,}") for split, number in meta.samples.items()),
            ("image", text.TIMES.join(str(length) for length in (meta.channels, *sides(meta.size)))),
            *_normalized(meta),
            *_views("", weak(dataset.views)),
            *strong,
            ("best epoch chosen on", dataset.chooser),
            ("fingerprint of test", meta.fingerprint["test"][:12]),
        ]
    )
    return Markup("<section><h3>{}</h3>{}{}</section>").format(dataset.name, facts, _gallery(dataset))


def _boxes(data: BoxData) -> Markup:
    """Return what a data set with boxes is; its images stand beside what is found in them."""
    meta = data.meta
    facts = markup.facts(
        [
            ("source", meta.source),
            ("classes", str(len(meta.classes))),
            *((f"{split} images", f"{number:,}") for split, number in meta.samples.items()),
            *((f"{split} boxes", f"{number:,}") for split, number in meta.boxes.items()),
            *_normalized(meta),
            *_views("", data.views),
            ("best epoch chosen on", "test"),
            ("fingerprint of test", data.fingerprint["test"][:12]),
        ]
    )
    return Markup("<section><h3>{}</h3>{}</section>").format(data.name, facts)


def _normalized(meta: Meta | BoxMeta) -> list[tuple[str, str]]:
    """Return by which mean and deviation images are normalized, as facts."""
    return [(name, ", ".join(f"{value:.3f}" for value in getattr(meta, name))) for name in ("mean", "std")]


def _views(kind: str, views: OneView | BoxViews) -> list[tuple[str, str]]:
    """Return the spaces of views and their settings, as facts."""
    spaces = views.parts if isinstance(views, Stack) else (views,)
    settings = [item for space in spaces for item in space.model_dump(exclude={"space"}).items()]
    names = ", ".join(space.space.replace("_", " ") for space in spaces)
    return [(f"{kind}views", names), *((f"{kind}{key}", text.plain(value)) for key, value in settings)]


def _gallery(dataset: Dataset) -> Markup:
    """Return the first training sample of each class."""
    split, files = dataset.prepared.split("train"), dataset.prepared.meta.files
    # Large data sets are indexed where they lie, which may be another machine than the report's.
    if files is not None and not located(files.root).is_dir():
        return Markup("<p>{}</p>").format(f"The images stay in {files.root}, which is not on this machine.")

    classes, first = np.unique(split.labels, return_index=True)
    items = [
        Markup('<li title="{0}"><img alt="" src="{1}">{0}</li>').format(
            dataset.classes[label], png(np.asarray(split.images[row]), LARGEST)
        )
        for label, row in list(zip(classes.tolist(), first.tolist(), strict=True))[:MOST_SHOWN]
    ]
    return Markup('<ul class="gallery">{}</ul>').format(Markup().join(items))

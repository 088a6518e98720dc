"""How well separated the classes are in what the classifiers read: t-SNE of pooled features."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline.report.drawing import markup, text
from pipeline.report.drawing.figure import THIRD, draw
from pipeline.report.drawing.palette import MARKS, SERIES, Style
from pipeline.report.results import Pair, Results, Trained

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "t-SNE of features"
LEAD = "whether the classes form separate groups, in the student as in the teacher."
GROUP, ORDER = "pair", 100

FEWEST = 12  # samples; of fewer a picture says nothing


def section(results: Results, pair: Pair) -> Markup:
    """Return a picture of the teacher and of some runs, each of the first seed."""
    networks = {f"teacher {pair.teacher.name}": pair.teacher.trained}
    networks |= {run.name: run.students[0] for run in pair.compared}
    # All networks keep the same samples, so the teacher's index stands for all.
    labels = pair.dataset.labels[pair.teacher.trained.pooled_index]
    if len(labels) < FEWEST:
        return Markup()

    styles = {int(label): _style(number) for number, label in enumerate(np.unique(labels))}
    pictures = [
        draw(f"{pair.name}/{name}/embedding", f"{name}.", 3.0,
             partial(_points, places=embed(network), labels=labels, styles=styles), THIRD)
        for name, network in networks.items()
    ]  # fmt: skip

    legend = markup.legend(
        [(text.short(pair.dataset.classes[label], 14), s) for label, s in styles.items()], 0
    )
    lead = markup.note(
        f"t-SNE of the pooled features of {len(labels)} test samples, of the first seed. Distances between groups mean "
        "little; whether groups are separate does."
    )
    return lead + legend + markup.figures(pictures, 3)


def embed(network: Trained) -> NDArray[np.float64]:
    """Return two coordinates of every kept sample (n, 2), the same for the same features."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    x = network.pooled.astype(np.float64)
    x = (x - x.mean(axis=0)) / max(float(x.std()), 1e-12)  # a dead network has features that are all equal
    if not x.any():
        return np.zeros((len(x), 2))

    # Work this small is slower with more threads, by far on a busy machine.
    with threadpool_limits(1):
        embedded = TSNE(perplexity=min(30.0, (len(x) - 1) / 3), init="pca", random_state=0).fit_transform(x)
    places: NDArray[np.float64] = embedded.astype(np.float64)
    return places


def _style(number: int) -> Style:
    """Return color and mark of a class; ten classes are ten different ones."""
    place = number % len(SERIES)
    return Style(SERIES[place], MARKS[(place + number // len(SERIES)) % len(MARKS)], ())


def _points(
    ax: Axes, places: NDArray[np.float64], labels: NDArray[np.int64], styles: dict[int, Style]
) -> None:
    for label, style in styles.items():
        x, y = places[labels == label].T
        ax.scatter(x, y, s=9, color=style.color, marker=style.mark, linewidths=0, alpha=0.8)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(True)

"""Whether classes are related in the student's logits as they are in the teacher's."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline.report.drawing import markup, text
from pipeline.report.drawing.figure import THIRD, draw
from pipeline.report.results import Pair, Results, Run
from pipeline.report.statistics import estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Logit correlation"
LEAD = (
    "whether a run brings the student's relations between classes closer to the teacher's: paler is closer."
)
GROUP, ORDER = "pair", 90

COLOR = (0.690, 0.310, 0.576)
Matrix = NDArray[np.float64]  # (K, K)


def section(results: Results, pair: Pair) -> Markup:
    """Return how far each run is from the teacher, and pictures of some."""
    rows: list[markup.Row] = [
        [run.title, markup.mean(estimate([float(matrix.mean()) for matrix in differences(pair, run)]), 4)]
        for run in pair.runs
    ]

    # One scale for all pictures, so that they can be compared.
    shown = {run.name: np.mean(differences(pair, run), axis=0) for run in pair.compared}
    titles = {run.name: f"{run.title}{_over(run)}" for run in pair.compared}
    top = max(float(matrix.max()) for matrix in shown.values())

    pictures = [
        draw(f"{pair.name}/{name}/correlation", f"{titles[name]}.", 3.0,
             partial(_matrix, values=matrix, top=top), THIRD)
        for name, matrix in shown.items()
    ]  # fmt: skip

    lead = markup.note(
        "The logits of every two classes have a correlation over the test split, the student's and the teacher's. "
        f"Shown is how far they are apart; the darkest is {text.fixed(top)}."
    )
    table = markup.table(["run", "mean difference to the teacher"], rows)
    return lead + markup.figures(pictures, 3) + table


def _over(run: Run) -> str:
    return f", mean over {len(run.students)} seeds" if len(run.students) > 1 else ""


def differences(pair: Pair, run: Run) -> list[Matrix]:
    """Return the absolute difference to the teacher's matrix (K, K), one a seed."""
    teacher = pair.teacher.trained.correlation.astype(np.float64)
    return [np.abs(student.correlation - teacher) for student in run.students]


def _matrix(ax: Axes, values: Matrix, top: float) -> None:
    strength = values / max(top, 1e-9)
    image = np.concatenate([np.broadcast_to(COLOR, (*values.shape, 3)), strength[..., None]], axis=2)
    ax.imshow(np.round(255 * image).astype(np.uint8), interpolation="none")
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(True)
    ax.locator_params(nbins=6, integer=True)

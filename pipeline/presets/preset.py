"""Contract of `pipeline/presets/`: one yaml file for the params of a published table, or of several.

A file names the pairs and the runs that stand in its table; what these consist of is mostly shared
(`pipeline/presets/shared/`). `block` merges all of it and keeps what the table's students need.

Example:
    title: SLKD beside KD and others on CIFAR-100
    paper: SLKD
    tables: ["1", "2"]
    extends: [cifar, baselines, slkd]
    pairs: [resnet56-resnet8]
    rows: {KD: kd, SLKD: slkd}          # as the table calls them: runs
    quick: resnet56-resnet8
    params: {seeds: [0, 1, 2]}
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field

from pipeline.errors import ParamsError, unknown_name
from pipeline.params.base import Block, validate
from pipeline.params.document import read
from pipeline.params.numbers import Names
from pipeline.params.sections import ALONE, merged
from pipeline.presets import selection

FOLDER = Path(__file__).parent
SHARED = FOLDER / "shared"
TEACHER = "teacher"  # a row of the teacher's own accuracy
UNDISTILLED = (ALONE, TEACHER)  # rows that are there for every pair


class Preset(Block):
    """One yaml file.

    Attributes:
        title: what it is, in a line.
        paper: whose tables they are.
        tables: their numbers in the paper.
        figures: what of a report shows a figure of the paper, by the figure's number.
        extends: files of `pipeline/presets/shared` that are merged, in their order, below `params`.
        pairs: the pairs of the tables.
        rows: a run for each row of the tables, as they call it; "student" is the student alone, "teacher" the teacher.
        also: runs that are in no table.
        without: what the tables do not have, as "pair/run".
        quick: the pair that is left in the quick form.
        open: what the paper leaves open, and what was chosen.
        params: sections of params.yaml; null takes away what a shared file has.
    """

    title: str
    paper: str
    tables: Names = ()
    figures: dict[str, str] = {}
    extends: Names = ()
    pairs: Names = Field(min_length=1)
    rows: dict[str, str] = {}
    also: Names = ()
    without: Names = ()
    quick: str
    open: Names = ()
    params: dict[str, Any] = {}

    @property
    def runs(self) -> list[str]:
        """The runs of the tables, each once."""
        runs = [*self.rows.values(), *self.also]
        return [run for run in dict.fromkeys(runs) if run not in UNDISTILLED]

    @property
    def distill(self) -> list[str]:
        """What is distilled, as "pair/run"."""
        every = (f"{pair}/{run}" for pair in self.pairs for run in self.runs)
        return [item for item in every if item not in self.without]


def names() -> list[str]:
    """List the presets in alphabetical order."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str) -> Preset:
    """Read a preset.

    Raises:
        UnknownNameError: there is no such file.
        ParamsError: it is not of this form.
    """
    if name not in names():
        raise unknown_name("preset", name, names(), "List them: python -m stages.preset")
    path = FOLDER / f"{name}.yaml"
    return validate(Preset, read(path), "", str(path))


def every() -> Iterator[tuple[str, Preset]]:
    """Give all presets by name."""
    for name in names():
        yield name, load(name)


def block(preset: Preset) -> dict[str, Any]:
    """Return the params of a preset: all that its students need, and nothing else.

    Raises:
        ParamsError: a file that it extends is not there.
    """
    content: dict[str, Any] = {}
    for name in preset.extends:
        path = SHARED / f"{name}.yaml"
        if not path.is_file():
            raise ParamsError(f"{path} does not exist, which a preset extends. Install Stillhouse anew.")
        content = merged(content, _read(path))
    return selection.selected(_without_nulls(merged(content, preset.params)), preset.distill)


@cache
def _read(path: Path) -> dict[str, Any]:
    """Return a shared file, which many presets extend; nobody changes it."""
    return read(path)


def _without_nulls(content: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_nulls(value) if isinstance(value, dict) else value
        for key, value in content.items()
        if value is not None
    }


def places(preset: Preset) -> str:
    """Return the tables and figures of a preset in a line."""
    figures = [f"Figure {number}" for number in preset.figures]
    return ", ".join([*preset.tables, *figures])


def num_students(content: dict[str, Any]) -> int:
    """Return how many students a block distills, beside those that are trained alone."""
    return len(content["distill"]) * len(content["seeds"])

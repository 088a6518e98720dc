"""The section of coarse labels: its tree and what it says of it."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from report_fixtures import Links, Project

from pipeline.report.drawing import palette, text
from pipeline.report.sections import coarse

# Classes 0 and 2 are merged first, then 1 and 3, then both pairs, and 4 comes last.
TREE = np.array([[0, 2, 1, 2], [1, 3, 2, 2], [5, 6, 4, 4], [4, 7, 8, 5]], np.float64)
NAMES = ("cat", "dog", "owl", "bee", "an animal with a long name")


def test_a_node_is_shared_where_all_of_its_classes_are() -> None:
    assert coarse.shared(TREE, np.array([0, 1, 0, 2, 3])) == [True, False, False, False]
    assert coarse.shared(TREE, np.array([0, 1, 0, 1, 2])) == [True, True, False, False]
    assert coarse.shared(TREE, np.array([0, 0, 0, 0, 1])) == [True, True, True, False]


def test_every_merge_is_a_line_and_those_of_one_label_are_thick() -> None:
    ax = Figure().subplots()
    coarse.paint(ax, TREE, np.array([0, 0, 0, 0, 1]), NAMES)
    heights = {max(line.get_xdata()): (line.get_color(), line.get_linewidth()) for line in ax.lines}
    thin, thick = (palette.SERIES[0], 1.0), (palette.SERIES[1], 2.2)
    assert heights == {1: thick, 2: thick, 4: thick, 8: thin}

    # A merge of two classes lies between the names of these.
    places = {
        label.get_text(): place for label, place in zip(ax.get_yticklabels(), ax.get_yticks(), strict=True)
    }
    assert set(places) == {"cat", "dog", "owl", "bee", text.short(NAMES[4], 16)}
    for height, pair in ((1, ("cat", "owl")), (2, ("dog", "bee"))):
        (line,) = [line for line in ax.lines if max(line.get_xdata()) == height]
        assert set(line.get_ydata()) == {places[name] for name in pair}


def test_many_classes_have_no_names() -> None:
    number = coarse.MOST_WRITTEN + 1
    chain = [[0 if i == 0 else number + i - 1, i + 1, i + 1, i + 2] for i in range(number - 1)]
    ax = Figure().subplots()
    coarse.paint(ax, np.array(chain, np.float64), np.zeros(number, np.int64), ("a",) * number)
    assert len(ax.lines) == number - 1
    assert ax.get_yticks().tolist() == []


def test_the_page_has_the_tree_of_each_table(project: Project) -> None:
    arrays = {"coarse": np.array([0, 1, 0]), "sizes": np.array([2, 1]), "accuracy": np.array([0.1, 1.0])}
    project.fit("coarse", arrays | {"linkage": np.array([[0, 2, 1, 2], [1, 3, 2, 3]], np.float64)})
    html = str(coarse.section(project.collect()))
    assert "big/coarse: 2 coarse labels of 3 classes in stage2." in Links(html).text
    assert 'id="coarse"' in (project.run() / "index.html").read_text()


def test_without_such_a_table_there_is_no_section(project: Project) -> None:
    project.fit("moments", {"mean": np.zeros(4), "std": np.ones(4)})
    assert not coarse.section(project.collect())

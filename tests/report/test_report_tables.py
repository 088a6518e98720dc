"""The report's pictures of fitted tables: what is drawn, marked and said of arrays made by hand."""

from __future__ import annotations

import base64
import importlib
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from report_fixtures import Links, Project, provenance_of

from pipeline.artifacts import arrays
from pipeline.data.layout import images_path
from pipeline.errors import DamagedArtifactError
from pipeline.report.collect import collect as collecting
from pipeline.report.drawing import palette
from pipeline.report.sections import decisions, discriminants, sizes, subclasses

Array = NDArray[Any]
# Rows and columns differ, so that one taken for the other is seen. Images are 4x4, the map is 2x2.
FIELD = {"rows": [[0, 1], [1, 3]], "columns": [[0, 2], [2, 3]]}
WHOLE = {"rows": [[0, 3], [0, 3]], "columns": [[0, 3], [0, 3]]}
COUNTS = np.array([1200, 0, 30, 2, 0], np.int64)


def examples(*places: list[tuple[int, int, int]], groups: list[int]) -> dict[str, Array]:
    """Return the gallery's arrays of some places (sample, row, column) of each group."""
    found = np.array(places, np.int64)
    names = ("nearest_sample", "nearest_row", "nearest_column")
    return {"gallery": np.array(groups)} | {name: found[..., axis] for axis, name in enumerate(names)}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    set_field(project, FIELD)
    return project


def set_field(project: Project, field: dict[str, Any] | None) -> None:
    path = project.folder / "artifacts/checks/big.json"
    content = json.loads(path.read_text())
    content["features"]["stage2"].pop("field", None)
    if field is not None:
        content["features"]["stage2"]["field"] = field
    path.write_text(json.dumps(content))
    project.seal_check("big")


def left_out(project: Project) -> list[tuple[str, str]]:
    """Return what the report leaves out, and what makes it."""
    return [(entry.what, entry.command) for entry in project.collect().missing]


def section(project: Project, name: str) -> str:
    """Return the html of one section of the page."""
    html = str(importlib.import_module(f"pipeline.report.sections.{name}").section(project.collect()))
    links = Links(html)
    assert links.open == []
    assert all(address.startswith("data:image/png;base64,") for address in links.loaded)
    return html


def axes() -> Axes:
    return Figure().subplots()


def decoded(address: str) -> Array:
    """Return the pixels of an image's address, uint8 (H, W, RGBA)."""
    data = base64.b64decode(address.removeprefix("data:image/png;base64,"))
    return np.array(Image.open(io.BytesIO(data)).convert("RGBA"))


# Sizes.


def test_sizes_are_drawn_from_the_largest_and_what_is_empty_is_marked() -> None:
    ax = axes()
    sizes.paint(ax, COUNTS, "word")
    (steps,) = ax.patches[:1]
    values, edges, _ = steps.get_data()  # type: ignore[attr-defined]  # a StepPatch
    assert values.tolist() == [1200, 30, 2]
    assert edges.tolist() == [0.5, 1.5, 2.5, 3.5]
    (span,) = ax.patches[1:]
    assert (span.get_extents().transformed(ax.transData.inverted()).x0, ax.get_xlim()) == (3.5, (0.5, 5.5))
    assert ax.get_title("right") == "2 empty"
    assert ax.get_yscale() == "log"
    assert ax.get_ylim()[0] < 2
    assert ax.lines[0].get_ydata()[0] == 1232 / 5  # type: ignore[index]  # an even share


def test_even_sizes_are_drawn_on_a_plain_axis_without_a_mark() -> None:
    ax = axes()
    sizes.paint(ax, np.array([10, 300, 20]), "word")
    assert ax.get_yscale() == "linear"
    assert ax.get_ylim()[0] == 0
    assert ax.get_title("right") == ""
    assert len(ax.patches) == 1


def test_a_table_without_any_pixel_is_all_empty() -> None:
    ax = axes()
    sizes.paint(ax, np.zeros(4, np.int64), "word")
    assert ax.get_title("right") == "4 empty"


def test_the_caption_says_what_is_counted(project: Project) -> None:
    project.fit("kmeans", {"counts": COUNTS})
    project.fit("kernels", {"counts": np.array([5])})
    project.fit("subclasses", {"counts": np.array([4, 4, 4])})
    text = Links(section(project, "sizes")).text
    assert (
        "big/kmeans: 5 words of stage2 by size, 1.23\N{NARROW NO-BREAK SPACE}k pixels in all; 2 empty."
        in text
    )
    assert "big/kernels: 1 kernel of stage2 by size, 5 pixels in all; none empty." in text
    assert "big/subclasses: 3 sub-classes of stage2" in text


# Linear discriminants.


def test_explained_ratios_and_their_sum(project: Project) -> None:
    explained = np.array([0.5, 0.25, 0.125])
    ax = axes()
    discriminants.paint(ax, 100 * explained)
    assert [bar.get_height() for bar in ax.patches] == [50, 25, 12.5]  # type: ignore[attr-defined]  # rectangles
    assert list(ax.lines[0].get_ydata()) == [50, 75, 87.5]  # type: ignore[arg-type]  # an array here
    project.fit("lda", {"explained": explained, "mean": np.zeros(4)})
    assert "3 directions of LDA: 87.5 %." in Links(section(project, "discriminants")).text


# Scores.

SCORES = np.array([[0.81, 0.19, 0], [0, 1, 0], [0.25, 0.25, 0.5]], np.float32)


def test_scores_as_colors_by_hand() -> None:
    image = subclasses.cells(SCORES)
    assert (image[..., :3] == (0, 114, 178)).all()
    expected = [[round(255 * 0.9), round(255 * 0.19**0.5), 0], [0, 255, 0], [128, 128, round(255 * 0.5**0.5)]]
    np.testing.assert_array_equal(image[..., 3], expected)


def test_the_page_has_the_scores_pixel_by_pixel(project: Project) -> None:
    arrays = {"scores": SCORES, "per_class": np.array(1), "counts": np.array([4, 4, 4])}
    project.fit("subclasses", arrays)
    html = section(project, "subclasses")
    (address,) = Links(html).loaded
    image = decoded(address)
    flipped = re.search(r'<image [^>]*transform="[^"]*scale\(1 -1\)', html) is not None
    np.testing.assert_array_equal(image[::-1] if flipped else image, subclasses.cells(SCORES))
    text = Links(html).text
    assert "3 sub-classes, 1 of each class" in text
    assert "keeps 77.0 % of its pixels, and 77.0 % stay in their class." in text
    assert "largest of" not in text


def test_lines_part_the_classes_and_names_stand_in_their_middle() -> None:
    ax = axes()
    subclasses.paint(ax, np.eye(6, dtype=np.float32), 2, ("cat", "dog", "owl"))
    lines = sorted({tuple(line.get_data()[axis]) for line in ax.lines for axis in (0, 1)})  # type: ignore[arg-type]
    assert lines == [(0, 1), (1.5, 1.5), (3.5, 3.5)]
    assert ax.get_xticks().tolist() == ax.get_yticks().tolist() == [0.5, 2.5, 4.5]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["cat", "dog", "owl"]


def test_a_class_is_kept_where_only_the_subclass_is_wrong(project: Project) -> None:
    scores = np.kron(np.eye(3), np.full((2, 2), 0.5)).astype(np.float32)
    project.fit("subclasses", {"scores": scores, "per_class": np.array(2), "counts": np.full(6, 4)})
    text = Links(section(project, "subclasses")).text
    assert "keeps 50.0 % of its pixels, and 100.0 % stay in their class." in text


def test_a_large_matrix_keeps_its_rare_scores(project: Project) -> None:
    scores = np.zeros((2001, 2001), np.float32)
    scores[2000, 4] = 0.04
    image = subclasses.cells(scores)
    assert image.shape == (667, 667, 4)
    assert np.argwhere(image[..., 3]).tolist() == [[666, 1]]
    assert image[666, 1, 3] == 51
    project.fit(
        "subclasses", {"scores": scores, "per_class": np.array(667), "counts": np.ones(2001, np.int64)}
    )
    html = section(project, "subclasses")
    assert "A cell is the largest of 3\N{MULTIPLICATION SIGN}3 scores." in Links(html).text
    assert decoded(Links(html).loaded[0]).shape == (667, 667, 4)


# Sub-classes of an image.

CONFUSED = np.array(
    [
        [0.7, 0.1, 0.2, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0.3, 0, 0.1, 0.6, 0, 0],
        [0.002, 0.1, 0.2, 0.3, 0.098, 0.3],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0.5, 0.5],
    ],
    np.float32,
)


def pictures(*assigned: list[list[int]], samples: list[int]) -> dict[str, Array]:
    """Return the arrays of a table of 2 sub-classes each, of which images are pictured."""
    return {
        "scores": CONFUSED, "per_class": np.array(2), "counts": np.full(6, 4),
        "pictured": np.array(samples), "pictured_subclass": np.array(assigned),
    }  # fmt: skip


def shown(assigned: list[list[int]], channels: int = 1) -> decisions.Shown:
    subclasses_of, counts = np.unique(assigned, return_counts=True)
    order = subclasses_of[np.argsort(-counts, kind="stable")]
    image = np.arange(channels * 16, dtype=np.uint8).reshape(channels, 4, 4)
    return decisions.Shown(image, np.array(assigned), order, CONFUSED, 2, ("cat", "dog", "owl"))


def test_each_pixel_has_the_color_of_its_subclass() -> None:
    ax = axes()
    decisions.paint_subclasses(ax, shown([[2, 3], [3, 3]]))
    boxes = [(*box.get_xy(), box.get_width(), box.get_height(), box.get_facecolor()) for box in ax.patches]
    often, seldom = (to_rgba(color, 0.7) for color in palette.SERIES[:2])
    assert boxes == [(0, 0, 2, 2, seldom), (2, 0, 2, 2, often), (0, 2, 4, 2, often)]


def test_runs_cover_a_map_once() -> None:
    assigned = np.random.default_rng(0).integers(0, 3, (5, 7))
    painted = np.full_like(assigned, -1)
    for row, column, length, subclass in decisions.runs(assigned):
        assert (painted[row, column : column + length] == -1).all()
        painted[row, column : column + length] = subclass
    np.testing.assert_array_equal(painted, assigned)


def test_the_bars_are_the_largest_scores_of_the_most_frequent_subclasses() -> None:
    ax = axes()
    decisions.paint_scores(ax, shown([[3, 3], [3, 2]]))
    # Row 3 (dog 1) is 0.3 for itself and owl 1, 0.2 for dog 0, 0.1 for cat 1; row 2 has three scores above 0.
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([0.3, 0.3, 0.2, 0.1, 0.6, 0.3, 0.1])
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["dog 1", "owl 1", "dog 0", "cat 1", "dog 1", "cat 0", "dog 0"]
    first, second = palette.SERIES[:2]
    gray = to_rgba(palette.FAINT)
    expected = [
        to_rgba(first),
        gray,
        to_rgba(first, 0.45),
        gray,
        to_rgba(second, 0.45),
        gray,
        to_rgba(second),
    ]
    assert [bar.get_facecolor() for bar in ax.patches] == expected
    words = [label.get_text() for label in ax.texts]
    assert words[0] == "dog 1: 3 pixels"
    assert words[1:5] == ["30 %", "30 %", "20 %", "10 %"]
    assert words[5] == "dog 0: 1 pixel"
    assert [ax.texts[place].get_color() for place in (0, 5)] == [first, second]


def test_scores_of_less_than_half_a_percent_are_no_bars() -> None:
    assert decisions.confused(np.array([0.0049, 0.99, 0.0051, 0], np.float32)) == [
        (1, pytest.approx(0.99)),
        (2, pytest.approx(0.0051)),
    ]


def test_an_image_with_many_subclasses_has_gray_ones() -> None:
    """Six have a color, and three have their rows of scores."""
    many = decisions.Shown(
        np.zeros((3, 4, 4), np.uint8), np.arange(8).reshape(2, 4), np.arange(8), np.eye(8, dtype=np.float32), 8, ("a",)
    )  # fmt: skip
    assert [many.color(k) for k in range(8)] == [*palette.SERIES, palette.FAINT, palette.FAINT]
    ax = axes()
    decisions.paint_scores(ax, many)
    assert len(ax.patches) == 3


def test_pictured_images_stand_on_the_page(project: Project) -> None:
    assert section(project, "decisions") == ""
    project.fit("subclasses", pictures([[0, 1], [0, 0]], [[3, 3], [3, 3]], samples=[0, 1]))
    html = section(project, "decisions")
    text = Links(html).text
    assert html.count("<figure>") == 2
    assert "big/subclasses: cat, sample 0; 2 sub-classes on 2\N{MULTIPLICATION SIGN}2 pixels." in text
    assert "big/subclasses: dog, sample 1; 1 sub-class on" in text
    assert "cat 0: 3 pixels" in text
    assert len(Links(html).loaded) == 4  # each image in color, and in gray below its sub-classes
    assert '<section id="decisions">' in (project.run() / "index.html").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pictured": np.array([90])}, "pictured 90, expected less than 90"),
        ({"pictured_subclass": np.array([[[0, 6]]])}, "pictured_subclass 6, expected less than 6"),
    ],
)
def test_pictures_outside_the_data_are_left_out(
    project: Project, change: dict[str, Array], message: str
) -> None:
    project.fit("subclasses", pictures([[0, 1], [0, 0]], samples=[0]) | change)
    (entry,) = project.collect().missing
    assert message in entry.reason


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pictured": np.array([-1])}, "pictured that are no pictures"),
        ({"pictured": np.array([0.5])}, "pictured that are no pictures"),
        ({"pictured_subclass": np.array([[0, 1]])}, "pictured_subclass that are no pictures"),
        ({"pictured_subclass": np.zeros((1, 0, 2), np.int64)}, "pictured_subclass that are no pictures"),
        ({"pictured_subclass": np.zeros((2, 1, 1), np.int64)}, "pictures 1 samples and 2 maps"),
    ],
)
def test_arrays_that_are_no_pictures_are_reported(
    project: Project, change: dict[str, Array], message: str
) -> None:
    project.fit("subclasses", pictures([[0, 1], [0, 0]], samples=[0]) | change)
    with pytest.raises(DamagedArtifactError, match=f"{message}.*fit_table@big-subclasses$"):
        project.run()


# Templates.


def boxes(html: str) -> list[list[int]]:
    """Return x, y, width and height of every frame."""
    found = re.findall(r'<rect x="(\d+)" y="(\d+)" width="(\d+)" height="(\d+)"/>', html)
    return [[int(number) for number in frame] for frame in found]


def test_frames_are_the_fields_of_the_nearest_pixels(project: Project) -> None:
    places = [(7, 0, 0), (3, 1, 0), (11, 0, 1)]
    project.fit("kmeans", {"counts": COUNTS} | examples(places, groups=[2]))
    html = section(project, "templates")
    # Columns 0 to 2 and rows 0 to 1; columns 0 to 2 and rows 1 to 3; columns 2 to 3 and rows 0 to 1.
    assert boxes(html) == [[0, 0, 3, 2], [0, 1, 3, 3], [2, 0, 2, 2]]
    faded = re.findall(r'<path d="M0 0H4V4H0zM(\d+) (\d+)v(\d+)h(\d+)v-\d+z"/>', html)
    assert [[int(x), int(y), int(w), int(h)] for x, y, h, w in faded] == boxes(html)
    assert "<circle" not in html
    text = Links(html).text
    assert "1 of 5 words. A pixel of stage2 sees at most 3\N{MULTIPLICATION SIGN}3 of the 4" in text
    assert "word 2 30 pixels, 2.44 %" in text
    assert re.findall(r"<title>(.*?)</title>", html) == [
        "dog, sample 7, row 0, column 0",
        "cat, sample 3, row 1, column 0",
        "owl, sample 11, row 0, column 1",
    ]


def test_the_images_are_those_of_the_training_split(project: Project) -> None:
    project.fit(
        "kmeans",
        {"counts": COUNTS} | examples([(7, 0, 0), (3, 1, 0)], [(50, 0, 0), (7, 1, 1)], groups=[0, 2]),
    )
    images = np.load(images_path(project.folder / "prepared" / "pets", "train"))
    shown = Links(section(project, "templates")).loaded
    assert len(shown) == 4
    for address, sample in zip(shown, (7, 3, 50, 7), strict=True):
        np.testing.assert_array_equal(decoded(address)[..., :3], np.moveaxis(images[sample], 0, -1))


def test_places_that_are_not_there_are_left_out(project: Project) -> None:
    project.fit(
        "kmeans",
        {"counts": COUNTS} | examples([(7, 0, 0), (-1, -1, -1)], [(-1, -1, -1)] * 2, groups=[0, 3]),
    )
    html = section(project, "templates")
    assert len(Links(html).loaded) == len(boxes(html)) == 1
    assert "word 3 2 pixels" in Links(html).text


def test_a_field_of_the_whole_image_is_named_and_its_place_has_a_dot(project: Project) -> None:
    set_field(project, WHOLE)
    project.fit("kernels", {"counts": COUNTS} | examples([(7, 0, 0), (3, 1, 0), (5, 0, 1)], groups=[0]))
    html = section(project, "templates")
    assert re.findall(r'<circle cx="(\d)" cy="(\d)"', html) == [("1", "1"), ("1", "3"), ("3", "1")]
    assert boxes(html) == []
    assert "A pixel of stage2 sees the whole image; the dot is its place." in Links(html).text
    assert "kernel 0 1,200 pixels, 97.40 %" in Links(html).text


def test_fields_of_which_some_are_the_whole_image(project: Project) -> None:
    set_field(project, {"rows": [[0, 3], [1, 3]], "columns": [[0, 3], [0, 3]]})
    project.fit("kmeans", {"counts": COUNTS} | examples([(7, 0, 1), (3, 1, 0)], groups=[0]))
    html = section(project, "templates")
    assert boxes(html) == [[0, 1, 4, 3]]
    assert re.findall(r'<circle cx="(\d)" cy="(\d)"', html) == [("3", "1")]
    assert "and where it sees the whole image a dot is its place." in Links(html).text


def test_subclasses_are_called_by_their_class(project: Project) -> None:
    arrays = {"counts": np.array([1, 2, 3, 4, 5, 6]), "per_class": np.array(2)}
    project.fit(
        "subclasses",
        arrays | examples([(7, 0, 0)], [(3, 0, 0)], [(4, 0, 0)], groups=[5, 2, 0]),
    )
    text = Links(section(project, "templates")).text
    assert "3 of 6 sub-classes." in text
    assert "cat, sub-class 0 1 pixel, 4.76 %" in text
    assert "owl, sub-class 1 6 pixels, 28.57 %" in text
    assert "dog, sub-class 0 3 pixels, 14.29 %" in text


def test_hostile_names_are_shown_as_text(tmp_path: Path) -> None:
    project = Project(tmp_path, classes=("<b>&", '"x', "owl"))
    set_field(project, FIELD)
    arrays = {"counts": np.ones(3, np.int64), "per_class": np.array(1)}
    project.fit("subclasses", arrays | {"scores": SCORES} | examples([(0, 0, 0)], groups=[0]))
    assert "<b>&amp;" not in section(project, "templates")
    assert "<b>&, sub-class 0" in Links(section(project, "templates")).text


# What is read.


def test_tables_without_pictures_have_no_sections(project: Project) -> None:
    project.fit("moments", {"mean": np.zeros(4), "std": np.ones(4)})
    html = (project.run() / "index.html").read_text()
    assert '<section id="tables">' in html
    for name in ("sizes", "discriminants", "subclasses", "decisions", "templates"):
        assert f'id="{name}"' not in html


def test_missing_tables_are_left_out_with_the_command_that_makes_them(project: Project) -> None:
    project.fit("kmeans", {"counts": COUNTS})
    for path in ("metrics/tables/big/kmeans.json", "tables/big/kmeans.npz"):
        project.path(path).unlink()
        assert left_out(project) == [("table kmeans of teacher big", "dvc repro fit_table@big-kmeans")]
    project.fit("kmeans", {"counts": COUNTS})
    project.path("tables/big/kmeans.npz").write_bytes(b"")  # made when nobody asked for it
    assert left_out(project) == [("table kmeans of teacher big", "dvc repro fit_table@big-kmeans")]


def test_tables_of_other_settings_are_left_out(project: Project) -> None:
    project.fit("kmeans", {"counts": COUNTS}, clusters=5)
    project.params["tables"]["kmeans"]["kmeans"]["clusters"] = 6
    project.write_params()
    assert left_out(project) == [("table kmeans of teacher big", "dvc repro fit_table@big-kmeans")]


@pytest.mark.parametrize("origin", ["weights", "digest"])
def test_tables_of_other_features_are_left_out(project: Project, origin: str) -> None:
    project.fit("kmeans", {"counts": COUNTS})
    path = project.path("tables/big/kmeans.npz")
    about = arrays.read_about(path, "") | {origin: "another"}
    arrays.write(path, {"counts": COUNTS}, about)
    project.quality("kmeans", {"pixels": 8.0})
    assert left_out(project) == [("table kmeans of teacher big", "dvc repro fit_table@big-kmeans")]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ((90, 0, 0), "nearest_sample 90, expected less than 90"),
        ((0, 2, 0), "nearest_row 2, expected less than 2"),
        ((0, 0, 2), "nearest_column 2, expected less than 2"),
    ],
)
def test_tables_with_places_outside_the_data_are_left_out(
    project: Project, place: tuple[int, int, int], message: str
) -> None:
    project.fit("kmeans", {"counts": COUNTS} | examples([place], groups=[0]))
    (entry,) = project.collect().missing
    assert message in entry.reason


def test_a_store_of_which_no_field_is_known_is_reported(project: Project) -> None:
    set_field(project, None)
    project.fit("kmeans", {"counts": COUNTS} | examples([(7, 0, 0)], groups=[0]))
    with pytest.raises(
        DamagedArtifactError,
        match=r"no receptive field of 'stage2'.*--single-item check_features@big$",
    ):
        project.run()


def test_a_table_that_is_no_archive_is_reported(project: Project) -> None:
    project.fit("kmeans", {"counts": COUNTS})
    (project.folder / "artifacts/tables/big/kmeans.npz").write_text("no archive")
    with pytest.raises(DamagedArtifactError, match=r"kmeans.npz cannot be read .*fit_table@big-kmeans$"):
        project.run()


# Codes.


def test_what_codes_lose_stands_with_the_caches(project: Project) -> None:
    project.fit("kmeans", {"counts": COUNTS})
    place = {"table": "kmeans", "encoding": "nearest"}
    project.distill("words", methods={"letkd": {"places": {"stage2": place}}})
    codes = ("codes of teacher big by table kmeans", "dvc repro encode_views@big-kmeans")
    students = [
        (f"student of big-small/words, seed {seed}", f"dvc repro evaluate@big-small/words-{seed}")
        for seed in range(3)
    ]
    assert left_out(project) == [
        codes,
        *students,
    ]  # who learned from codes that are not there, learned from others
    lost = {"slots": 9, "mean_kl_lost": 0.0625}
    project.codes("kmeans", {"stage2:nearest@kmeans": lost})
    text = Links(section(project, "caches")).text
    assert "stage2:nearest@kmeans90.0625" in text
    project.codes("kmeans", {"stage2:top4@kmeans": lost})
    with pytest.raises(
        DamagedArtifactError, match=r"lacks stage2:nearest@kmeans. .*encode_views@big-kmeans$"
    ):
        project.run()
    project.codes("kmeans", {"stage2:nearest@kmeans": {"slots": 9}})
    with pytest.raises(DamagedArtifactError, match=r"json: stage2:nearest@kmeans lacks mean_kl_lost. "):
        project.run()
    project.codes("kmeans", {"stage2:nearest@kmeans": lost})
    project.fit("kmeans", {"counts": COUNTS[::-1]})
    with pytest.raises(
        DamagedArtifactError, match=r"does not belong to .*kmeans.npz.*--force --single-item encode_views@big"
    ):
        project.run()


def test_a_table_that_only_a_run_asks_for_is_shown_with_its_teacher(project: Project) -> None:
    project.fit("kmeans", {"counts": COUNTS})
    project.params["teachers"]["big"]["tables"] = {}
    project.write_params()
    assert project.collect().tables == ()
    project.distill("words", methods={"letkd": {"places": {"stage2": "kmeans"}}})
    (table,) = project.collect().tables
    assert (table.title, table.plugin, table.feature) == ("big/kmeans", "kmeans", "stage2")


def test_same_tables_same_bytes(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "gather", lambda folder: provenance_of("2001-01-01"))
    project.fit("subclasses", {"scores": SCORES, "per_class": np.array(1), "counts": np.array([4, 4, 4])})
    project.fit("kmeans", {"counts": COUNTS} | examples([(7, 0, 0)], groups=[0]))
    project.fit("lda", {"explained": np.array([0.5, 0.25])})
    one, other = (project.run(name) / "index.html" for name in ("one", "other"))
    assert one.read_bytes() == other.read_bytes()
    links = Links(one.read_text())
    assert links.open == []
    assert len(links.names) == len(set(links.names))
    assert {"sizes", "discriminants", "subclasses", "templates"} <= set(links.names)


def test_what_the_largest_logits_lose_stands_with_the_caches(project: Project) -> None:
    assert "Largest logits" not in section(project, "caches")
    path = project.path("metrics/features/big.json")
    kl = {"1": {"mean": 0.0625, "high": 0.5, "flat": 2.5}, "4": {"mean": 0.125, "high": 0.75, "flat": 0.25}}
    loss = {
        "kept": 16,
        "classes": 1000,
        "bytes": 66,
        "whole": 2000,
        "rows": 256,
        "mass": 0.875,
        "top1": 0.995,
    }
    lost = {"last/test/logits": loss | {"kl": kl}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lost": lost}))
    project.seal_check("big")

    text = Links(section(project, "caches")).text
    for temperature, *numbers in (("1", "0.0625", "0.5", "2.5"), ("4", "0.125", "0.75", "0.25")):
        assert f"last/test/logits16 of 100066 for 200087.50 %99.5 %{temperature}{''.join(numbers)}" in text
    assert "over 256 views of each split" in text

"""Presets: every published row has one, and each holds what its rows need. `test_checked.py` checks their params."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo
from dvc_project import make

from pipeline.params import checks
from pipeline.params.document import parse
from pipeline.params.sections import Sections
from pipeline.presets import preset as presets
from pipeline.presets.preset import ALONE, SHARED, TEACHER, Preset
from pipeline.presets.quick import BATCH, BOX_BATCH, BOXES, EPOCHS, MOST, SIDE, SOURCE, quick
from pipeline.presets.selection import mentions
from pipeline.presets.text import written
from pipeline.report import key
from pipeline.report.published import Published, published

PRESETS = dict(presets.every())
NAMES = list(PRESETS)
FORMS = ("full", "quick")
# Beside the papers' own tables `published.csv` has what others measured.
PAPERS = ("letKD", "SLKD", "KCD", "DSKD")


@cache
def content(name: str, form: str) -> dict[str, Any]:
    """Return the params of a preset, as its text is read back."""
    preset = PRESETS[name]
    block = presets.block(preset)
    return parse(written(quick(block, preset.quick) if form == "quick" else block), Path("params.yaml"))


@cache
def sections(name: str) -> Sections:
    return checks.check(content(name, "full"))


# --- What they hold -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_names_runs_for_rows_and_reads_all_that_it_holds(name: str) -> None:
    preset, params = PRESETS[name], content(name, "full")
    assert set(preset.runs) == set(params["runs"])
    assert set(preset.without) <= {f"{pair}/{run}" for pair in preset.pairs for run in preset.runs}
    assert preset.quick in preset.pairs
    assert preset.tables or preset.figures
    for section in ("recipes", "datasets", "tables", "matchings", "copies", "teachers", "students"):
        others = {key: value for key, value in params.items() if key != section}
        assert set(params.get(section, {})) <= set(mentions(others)), section


def test_a_preset_is_short_and_shared_files_are_extended() -> None:
    extended = {name for _, preset in PRESETS.items() for name in preset.extends}
    assert extended == {path.stem for path in SHARED.glob("*.yaml")}
    assert presets.names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_text_of_a_preset_reads_back_as_it_is(name: str) -> None:
    block = presets.block(PRESETS[name])
    assert content(name, "full") == json.loads(json.dumps(block))


# --- Every published row --------------------------------------------------------------------------------------


@cache
def networks(name: str, pair: str) -> tuple[str, str]:
    params = sections(name)
    teacher, student = params.pairs[pair].teacher, params.pairs[pair].student
    return params.teachers[teacher].network, params.students[student].network


def candidates(row: Published) -> Iterator[tuple[str, Preset, str]]:
    """Give each preset that has the table of a row and its pair, with that pair."""
    for name, preset in PRESETS.items():
        if preset.paper == row.source and row.table in preset.tables:
            for pair in preset.pairs:
                if networks(name, pair) == (row.teacher, row.student):
                    yield name, preset, pair


def key_of(name: str, preset: Preset, pair: str, row: Published) -> str | None:
    """Return the key of the run that a preset has for a row, None where it has none."""
    if row.run in (ALONE, TEACHER):
        return row.run  # every pair has them
    run = preset.rows.get(row.method)
    if run is None or f"{pair}/{run}" not in preset.distill:
        return None
    params = sections(name)
    return key.key(params.run(pair, run), params)


ROWS = [row for row in published() if row.source in PAPERS]


@pytest.mark.parametrize("table", sorted({(row.source, row.table) for row in ROWS}), ids=" ".join)
def test_every_published_row_has_a_preset(table: tuple[str, str]) -> None:
    missing = []
    for row in (row for row in ROWS if (row.source, row.table) == table):
        keys = {key_of(*candidate, row) for candidate in candidates(row)} - {None}
        if row.run not in keys:
            missing.append(
                f"{row.teacher} -> {row.student}: {row.method} is {row.run}, and presets have {keys}"
            )
    assert missing == []


def test_what_others_measured_of_the_field_has_runs() -> None:
    """Beside the papers' own: rows of a method that there is here have a run of the same key."""
    preset, params = PRESETS["field-cifar"], sections("field-cifar")
    (pair,) = preset.pairs
    keys = {key.key(params.run(pair, run), params) for run in preset.runs} | {ALONE, TEACHER, ""}
    others = {row.method: row.run for row in published() if row.source not in PAPERS}
    assert {method: run for method, run in others.items() if run not in keys} == {}


def test_two_of_the_fields_runs_are_what_they_are_called() -> None:
    """Without checkpoints Pro-KD is Annealing-KD; SDD has two scales where both networks are of one kind."""
    params = sections("field-cifar")
    (pair,) = PRESETS["field-cifar"].pairs
    assert key.key(params.run(pair, "prokd"), params) == "prokd/anchors"
    (sdd,) = params.run(pair, "sdd").methods
    assert sdd.settings == {"scales": [1, 2]}


def test_tables_without_accuracies_have_presets_too() -> None:
    """Those whose numbers are lost, or are no accuracies: their labels stand in the presets alone."""
    held = {(preset.paper, table) for _, preset in PRESETS.items() for table in preset.tables}
    assert {("SLKD", "3"), ("SLKD", "4"), ("letKD", "S4"), ("KCD", "10"), ("KCD", "11")} <= held
    figures = {(preset.paper, number) for _, preset in PRESETS.items() for number in preset.figures}
    assert figures >= {("letKD", "3"), ("letKD", "S1"), ("SLKD", "2"), ("KCD", "1"), ("DSKD", "2")}


# --- The quick form -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_quick_form_has_the_same_runs_and_is_small(name: str) -> None:
    preset, params = PRESETS[name], content(name, "quick")
    full = [item for item in content(name, "full")["distill"] if item.startswith(f"{preset.quick}/")]
    assert params["distill"] == full
    assert list(params["pairs"]) == [preset.quick]
    assert all(entry["source"] in (SOURCE, BOXES) for entry in params["datasets"].values())
    for recipe in params["recipes"].values():
        assert recipe["epochs"] == EPOCHS
        assert recipe["batch_size"] <= BATCH
        assert "iterations" not in recipe
    networks = [*params["teachers"].values(), *params["students"].values()]
    assert not any("weights" in entry for entry in networks)
    built = [entry.get("detector") for entry in networks]
    settings = [params.get("tables"), params.get("matchings"), params["runs"], params["pairs"], built]
    for name_of, number in numbers(settings):
        assert number <= MOST.get(name_of, number), name_of


def numbers(settings: Any) -> Iterator[tuple[str, float]]:
    """Give every number in settings with its name."""
    if isinstance(settings, dict):
        for name, value in settings.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield name, value
            yield from numbers(value)
    elif isinstance(settings, list):
        for value in settings:
            yield from numbers(value)


def test_defaults_of_plugins_are_cut_too() -> None:
    methods = content("crd-cifar", "quick")["runs"]
    assert methods["ab"]["methods"]["ab"]["epochs"] == 1  # 30 by default, and not in the preset
    assert methods["crd"]["methods"]["crd"]["negatives"] == MOST["negatives"]
    assert "epochs" not in methods["kd"]["methods"]["kd"]
    assert content("kcd-cifar", "quick")["runs"]["ab"]["methods"]["ab"]["epochs"] == 0  # less than that stays


def test_the_quick_form_of_detectors_draws_its_images_and_keeps_their_resnets() -> None:
    full, params = (content("kcd-detection", form) for form in FORMS)
    (data,) = params["datasets"].values()
    assert data["source"] == BOXES
    assert data["views"] == {"scale_flip": {"short": [SIDE], "longest": MOST["longest"]}}
    (recipe,) = params["recipes"].values()
    assert recipe["batch_size"] == BOX_BATCH
    assert recipe["learning_rate"] == pytest.approx(0.02 * 0.1 * 4 / 16)  # of Detectron's 0.02 for 16 images
    for section in ("teachers", "students"):
        for name, entry in params[section].items():
            assert entry["network"] == full[section][name]["network"]
            assert entry["detector"] == {key: MOST[key] for key in CUT}


CUT = ("pyramid_width", "head_width", "smallest_anchor", "proposals", "sampled_anchors", "sampled_proposals")


def test_both_runs_of_detectors_read_the_same_maps_before_their_relu() -> None:
    """KCD's L2 and "Ours" differ in the order of the teacher's channels alone."""
    params = content("kcd-detection", "full")
    for run in params["runs"].values():
        assert run["methods"]["mimicry"] == {
            "student_tap": "stage4_pre",
            "teacher_feature": "stage4_pre",
            "reduction": "sum",
            "weights": {"mimic": 1e-4},
        }
        assert run["transform"]["permutation"]["features"] == ["stage4_pre"]
    strategies = [
        params["matchings"][run["transform"]["permutation"]["matching"]].get("strategy")
        for run in params["runs"].values()
    ]
    assert strategies == ["identity", None]


# --- Through DVC ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository of the project's sources, which each test gives its params.yaml."""
    return make(tmp_path_factory.mktemp("repository")).folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # in DVC's own graph
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_dvc_makes_a_stage_of_every_student(
    name: str, form: str, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is checked is also what dvc.yaml can read: a graph with a stage for each network, table and student.

    `dvc repro --dry` gets no further than its first stage where nothing has run: the second reads what that makes.

    Seeds are paired with all students alike, and a full form has thousands: it keeps one.
    """
    asked = content(name, form)
    seeds = asked["seeds"][: 1 if form == "full" else None]
    (repository / "params.yaml").write_text(json.dumps(asked | {"seeds": seeds}))  # json is yaml
    monkeypatch.chdir(repository)
    with Repo() as repo:
        assert [stage.name for stage in repo.reproduce("params", dry=True)] == ["params"]
        stages = {stage.name for stage in repo.index.stages}
    for item in asked["distill"]:
        assert {f"distill@{item}-{seed}" for seed in seeds} <= stages
    assert {f"train_teacher@{teacher}" for teacher in asked["teachers"]} <= stages

"""Presets as text, merged into a params.yaml, and the command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from error_fixtures import one_line

from pipeline.errors import ParamsError
from pipeline.params import checks
from pipeline.params.document import parse, read
from pipeline.presets import preset as presets
from pipeline.presets.text import applied, written
from stages import command
from stages import preset as stage

ROOT = Path(__file__).parents[2]
SHIPPED = (ROOT / "params.yaml").read_text("utf-8")


def block(name: str) -> dict[str, Any]:
    return presets.block(presets.load(name))


def said(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Run the command, and return its status and what it printed."""
    monkeypatch.setattr(sys, "argv", ["preset", *words])
    with pytest.raises(SystemExit) as end:
        command.run(stage.main)
    text = capsys.readouterr()
    return int(end.value.code or 0), text.out, text.err


# --- Text -----------------------------------------------------------------------------------------------------


def test_a_file_keeps_its_comments_and_its_own_entries() -> None:
    content = block("slkd-trajectories") | {"seeds": [0, 1, 2, 3, 4]}
    after = applied(SHIPPED, content, force=True)
    for line in SHIPPED.splitlines():
        if "#" in line and "kd: {methods" not in line:
            assert line.partition("#")[2] in after
    params = parse(after, Path("params.yaml"))
    before = parse(SHIPPED, Path("params.yaml"))
    assert params["distill"] == before["distill"] + content["distill"]
    assert params["teachers"] == before["teachers"] | content["teachers"]
    assert params["tables"] == before["tables"]
    assert params["runs"]["slkd"] == content["runs"]["slkd"]


COMMENTED = """# mine
---
seeds: [0, 1, 2, 3, 4]  # five

# teachers
teachers:
  # the first
  resnet56:
    dataset: cifar100
    network: resnet56
    recipe: crd  # theirs
    features:
      logits: {slots: 2}  # few
      stage2: {slots: 0}  # for my own run

# pairs
pairs:
  resnet56-resnet20:
    teacher: resnet56
    student: resnet20
    overrides: {}  # none

# runs
runs:
  quest: {methods: quest}  # another one

# what
distill:
  - resnet56-resnet20/quest  # first
# the end
"""


def test_comments_stay_where_entries_before_them_grow_or_are_replaced() -> None:
    after = applied(COMMENTED, block("letkd-places"), force=True)
    for_lines = [
        [line.partition("#")[2].strip() for line in text.splitlines()] for text in (COMMENTED, after)
    ]
    before, found = ([comment for comment in comments if comment] for comments in for_lines)
    assert found == before
    lines = after.splitlines()
    assert lines[:2] == ["# mine", "---"]
    for heading, section in (("# pairs", "pairs:"), ("# runs", "runs:"), ("# what", "distill:")):
        assert lines[lines.index(heading) + 1] == section
    assert lines[lines.index("# the end") - 1] == "  - resnet56-resnet20/inner_final_idle"
    teacher = parse(after, Path("x"))["teachers"]["resnet56"]
    none = {"slots": 0}
    assert teacher["features"] == {"logits": {"slots": 2}, "stage2": none, "final": none, "last_block1": none}


def test_line_ends_stay_as_they_are() -> None:
    windows = applied(COMMENTED.replace("\n", "\r\n"), block("letkd-places"), force=True)
    assert windows == applied(COMMENTED, block("letkd-places"), force=True).replace("\n", "\r\n")


def test_overrides_without_a_value_are_none() -> None:
    pair = "{teacher: resnet56, student: resnet20, overrides: }"
    text = f"seeds: [0, 1, 2]\npairs:\n  resnet56-resnet20: {pair}\ndistill: []\n"
    pairs = parse(applied(text, block("dkd-cifar")), Path("x"))["pairs"]
    assert pairs == block("dkd-cifar")["pairs"]


def test_a_teacher_that_shares_its_features_grows_alone() -> None:
    """Under an anchor of yaml they stand at two places."""
    own = "{dataset: cifar100, network: resnet56, recipe: crd, features: *store}"
    text = f"""seeds: [0, 1, 2, 3, 4]
teachers:
  mine:
    dataset: cifar100
    network: resnet20
    recipe: crd
    features: &store
      logits: {{slots: 0}}
  resnet56: {own}
distill: []
"""
    for content in (text, text.replace(own, own.strip("{}").replace(", ", "\n    ").join(("\n    ", "")))):
        teachers = parse(applied(content, block("letkd-places")), Path("x"))["teachers"]
        assert teachers["mine"]["features"] == {"logits": {"slots": 0}}
        assert teachers["resnet56"] == block("letkd-places")["teachers"]["resnet56"]


def test_applying_a_preset_twice_changes_nothing() -> None:
    text = written(block("letkd-places"))
    assert applied(text, block("letkd-places")) == text


def test_presets_of_the_same_networks_share_their_teachers() -> None:
    first, second = block("letkd-places"), block("slkd-teachers") | {"seeds": [0, 1, 2, 3, 4]}
    assert first["teachers"]["resnet56"]["features"]["logits"] == {"slots": 0}
    for one, other in ((first, second), (second, first)):
        params = parse(applied(written(one), other), Path("params.yaml"))
        features = params["teachers"]["resnet56"]["features"]
        assert features.keys() == first["teachers"]["resnet56"]["features"].keys()
        assert features["logits"] == {}  # all views: what either asks for
        assert params["pairs"].keys() == first["pairs"].keys() | second["pairs"].keys()
        checks.check(params)


def test_overrides_of_more_runs_are_added_to_a_pair() -> None:
    first, second = block("dkd-cifar"), block("reviewkd-cifar")
    params = parse(applied(written(first), second), Path("params.yaml"))
    assert params["pairs"]["resnet56-resnet20"]["overrides"].keys() == {"dkd", "reviewkd"}


def test_other_values_at_the_same_place_are_refused_and_named() -> None:
    text = "runs:\n  kd: {methods: {kd: {temperature: 2.0}}}   # mine\nseeds: [0, 1, 2]\ndistill: []\n"
    content = block("slkd-teachers")
    with pytest.raises(ParamsError) as error:
        applied(text, content)
    one_line(error, "runs.kd.methods.kd.temperature is 2.0, and the preset has nothing", "--force")
    assert parse(applied(text, content, force=True), Path("x"))["runs"]["kd"] == content["runs"]["kd"]

    with pytest.raises(ParamsError) as error:
        applied("seeds: [7]\n", content)
    one_line(error, "seeds is [7], and the preset has [0, 1, 2]")
    assert parse(applied("seeds: [7]\n", content, force=True), Path("x"))["seeds"] == [0, 1, 2]


def test_an_entry_is_replaced_whole() -> None:
    """A setting of the quick form that the full form leaves out must not stay."""
    from pipeline.presets.quick import quick

    preset = presets.load("kcd-cifar")
    small = quick(presets.block(preset), preset.quick)
    params = parse(applied(written(small), presets.block(preset), force=True), Path("x"))
    assert params["recipes"] == block("kcd-cifar")["recipes"]
    assert params["runs"] == block("kcd-cifar")["runs"]


def test_empty_sections_are_filled() -> None:
    params = parse(applied("seeds: []\nruns:\ntables: {}\ndistill: []\n", block("letkd-places")), Path("x"))
    assert params == block("letkd-places")


# --- The command ----------------------------------------------------------------------------------------------


def test_the_list_has_every_preset_with_its_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = said([], monkeypatch, capsys)
    assert status == 0
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    for name, preset in presets.every():
        assert preset.title in lines[name]
        assert lines[name].split()[-1] == str(presets.num_students(presets.block(preset)))


def test_what_is_shown_is_a_params_yaml_and_says_what_is_open(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for form in ([], ["--quick"]):
        status, out, _ = said(["show", "kcd-cifar", *form], monkeypatch, capsys)
        assert status == 0
        assert all(f"# open: {line}" in out for line in presets.load("kcd-cifar").open)
        checks.check(parse(out, Path("params.yaml")))


def test_a_preset_is_applied_to_a_new_file_and_to_a_present_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "params.yaml"
    monkeypatch.chdir(tmp_path)
    status, out, _ = said(["apply", "letkd-imagenet"], monkeypatch, capsys)
    assert status == 0
    assert "12 students of 2 pairs" in out
    assert "data/raw/imagenet is not there, and prepare_data refuses until it is" in out
    assert read(path) == block("letkd-imagenet")

    status, out, _ = said(["apply", "slkd-trajectories"], monkeypatch, capsys)
    assert status == 0
    assert "prepare_data downloads it to data/raw/cifar" in out
    assert len(read(path)["distill"]) == 14


def test_what_is_refused_leaves_the_file_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(SHIPPED)
    for words, told in (
        (["apply", "letkd-cifr"], "Unknown preset 'letkd-cifr'. Did you mean 'letkd-cifar'?"),
        (["apply", "slkd-cifar"], "seeds is [0, 1, 2, 3, 4], and the preset has [0, 1, 2]"),
    ):
        status, _, error = said([*words, "--params", str(path)], monkeypatch, capsys)
        assert status == 1
        assert told in error
        assert len(error.splitlines()) == 1
    assert path.read_text() == SHIPPED
    assert list(tmp_path.iterdir()) == [path]


FEATURES = "teachers: {{resnet56: {{dataset: a, network: b, features: {}}}}}"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("runs: [a]", "'runs' is ['a']"),
        ("seeds: 3", "'seeds' is 3"),
        ("distill: {a: b}", "'distill' is {'a': 'b'}"),
        ("teachers: {resnet56: x}", "'teachers.resnet56' is 'x'"),
        (FEATURES.format("logits"), "teachers.resnet56.features' is 'logits'"),
        (FEATURES.format("{logits: 3}"), "teachers.resnet56.features.logits' is 3"),
        (FEATURES.format("{logits: {slots: many}}"), "features.logits.slots"),
        ("techers: {}", "techers"),
        ("- a", "expected a mapping of blocks"),
    ],
)
def test_a_file_of_another_form_is_one_line(
    text: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    status, _, error = said(["apply", "letkd-places", "--params", str(path)], monkeypatch, capsys)
    assert status == 1
    assert told in error
    assert len(error.splitlines()) == 1
    assert path.read_text() == text


@pytest.mark.parametrize("words", [["show"], ["apply"], ["list", "slkd-cifar"], ["sow", "slkd-cifar"]])
def test_words_that_do_not_fit_are_told(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, error = said(words, monkeypatch, capsys)
    assert status == 2
    assert "Error" in error

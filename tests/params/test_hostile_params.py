"""Hostile values of params.yaml: none reaches a shell or a path outside the project, however a stage is started.

DVC pastes values into commands and paths. What must be tried is read from dvc.yaml itself, so that a new stage or a
new value of an old one is tried too.
"""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dvc.fs import localfs
from dvc.parsing import DataResolver
from dvc_project import EACH, ROOT, Project, make
from error_fixtures import one_line
from ruamel.yaml import YAML

from pipeline.errors import ParamsError, StillhouseError
from pipeline.params.checks import LISTS
from pipeline.params.document import read
from pipeline.params.sections import Sections
from pipeline.runs.check import check
from stages import check_params, params
from stages.params import CHECKED, PASSED

GUARD = f"cmp -s params.yaml artifacts/params/{CHECKED} || python -m stages.check_params"
PIPELINE: dict[str, Any] = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())
COMMAND = "$(touch owned)"
HOSTILE: list[Any] = [
    COMMAND, "`touch owned`", "a;touch owned;", "a|touch owned|b", "a&touch owned&", "a\ntouch owned\n", "a b", "'",
    '"', "", ".", "..", "../../../../outside", "../ada", "/etc/passwd", "./ada", "ada/", "x/../ada", "ada/../ada", "-x",
    "*", "~", "$HOME", "a\0b", "\N{FULLWIDTH LATIN SMALL LETTER A}", "ada\u2028", "0", 1.5, True, None, ["ada"],
    {"ada": 1}, "ada-sam/kd/../../x", "ada-sam/../kd", "../kd", "ada-sam/", "/kd", "ada-sam/kd/",
]  # fmt: skip
Place = tuple[str, str, str]  # section; "key", "entry" or "item"; the name of an item's value


def body(stage: str) -> dict[str, Any]:
    definition: dict[str, Any] = PIPELINE["stages"][stage]
    return definition.get("do", {key: value for key, value in definition.items() if key != "matrix"})


def commands(stage: dict[str, Any]) -> list[str]:
    return stage["cmd"] if isinstance(stage["cmd"], list) else [stage["cmd"]]


def expressions(content: Any) -> set[str]:
    """Return what stands between the braces of `${}` anywhere in `content`."""
    match content:
        case str():
            return set(re.findall(r"\$\{(.*?)\}", content))
        case dict():
            return expressions([*content, *content.values()])
        case list():
            return set().union(*map(expressions, content))
        case _:
            return set()


def place(stage: str, expression: str) -> Place:
    """Return where in params.yaml a value of a stage stands."""
    definition = PIPELINE["stages"][stage]
    first, _, name = expression.partition(".")
    source = definition.get("foreach", definition.get("matrix", {}).get(name, ""))
    section = source.removeprefix("${").removesuffix("}")
    assert section in EACH, f"{stage}: this test must know where {expression} comes from"
    if "matrix" in definition:
        assert first == "item"
        return section, "key" if isinstance(EACH[section], dict) else "entry", ""
    assert expression == "key" or first == "item"
    return section, first, name


# What dvc.yaml puts into commands, and into paths that DVC or a command makes or removes.
PLACES = sorted(
    {
        place(stage, expression)
        for stage in PIPELINE["stages"]
        for part in ("cmd", "outs", "metrics", "plots", "wdir")
        for expression in expressions(body(stage).get(part))
    }
)


def planted(values: Mapping[Place, Any]) -> dict[str, Any]:
    """Return good params with hostile values in some places."""
    content = copy.deepcopy(EACH)
    for (section, kind, name), value in values.items():
        first = next(iter(content[section].values())) if kind != "entry" else None
        match kind:
            case "key":
                content[section][value] = copy.deepcopy(first)
            case "entry":
                content[section].append(value)
            case _:
                first[name] = value
    return content


def write(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "params.yaml"
    with path.open("w") as file:
        YAML(typ="safe").dump(content, file)
    return path


def resolved(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the stages that DVC makes of dvc.yaml and of the params.yaml in `folder`, by name."""
    repo = SimpleNamespace(fs=localfs, config={})
    stages: dict[str, dict[str, Any]] = DataResolver(repo, str(folder), copy.deepcopy(PIPELINE)).resolve()[
        "stages"
    ]
    return stages


def shell(folder: Path, lines: list[str], path: str) -> subprocess.CompletedProcess[str]:
    """Run commands as DVC does: one after another in a shell, until one fails."""
    for line in lines:
        done = subprocess.run(
            ["/bin/sh", "-c", line], cwd=folder, text=True, capture_output=True, check=False,
            env=os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        if done.returncode:
            break
    return done


PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture
def deaf(tmp_path: Path) -> str:
    """Return a PATH with a python that does nothing, and says that all is well."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "python").write_text("#!/bin/sh\n")
    (folder / "python").chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


# ------------------------------------------------------------------ dvc.yaml


@pytest.mark.parametrize("stage", PIPELINE["stages"])
def test_a_value_comes_into_a_command_after_the_check_alone(stage: str) -> None:
    first, *others = commands(body(stage))
    if expressions(body(stage)):
        assert first == GUARD
        assert len(others) == 1
        assert f"artifacts/params/{PASSED}" in body(stage)["deps"]
    assert not expressions(first)
    assert not expressions(stage)


def test_values_are_found_wherever_they_stand() -> None:
    assert {("seeds", "entry", ""), ("distill", "entry", ""), ("students", "key", ""), ("teachers", "key", ""),
            ("teachers", "item", "dataset"), ("students", "item", "dataset"), ("tables", "key", ""),
            ("copies", "item", "teacher"), ("borrowed", "item", "pair"), ("pairs", "item", "teacher"),
            } <= set(PLACES)  # fmt: skip
    sections = {section for section, kind, _ in PLACES if kind == "key"}
    assert {"seeds", "distill"} | sections == {section for section, _, _ in PLACES}


def test_the_defaults_of_sections_are_empty_and_hold_no_value() -> None:
    """`vars` of dvc.yaml stand in for mappings that are left out: of a value in them, no check would know."""
    names = [name for group in PIPELINE["vars"] for name in group]
    assert sorted(names) == sorted(Sections.model_fields.keys() - set(LISTS))
    assert all(group == {name: {} for name in group} for group in PIPELINE["vars"])
    assert expressions({key: value for key, value in PIPELINE.items() if key != "stages"}) == set()


@pytest.mark.parametrize("section", [section for section in EACH if section not in LISTS])
def test_a_mapping_that_is_left_out_makes_no_stage(section: str, tmp_path: Path) -> None:
    lean = {name: [] if name in LISTS else {} for name in Sections.model_fields}
    write(tmp_path, lean)
    empty = resolved(tmp_path)
    write(tmp_path, {name: value for name, value in lean.items() if name != section})
    assert resolved(tmp_path) == empty
    assert empty.keys() == {"params", "report"}


@pytest.mark.parametrize("where", PLACES, ids=".".join)
def test_the_commands_of_a_hostile_value_are_never_run(where: Place, tmp_path: Path, deaf: str) -> None:
    write(tmp_path, planted({where: COMMAND}))
    hostile = [stage for stage in resolved(tmp_path).values() if COMMAND in "".join(commands(stage))]
    assert hostile
    for number, stage in enumerate(hostile):
        shell(tmp_path, commands(stage)[1:], deaf)
        assert (tmp_path / "owned").exists()  # what the check is for
        (tmp_path / "owned").unlink()
        if number == 0:  # they all begin alike
            done = shell(tmp_path, commands(stage), PATH)
            assert done.returncode == 1
            assert done.stderr.startswith("error: "), done.stderr
            assert done.stderr.count("\n") == 1, done.stderr
        assert not (tmp_path / "owned").exists()


# ------------------------------------------------------------------ the check


@pytest.mark.parametrize("where", PLACES, ids=".".join)
def test_a_hostile_value_is_refused(where: Place) -> None:
    check(EACH)
    for value in HOSTILE:
        if where[1] == "key" and (not isinstance(value, str) or value == "0"):
            continue  # the next test, or a good one
        with pytest.raises(StillhouseError) as error:
            check(planted({where: value}))
        one_line(error, quoted=[str(value)])


def test_two_tables_of_one_stage_name_are_refused_of_which_dvc_would_keep_one(tmp_path: Path) -> None:
    tables = {name: {"moments": {"feature": "stage2"}} for name in ("c", "b-c")}
    teachers = dict.fromkeys(("ada", "ada-b"), EACH["teachers"]["ada"])
    content = {name: [] if name in LISTS else {} for name in Sections.model_fields} | {
        "recipes": EACH["recipes"], "datasets": EACH["datasets"], "teachers": teachers, "tables": tables,
    }  # fmt: skip
    write(tmp_path, content)
    fits = [stage for stage in resolved(tmp_path) if stage.startswith("fit_table@")]
    assert len(fits) == len(tables) * len(teachers) - 1
    with pytest.raises(ParamsError, match="are both the stage fit_table@ada-b-c"):
        check(content)


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        # DVC would make two stages, `None` and `null`, where a json has one key.
        (
            "{null: EVIL, 'null': GOOD}",
            "has the key None, which yaml reads as NoneType, not as text. Quote it",
        ),
        ("{true: EVIL, 'true': GOOD}", "has the key True, which yaml reads as bool"),
        ("{.nan: EVIL, 'NaN': GOOD}", "has the key nan, which yaml reads as float"),
        ("{1.10: GOOD}", "has the key 1.1"),
        ("{2020-01-01: GOOD}", "has the key 2020-01-01, which yaml reads as date"),
        ("{[a, b]: GOOD}", "has a key that is a list or mapping"),
        ("{1: EVIL, '1': GOOD}", "has the key 1, which yaml reads as int"),
    ],
)
def test_a_key_that_is_no_text_is_refused(keys: str, match: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    for good, evil in (("{teacher: ada}", f"{{teacher: '{COMMAND}'}}"), ("1", "2")):
        path.write_text(f"copies: {keys.replace('EVIL', evil).replace('GOOD', good)}\n")
        with pytest.raises(ParamsError, match=re.escape(match)) as error:
            check_params.main(path)
        one_line(error)


# ------------------------------------------------------------------ the command before


def test_what_was_checked_is_not_checked_again(tmp_path: Path, deaf: str) -> None:
    """Else each stage would wait for a Python; line ends, comments and letters of any kind are kept."""
    (tmp_path / "bin/python").write_text("#!/bin/sh\nexit 3\n")
    path = write(tmp_path, EACH)
    path.write_bytes(path.read_bytes() + "# \N{SNOWMAN}\r\n\r\n#\r".encode())
    assert shell(tmp_path, [GUARD], deaf).returncode == 3
    params.main(tmp_path / "artifacts/params", params=path)
    assert (tmp_path / f"artifacts/params/{CHECKED}").read_bytes() == path.read_bytes()
    assert shell(tmp_path, [GUARD], deaf).returncode == 0
    path.write_bytes(path.read_bytes() + b"\n")
    assert shell(tmp_path, [GUARD], deaf).returncode == 3


def test_an_edit_that_is_good_passes(tmp_path: Path) -> None:
    path = write(tmp_path, EACH)
    params.main(tmp_path / "artifacts/params", params=path)
    write(tmp_path, EACH | {"seeds": [0, 1, 2]})
    done = shell(tmp_path, [GUARD], PATH)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    path.unlink()
    done = shell(tmp_path, [GUARD], PATH)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "params.yaml does not exist" in done.stderr


# ------------------------------------------------------------------ through dvc

GIT = {
    f"GIT_{who}_{what}": "test@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
}
# Those that hang on no dependency but good ones.
LOOSE: dict[Place, str] = {
    ("seeds", "entry", ""): "$(touch owned-seed)",
    ("borrowed", "item", "pair"): "`touch owned-pair`",
}
# Of those that become paths, some that DVC does not refuse by itself: two teachers' tables would be one output.
OUTSIDE = (("datasets", "key", ""), ("borrowed", "item", "pair"))
TARGETS = ("pretrain_student", "match_borrowed")
WAYS = {
    "alone": "repro --single-item",
    "alone, forced": "repro --single-item --force",
    "alone, whatever is missing": "repro --single-item --allow-missing",
    "downstream": "repro --downstream",
    "with all before": "repro",
    "with all before, forced": "repro --force",
    "experiment": "exp run --single-item",
    "experiment, forced": "exp run --single-item --force",
    "experiment, downstream": "exp run --downstream",
    "experiment elsewhere": "exp run --temp --single-item --force",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a project in which DVC finds everything up to date; what is expensive to make is made up."""
    project = make(tmp_path_factory.mktemp("finished") / "project", EACH)
    assert project.repro("params") == {"params"}
    stages = resolved(project.folder).values()
    outs = [next(iter(out), "") if isinstance(out, dict) else out for stage in stages
            for part in ("outs", "metrics") for out in stage.get(part, [])]  # fmt: skip
    paths = sorted({*outs, *(dep for stage in stages for dep in stage["deps"])}, key=len, reverse=True)
    for path in paths:  # the longest first: they make the folders
        whole = project.folder / path
        if not whole.exists():
            whole.parent.mkdir(parents=True, exist_ok=True)
            whole.write_text("{}")
    project.run("dvc", "commit", "--force", "--quiet")
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "--message", "Finished", **GIT)
    assert "up to date" in project.run("dvc", "status")
    return project


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    shutil.copytree(finished.folder, tmp_path / "project", symlinks=True)
    return Project(tmp_path / "project")


def loosely() -> dict[str, Any]:
    assert LOOSE.keys() <= set(PLACES)
    return planted(LOOSE)


def owned(project: Project) -> list[str]:
    """Return what hostile commands have made, in the project, beside it or in the folder of an experiment."""
    beside = project.folder.parent
    # No command runs within `.git`, and there DVC names experiments by two words: "owned-duct" has been one.
    found = (path.relative_to(beside) for path in beside.rglob("owned*"))
    return [str(path) for path in found if ".git" not in path.parts]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_no_way_of_starting_a_stage_runs_a_hostile_value(project: Project, way: str) -> None:
    write(project.folder, loosely())
    text = project.run("dvc", *way.split(), "--ignore-errors", *TARGETS, **GIT)
    assert "error: params.yaml: 'seeds.1' is" in text
    assert owned(project) == []


@pytest.mark.slow
@pytest.mark.parametrize("where", OUTSIDE, ids=".".join)
def test_nothing_outside_is_removed_where_the_check_comes_first(project: Project, where: Place) -> None:
    """DVC removes what a stage names as its output, before any command: so no such stage may begin at all."""
    write(project.folder, planted({where: "../../../../notes"}))
    folders = (project.folder / "artifacts", project.folder, *project.folder.parents[:2])
    kept = [folder / f"notes{suffix}" for folder in folders for suffix in ("", ".npz", ".zarr", ".json")]
    for path in kept:
        path.write_text("kept")
    with pytest.raises(AssertionError, match=r"error: (params\.yaml: .*notes|Unknown .*notes)") as error:
        project.run("dvc", "repro", "--keep-going")
    assert re.findall(r"Running stage '(.+)':", str(error.value)) == ["params"]
    assert [path for path in kept if not path.exists()] == []


@pytest.mark.slow
@pytest.mark.parametrize("where", [where for where in PLACES if where[1] != "item"], ids=".".join)
def test_no_hostile_name_is_run_when_dependencies_do_not_count(project: Project, where: Place) -> None:
    write(project.folder, planted({where: COMMAND}))
    stages = [name for name in PIPELINE["stages"] if expressions(body(name)) and where in
              {place(name, expression) for expression in expressions(body(name))}]  # fmt: skip
    text = project.run("dvc", "repro", "--single-item", "--force", "--ignore-errors", *stages)
    assert f"> {GUARD}" in text
    assert COMMAND in text
    assert owned(project) == []


@pytest.mark.slow
def test_without_the_check_they_would_run(project: Project) -> None:
    pipeline = (project.folder / "dvc.yaml").read_text()
    (project.folder / "dvc.yaml").write_text(pipeline.replace(GUARD, "echo unchecked"))
    write(project.folder, loosely())
    project.run("dvc", "repro", "--single-item", "--ignore-errors", *TARGETS)
    assert {"project/owned-seed", "project/owned-pair"} <= set(owned(project))


@pytest.mark.slow
def test_a_plan_rehearses_no_stage_of_a_hostile_file(project: Project) -> None:
    """It plans another file; the stages that DVC knows are those of params.yaml."""
    write(project.folder, EACH).rename(project.folder / "good.yaml")
    ask = f"{sys.executable} -c 'from stages import plan; plan._state(plan.Path(\"good.yaml\"))'"
    write(project.folder, loosely())
    assert "ParamsError: params.yaml: 'seeds.1' is" in shell(project.folder, [ask], PATH).stderr


@pytest.mark.slow
def test_an_override_of_an_experiment_is_checked_too(project: Project) -> None:
    override = "seeds=[0,'$(touch owned)']"
    command = [
        "dvc",
        "exp",
        "run",
        "--set-param",
        override,
        "--single-item",
        "--ignore-errors",
        "pretrain_student",
    ]
    assert "'seeds.1' is '$(touch owned)'" in project.run(*command, **GIT)
    assert owned(project) == []


@pytest.mark.slow
def test_an_override_of_an_experiment_sets_one_leaf(project: Project) -> None:
    override = "students.sam.recipe={quick: {epochs: 3}}"
    project.run("dvc", "exp", "run", "--set-param", override, "params", **GIT)
    blocks = {kind: read(project.folder / f"artifacts/params/{kind}.json")
              for kind in ("teachers/ada/train", "students/sam")}  # fmt: skip
    assert blocks["students/sam"]["recipe"]["epochs"] == 3
    assert blocks["teachers/ada/train"]["recipe"]["epochs"] == 1

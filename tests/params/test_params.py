"""params.yaml: what is checked, how a mistake is told, and the blocks that stages depend on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.hydra import apply_overrides
from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.tokens import AliasToken, AnchorToken
from training_fixtures import PARAMS, changed

from pipeline.errors import (
    DamagedArtifactError,
    MissingArtifactError,
    ParamsError,
    StillhouseError,
    UnknownNameError,
)
from pipeline.params import project
from pipeline.params.base import Block, entry, load, read, validate
from pipeline.params.pairs import PairBlock
from pipeline.params.recipe import Recipe
from pipeline.params.runs import RunParams
from pipeline.params.teacher import TrainBlock, anchor_name
from pipeline.params.views import CropFlip

CIFAR = changed(
    changed(PARAMS, "datasets.other", {"source": "digits", "views": {"space": "plain"}}),
    "students.stranger",
    {"dataset": "other", "family": "resnet", "network": "resnet8"},
)


def refused(params: dict[str, Any]) -> str:
    """Return the one line with which `params` are refused, plug-ins' settings included."""
    with pytest.raises(StillhouseError) as error:
        project.check_plugins(project.check(params))
    message = str(error.value)
    assert "\n" not in message
    return message


# Place, value, and what the message must say: what was found, what was expected, the nearest name.
MISTAKES: list[tuple[str, Any, list[str]]] = [
    # unknown keys, wherever they stand
    ("teacher", {}, ["unknown key 'teacher'", "Did you mean 'teachers'?", "Known keys: codes, datasets, derived"]),
    ("teachers.big.recipes", {}, ["unknown key 'teachers.big.recipes'", "Did you mean 'recipe'?"]),
    ("teachers.big.recipe.learning_rat", 1, ["Did you mean 'learning_rate'?", "Known keys: batch_size, decay"]),
    ("teachers.big.extract.checkpoint", [], ["Did you mean 'checkpoints'?", "Known keys: checkpoints, compression"]),
    ("teachers.big.extract.features.logits.slot", 1, ["Did you mean 'slots'?", "Known keys: dtype, slots."]),
    ("datasets.toy.views.paddin", 1, ["Did you mean 'padding'?", "Known keys: fill, flip, padding, space."]),
    ("pairs.pair.override", {}, ["Did you mean 'overrides'?"]),
    ("runs.kd.temperature", 4, ["unknown key 'runs.kd.temperature'", "Known keys: config, method"]),
    ("tables.moments.feature", "x", ["unknown key 'tables.moments.feature'", "Known keys: config, table."]),
    ("fits.big-moments.tables", "x", ["Did you mean 'table'?"]),
    # missing keys
    ("teachers.big.extract", ..., ["'teachers.big.extract' is missing"]),
    ("runs.kd.method", ..., ["'runs.kd.method' is missing"]),
    ("seeds", ..., ["'seeds' is missing"]),
    # wrong types and values
    ("teachers.big.recipe.epochs", "30", ["'teachers.big.recipe.epochs' is '30'", "valid integer"]),
    ("teachers.big.recipe.epochs", 3.5, ["'teachers.big.recipe.epochs' is 3.5", "integer"]),
    ("teachers.big.recipe.epochs", -1, ["is -1", "greater than or equal to 0"]),
    ("teachers.big.recipe.nesterov", 1, ["is 1", "valid boolean"]),
    ("teachers.big.recipe.learning_rate", float("inf"), ["is inf", "finite"]),
    ("teachers.big.recipe.milestones", 5, ["'teachers.big.recipe.milestones' is 5"]),
    ("teachers.big.anchors", [0.5, 1.0], ["'teachers.big.anchors.1' is 1.0", "less than 1"]),
    ("teachers.big.weights", "cifar", ["is 'cifar'", "'none' or 'imagenet'"]),
    ("teachers.big", 5, ["'teachers.big' is 5"]),
    ("teachers", [1], ["'teachers' is [1]"]),
    ("datasets.toy.views.space", "crop", ["'datasets.toy.views' is", "'crop_flip'"]),
    ("datasets", {}, ["'datasets' is {}", "at least 1"]),
    # numbers that would train at chance or switch something off, without a word
    ("datasets.toy.prepare", {"mean": [125.3]}, ["'datasets.toy.prepare.mean' is [125.3]", "in [0, 1]", "by 255"]),
    ("datasets.toy.prepare", {"std": [0.2, 63]}, ["'datasets.toy.prepare.std' is [0.2, 63]", "in [0, 1]", "by 255"]),
    ("datasets.toy.prepare", {"mean": [-0.1]}, ["'datasets.toy.prepare.mean.0' is -0.1", "greater than or equal to 0"]),
    ("datasets.toy.prepare", {"std": [0.0]}, ["'datasets.toy.prepare.std.0' is 0.0", "greater than 0"]),
    ("datasets.toy.prepare", {"mean": []}, ["'datasets.toy.prepare.mean' is []", "at least 1"]),
    *[("datasets.toy.views", {"space": "random_resized_crop", "scale": scale},
       [f"'datasets.toy.views.scale' is {scale}", "0 < smallest <= largest <= 1"])
      for scale in ([8, 100], [2, 3], [0, 1], [-0.5, 1], [0.5, 0.2], [0.5, 1.01])],
    *[("datasets.toy.views", {"space": "random_resized_crop", "ratio": ratio},
       [f"'datasets.toy.views.ratio' is {ratio}", "0 < smallest <= largest"])
      for ratio in ([0, 1], [0, 0], [-1, 1], [2, 0.5])],
    ("datasets.toy.views", {"space": "random_resized_crop", "ratio": 0}, ["'datasets.toy.views.ratio' is 0"]),
    ("datasets.toy.views", {"space": "random_resized_crop", "scale": [0.5]}, ["'datasets.toy.views.scale"]),
    ("teachers.big.recipe.milestones", [0, 10], ["'teachers.big.recipe.milestones.0' is 0", "or equal to 1"]),
    ("teachers.big.anchors", [0.5, 0.504], ["'teachers.big.anchors' is [0.5, 0.504]", "anchor_050, anchor_050"]),
    ("runs.kd.slots", "every", ["'runs.kd.slots' is 'every'", "integer or 'all'"]),
    ("runs.kd.slots", -1, ["'runs.kd.slots' is -1"]),
    ("runs.kd.source", "live", ["is 'live'", "'cached' or 'online'"]),
    ("seeds", [], ["'seeds' is []"]),
    ("seeds", ["a"], ["'seeds.0' is 'a'"]),
    ("seeds", [True], ["'seeds.0' is True"]),
    # names that nothing has
    ("teachers.big.dataset", "toi", ["Unknown dataset of teachers.big: 'toi'", "Did you mean 'toy'?", "Known: toy."]),
    ("students.small.dataset", "x", ["Unknown dataset of students.small: 'x'", "Known: toy."]),
    ("pairs.pair.teacher", "bog", ["Unknown teacher of pairs.pair: 'bog'", "Did you mean 'big'?"]),
    ("pairs.pair.student", "smal", ["Unknown student of pairs.pair: 'smal'", "Did you mean 'small'?"]),
    ("pairs.pair.overrides", {"kdd": {}}, ["Unknown run of pairs.pair.overrides: 'kdd'", "Did you mean 'kd'?"]),
    ("fits.big-moments.teacher", "x", ["Unknown teacher of fits.big-moments: 'x'", "Known: big."]),
    ("fits.big-moments.table", "moment", ["Unknown table of fits.big-moments:", "Did you mean 'moments'?"]),
    ("teachers.big.extract.checkpoints", ["anchor_025"],
     ["Unknown checkpoint of teachers.big.extract: 'anchor_025'", "Did you mean 'anchor_050'?",
      "Known: anchor_050, best, init, last."]),
    ("distill", ["pair/kdd"], ["Unknown run of distill 'pair/kdd': 'kdd'", "Did you mean 'kd'?"]),
    ("distill", ["par/kd"], ["Unknown pair of distill 'par/kd': 'par'", "Did you mean 'pair'?"]),
    ("distill", ["pair.kd"], ["distill has 'pair.kd', expected pair/run"]),
    ("distill", ["pair/kd/0"], ["'kd/0'"]),
    ("distill", ["pair/student"], ["distill has 'pair/student'", "Rename the run"]),
    # the same thing twice
    ("seeds", [0, 1, 0], ["seeds names something twice"]),
    ("distill", ["pair/kd", "pair/kd"], ["distill names something twice"]),
    # names that become files
    ("teachers.a b", PARAMS["teachers"]["big"], ["'teachers.a b' becomes a file's name"]),
    ("teachers.a/b", PARAMS["teachers"]["big"], ["'teachers.a/b' becomes a file's name"]),
    ("runs..hidden", PARAMS["runs"]["kd"], ["becomes a file's name"]),
    # settings of plug-ins
    ("runs.kd.config", {"temprature": 2}, ["unknown key 'runs.kd.config.temprature'", "Did you mean 'temperature'?"]),
    ("runs.kd.config", {"temperature": "hot"}, ["'runs.kd.config.temperature' is 'hot'"]),
    ("runs.kd.config", {"weights": {"ce": float("nan")}}, ["'runs.kd.config.weights.ce' is nan", "finite"]),
    ("runs.kd.recipe", {"epoch": 2}, ["unknown key 'runs.kd.recipe.epoch'", "Did you mean 'epochs'?"]),
    ("runs.kd.method", "kdd", ["Unknown method 'kdd'", "Did you mean 'kd'?", "Known: "]),
    ("runs.kd.schedule", "finale", ["Unknown schedule 'finale'", "Did you mean 'final'?"]),
    ("runs.kd.schedule_config", {"x": 1}, ["unknown key 'runs.kd.schedule_config.x'", "Known keys: none."]),
    ("runs.rco.schedule_config", {}, ["'runs.rco.schedule_config.anchors' is missing"]),
    ("runs.kd.transform", "identity", ["Unknown transform 'identity'"]),
    ("pairs.pair.overrides", {"kd": {"slot": 1}}, ["'pairs.pair.overrides.kd.slot'", "Did you mean 'slots'?"]),
    ("pairs.pair.overrides", {"kd": {"config": {"x": 1}}}, ["unknown key 'pairs.pair.overrides.kd.config.x'"]),
    ("pairs.pair.overrides", {"kd": {"recipe": {"x": 1}}}, ["unknown key 'pairs.pair.overrides.kd.recipe.x'"]),
    ("tables.moments.table", "moment", ["Unknown table 'moment'", "Did you mean 'moments'?"]),
    ("tables.moments.config", {}, ["'tables.moments.config.feature' is missing"]),
    ("datasets.toy.source", "digit", ["Unknown dataset 'digit'", "Did you mean 'digits'?"]),
    ("datasets.toy.prepare", {"holdou": 0.1}, ["Did you mean 'holdout'?"]),
    ("teachers.big.network", "resnet9", ["Unknown network of family 'resnet': 'resnet9'", "resnet8"]),
    ("teachers.big.family", "resnets", ["Unknown network 'resnets'", "Did you mean 'resnet'?"]),
    ("teachers.big.extract.features", {"stage2:attend": {}},
     ["Unknown encoding 'attend'", "Did you mean 'attention'?"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("place", "value", "parts"), MISTAKES, ids=[f"{place}={str(value)[:24]}" for place, value, _ in MISTAKES]
)
def test_a_mistake_is_told_in_one_line(place: str, value: Any, parts: list[str]) -> None:
    if place in ("teachers.a b", "teachers.a/b", "runs..hidden"):
        section, name = place.split(".", maxsplit=1)
        params = changed(PARAMS, section, PARAMS[section] | {name: value})
    else:
        params = changed(PARAMS, place, value)
    message = refused(params)
    for part in parts:
        assert part in message


def test_a_pair_across_data_sets_is_refused() -> None:
    message = refused(changed(CIFAR, "pairs.pair.student", "stranger"))
    assert "pairs.pair has a teacher of data set 'toy' and a student of 'other'" in message


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("datasets.toy.prepare", {"mean": [0.0, 0.5, 1.0], "std": [0.001, 0.5, 1.0]}),
        ("datasets.toy.views", {"space": "random_resized_crop", "scale": [1.0, 1.0], "ratio": [2, 2]}),
        ("datasets.toy.views", {"space": "random_resized_crop", "scale": [0.08, 1], "ratio": [0.75, 1.3333]}),
        ("teachers.big.recipe.milestones", [1, 2]),
        ("teachers.big.anchors", [0.5, 0.51]),
    ],
)
def test_numbers_at_the_edge_pass(place: str, value: Any) -> None:
    lean = changed(PARAMS, "teachers.big.extract.checkpoints", ["last"])
    project.check_plugins(project.check(changed(lean, place, value)))


def test_good_params_pass() -> None:
    project.check_plugins(project.check(PARAMS))
    project.check_plugins(project.check(CIFAR))


def test_shipped_params_pass() -> None:
    project.check_plugins(project.check(read(ROOT / "params.yaml")))


# ------------------------------------------------------------------ the shipped file under `dvc exp run -S`

ROOT = Path(__file__).parents[2]
README_BLOCKS = re.findall(r"^```yaml\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)


def shipped() -> dict[str, str]:
    """Return every yaml that users get, by place: files, and the README's blocks."""
    paths = [ROOT / "params.yaml", ROOT / "dvc.yaml", *(ROOT / "pipeline").rglob("*.yaml")]
    found = {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}
    return found | {f"README.md, block {number}": text for number, text in enumerate(README_BLOCKS)}


def leaves(content: Any, place: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Return what has no parts, by its place; a list's entries count as parts."""
    parts = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
    found = {place: content} if not parts else {}
    for key, part in parts:
        found |= leaves(part, (*place, str(key)))
    return found


def other(value: Any) -> Any:
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case _:
            return f"other-{value}".partition(":")[0]


def test_no_shipped_yaml_has_an_anchor() -> None:
    """What two places share, `dvc exp run -S` cannot change in one of them."""
    for place, text in shipped().items():
        anchors = [token.value for token in YAML().scan(text) if isinstance(token, AnchorToken | AliasToken)]
        assert anchors == [], place


def test_every_leaf_can_be_set_alone(tmp_path: Path) -> None:
    path, text = tmp_path / "params.yaml", (ROOT / "params.yaml").read_text()
    before = leaves(YAML(typ="safe").load(text))
    assert len(before) > 50
    for place, value in before.items():
        path.write_text(text)
        name = ".".join(place)
        if value == {}:  # nothing to change: something to add
            expected = {key: x for key, x in before.items() if key != place} | {(*place, "new"): 1}
            apply_overrides(path, [f"+{name}.new=1"])
        else:
            expected = before | {place: other(value)}
            apply_overrides(path, [f"{name}={json.dumps(other(value))}"])
        assert leaves(read(path)) == expected, name


# ------------------------------------------------------------------ reading


def test_numbers_are_read_as_dvc_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("a: 5e-4\nb: 1e3\nc: 010\nd: yes\ne: 1_000\nf: 0.05\n")
    found = read(path)
    assert (found["a"], found["b"], found["f"]) == (0.0005, 1000.0, 0.05)
    assert isinstance(found["a"], float)
    assert found["c"] == 10  # YAML 1.2 has no such octals
    assert found["d"] == "yes"  # nor such booleans
    assert validate(Recipe, {"weight_decay": found["a"]}, "").weight_decay == 0.0005


@pytest.mark.parametrize(
    ("text", "match"),
    [("a: [1", "is not valid yaml"), ("a: 1\na: 2\n", "is not valid yaml"), ("- 1\n", "holds list, expected a mapping"),
     ("", "holds NoneType"), ("a: \t b: c: d", "is not valid yaml")],
)  # fmt: skip
def test_what_is_not_a_mapping_is_told_in_one_line(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ParamsError, match=match) as error:
        read(path)
    assert "\n" not in str(error.value)


def test_missing_params_are_told_with_the_option(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"none\.yaml does not exist.*--params"):
        read(tmp_path / "none.yaml")


def test_entry_lists_what_there_is() -> None:
    assert entry(PARAMS, "pairs", "pair") == PARAMS["pairs"]["pair"]
    with pytest.raises(UnknownNameError, match=r"Unknown pair 'par'. Did you mean 'pair'\? Known: pair\."):
        entry(PARAMS, "pairs", "par")


def test_load_tells_of_files_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifactError, match=r"none\.json does not exist"):
        load(Recipe, tmp_path / "none.json")
    for content, error, match in (
        ("{", DamagedArtifactError, "is not valid json"),
        (
            '{"epoch": 1}',
            DamagedArtifactError,
            r"recipe\.json: unknown key 'epoch'. Did you mean 'epochs'\?.*dvc repro",
        ),
        ("[]", DamagedArtifactError, r"recipe\.json: .* dvc repro params"),
    ):
        path = tmp_path / "recipe.json"
        path.write_text(content)
        with pytest.raises(error, match=match) as found:
            load(Recipe, path)
        assert "\n" not in str(found.value)
    with pytest.raises(DamagedArtifactError, match="is a folder"):
        load(Recipe, tmp_path)


# ------------------------------------------------------------------ blocks


def test_models_are_frozen_and_strict() -> None:
    recipe = Recipe()
    with pytest.raises(ValidationError, match="frozen"):
        recipe.epochs = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Recipe(epochs="3")  # type: ignore[arg-type]
    assert all(model.model_config["extra"] == "forbid" for model in Block.__subclasses__())
    assert validate(Recipe, {"learning_rate": 1, "milestones": [1, 2]}, "").milestones == (1, 2)


def test_blocks_have_their_defaults_filled_in() -> None:
    lean = changed(PARAMS, "teachers.big.recipe", {"epochs": 30})
    block = project.blocks(project.check(lean))["teachers/big/train"]
    assert isinstance(block, TrainBlock)
    assert block.recipe == Recipe(epochs=30)
    assert block.model_dump(mode="json")["recipe"]["weight_decay"] == 5e-4
    assert (block.teacher, block.seed, block.weights) == ("big", 0, "none")


def test_spelling_out_a_default_changes_no_block() -> None:
    lean = changed(PARAMS, "teachers.big.recipe", {"epochs": 30})
    spelled = changed(lean, "teachers.big.recipe", {"epochs": 30, "momentum": 0.9, "weight_decay": 0.0005})
    spelled = changed(spelled, "runs.kd.slots", "all")
    assert project.blocks(project.check(lean)) == project.blocks(project.check(spelled))


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        ("teachers.big.extract.compression", "zstd", {"teachers/big/extract"}),
        ("teachers.big.seed", 1, {"teachers/big/train"}),
        ("students.small.recipe.epochs", 9, {"students/small", "pairs/pair"}),
        ("runs.kd.config", {"temperature": 2}, {"pairs/pair"}),
        ("tables.moments.config.feature", "logits", {"fits/big-moments"}),
        ("datasets.toy.prepare", {"holdout": 0.1}, {"datasets/toy"}),
        ("datasets.toy.views.padding", 2,
         {"teachers/big/train", "teachers/big/extract", "students/small", "pairs/pair"}),
        ("seeds", [0, 2], {"pairs/pair", "matches/pair-kcd"}),
    ],
)  # fmt: skip
def test_an_edit_changes_the_blocks_that_read_it(place: str, value: Any, expected: set[str]) -> None:
    before = project.blocks(project.check(PARAMS))
    after = project.blocks(project.check(changed(PARAMS, place, value)))
    assert {name for name in before if before[name] != after[name]} - {"project"} == expected
    assert before["project"] != after["project"]  # the report reads all of it


def test_overrides_are_merged_into_their_pair_alone() -> None:
    params = changed(PARAMS, "pairs.second", {"teacher": "big", "student": "small"})
    params = changed(params, "distill", ["pair/kd", "second/kd"])
    params = changed(params, "runs.kd.config", {"temperature": 3.0, "weights": {"ce": 1.0, "kd": 1.0}})
    params = changed(params, "pairs.pair.overrides", {"kd": {"config": {"weights": {"kd": 2.0}}, "slots": 4}})
    blocks = project.blocks(project.check(params))
    first, second = blocks["pairs/pair"], blocks["pairs/second"]
    assert isinstance(first, PairBlock)
    assert isinstance(second, PairBlock)
    assert first.runs["kd"].config == {"temperature": 3.0, "weights": {"ce": 1.0, "kd": 2.0}}
    assert first.runs["kd"].slots == 4
    assert second.runs["kd"] == RunParams(**params["runs"]["kd"])


def test_a_pair_has_the_runs_that_are_asked_of_it() -> None:
    params = changed(PARAMS, "pairs.second", {"teacher": "big", "student": "small"})
    blocks = project.blocks(project.check(changed(params, "distill", ["second/fitnet", "pair/kd"])))
    assert {name: list(blocks[f"pairs/{name}"].runs) for name in ("pair", "second")} == {  # type: ignore[attr-defined]
        "pair": ["kd"],
        "second": ["fitnet"],
    }


def test_blocks_are_read_back_from_json(tmp_path: Path) -> None:
    for name, block in project.blocks(project.check(PARAMS)).items():
        path = tmp_path / f"{name.replace('/', '-')}.json"
        path.write_text(json.dumps(block.model_dump(mode="json")))
        assert load(type(block), path) == block


def test_merged_leaves_its_arguments_alone() -> None:
    base: dict[str, Any] = {"a": {"b": 1, "c": [1]}, "d": 1}
    found = project.merged(base, {"a": {"b": 2, "c": [2]}, "d": {"e": 1}})
    assert found == {"a": {"b": 2, "c": [2]}, "d": {"e": 1}}
    assert base == {"a": {"b": 1, "c": [1]}, "d": 1}


@pytest.mark.parametrize(("share", "name"), [(0.25, "anchor_025"), (0.5, "anchor_050"), (0.05, "anchor_005")])
def test_anchor_names(share: float, name: str) -> None:
    assert anchor_name(share) == name


def test_views_default_to_cifars() -> None:
    assert CropFlip(space="crop_flip") == CropFlip(space="crop_flip", padding=4, fill="zero", flip=True)


def test_the_readmes_blocks_are_params() -> None:
    """Its T, TEACHER, S, STUDENT and PAIR stand for names of the user's own."""
    assert len(README_BLOCKS) > 5
    network = {"dataset": "cifar100", "family": "resnet", "network": "resnet20"}
    content: dict[str, Any] = {
        "seeds": [0],
        "teachers": dict.fromkeys(("T", "TEACHER"), network | {"extract": {"features": {"logits": {}}}}),
        "students": dict.fromkeys(("S", "STUDENT"), network),
        "pairs": {"PAIR": {"teacher": "TEACHER", "student": "STUDENT"}},
    }
    for block in README_BLOCKS:
        content = project.merged(content, YAML(typ="safe").load(block))
    params = project.check(content)
    project.check_plugins(params)
    assert len(params.runs) > 20

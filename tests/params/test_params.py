"""params.yaml: its grammar, how a mistake is reported, and how it is read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.hydra import apply_overrides
from error_fixtures import one_line
from params_fixtures import refused
from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.tokens import AliasToken, AnchorToken
from training_fixtures import PARAMS, changed

from pipeline.errors import DamagedArtifactError, MissingArtifactError, ParamsError
from pipeline.params import checks
from pipeline.params.base import Block, load, load_asked, validate
from pipeline.params.document import parse, read
from pipeline.params.matchings import MatchingParams
from pipeline.params.plug import Plug
from pipeline.params.recipe import Recipe
from pipeline.params.sections import Sections, merged
from pipeline.params.students import StudentBlock
from pipeline.params.teacher import anchor_name
from pipeline.params.teachers import FeatureParams
from pipeline.params.views import CropFlip, Plain, view_params
from pipeline.presets import preset as presets
from pipeline.presets.text import written
from pipeline.runs.blocks import blocks
from pipeline.runs.check import check, project

ROOT = Path(__file__).parents[2]
OTHER_DATA = changed(
    changed(PARAMS, "datasets.other", {"source": "digits"}),
    "students.stranger",
    {"dataset": "other", "network": "resnet8"},
)
EXPECTED_PLUG = "Expected a name, or its settings as {name: {setting: value}}"


# Place, value, and what the message must say: what was found, what was expected, the nearest name.
MISTAKES: list[tuple[str, Any, list[str]]] = [
    # unknown keys, wherever they stand
    ("teacher", {}, ["unknown key 'teacher'", "Did you mean 'teachers'?", "Known keys: assistants, borrowed, copies"]),
    ("teachers.big.recipes", {}, ["unknown key 'teachers.big.recipes'", "Did you mean 'recipe'?"]),
    ("recipes.quick.learning_rat", 1, ["Did you mean 'learning_rate'?", "Known keys: batch_size, betas"]),
    ("teachers.big.recipe", {"quick": {"learning_rat": 1}},
     ["unknown key 'teachers.big.recipe.quick.learning_rat'", "Did you mean 'learning_rate'?"]),
    ("teachers.big.checkpoint", [], ["Did you mean 'checkpoints'?", "Known keys: anchors, checkpoints, compression"]),
    ("teachers.big.features.logits.slot", 1, ["Did you mean 'slots'?", "Known keys: dtype, slots, top."]),
    ("teachers.big.tables", {"moments": {"featur": "x"}},
     ["unknown key 'teachers.big.tables.moments.featur'", "Did you mean 'feature'?"]),
    ("datasets.toy.views.crop_flip.paddin", 1, ["Did you mean 'padding'?", "Known keys: fill, flip, padding."]),
    ("datasets.toy.views", {"crop_flip": {"space": "plain"}}, ["'datasets.toy.views.crop_flip.space'", "Drop it"]),
    ("pairs.pair.override", {}, ["Did you mean 'overrides'?"]),
    ("runs.kd.temperature", 4, ["unknown key 'runs.kd.temperature'", "Known keys: methods, recipe, schedule"]),
    ("runs.kd.method", "kd", ["unknown key 'runs.kd.method'", "Did you mean 'methods'?"]),
    ("matchings.kcd.strateg", "x", ["unknown key 'matchings.kcd.strateg'", "Did you mean 'strategy'?"]),
    ("copies", {"one": {"teacher": "big", "student": "small", "slot": 1}}, ["'copies.one.slot'", "mean 'slots'?"]),
    ("borrowed", {"lent": {"matchin": "kcd"}}, ["'borrowed.lent.matchin'", "Did you mean 'matching'?"]),
    # missing keys; an entry without a value has none of them
    ("teachers.big.network", ..., ["'teachers.big.network' is missing. Add it."]),
    ("runs.kd.methods", ..., ["'runs.kd.methods' is missing"]),
    *[(place, None, [f"'{place}.{key}' is missing. Add it."]) for place, key in (
        ("teachers.big", "dataset"), ("students.small", "dataset"), ("pairs.pair", "teacher"), ("runs.kd", "methods"),
        ("datasets.toy", "source"), ("copies.one", "teacher"), ("assistants.a1", "teacher"),
        ("borrowed.lent", "pair"))],
    # a plug-in is a name, or a name with its settings
    *[(place, value, [f"'{place}' is {'null' if value is None else value}. {EXPECTED_PLUG}."])
      for place in ("runs.kd.methods", "runs.kd.schedule", "datasets.toy.source", "datasets.toy.views",
                    "tables.moments", "teachers.big.recipe", "students.small.recipe", "runs.kd.transform")
      for value in (5, ["kd"], {})],
    *[(place, None, [f"'{place}' is null. {EXPECTED_PLUG}."])
      for place in ("runs.kd.methods", "runs.kd.schedule", "datasets.toy.source", "datasets.toy.views")],
    *[(place, {"a": {}, "b": {}}, [f"'{place}' is {{'a': {{}}, 'b': {{}}}}. {EXPECTED_PLUG}."])
      for place in ("runs.kd.schedule", "runs.kd.transform", "datasets.toy.source", "tables.moments",
                    "teachers.big.recipe")],
    ("datasets.toy.views", {"a": {}, "b": {}}, ["Unknown view space of datasets.toy.views: 'a'."]),
    ("runs.kd.methods", {"kd": 5}, ["'runs.kd.methods' is {'kd': 5}. Expected the settings of 'kd' as a mapping."]),
    ("runs.kd.schedule", {"final": "x"}, ["'runs.kd.schedule'", "Expected the settings of 'final' as a mapping."]),
    ("teachers.big.recipe", {"epochs": 3}, ["Expected the settings of 'epochs' as a mapping"]),
    # wrong types and values
    ("recipes.quick.epochs", "30", ["'recipes.quick.epochs' is '30'", "valid integer"]),
    ("recipes.quick.epochs", 3.5, ["'recipes.quick.epochs' is 3.5", "integer"]),
    ("recipes.quick.epochs", -1, ["is -1", "greater than or equal to 0"]),
    ("recipes.quick.nesterov", 1, ["is 1", "valid boolean"]),
    ("recipes.quick.learning_rate", float("inf"), ["is inf", "finite"]),
    ("recipes.quick.milestones", 5, ["'recipes.quick.milestones' is 5", "should be a list"]),
    ("recipes.quick.milestones", [0, 10], ["'recipes.quick.milestones.0' is 0", "or equal to 1"]),
    ("teachers.big.recipe", {"quick": {"epochs": "30"}}, ["'teachers.big.recipe.quick.epochs' is '30'"]),
    ("runs.kd.recipe", {"epochs": "3"}, ["'runs.kd.recipe.epochs' is '3'"]),
    ("teachers.big.anchors", [0.5, 1.0], ["'teachers.big.anchors.1' is 1.0", "less than 1"]),
    ("teachers.big.anchors", [0.5, 0.504], ["'teachers.big.anchors' is [0.5, 0.504]", "anchor_050, anchor_050"]),
    ("teachers.big.weights", "cifar", ["is 'cifar'", "'none' or 'imagenet'"]),
    ("teachers.big.features", {}, ["'teachers.big.features' is {}. Name one at least."]),
    ("teachers.big.features", None, ["'teachers.big.features' is null", "a mapping"]),
    ("teachers.big", 5, ["'teachers.big' is 5", "a mapping"]),
    ("teachers", [1], ["'teachers' is [1]", "a mapping"]),
    ("matchings.kcd.measure", "l3", ["'matchings.kcd.measure' is 'l3'", "'correlation'"]),
    ("matchings.kcd", {"strategy": "fc", "ranges": 2}, ["'matchings.kcd'", "Drop ranges and measure"]),
    ("copies", {"one": {"teacher": "big", "student": "small", "weights": {"ce": 1}}},
     ["'copies.one.weights' is {'ce': 1}", "expected ce and kd"]),
    # numbers that would train at chance or switch something off, without a word
    ("datasets.toy.source", {"digits": {"mean": [125.3]}},
     ["'datasets.toy.source.digits.mean' is [125.3]", "in [0, 1]", "by 255"]),
    ("datasets.toy.source", {"tiny_imagenet": {"test": "quarter"}},
     ["'datasets.toy.source.tiny_imagenet.test' is 'quarter'", "'official' or 'half'"]),
    ("datasets.toy.source", {"digits": {"std": [0.2, 63]}}, ["digits.std' is [0.2, 63]", "in [0, 1]", "by 255"]),
    ("datasets.toy.source", {"digits": {"mean": [-0.1]}}, ["digits.mean.0' is -0.1", "greater than or equal to 0"]),
    ("datasets.toy.source", {"digits": {"std": [0.0]}}, ["digits.std.0' is 0.0", "greater than 0"]),
    ("datasets.toy.source", {"digits": {"mean": []}}, ["digits.mean' is []", "Name one at least"]),
    *[("datasets.toy.views", {"random_resized_crop": {"scale": scale}},
       [f"'datasets.toy.views.random_resized_crop.scale' is {scale}", "0.001 <= smallest <= largest <= 1"])
      for scale in ([8, 100], [2, 3], [0, 1], [-0.5, 1], [0.5, 0.2], [0.5, 1.01])],
    *[("datasets.toy.views", {"random_resized_crop": {"ratio": ratio}},
       [f"'datasets.toy.views.random_resized_crop.ratio' is {ratio}", "0.01 <= smallest <= largest <= 100"])
      for ratio in ([0, 1], [0, 0], [-1, 1], [2, 0.5])],
    ("datasets.toy.views", {"rotate_flip": {"degree": 20}}, ["rotate_flip.degree'", "Did you mean 'degrees'?"]),
    ("datasets.toy.views", {"rotate_flip": 20}, ["datasets.toy.views"]),
    ("datasets.toy.views", {"random_resized_crop": {"ratio": 0}}, ["random_resized_crop.ratio' is 0"]),
    ("datasets.toy.views", {"random_resized_crop": {"scale": [0.5]}}, ["random_resized_crop.scale"]),
    ("runs.kd.slots", "every", ["'runs.kd.slots' is 'every'", "integer or 'all'"]),
    ("runs.kd.slots", -1, ["'runs.kd.slots' is -1"]),
    ("runs.kd.source", "live", ["is 'live'", "'cached' or 'online'"]),
    ("seeds", [], ["distill asks for students, and seeds is empty", "seeds: [0]"]),
    ("seeds", ["a"], ["'seeds.0' is 'a'"]),
    ("seeds", [True], ["'seeds.0' is True"]),
    # names that nothing has
    ("teachers.big.dataset", "toi", ["Unknown dataset of teachers.big: 'toi'", "Did you mean 'toy'?", "Known: toy."]),
    ("students.small.dataset", "x", ["Unknown dataset of students.small: 'x'", "Known: toy."]),
    ("datasets", {}, ["Unknown dataset of teachers.big: 'toy'", "Known: none."]),
    ("teachers.big.recipe", "quik", ["Unknown recipe of teachers.big.recipe: 'quik'", "Did you mean 'quick'?"]),
    ("students.small.recipe", {"x": {}}, ["Unknown recipe of students.small.recipe: 'x'", "Known: quick."]),
    ("teachers.big.tables", {"moment": {}}, ["Unknown table of teachers.big.tables: 'moment'", "mean 'moments'?"]),
    ("pairs.pair.teacher", "bog", ["Unknown teacher of pairs.pair: 'bog'", "Did you mean 'big'?"]),
    ("pairs.pair.student", "smal", ["Unknown student of pairs.pair: 'smal'", "Did you mean 'small'?"]),
    ("pairs.pair.overrides", {"kdd": {}}, ["Unknown run of pairs.pair.overrides: 'kdd'", "Did you mean 'kd'?"]),
    ("copies", {"one": {"teacher": "bg", "student": "small"}}, ["Unknown teacher of copies.one: 'bg'", "'big'?"]),
    ("borrowed", {"lent": {"pair": "par", "teacher": "big", "student": "small", "matching": "kcd"}},
     ["Unknown pair of borrowed.lent: 'par'", "Did you mean 'pair'?"]),
    ("borrowed", {"lent": {"pair": "pair", "teacher": "big", "student": "small", "matching": "kdc"}},
     ["Unknown matching of borrowed.lent: 'kdc'", "Did you mean 'kcd'?"]),
    ("teachers.big.checkpoints", ["anchor_025"],
     ["Unknown checkpoint of teachers.big.checkpoints: 'anchor_025'", "Did you mean 'anchor_050'?",
      "Known: anchor_050, best, init, last."]),
    ("exports", {"pair/kdd": {}}, ["Unknown student of exports: 'pair/kdd'", "Did you mean 'pair/kd'?"]),
    ("exports", {"pair/kd": {"seed": 7}}, ["exports.pair/kd has seed 7, expected best or one of seeds: 0, 1."]),
    ("exports", {"pair/kd": {"format": ["onnx"]}}, ["'exports.pair/kd.format'", "Did you mean 'formats'?"]),
    ("exports", {"pair/kd": {"formats": ["onnx", "onnx"]}}, ["It has 'onnx' twice: name each once"]),
    ("distill", ["pair/kdd"], ["Unknown run of distill 'pair/kdd': 'kdd'", "Did you mean 'kd'?"]),
    ("distill", ["par/kd"], ["Unknown pair of distill 'par/kd': 'par'", "Did you mean 'pair'?"]),
    ("distill", ["pair.kd"], ["distill has 'pair.kd', expected pair/run"]),
    ("distill", ["pair/kd/0"], ["'kd/0'"]),
    ("distill", ["pair/student"], ["distill has 'pair/student'", "Rename the run"]),
    # the same thing twice
    ("seeds", [0, 1, 0], ["seeds contains duplicates"]),
    ("distill", ["pair/kd", "pair/kd"], ["distill contains duplicates"]),
    # names that become files
    *[(f"{section}", PARAMS[section] | {name: next(iter(PARAMS[section].values()))},
       [f"'{section}.{name}' becomes a file's name"])
      for section in ("teachers", "tables", "runs") for name in ("a b", "a/b", ".hidden")],
    # plug-ins and their settings
    ("runs.kd.methods", "kdd", ["runs.kd.methods", "Unknown method 'kdd'", "Did you mean 'kd'?", "Known: "]),
    ("runs.kd.methods", {"kd": {"temprature": 2}},
     ["unknown key 'runs.kd.methods.kd.temprature'", "Did you mean 'temperature'?"]),
    ("runs.kd.methods", {"kd": {}, "fitnet": {"relus": 1}}, ["unknown key 'runs.kd.methods.fitnet.relus'", "'relu'?"]),
    ("runs.kd.methods", {"kd": {"temperature": "hot"}}, ["'runs.kd.methods.kd.temperature' is 'hot'"]),
    ("runs.kd.methods", {"kd": {"weights": {"ce": float("nan")}}}, ["methods.kd.weights.ce' is nan", "finite"]),
    ("runs.kd.methods", {"kd": {"weights": {"kdd": 1.0}}},
     ["'runs.kd.methods.kd.weights'", "'kdd' is no term of this method. Its terms are ce, kd."]),
    ("runs.kd.methods", {"kd": {"insert": {"stage2": "kd_laye"}}},
     ["runs.kd.methods", "Unknown layer 'kd_laye'", "Did you mean 'kd_layer'?"]),
    ("runs.kd.recipe", {"epoch": 2}, ["unknown key 'runs.kd.recipe.epoch'", "Did you mean 'epochs'?"]),
    ("runs.kd.schedule", "finale", ["runs.kd.schedule", "Unknown schedule 'finale'", "Did you mean 'final'?"]),
    ("runs.kd.schedule", {"final": {"x": 1}}, ["unknown key 'runs.kd.schedule.final.x'", "Known keys: none."]),
    ("runs.rco.schedule", "anchors", ["'runs.rco.schedule.anchors.anchors' is missing"]),
    ("runs.kd.transform", "identity", ["runs.kd.transform", "Unknown transform 'identity'"]),
    ("pairs.pair.overrides", {"kd": {"slot": 1}}, ["'pairs.pair.overrides.kd.slot'", "Did you mean 'slots'?"]),
    ("pairs.pair.overrides", {"kd": {"methods": {"kd": {"x": 1}}}},
     ["unknown key 'pairs.pair.overrides.kd.methods.kd.x'"]),
    ("pairs.pair.overrides", {"kd": {"methods": 5}}, ["'pairs.pair.overrides.kd.methods' is 5", EXPECTED_PLUG]),
    ("pairs.pair.overrides", {"kd": {"recipe": {"x": 1}}}, ["unknown key 'pairs.pair.overrides.kd.recipe.x'"]),
    ("tables.moments", "moment", ["tables.moments", "Unknown table 'moment'", "Did you mean 'moments'?"]),
    ("tables.moments", "moments", ["'tables.moments.moments.feature' is missing"]),
    ("datasets.toy.source", "digit", ["datasets.toy.source", "Unknown dataset 'digit'", "Did you mean 'digits'?"]),
    ("datasets.toy.source", {"digits": {"holdou": 0.1}}, ["Did you mean 'holdout'?"]),
    ("datasets.toy.views", "crop", ["Unknown view space of datasets.toy.views: 'crop'", "Did you mean 'crop_flip'?"]),
    ("teachers.big.network", "resnet9", ["teachers.big.network", "Unknown network 'resnet9'", "resnet8"]),
    ("teachers.big.network", "resnets/resnet8", ["Unknown network family 'resnets'", "Did you mean 'resnet'?"]),
    ("teachers.big.network", "timm/", ["teachers.big.network: Unknown network 'timm/'"]),
    ("teachers.big.features", {"stage2:attend": {}},
     ["teachers.big.features", "Unknown encoding 'attend'", "Did you mean 'attention'?"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("place", "value", "parts"), MISTAKES, ids=[f"{place}={str(value)[:24]}" for place, value, _ in MISTAKES]
)
def test_a_mistake_is_reported_in_one_line(place: str, value: Any, parts: list[str]) -> None:
    message = refused(changed(PARAMS, place, value))
    for part in parts:
        assert part in message


def test_networks_of_two_data_sets_are_no_pair() -> None:
    message = refused(changed(OTHER_DATA, "pairs.pair.student", "stranger"))
    assert "pairs.pair has a teacher of data set 'toy' and a student of 'other'" in message
    message = refused(changed(OTHER_DATA, "copies", {"one": {"teacher": "big", "student": "stranger"}}))
    assert "copies.one has a teacher of data set 'toy' and a student of 'other'" in message


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"teacher": "big"}, "borrowed.lent has teacher 'big', expected the network of 'big' of its pair"),
        (
            {"teacher": "other"},
            "borrowed.lent has teacher 'other', expected the network of 'big' of its pair",
        ),
        (
            {"student": "tiny"},
            "borrowed.lent has student 'tiny', and its pair 'pair' has 'small'. Name that one.",
        ),
    ],
)
def test_a_matching_is_borrowed_of_the_same_network(change: dict[str, str], match: str) -> None:
    entry = {"pair": "pair", "teacher": "twin", "student": "small", "matching": "kcd"}
    params = changed(PARAMS, "teachers.twin", PARAMS["teachers"]["big"] | {"seed": 1})
    params = changed(params, "teachers.other", PARAMS["teachers"]["big"] | {"network": "resnet20"})
    params = changed(params, "students.tiny", PARAMS["students"]["small"])
    check(params | {"borrowed": {"lent": entry}})
    assert match in refused(params | {"borrowed": {"lent": entry | change}})
    assert "borrowed.own has the name of another folder" in refused(params | {"borrowed": {"own": entry}})
    twice = refused(params | {"borrowed": {"lent": entry, "again": entry}})
    assert "borrowed.lent and borrowed.again ask for the same matching" in twice


# ------------------------------------------------------------------ the grammar

MAPPINGS = sorted(Sections.model_fields.keys() - set(checks.LISTS))
EMPTY: dict[str, Any] = {"seeds": [], "distill": []}


def test_every_mapping_may_be_left_out_or_be_empty() -> None:
    assert check(EMPTY) == check(EMPTY | {section: {} for section in MAPPINGS}) == Sections()
    assert set(MAPPINGS) == Sections.model_fields.keys() - EMPTY.keys()


@pytest.mark.parametrize("section", MAPPINGS)
def test_one_mapping_may_be_left_out_beside_empty_ones(section: str) -> None:
    assert check(EMPTY | {name: {} for name in MAPPINGS if name != section}) == Sections()


@pytest.mark.parametrize("section", [*MAPPINGS, *checks.LISTS])
def test_a_section_without_a_value_is_reported_with_what_to_write(section: str) -> None:
    empty = "[]" if section in checks.LISTS else "{}"
    message = refused(PARAMS | {section: None})
    assert message == f"params.yaml: '{section}' has no value. Write {section}: {empty}"


@pytest.mark.parametrize("section", checks.LISTS)
def test_a_list_that_is_left_out_is_reported_with_what_to_write(section: str) -> None:
    message = refused({key: value for key, value in PARAMS.items() if key != section})
    assert message == f"params.yaml: '{section}' is missing, which DVC needs. Add {section}: []"


@pytest.mark.parametrize(
    ("place", "name", "settings"),
    [
        ("runs.kd.methods", "kd", {}),
        ("runs.kd.schedule", "final", {}),
        ("datasets.toy.source", "digits", {}),
        ("datasets.toy.views", "plain", {}),
        ("teachers.big.recipe", "quick", {}),
        ("students.small.recipe", "quick", {}),
    ],
)
def test_a_plug_in_is_a_name_or_a_name_with_settings(place: str, name: str, settings: dict[str, Any]) -> None:
    params = changed(PARAMS, "distill", [])
    params = changed(params, "teachers.big.features", {"logits": {"slots": 0}, "stage2": {"slots": 0}})
    written = [check(changed(params, place, value)) for value in (name, {name: None}, {name: settings})]
    assert written[0] == written[1] == written[2]


@pytest.mark.parametrize(
    ("place", "empty"),
    [
        ("recipes.quick", {}),
        ("teachers.big.features.stage2", {}),
        ("teachers.big.tables", {}),
        ("teachers.big.tables.moments", {}),
        ("pairs.pair.overrides", {}),
        ("pairs.pair.overrides.kd", {}),
        ("runs.kd.recipe", {}),
        ("runs.kd.methods.kd", {}),
        ("runs.kd.schedule.final", {}),
        ("datasets.toy.views.plain", {}),
        ("datasets.toy.source.digits", {}),
        ("teachers.big.recipe.quick", {}),
    ],
)
def test_settings_without_a_value_are_the_defaults(place: str, empty: Any) -> None:
    params = PARAMS
    for opened in (
        "runs.kd.methods", "runs.kd.schedule", "datasets.toy.views", "datasets.toy.source", "teachers.big.recipe",
    ):  # fmt: skip
        if place.startswith(opened):
            params = changed(params, opened, {})
    params = changed(params, "distill", ["pair/kd"])
    params = changed(params, "runs.kd.slots", 0)
    assert check(changed(params, place, None)) == check(changed(params, place, empty))


def test_a_matching_without_a_value_has_the_defaults() -> None:
    params = changed(PARAMS, "distill", ["pair/kd"])
    assert check(changed(params, "matchings.kcd", None)).matchings == {"kcd": MatchingParams()}


def test_an_override_without_a_value_keeps_what_the_run_has() -> None:
    params = changed(PARAMS, "runs.kd.recipe", {"epochs": 3})
    params = changed(params, "pairs.pair.overrides", {"kd": {"recipe": None}})
    assert check(params).run("pair", "kd").recipe == {"epochs": 3}


def test_a_plug_in_reads_as_it_was_written() -> None:
    plug = Plug.of("kd", temperature=2.0)
    assert plug == Plug.model_validate({"kd": {"temperature": 2.0}})
    assert Plug.model_validate("kd") == Plug.of("kd")
    assert plug.model_dump(mode="json") == {"kd": {"temperature": 2.0}}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("a: {1: b}", "has the key 1, which yaml reads as int, not as text. Quote it: '1'"),
        ("1: {a: b}", "has the key 1, which yaml reads as int"),
        ("a: {b: {true: c}}", "has the key True, which yaml reads as bool"),
        ("a: {b: [{1.5: c}]}", "has the key 1.5, which yaml reads as float, not as text. Quote it: '1.5'"),
        ("a: {null: c}", "has the key None, which yaml reads as NoneType"),
        ("a: {1: b, '1': c}", "has the key 1, which yaml reads as int"),
    ],
)
def test_a_key_that_is_no_text_is_refused(tmp_path: Path, written: str, expected: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(written)
    with pytest.raises(ParamsError, match=re.escape(expected)) as error:
        read(path)
    one_line(error)


def test_quoted_keys_are_names() -> None:
    assert parse("a: [{'1': {'true': b}}]\n'2': c\n", Path("params.yaml")) == {
        "a": [{"1": {"true": "b"}}],
        "2": "c",
    }


def test_a_recipe_has_its_changes_merged() -> None:
    params = check(changed(PARAMS, "students.small.recipe", {"quick": {"epochs": 40}}))
    recipe = params.recipe(params.students["small"].recipe, "students.small.recipe")
    assert recipe == Recipe(**PARAMS["recipes"]["quick"] | {"epochs": 40, "milestones": (1,)})
    assert params.recipe(None, "") == Recipe()  # CRD's for CIFAR-100
    assert (Recipe().epochs, Recipe().weight_decay, Recipe().milestones) == (240, 5e-4, (150, 180, 210))


@pytest.mark.parametrize(
    ("override", "methods", "schedule"),
    [
        ({"methods": {"kd": {"temperature": 2.0}}},
         {"kd": {"temperature": 2.0, "weights": {"kd": 0.5}}}, {"anchors": {"anchors": ["last"]}}),
        ({"methods": "kd"}, {"kd": {"temperature": 8.0, "weights": {"kd": 0.5}}}, {"anchors": {"anchors": ["last"]}}),
        ({"methods": {"fitnet": {}}},
         {"kd": {"temperature": 8.0, "weights": {"kd": 0.5}}, "fitnet": {}}, {"anchors": {"anchors": ["last"]}}),
        ({"schedule": "final"}, {"kd": {"temperature": 8.0, "weights": {"kd": 0.5}}}, {"final": {}}),
        ({"schedule": {"anchors": {"anchors": ["best"]}}},
         {"kd": {"temperature": 8.0, "weights": {"kd": 0.5}}}, {"anchors": {"anchors": ["best"]}}),
    ],
)  # fmt: skip
def test_an_override_is_merged_into_a_run(override: Any, methods: Any, schedule: Any) -> None:
    run = {"methods": {"kd": {"temperature": 8.0, "weights": {"kd": 0.5}}},
           "schedule": {"anchors": {"anchors": ["last"]}}, "slots": 2}  # fmt: skip
    params = checks.check(PARAMS | {
        "runs": {"kd": run}, "distill": [],
        "pairs": {"pair": PARAMS["pairs"]["pair"] | {"overrides": {"kd": override}}},
    })  # fmt: skip
    changed_run = params.run("pair", "kd")
    assert changed_run.model_dump(mode="json")["methods"] == methods
    assert changed_run.schedule.model_dump(mode="json") == schedule
    assert changed_run.slots == 2


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("datasets.toy.source", {"digits": {"mean": [0.0, 0.5, 1.0], "std": [0.001, 0.5, 1.0]}}),
        ("datasets.toy.views", {"random_resized_crop": {"scale": [1.0, 1.0], "ratio": [2, 2]}}),
        ("datasets.toy.views", {"random_resized_crop": {"scale": [0.08, 1], "ratio": [0.75, 1.3333]}}),
        ("recipes.quick.milestones", [1, 2]),
        ("teachers.big", {"dataset": "toy", "network": "resnet14", "anchors": [0.5, 0.51]}),  # of 240 epochs
    ],
)
def test_numbers_at_the_edge_pass(place: str, value: Any) -> None:
    lean = changed(PARAMS, "teachers.big.checkpoints", ["last"])
    lean = changed(lean, "teachers.big.features", {"logits": {"slots": 0}, "stage2": {"slots": 0}})
    check(changed(changed(lean, "distill", []), place, value))


def test_good_params_pass() -> None:
    check(PARAMS)
    check(OTHER_DATA)


def test_shipped_params_pass() -> None:
    check(read(ROOT / "params.yaml"))


# ------------------------------------------------------------------ the shipped file under `dvc exp run -S`

PAGES = [ROOT / "README.md", *sorted((ROOT / ".github/docs").rglob("*.md"))]


def shipped() -> dict[str, str]:
    """Return every yaml that users get, by place: files, and what stands on the pages."""
    content = {name: (ROOT / name).read_text() for name in ("params.yaml", "dvc.yaml")}
    for page in PAGES:
        fences = re.findall(r"^```yaml\n(.*?)^```$", page.read_text(), re.M | re.S)
        content |= {f"{page.name}, {number}": fence for number, fence in enumerate(fences)}
    return content


def leaves(content: Any, place: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Return what has no parts, by its place; a list's entries count as parts."""
    parts = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
    whole = {place: content} if not parts else {}
    for key, part in parts:
        whole |= leaves(part, (*place, str(key)))
    return whole


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
    # Presets as they are printed and applied: the files that they are merged from are for us, and may have anchors.
    content_by_place = shipped() | {name: written(presets.block(x)) for name, x in presets.every()}
    assert len(content_by_place) > 40
    for place, content in content_by_place.items():
        anchors = [
            token.value for token in YAML().scan(content) if isinstance(token, AnchorToken | AliasToken)
        ]
        assert anchors == [], place


# Recipes by name, with and without changes, and plug-ins in all their forms: whatever the shipped file has of them.
OF_ALL_FORMS = """
seeds: [0]  # comments stay out of it
recipes:
  short: {epochs: 20, milestones: [12, 16]}
teachers:
  a: {recipe: short, features: {logits: {dtype: float32}, stage2: {}}, anchors: []}
students:
  b: {recipe: {short: {epochs: 40}}}
  c: {recipe: short}
runs:
  kd: {methods: {kd: {temperature: 4.0, weights: {ce: 1}}, fitnet: {}}, schedule: final, source: online}
copies: {}
distill: [a-b/kd]
"""


@pytest.mark.parametrize("content", ["shipped", OF_ALL_FORMS], ids=["shipped", "all forms"])
def test_every_leaf_can_be_set_alone(tmp_path: Path, content: str) -> None:
    """By DVC's own code, as `dvc exp run -S` does it."""
    path, content = (
        tmp_path / "params.yaml",
        (ROOT / "params.yaml").read_text() if content == "shipped" else content,
    )
    before = leaves(YAML(typ="safe").load(content))
    assert len(before) > 15
    for place, value in before.items():
        path.write_text(content)
        name = ".".join(place)
        if value == {}:  # nothing to change: something to add
            expected = {key: x for key, x in before.items() if key != place} | {(*place, "new"): 1}
            apply_overrides(path, [f"+{name}.new=1"])
        elif value == []:
            expected = {key: x for key, x in before.items() if key != place} | {(*place, "0"): 1}
            apply_overrides(path, [f"{name}=[1]"])
        else:
            expected = before | {place: other(value)}
            apply_overrides(path, [f"{name}={json.dumps(other(value))}"])
        assert leaves(read(path)) == expected, name


# ------------------------------------------------------------------ reading


def test_numbers_are_read_as_dvc_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("a: 5e-4\nb: 1e3\nd: yes\nf: 0.05\n")
    values = read(path)
    assert (values["a"], values["b"], values["f"]) == (0.0005, 1000.0, 0.05)
    assert isinstance(values["a"], float)
    assert values["d"] == "yes"  # YAML 1.2 has no such booleans
    assert validate(Recipe, {"weight_decay": values["a"]}, "").weight_decay == 0.0005


@pytest.mark.parametrize(
    ("text", "match"),
    [("a: [1", "is not valid yaml"), ("a: 1\na: 2\n", "has the key 'a' twice in one mapping in line 2"),
     ("- 1\n", "holds list, expected a mapping"),
     ("", "holds NoneType"), ("a: \t b: c: d", "is not valid yaml")],
)  # fmt: skip
def test_what_is_not_a_mapping_is_reported_in_one_line(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ParamsError, match=match) as error:
        read(path)
    one_line(error)


def test_missing_params_are_reported_with_the_option(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"none\.yaml does not exist.*--params"):
        read(tmp_path / "none.yaml")


def test_what_is_wrong_with_a_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifactError, match=r"none\.json does not exist"):
        load(Recipe, tmp_path / "none.json")
    for content, error, match in (
        ("{", DamagedArtifactError, "is not valid json"),
        (
            '{"epoch": 1}',
            DamagedArtifactError,
            r"recipe\.json: unknown key 'epoch'. Did you mean 'epochs'\?.*dvc repro",
        ),
        ("[]", DamagedArtifactError, r"recipe\.json: .* dvc repro --force --single-item params"),
    ):
        path = tmp_path / "recipe.json"
        path.write_text(content)
        with pytest.raises(error, match=match) as raised:
            load(Recipe, path)
        one_line(raised)
    with pytest.raises(DamagedArtifactError, match="is a folder"):
        load(Recipe, tmp_path)


def test_models_are_frozen_and_strict() -> None:
    recipe = Recipe()
    with pytest.raises(ValidationError, match="frozen"):
        recipe.epochs = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Recipe(epochs="3")  # type: ignore[arg-type]
    assert all(model.model_config["extra"] == "forbid" for model in Block.__subclasses__())
    assert validate(Recipe, {"learning_rate": 1, "milestones": [1, 2]}, "").milestones == (1, 2)


def test_a_block_that_nobody_asks_for_is_none(tmp_path: Path) -> None:
    path = tmp_path / "block.json"
    path.write_text("null")
    assert load_asked(Recipe, path) is None
    path.write_text("{}")
    assert load_asked(Recipe, path) == Recipe()


def test_blocks_are_read_back_from_json(tmp_path: Path) -> None:
    taught = {
        "copies": {"one": {"teacher": "big", "student": "small"}},
        "assistants": {"a1": {"teacher": "big", "network": "resnet8", "follows": "teacher"}},
    }
    written = blocks(project(PARAMS | taught))
    assert any(isinstance(block, StudentBlock) for block in written.values())
    for name, block in written.items():
        path = tmp_path / f"{name.replace('/', '-')}.json"
        path.write_text(json.dumps(block.model_dump(mode="json")))
        assert load(type(block), path) == block


def test_merged_leaves_its_arguments_alone() -> None:
    base: dict[str, Any] = {"a": {"b": 1, "c": [1]}, "d": 1}
    assert merged(base, {"a": {"b": 2, "c": [2]}, "d": {"e": 1}}) == {"a": {"b": 2, "c": [2]}, "d": {"e": 1}}
    assert base == {"a": {"b": 1, "c": [1]}, "d": 1}


@pytest.mark.parametrize(("share", "name"), [(0.25, "anchor_025"), (0.5, "anchor_050"), (0.05, "anchor_005")])
def test_anchor_names(share: float, name: str) -> None:
    assert anchor_name(share) == name


def test_defaults() -> None:
    assert view_params([Plug.of("crop_flip")], "") == CropFlip(
        space="crop_flip", padding=4, fill="zero", flip=True
    )
    lean = {"source": "digits"}
    assert view_params(check(EMPTY | {"datasets": {"toy": lean}}).datasets["toy"].views, "") == Plain(
        space="plain"
    )
    teacher = changed(PARAMS, "teachers.big.features", ...)
    params = check(teacher | {"distill": [], "matchings": {}})
    assert params.teachers["big"].features == {"logits": FeatureParams(slots="all", dtype="float16")}

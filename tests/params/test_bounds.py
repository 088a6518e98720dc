"""Numbers, lists and names of params.yaml that no experiment needs; and those of papers, which all pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from error_fixtures import one_line
from params_fixtures import line_of, refused
from training_fixtures import PARAMS, changed

from pipeline.errors import DamagedArtifactError
from pipeline.params import values
from pipeline.params.anchors import check_anchors
from pipeline.params.base import load
from pipeline.params.course import check_course
from pipeline.params.plug import Plug
from pipeline.params.recipe import Recipe
from pipeline.runs.check import check

TEACHER, STUDENT = PARAMS["teachers"]["big"], PARAMS["students"]["small"]
COPY = {"teacher": "big", "student": "small"}


def method(name: str = "kd", **settings: Any) -> dict[str, Any]:
    return {name: settings}


# Place, value, and what the one line must say.
REFUSED: list[tuple[str, Any, list[str]]] = [
    # numbers beyond what is sensible
    *[("recipes.quick.epochs", value, ["'recipes.quick.epochs' is", "less than or equal to 100000"])
      for value in (10**12, 2**62)],
    *[("recipes.quick.batch_size", value, ["'recipes.quick.batch_size' is"]) for value in (0, 1, -8, 2**62, 70_000)],
    ("recipes.quick.learning_rate", 1e30, ["'teachers.big.recipe': learning_rate is 1e+30, expected 1,000 at most"]),
    ("recipes.quick.weight_decay", 1e30, ["'teachers.big.recipe': weight_decay is 1e+30, expected 10 at most"]),
    ("runs.kd.recipe", {"learning_rate": 1e4}, ["'runs.kd.recipe': learning_rate is 10000.0"]),
    *[(place, 1e300, [f"'{place}' is 1e+300, which float32 makes infinity"])
      for place in ("recipes.quick.learning_rate", "recipes.quick.weight_decay", "runs.kd.recipe.momentum")],
    *[(place, 5e-324, [f"'{place}' is 5e-324, which float32 makes 0"])
      for place in ("recipes.quick.learning_rate", "recipes.quick.weight_decay", "recipes.quick.decay")],
    ("runs.kd.methods", method(temperature=1e-300), ["methods.kd.temperature' is 1e-300, which float32 makes 0"]),
    ("runs.kd.methods", method(temperature=1e-3), ["methods.kd.temperature' is 0.001", "or equal to 0.01"]),
    ("runs.kd.methods", method(temperature=1e6), ["methods.kd.temperature' is 1000000.0", "or equal to 1000"]),
    ("runs.kd.methods", method(weights={"kd": -1.0}), ["methods.kd.weights.kd' is -1.0", "or equal to 0"]),
    ("runs.kd.methods", method(weights={"kd": 1e10}), ["methods.kd.weights.kd' is 10000000000.0"]),
    ("runs.kd.methods", method(weights={"ce": 0, "kd": 0}), ["methods.kd.weights' is", "All weights are 0"]),
    ("runs.kd.methods", method("letkd", alpha={"final": -1.0}), ["letkd.alpha.final' is -1.0"]),
    ("runs.kd.methods", method("quest", scale=0.0), ["quest.scale' is 0.0"]),
    ("runs.kd.methods", method("letkd", places={"final": {"table": "words", "temperature": 1e9}}),
     ["letkd.places.final.temperature' is 1000000000.0"]),
    ("runs.kd.schedule", {"self_learning": {"num_networks": 1000}}, ["num_networks' is 1000", "or equal to 64"]),
    ("runs.kd.schedule", {"self_learning": {"beta": -1.0}}, ["self_learning.beta' is -1.0"]),
    ("runs.kd.slots", 2**62, ["'runs.kd.slots' is", "100000"]),
    ("teachers.big.features.stage2.slots", 2**62, ["'teachers.big.features.stage2.slots' is"]),
    ("datasets.toy.views", {"crop_flip": {"padding": 10**9}}, ["crop_flip.padding' is 1000000000", "to 512"]),
    *[("datasets.toy.views", {"rotate_flip": settings}, [f"rotate_flip.{name}' is {value}"])
      for settings in ({"degrees": 0}, {"degrees": -20.0}, {"degrees": 180}, {"steps": 0}, {"steps": 10**6},
                       {"flip": 1}, {"degrees": True}) for name, value in settings.items()],
    ("datasets.toy.views", {"random_resized_crop": {"scale": [1e-9, 1.0]}}, ["scale' is", "0.001 <= smallest"]),
    ("datasets.toy.views", {"random_resized_crop": {"ratio": [1e-9, 1e9]}}, ["ratio' is", "0.01 <= smallest"]),
    *[("tables.moments", {"kmeans": {"feature": "stage2"} | settings}, [f"kmeans.{name}' is {value}"])
      for settings in ({"clusters": 2**40}, {"iterations": 10**9}, {"seed": -1}, {"seed": 2**40}, {"max_samples": 0},
                       {"temperature": 0.0}) for name, value in settings.items()],
    ("tables.moments", {"subclasses": {"feature": "stage2", "per_class": 2**40}}, ["subclasses.per_class' is"]),
    ("tables.moments", {"lda": {"feature": "stage2", "components": 2**40}}, ["lda.components' is"]),
    *[("matchings.kcd", settings, [f"'matchings.kcd.{name}' is {value}"])
      for settings in ({"ranges": 2**40}, {"epochs": 10**12}, {"seed": -1}, {"pictured": 2**40})
      for name, value in settings.items()],
    *[("copies", {"one": COPY | settings}, ["'copies.one."])
      for settings in ({"seed": -1}, {"temperature": 0.0}, {"weights": {"ce": -0.1, "kd": 0.9}}, {"slots": 2**62},
                       {"weights": {"ce": 0, "kd": 0}})],
    *[("seeds", [seed], ["'seeds.0' is"]) for seed in (-1, 2**32, 2**62)],
    ("seeds", [10**400], ["'seeds.0' is a whole number of 1329 bits, expected 64 at most"]),
    ("teachers.big.seed", -1, ["'teachers.big.seed' is -1"]),
    # a boolean is no number, and a number no boolean
    *[(place, True, [f"'{place}' is True", "valid"]) for place in (
        "recipes.quick.epochs", "recipes.quick.learning_rate", "recipes.quick.batch_size", "teachers.big.seed",
        "matchings.kcd.ranges", "datasets.toy.views.crop_flip.padding")],
    *[(place, value, [f"'{place}' is {value}", "valid boolean"]) for value in (0, 1, 0.0)
      for place in ("recipes.quick.nesterov", "recipes.quick.drop_last", "datasets.toy.views.crop_flip.flip")],
    ("recipes.quick.epochs", 3.0, ["'recipes.quick.epochs' is 3.0", "integer"]),
    # the course of the learning rate
    *[("recipes.quick.milestones", value, ["milestones are", "expected each once, the earliest first"])
      for value in ([1, 1], [2, 1])],
    ("runs.kd.recipe", {"milestones": [3, 3]}, ["'runs.kd.recipe': milestones are 3, 3"]),
    ("pairs.pair.overrides", {"kd": {"recipe": {"milestones": [3, 2]}}},
     ["'pairs.pair.overrides.kd.recipe': milestones"]),
    *[("recipes.quick.milestones", [value], ["'recipes.quick.milestones.0' is"]) for value in (0, -1)],
    ("recipes.quick.warmup", 3, ["warmup is 3 of 2 epochs"]),
    # what becomes one
    ("teachers.big.anchors", [0.4, 0.5], ["0.4 after epoch 1, 0.5 after epoch 1 of 2", "each after another epoch"]),
    ("teachers.big.anchors", [0.9], ["0.9 after epoch 2 of 2", "before the last"]),
    ("teachers.big.recipe", {"quick": {"epochs": 0}}, ["teachers.big.anchors", "epochs: 0. Drop them."]),
    ("runs.rco.schedule", {"anchors": {"anchors": ["last", "last"]}}, ["It has 'last' twice: name each once"]),
    ("runs.rco.recipe", {"epochs": 1}, ["learns from 2 checkpoints in 1 epochs", "would never teach"]),
    ("teachers.big.checkpoints", ["last", "last"], ["It has 'last' twice: name each once"]),
    ("runs.kd.schedule", {"self_taught": {"names": ["one", "one"]}}, ["It has 'one' twice: name each once"]),
    ("runs.kcd.transform", {"permutation": {"features": ["stage2", "stage2"]}}, ["It has 'stage2' twice"]),
    # text that nobody sees, and letters that look like others
    *[("teachers.big.network", f"resnet14{letter}", ["'teachers.big.network' is", "which nobody sees"])
      for letter in ("\n", "\0", "\x07", "\u200b", "\u202e", "\ud800", "\ufeff")],
    *[("teachers.big.network", text, ["'teachers.big.network' is", "a blank at its start or end"])
      for text in (" resnet14", "resnet14 ")],
    ("teachers.big.network", "x" * 2000, ["'teachers.big.network' is a text of 2,000 letters"]),
    ("teachers.big.features", {"stage2 ": {}}, ["a blank at its start or end"]),
    ("teachers.big.network", "r\u0435snet14", ["Unknown network", "'\\u0435' (CYRILLIC SMALL LETTER IE)"]),
    # other types than yaml's
    ("teachers.big.network", b"resnet14", ["'teachers.big.network' is b'resnet14'", "as bytes. Quote it"]),
    ("teachers.big.anchors", {0.5}, ["'teachers.big.anchors' is {0.5}", "as set"]),
    # names that become files
    *[("recipes", PARAMS["recipes"] | {name: {}}, [f"'recipes.{name}' becomes a file's name", advice])
      for name, advice in (("a" * 101, "100 at most"), ("a.", "no dot last"), ("a" * 300, "100 at most"),
                           ("\N{CYRILLIC SMALL LETTER A}b", "Use letters"), ("-a", "Use letters"))],
    ("recipes", PARAMS["recipes"] | {"about.json": {}}, ["'recipes.about.json' has the name of another file"]),
    ("recipes", PARAMS["recipes"] | {"teacher.json": {}}, ["'recipes.teacher.json' has the name of another file"]),
    ("recipes", PARAMS["recipes"] | {"Quick": {}}, ["recipes.quick and recipes.Quick differ by case alone"]),
    ("tables", {"b-c": {"moments": {"feature": "stage2"}}, "c": {"moments": {"feature": "stage2"}}},
     ["table 'c' of teacher 'big-b' and table 'b-c' of teacher 'big' are both the stage fit_table@big-b-c"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("place", "value", "parts"), REFUSED, ids=[f"{place}={str(value)[:24]!a}" for place, value, _ in REFUSED]
)
def test_it_is_refused_in_one_line(place: str, value: Any, parts: list[str]) -> None:
    params = changed(PARAMS, place, value)
    if place == "tables":
        params = changed(params, "teachers.big-b", TEACHER)
    line = refused(params)
    for part in parts:
        assert part in line
    assert len(line) < 700


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *[("runs.kd.methods", method(temperature=value)) for value in (0.1, 1, 1.0, 20.0, 100.0)],
        *[("runs.fitnet.methods", method("fitnet", weights={"hint": value})) for value in (0, 1000, 9000.0, 25_000)],
        ("runs.kd.methods", method(weights={"ce": 0.0, "kd": 1e-4})),
        ("runs.kd.methods", method(insert={"stage2": {"kd_layer": {"words": 4096, "alpha": 1e-4, "scale": 1}}})),
        *[("recipes.quick", {"epochs": 480, "batch_size": value, "learning_rate": rate, "milestones": [300, 400]})
          for value, rate in ((512, 0.01), (4096, 1.6), (2, 30.0))],
        ("recipes.quick", {"weight_decay": 0.0, "momentum": 0.0, "decay": 1.0, "milestones": []}),
        ("recipes.quick", {"epochs": 240, "milestones": [150, 180, 240], "warmup": 240}),
        ("recipes.quick", {"epochs": 100_000}),
        ("seeds", [0, 2**32 - 1]),
        ("datasets.toy.views", {"crop_flip": {"padding": 7, "fill": "reflect"}}),
        ("datasets.toy.views", {"rotate_flip": {"degrees": 20, "flip": True}}),
        ("datasets.toy.views", {"rotate_flip": {"degrees": 179.9, "steps": 1000, "flip": False}}),
        ("tables.moments", {"kmeans": {"feature": "stage2", "clusters": 4096, "iterations": 300, "temperature": 5}}),
        ("matchings.kcd", {"student_tap": "stage2", "teacher_feature": "stage2", "ranges": 10, "pictured": 9}),
        ("teachers.big", {"dataset": "toy", "network": "resnet14", "recipe": {"quick": {"epochs": 0}}}),
        ("teachers", {"Ada": TEACHER, "bob": TEACHER, "aux": TEACHER, "a" * 100: TEACHER}),
    ],
    ids=str,
)  # fmt: skip
def test_what_papers_and_ablations_use_passes(place: str, value: Any) -> None:
    lean = {"distill": [], "matchings": {}, "pairs": {}, "teachers": {}, "students": {}}
    check(changed(PARAMS if place.startswith("runs.") else PARAMS | lean, place, value))


def test_the_course_of_a_recipe() -> None:
    check_course(Recipe(epochs=0), "x")  # keeps the first weights
    check_course(Recipe(epochs=3), "x")  # a short trial of a long recipe never reaches its milestones
    line = line_of(lambda: check_course(Recipe(epochs=3, warmup=4), "students.a.recipe"))
    assert line.startswith("params.yaml: 'students.a.recipe': warmup is 4 of 3 epochs")


@pytest.mark.parametrize(
    ("epochs", "share", "expected"), [(60, 0.25, 15), (2, 0.5, 1), (1, 0.5, 1), (3, 0.1, 1)]
)
def test_an_anchor_is_kept_after_an_epoch_at_least(epochs: int, share: float, expected: int) -> None:
    assert Recipe(epochs=epochs).epochs_of(share, 7) == expected


def test_each_anchor_is_another_checkpoint() -> None:
    check_anchors((), Recipe(epochs=0), "x")
    check_anchors((0.25, 0.5, 0.75), Recipe(epochs=4), "x")
    assert "each after another epoch" in line_of(lambda: check_anchors((0.25, 0.5), Recipe(epochs=2), "x"))


@pytest.mark.parametrize("content", [[1], None, "text", 5])
def test_params_that_are_no_mapping_are_refused(content: Any) -> None:
    assert "expected a mapping of blocks" in refused(content)


def test_values_that_contain_themselves_are_refused() -> None:
    endless: dict[str, Any] = {"runs": {}}
    endless["runs"]["kd"] = endless
    assert "deeper than 32" in line_of(lambda: values.check(endless))
    assert "deeper than 32" in refused(endless)


@pytest.mark.parametrize("depth", [100, 250, 5_000, 200_000])
def test_a_stage_s_json_that_nests_is_damaged_in_one_line(depth: int, tmp_path: Path) -> None:
    path = tmp_path / "block.json"
    path.write_text(f'{{"name": "a", "settings": {"[" * depth}{"]" * depth}}}')
    with pytest.raises(
        DamagedArtifactError, match=r"block\.json.*dvc repro --force --single-item params$"
    ) as error:
        load(Plug, path)
    assert len(one_line(error)) < 700

"""What asks for the one class of a sample is refused where views mix two, before anything is made."""

from __future__ import annotations

from typing import Any

import params_fixtures
import pytest
from training_fixtures import PARAMS, changed

from pipeline.params.views import mixing
from pipeline.runs.check import project

MIXED = {"crop_flip": {"padding": 1, "flip": False}, "mixup_or_cutmix": {}}
FEATURES = {"logits": {"slots": 2}, "stage2": {"slots": 2}, "final": {"slots": 2}, "pooled": {"slots": 2}}
# What runs of every kind read is in the store.
SOURCE = changed(
    changed(PARAMS, "teachers.big.features", FEATURES), "runs", {
        "kd": {"methods": "kd", "slots": 2},
        "own": {"methods": "kd", "source": "online", "slots": 2},
        "kcd": PARAMS["runs"]["kcd"] | {"slots": 2},
    },
) | {"distill": ["pair/kd", "pair/own", "pair/kcd"]}  # fmt: skip
WORLD = changed(SOURCE, "datasets.toy.views", MIXED)
SUBCLASSES = {"subclasses": {"feature": "final", "components": 4}}
ASSISTANT = {"teacher": "big", "network": "resnet8", "recipe": "even", "follows": "teacher", "slots": 2}
EVEN = PARAMS["recipes"]["quick"] | {"sampling": "balanced"}


def words(name: str) -> list[str]:
    return [
        f"runs.kd has method '{name}', which reads one class a sample",
        "'mixup_or_cutmix', which mixes two",
    ]


Case = tuple[dict[str, Any], dict[str, Any], list[str]]
REFUSED: list[Case] = [
    *[(WORLD, {"runs.kd.methods": name}, words(name)) for name in ("dkd", "rld", "crd", "sdd")],
    (WORLD, {"runs.kd.methods": {"kd": {}, "dkd": {}}}, words("dkd")),
    (WORLD, {"tables.coarse": {"coarse": {"feature": "final"}}, "runs.kd.methods": {
        "tdd": {"places": {"stage2": "coarse"}}}}, words("tdd")),
    (WORLD, {"tables.inner": SUBCLASSES, "runs.kd.methods": {"letkd": {"places": {"final": "inner"}}}},
     ["runs.kd has table 'inner' of sub-classes, which reads one class a sample"]),
    (WORLD, {"tables.inner": SUBCLASSES, "runs.kd.methods": {
        "letkd": {"places": {"final": {"table": "inner", "encoding": "subclass"}}}}},
     ["runs.kd has encoding 'subclass', which reads one class a sample"]),
    (WORLD, {"matchings.kcd.ranges": 2}, ["runs.kcd has matching 'kcd' by ranges of labels"]),
    # Views of a run's own.
    (SOURCE, {"runs.own.methods": "dkd", "runs.own.views": MIXED}, ["runs.own has method 'dkd'", "give the run views"]),
    # Even draws.
    (WORLD, {"recipes.even": EVEN, "teachers.big.recipe": "even"},
     ["teachers.big.recipe has 'sampling: balanced'", "Set 'class_weights: balanced' in its place."]),
    (WORLD, {"recipes.even": EVEN, "students.small.recipe": "even"},
     ["students.small.recipe has 'sampling: balanced'"]),
    (WORLD, {"recipes.even": EVEN, "assistants": {"one": ASSISTANT}},
     ["assistants.one.recipe has 'sampling: balanced'"]),
    (WORLD, {"runs.kd.recipe": {"sampling": "balanced"}}, ["runs.kd.recipe has 'sampling: balanced'"]),
    # A store holds a number of slots.
    (WORLD, {"teachers.big.features.logits.slots": "all"}, ["is 'all', but this view space is unbounded"]),
    (WORLD, {"datasets.toy.views": {"mixup": {}, "crop_flip": {}}},
     ["datasets.toy.views has 'mixup' before 'crop_flip'"]),
]  # fmt: skip


def with_changes(params: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    for place, value in changes.items():
        params = changed(params, place, value)
    return params


@pytest.mark.parametrize(("params", "changes", "parts"), REFUSED)
def test_one_line_says_what_reads_the_class(
    params: dict[str, Any], changes: dict[str, Any], parts: list[str]
) -> None:
    line = params_fixtures.refused(with_changes(params, changes))
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"runs.kd.methods": {"kd": {}, "dist": {}}},
        {"runs.kd.methods": "dkd", "runs.kd.slots": 0},  # plain views are not mixed
        {"runs.own.methods": "dkd", "runs.own.views": "plain", "runs.own.slots": 1},
        {"recipes.weighted": EVEN | {"sampling": "shuffled", "class_weights": "balanced"},
         "students.small.recipe": "weighted"},
    ],
    ids=str,
)  # fmt: skip
def test_what_two_labels_have_a_meaning_for_is_not_refused(changes: dict[str, Any]) -> None:
    found = project(with_changes(WORLD, changes))
    assert mixing(found.views["toy"]) is not None

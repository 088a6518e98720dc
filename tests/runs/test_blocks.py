"""The blocks that stages depend on: an edit changes what reads it, and runs decide what is made."""

from __future__ import annotations

import json
from typing import Any, TypeVar

import pytest
from training_fixtures import PARAMS, changed

from pipeline import plugin
from pipeline.artifacts import closure
from pipeline.params.base import Block
from pipeline.params.matchings import MatchBlock
from pipeline.params.pairs import PairBlock
from pipeline.params.recipe import Recipe
from pipeline.params.tables import AskedBlock, Matched
from pipeline.params.teacher import TrainBlock
from pipeline.params.teachers import CheckBlock, ExtractBlock
from pipeline.params.top import Top
from pipeline.runs.blocks import asked, blocks
from pipeline.runs.check import project

B = TypeVar("B", bound=Block)
Changes = dict[str, Any]


def edited(changes: Changes, params: dict[str, Any] = PARAMS) -> dict[str, Any]:
    for place, value in changes.items():
        params = changed(params, place, value)
    return params


def blocks_of(params: dict[str, Any]) -> dict[str, Block]:
    return blocks(project(params))


def block(kind: type[B], name: str, params: dict[str, Any]) -> B:
    made = blocks_of(params)[name]
    assert isinstance(made, kind)
    return made


# ------------------------------------------------------------------ an edit

LEAN = {
    "recipes.quick": {"batch_size": 20},
    "runs.kd": {"methods": "kd"},
    "tables.words": {"kmeans": {"feature": "stage2"}},
    "teachers.big.features": {"logits": {}, "stage2": None},
    "matchings.kcd": {"student_tap": "stage2", "teacher_feature": "stage2"},
}
SPELLED_OUT = {
    "recipes.quick": {"epochs": 240, "batch_size": 20, "momentum": 0.9, "weight_decay": 0.0005, "nesterov": False},
    "runs.kd": {
        "methods": {"kd": {"temperature": 4.0, "weights": {"ce": 0.1, "kd": 0.9}, "insert": {}}},
        "slots": "all", "source": "cached", "schedule": {"final": {}}, "recipe": {}, "transform": None,
        "views": None,
    },
    "tables.words": {"kmeans": {"feature": "stage2", "clusters": 4096, "seed": 0}},
    "teachers.big.features": {"logits": {"slots": "all"}, "stage2": {"dtype": "float16"}},
    "teachers.big.seed": 0,
    "teachers.big.weights": "none",
    "teachers.big.compression": "none",
    "teachers.big.tables": {},
    "datasets.toy.views.crop_flip.fill": "zero",
    "matchings.kcd": {"student_tap": "stage2", "teacher_feature": "stage2", "measure": "correlation", "ranges": 1},
    "pairs.pair.overrides": {},
    "copies": {},
    "borrowed": {},
    "exports": {},
}  # fmt: skip


def test_spelling_out_a_default_changes_no_block() -> None:
    lean, spelled = blocks_of(edited(LEAN)), blocks_of(edited(LEAN | SPELLED_OUT))
    assert lean.keys() == spelled.keys()
    # "project" is what the report shows as it was written
    assert [name for name in lean if lean[name] != spelled[name]] in ([], ["project"])


def test_blocks_have_their_defaults_filled_in() -> None:
    train = block(
        TrainBlock, "teachers/big/train", edited({"teachers.big.recipe": {"quick": {"epochs": 30}}})
    )
    expected = PARAMS["recipes"]["quick"] | {"epochs": 30, "milestones": (1,)}
    assert train.recipe == Recipe(**expected)
    assert (train.teacher, train.seed, train.weights) == ("big", 0, "none")
    assert (train.family, train.network) == ("resnet", "resnet14")
    bare = block(TrainBlock, "teachers/big/train", edited({"teachers.big.recipe": ...}))
    assert bare.recipe == Recipe()


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        ("teachers.big.compression", "zstd", {"teachers/big/extract"}),
        ("teachers.big.seed", 1, {"teachers/big/train"}),
        ("teachers.big.recipe", {"quick": {"epochs": 9}}, {"teachers/big/train"}),
        ("students.small.recipe", {"quick": {"epochs": 9}}, {"students/small", "pairs/pair"}),
        ("recipes.quick.epochs", 9, {"teachers/big/train", "students/small", "pairs/pair"}),
        ("runs.kd.methods", {"kd": {"temperature": 2.0}}, {"pairs/pair"}),
        ("runs.kd.recipe", {"epochs": 9}, {"pairs/pair"}),
        ("runs.online.views", "rotate_flip", {"pairs/pair"}),
        ("tables.moments.moments.feature", "logits", {"teachers/big/asked"}),
        ("teachers.big.features.logits.dtype", "float16", {"teachers/big/extract"}),
        ("teachers.big.features.logits.top", 3, {"teachers/big/extract", "teachers/big/check"}),
        ("datasets.toy.source", {"digits": {"holdout": 0.1}}, {"datasets/toy"}),
        ("datasets.toy.views.crop_flip.padding", 2,
         {"teachers/big/train", "teachers/big/extract", "students/small", "pairs/pair"}),
        ("seeds", [0, 2], {"pairs/pair", "matchings/pair"}),
        ("matchings.kcd.strategy", "greedy", {"matchings/pair"}),
        ("distill", ["pair/kd"], {"pairs/pair", "matchings/pair", "teachers/big/asked"}),
    ],
)  # fmt: skip
def test_an_edit_changes_the_blocks_that_read_it(place: str, value: Any, expected: set[str]) -> None:
    params = PARAMS
    if place == "tables.moments.moments.feature":  # it is of no use to FitNet then
        params = edited({"distill": ["pair/kd"], "teachers.big.tables": {"moments": {}}})
    before, after = blocks_of(params), blocks_of(changed(params, place, value))
    assert {name for name in before if before[name] != after[name]} - {"project"} == expected
    assert before["project"] != after["project"]  # the report reads all of it


def test_the_largest_logits_are_nowhere_but_where_they_are_asked_for() -> None:
    """Blocks of before there was any are as they were, letter by letter: their stages do not run again."""
    for name, content in blocks_of(PARAMS).items():
        assert not {"top", "largest", "temperatures"} & keys(content.model_dump(mode="json")), name

    online = {"methods": {"kd": {"temperature": 2.0}}, "source": "online"}
    params = edited({"teachers.big.features.logits.top": 3, "runs.online": online, "runs.rco.methods": "ttm"})
    pair = block(PairBlock, "pairs/pair", params)
    # A store says itself what it holds.
    assert {name: run.largest for name, run in pair.runs.items() if run.largest} == {
        "online": {"logits": Top(kept=3, dtype="float32")}
    }
    assert block(CheckBlock, "teachers/big/check", params).temperatures == (2.0, 4.0)
    assert block(ExtractBlock, "teachers/big/extract", params).features["logits"].top == 3


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (
            {"methods": {"mlld": {"temperatures": [2, 7], "strong": [2]}}, "strong_views": "crop_flip"},
            (2.0, 7.0),
        ),
        # The schedule's own, which may be a whole number, or its default.
        ({"methods": "ttm", "schedule": {"self_learning": {"temperature": 9}}}, (9.0,)),
        ({"methods": "ttm", "schedule": "self_learning"}, (4.0,)),
        ({"methods": "prokd"}, ()),  # whose `temperatures` is how many there are
    ],
)
def test_a_check_knows_each_temperature_that_logits_are_read_at(
    run: dict[str, Any], expected: tuple[float, ...]
) -> None:
    places = {"teachers.big.features.logits.top": 3, "runs.new": run | {"source": "online"}}
    params = edited(places | {"distill": ["pair/new"]})
    assert block(CheckBlock, "teachers/big/check", params).temperatures == expected


def keys(content: Any) -> set[str]:
    """Return all keys within what a json holds."""
    if isinstance(content, list):
        return {key for part in content for key in keys(part)}
    if isinstance(content, dict):
        return content.keys() | {key for part in content.values() for key in keys(part)}
    return set()


# ------------------------------------------------------------------ a pair's runs


def test_overrides_are_merged_into_their_pair_alone() -> None:
    made = blocks_of(edited({
        "pairs.second": {"teacher": "big", "student": "small"},
        "distill": ["pair/kd", "second/kd"],
        "runs.kd.methods": {"kd": {"temperature": 3.0, "weights": {"ce": 1.0, "kd": 1.0}}},
        "pairs.pair.overrides": {"kd": {"methods": {"kd": {"weights": {"kd": 2.0}}}, "slots": 4}},
    }))  # fmt: skip
    first, second = made["pairs/pair"], made["pairs/second"]
    assert isinstance(first, PairBlock)
    assert isinstance(second, PairBlock)
    settings = [pair.runs["kd"].methods[0].settings for pair in (first, second)]
    assert settings[0] == {"temperature": 3.0, "weights": {"ce": 1.0, "kd": 2.0}, "insert": {}}
    assert settings[1] == {"temperature": 3.0, "weights": {"ce": 1.0, "kd": 1.0}, "insert": {}}
    assert (first.runs["kd"].slots, second.runs["kd"].slots) == (4, 9)


def test_a_pair_has_the_runs_that_are_asked_of_it() -> None:
    params = edited({
        "pairs.second": {"teacher": "big", "student": "small"}, "distill": ["second/fitnet", "pair/kd"],
    })  # fmt: skip
    assert {name: list(block(PairBlock, f"pairs/{name}", params).runs) for name in ("pair", "second")} == {
        "pair": ["kd"],
        "second": ["fitnet"],
    }


@pytest.mark.parametrize("order", [["fitnet", "kd"], ["kd", "fitnet"]])
def test_the_order_of_methods_is_kept_in_the_json(order: list[str]) -> None:
    """`ce` is that of the first."""
    params = edited({"runs.kd.methods": dict.fromkeys(order), "distill": ["pair/kd"]})
    content = json.dumps(block(PairBlock, "pairs/pair", params).model_dump(mode="json"))
    methods = json.loads(content)["runs"]["kd"]["methods"]
    assert [name for method in methods for name in method] == order
    assert PairBlock.model_validate_json(content).runs["kd"].plugins[:2] == tuple(
        f"methods/{name}" for name in order
    )


# ------------------------------------------------------------------ what runs ask for

TEACHER = PARAMS["teachers"]["big"]
WORDS: dict[str, Any] = edited({
    "tables.words": {"kmeans": {"feature": "stage2", "clusters": 4}},
    "teachers.other": TEACHER | {"seed": 1},
    "pairs.second": {"teacher": "other", "student": "small"},
    "runs.words": {"methods": {"letkd": {"places": {"stage2": "words"}}}},
    "runs.coded": {"methods": {"letkd": {"places": {"stage2": {"table": "words", "encoding": "nearest"}}}}, "slots": 3},
    "runs.brief": {"methods": {"quest": {"places": {"stage2": {"table": "words", "encoding": "nearest"}}}}, "slots": 1},
    "runs.top": {"methods": {"letkd": {"places": {"stage2": {"table": "words", "encoding": "top4"}}}}, "slots": 2},
    "runs.live": {
        "methods": {"letkd": {"places": {"stage2": {"table": "words", "encoding": "nearest"}}}}, "source": "online",
    },
})  # fmt: skip
CODE = "stage2:nearest@words"


def asked_of(distill: list[str], changes: Changes | None = None) -> dict[str, AskedBlock]:
    """Return what is asked of both teachers."""
    known = project(edited({"distill": distill} | (changes or {}), WORDS))
    return {teacher: asked(known, teacher) for teacher in ("big", "other")}


def tables(block: AskedBlock) -> set[str]:
    return {name for name, fit in block.tables.items() if fit is not None}


def codes(block: AskedBlock) -> dict[str, dict[str, int]]:
    return {name: encode.codes for name, encode in block.codes.items() if encode is not None}


def test_nobody_asks_for_anything() -> None:
    for teacher in asked_of([]).values():
        assert (tables(teacher), codes(teacher), teacher.matched) == (set(), {}, ())
        assert teacher.tables == teacher.codes == {"moments": None, "words": None}  # a cell each, all empty


def test_a_table_is_asked_of_the_teachers_whose_runs_read_it() -> None:
    teachers = asked_of(["pair/words", "second/standardized"])
    assert (tables(teachers["big"]), tables(teachers["other"])) == ({"words"}, {"moments"})
    assert codes(teachers["big"]) == codes(teachers["other"]) == {}
    fit = teachers["big"].tables["words"]
    assert fit is not None
    assert (fit.stage, fit.teacher, fit.table, fit.config["clusters"]) == (
        "fit_table@big-words",
        "big",
        "kmeans",
        4,
    )


def test_a_table_that_a_teacher_names_is_asked_for_too() -> None:
    teachers = asked_of(["second/words"], {"teachers.big.tables": {"words": {"clusters": 8}}})
    assert (tables(teachers["big"]), tables(teachers["other"])) == ({"words"}, {"words"})
    sizes = {name: teacher.tables["words"] for name, teacher in teachers.items()}
    assert {name: fit.config["clusters"] for name, fit in sizes.items() if fit is not None} == {
        "big": 8,
        "other": 4,
    }


def test_codes_have_the_most_slots_of_their_readers() -> None:
    assert codes(asked_of(["pair/coded", "pair/brief"])["big"]) == {"words": {CODE: 3}}
    assert codes(asked_of(["pair/brief"])["big"]) == {"words": {CODE: 1}}
    both = asked_of(["pair/brief", "pair/coded", "pair/top", "second/brief"])
    assert codes(both["big"]) == {"words": {CODE: 3, "stage2:top4@words": 2}}
    assert codes(both["other"]) == {"words": {CODE: 1}}
    assert tables(both["big"]) == {"words"}


def test_online_runs_ask_for_tables_and_for_no_codes() -> None:
    teacher = asked_of(["pair/live"])["big"]
    assert (tables(teacher), codes(teacher)) == ({"words"}, {})
    assert codes(asked_of(["pair/live", "pair/brief"])["big"]) == {"words": {CODE: 1}}


def test_a_matching_is_made_for_the_pairs_whose_runs_ask_for_it() -> None:
    params = edited({"distill": ["pair/kcd", "second/kd"], "matchings.idle": {}}, WORDS)
    own = {name: block(MatchBlock, f"matchings/{name}", params) for name in ("pair", "second")}
    assert list(own["pair"].recipes) == ["kcd"]
    assert own["pair"].seeds == (0, 1)
    # What nobody asks for depends on nothing that changes.
    assert (own["second"].recipes, own["second"].seeds) == ({}, ())
    known = project(params)
    assert asked(known, "big").matched == (Matched(feature="stage2", checkpoint="last"),)
    assert asked(known, "other").matched == ()


def test_a_borrowed_matching_is_of_the_lender() -> None:
    lent = {"pair": "pair", "teacher": "other", "student": "small", "matching": "kcd"}
    borrowing = {"permutation": {"features": ["stage2"], "teacher": "other"}}
    params = edited(
        {"borrowed": {"lent": lent}, "runs.kcd.transform": borrowing, "distill": ["pair/kcd"]}, WORDS
    )
    made = blocks_of(params)
    entry, own, pair = made["borrowed/lent"], made["matchings/pair"], made["pairs/pair"]
    assert isinstance(entry, MatchBlock)
    assert isinstance(own, MatchBlock)
    assert isinstance(pair, PairBlock)
    assert (entry.stage, entry.pair, entry.teacher) == ("match_borrowed@lent", "pair", "other")
    assert list(entry.recipes) == ["kcd"]
    assert own.recipes == {}  # its own teacher's is not asked for
    assert pair.borrowed == {"other/kcd": "lent"}
    known = project(params)
    assert asked(known, "other").matched == (Matched(feature="stage2", checkpoint="last"),)
    assert asked(known, "big").matched == ()


# ------------------------------------------------------------------ code


def hashed(params: dict[str, Any]) -> dict[str, str]:
    """Return the hash of the code of every stage that has one."""
    hashes: dict[str, str] = {}

    def walk(content: Any) -> None:
        if isinstance(content, dict):
            if content.get("code_hash"):
                hashes[content["stage"]] = content["code_hash"]
            for value in content.values():
                walk(value)

    for made in blocks_of(params).values():
        walk(made.model_dump(mode="json"))
    return hashes


ALL = edited({"distill": ["pair/coded", "pair/kcd", "pair/standardized"],
              "teachers.big.features.stage2:attention": {"slots": 0},
              "copies": {"one": {"teacher": "big", "student": "small"}},
              "assistants": {"a1": {"teacher": "big", "network": "resnet8", "follows": "teacher"}}}, WORDS)  # fmt: skip
TEACHERS = [f"{stage}@{name}" for stage in ("train_teacher", "extract_features", "check_features", "evaluate_teacher")
            for name in ("big", "other")]  # fmt: skip


@pytest.mark.parametrize(
    ("catalogue", "name", "expected"),
    [
        ("tables", "kmeans", {"fit_table@big-words"}),
        ("tables", "moments", {"fit_table@big-moments"}),
        ("tables", "subclasses", set()),
        ("encodings", "nearest", {"encode_views@big-words"}),
        ("encodings", "attention", {"extract_features@big", "check_features@big"}),
        ("encodings", "top4", set()),
        (
            "networks",
            "resnet",
            {
                *TEACHERS,
                "encode_views@big-words",
                "match_channels@pair",
                "train_copy@one",
                "train_assistant@a1",
            },
        ),
        ("networks", "vgg", set()),
        ("datasets", "digits", {"prepare_data@toy"}),
        ("datasets", "cifar", set()),
        ("methods", "kd", {"train_copy@one", "train_assistant@a1"}),
        ("schedules", "assistants", {"train_copy@one", "train_assistant@a1"}),
        ("schedules", "self_taught", set()),
        ("methods", "letkd", set()),  # of a run, `inputs` has the code's hashes
        ("transforms", "permutation", set()),
    ],
)
def test_the_hash_of_code_changes_with_the_plug_ins_that_are_named(
    monkeypatch: pytest.MonkeyPatch, catalogue: str, name: str, expected: set[str]
) -> None:
    before = hashed(ALL)
    file = closure.root() / f"{plugin.module(catalogue, name).replace('.', '/')}.py"
    assert file.exists()
    hash_of = closure.code_hash
    monkeypatch.setattr(closure, "code_hash", lambda path: "edited" if path == file else hash_of(path))
    after = hashed(ALL)
    assert before.keys() == after.keys()
    assert {stage for stage in before if before[stage] != after[stage]} == expected


def test_another_feature_retrains_no_teacher() -> None:
    params = edited({"teachers.big.features.stage1": {}})
    before, after = blocks_of(PARAMS), blocks_of(params)
    assert before["teachers/big/train"] == after["teachers/big/train"]
    extract = after["teachers/big/extract"]
    assert isinstance(extract, ExtractBlock)
    assert list(extract.features) == ["logits", "stage2", "stage1"]

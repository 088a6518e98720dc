"""Hostile params.yaml: free text, damaged text, mutated settings; each is what it says, or refused in one line."""

from __future__ import annotations

import contextlib
import copy
import json
import math
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any, get_args

import pytest
from error_fixtures import one_line
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from training_fixtures import PARAMS

from pipeline import plugin
from pipeline.errors import DamagedArtifactError, StillhouseError
from pipeline.networks.architecture import architecture
from pipeline.networks.network import build
from pipeline.networks.spec import NetworkSpec
from pipeline.params import checks
from pipeline.params.assistants import AssistantParams
from pipeline.params.base import Block, load, validate
from pipeline.params.copies import CopyParams
from pipeline.params.document import parse
from pipeline.params.matchings import MatchingParams
from pipeline.params.recipe import Recipe
from pipeline.params.teachers import TeacherParams
from pipeline.params.views import SPACES
from pipeline.runs.check import check

ROOT = Path(__file__).parents[2]
SHIPPED = (ROOT / "params.yaml").read_text()
FILE = Path("params.yaml")
EXAMPLES = settings().max_examples
Place = tuple[str | int, ...]


@contextlib.contextmanager
def refusing(kind: type[StillhouseError] = StillhouseError) -> Iterator[list[str]]:
    """Let the block raise nothing but an error of one line, which it gives in a list."""
    lines: list[str] = []
    try:
        yield lines
    except kind as error:
        lines.append(one_line(error))
        assert 10 < len(lines[0]) < 2500, lines[0]


# ------------------------------------------------------------------ text

# What yaml is made of, and what has been a bomb or a trap.
PIECES = ["a: ", "b: ", "- ", "? ", ": ", "\n", "\n  ", "\n\t", "[", "]", "{", "}", ", ", "&a ", "*a", "<<: ", "!!str ",
          "!!binary ", "!own ", "|", ">", "'", '"', "#", "---\n", "...\n", "%YAML 1.1\n", "0", "010", "1_000", "0x1F",
          "-0", ".nan", "1e400", "9" * 50, "2020-01-01", "=", "~", "null", "true", "\0", "\x07", "\u2028", "\ufeff",
          "\\ud800", "seeds", "[" * 50, "{a: " * 50, "- " * 50]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=25).map("".join)


@given(TEXTS)
@settings(max_examples=EXAMPLES * 2)
@example("a: &a [*a]")
@example("a: " + "[" * 2000)
def test_any_text_is_read_as_dvc_reads_it_or_refused(content: str) -> None:
    with refusing() as refused:
        parsed = parse(content, FILE)
    if not refused:
        assert parsed == YAML(typ="safe").load(content)
        assert json.loads(json.dumps(parsed)) == parsed  # nothing but what json has, too


@given(st.data())
def test_damaged_text_is_read_as_dvc_reads_it_or_refused(data: st.DataObject) -> None:
    content = bytearray(SHIPPED.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content) - 1))
        stop = data.draw(st.integers(start, min(len(content), start + 40)))
        content[start:stop] = data.draw(
            st.binary(max_size=3) | st.sampled_from([piece.encode("utf-8") for piece in PIECES])
        )
    try:
        damaged = content.decode()
    except UnicodeDecodeError:
        return  # `text` refuses it
    with refusing() as refused:
        parsed = parse(damaged, FILE)
        assert parsed == YAML(typ="safe").load(damaged)
        checks.check(parsed)
    try:
        meant = YAML(typ="safe").load(damaged)
    except (YAMLError, ValueError, KeyError):
        assert refused
    else:
        assert refused or set(meant) <= set(checks.Sections.model_fields)


# ------------------------------------------------------------------ settings

# No setting may be any of these, wherever it stands.
NEVER: list[Any] = [1e300, 5e-324, -1e300, math.nan, math.inf, -math.inf, 10**400, 2**63, -(2**63) - 1, "a\0b", "a\nb",
                    "\u200b", " a", "a ", "\ud800", "x" * 2000, b"a", {1.5}]  # fmt: skip
HOSTILE: list[Any] = [None, True, False, 0, -1, 1, 2, 10**12, 2**62, 0.0, -0.5, 1e-30, 1e30, "", "0", "1e3", "yes", "~",
                      "~/data", "CON", "..", "x/y", "\u0430", "a" * 200, [], {}, [[]], {"a": {}}, ["last", "last"],
                      [1, 1], [0.5, 0.5]]  # fmt: skip


def places(content: Any, place: Place = ()) -> list[Place]:
    """Return the places of all parts of `content`."""
    parts = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
    return [
        *([place] if place else []),
        *(inner for key, part in parts for inner in places(part, (*place, key))),
    ]


def at(content: Any, place: Place) -> Any:
    for key in place:
        content = content[key]
    return content


def put(content: Any, place: Place, value: Any) -> None:
    at(content, place[:-1])[place[-1]] = value


@given(st.data())
@settings(max_examples=EXAMPLES * 2)
def test_what_no_setting_may_be_is_refused_wherever_it_stands(data: st.DataObject) -> None:
    content = copy.deepcopy(PARAMS)
    put(content, data.draw(st.sampled_from(places(content))), data.draw(st.sampled_from(NEVER)))
    with refusing() as refused:
        checks.check(content)
    assert refused


def mutated(data: st.DataObject, content: Any) -> None:
    """Replace, delete, rename, copy, move or wrap a part of `content`."""
    place = data.draw(st.sampled_from(places(content)))
    around, key, value = at(content, place[:-1]), place[-1], at(content, place)
    match data.draw(st.sampled_from(["replace", "delete", "rename", "copy", "list", "mapping", "alias"])):
        case "replace":
            around[key] = copy.deepcopy(data.draw(st.sampled_from(HOSTILE)))
        case "delete":
            del around[key]
        case "rename" if isinstance(around, dict):
            around[data.draw(st.sampled_from(["a", "A", "kd", "..", "CON", "a" * 200, "about.json"]))] = (
                around.pop(key)
            )
        case "copy":
            put(content, data.draw(st.sampled_from(places(content))), copy.deepcopy(value))
        case "list":
            around[key] = [value]
        case "mapping":
            around[key] = {"a": value}
        case "alias":  # the writer makes an anchor of what is there twice
            other = data.draw(st.sampled_from(places(content)))
            if other[: len(place)] != place and place[: len(other)] != other:
                put(content, other, value)


@given(st.data())
@settings(max_examples=max(1, EXAMPLES // 2))
def test_mutated_settings_are_what_they_say_or_refused(data: st.DataObject) -> None:
    content = YAML(typ="safe").load(SHIPPED) if data.draw(st.booleans()) else copy.deepcopy(PARAMS)
    for _ in range(data.draw(st.integers(1, 3))):
        if content:
            mutated(data, content)
    written = StringIO()
    YAML(typ="safe").dump(content, written)

    with refusing() as refused:
        parsed = parse(written.getvalue(), FILE)
        params = check(parsed)
    if not refused:
        assert parsed == content
        # Read once more as they are written with their defaults, they are the same.
        assert check(params.model_dump(mode="json")) == params


# ------------------------------------------------------------------ every number of every setting

CATALOGUES = ("methods", "schedules", "transforms", "tables")
MODELS: dict[str, type[Block]] = {
    **{f"{catalogue}/{name}": plugin.load(catalogue, name).Config
       for catalogue in CATALOGUES for name in plugin.names(catalogue)},
    **{model.__name__: model
       for model in (Recipe, MatchingParams, CopyParams, AssistantParams, TeacherParams, *SPACES)},
}  # fmt: skip
# What is required, and what is None by default, has a value here.
GIVEN: dict[str, dict[str, Any]] = {
    "tables": {"feature": "stage2"},
    "schedules/anchors": {"anchors": ["last"]},
    "schedules/assistants": {"names": ["teacher", "a"], "drop": 0.5},
    "schedules/self_taught": {"names": ["a", "b"], "fusion": 0.5},
    "schedules/self_learning": {"fusion": [0.5, 0.5]},
    "transforms/permutation": {"seed": 0, "dynamic": 1},
    "tables/kmeans": {"max_samples": 10},
    "methods/letkd": {"alpha": {"final": 1.0}},
    "CopyParams": {"teacher": "a", "student": "b", "slots": 1},
    "AssistantParams": {
        "teacher": "a",
        "network": "b",
        "follows": "c",
        "learns_from": ["teacher", "c"],
        "drop": 1,
        "slots": 1,
    },
    "Recipe": {
        "optimizer": "adamw",
        "learning_rate": 0.01,
        "betas": [0.8, 0.9],
        "eps": 1e-6,
        "undecayed": ["bias"],
        "schedule": "cosine",
        "final": 0.1,
        "label_smoothing": 0.1,
        "clip": 1.0,
        "ema": 0.9,
        "class_weights": {"a": 2.0},
        "sampling": "balanced",
    },
    "TeacherParams": {"dataset": "a", "network": "b", "anchors": [0.5], "features": {"logits": {"slots": 1}}},
}


def spelled_out(name: str) -> dict[str, Any]:
    """Return good settings of a model, defaults filled in."""
    model = MODELS[name]
    tag = (
        {"space": get_args(model.model_fields["space"].annotation)[0]}
        if "space" in model.model_fields
        else {}
    )
    own = tag | GIVEN.get(name.partition("/")[0], {}) | GIVEN.get(name, {})
    return validate(model, own, "x").model_dump(mode="json")


def numbers(name: str) -> list[Place]:
    good = spelled_out(name)
    return [place for place in places(good) if isinstance(at(good, place), int | float)]


@pytest.mark.parametrize("name", MODELS)
def test_every_number_has_bounds_and_every_boolean_is_one(name: str) -> None:
    for place in numbers(name):
        good = spelled_out(name)
        boolean = isinstance(at(good, place), bool)
        for value in (-1e30, 1e30, -(2**62), 2**62, *((0, 1) if boolean else (True, False))):
            put(good, place, value)
            with refusing() as refused:
                validate(MODELS[name], good, "x")
            if boolean or abs(value) > 1 or isinstance(value, bool):
                # The rates of a recipe are looked at when it is whole.
                assert refused or (name == "Recipe" and place[0] in ("learning_rate", "weight_decay")), (
                    place,
                    value,
                )


@given(st.data())
@settings(max_examples=EXAMPLES * 2)
def test_settings_of_plug_ins_are_what_they_say_or_refused(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(name for name in MODELS if spelled_out(name))))
    good = spelled_out(name)
    place = data.draw(st.sampled_from(places(good)))
    value = data.draw(st.sampled_from(HOSTILE + NEVER[:9]) | st.integers() | st.floats(allow_subnormal=True))
    put(good, place, value)
    with refusing() as refused:
        made = validate(MODELS[name], good, "x").model_dump(mode="json")
    if not refused:
        for leaf in places(good):
            meant, got = at(good, leaf), at(made, leaf) if leaf in places(made) else ...
            if not isinstance(meant, dict | list) and isinstance(got, int | float | bool):
                assert got == meant
                assert isinstance(got, bool) == isinstance(meant, bool)


# ------------------------------------------------------------------ blocks and networks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("blocks")


@given(st.data())
def test_a_damaged_block_is_read_or_refused_in_one_line(folder: Path, data: st.DataObject) -> None:
    content = bytearray(json.dumps(Recipe().model_dump(mode="json")).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        piece = data.draw(
            st.binary(max_size=3) | st.sampled_from([b"[" * 3000, b'"\\ud800"', b"1e999", b"NaN", b"null"])
        )
        content[start : start + data.draw(st.integers(0, 10))] = piece
    path = folder / "recipe.json"
    path.write_bytes(content)
    with refusing(DamagedArtifactError) as refused:
        recipe = load(Recipe, path)
    if not refused:
        assert recipe == Recipe(**{key: tuple(value) if isinstance(value, list) else value
                                   for key, value in json.loads(content).items()})  # fmt: skip


NETWORKS = [(family, name) for family in ("resnet", "vgg", "wrn", "mobilenetv1", "mobilenetv2", "shufflenetv1")
            for name in list(plugin.load("networks", family).NETWORKS)[:2]]  # fmt: skip


@given(st.sampled_from(NETWORKS), st.integers(1, 20), st.sampled_from([1, 3]), st.integers(1, 12))
@settings(max_examples=max(1, EXAMPLES // 5))
def test_a_network_that_passes_the_probe_can_be_trained(
    network: tuple[str, str], size: int, channels: int, classes: int
) -> None:
    import torch

    spec = NetworkSpec(family=network[0], network=network[1], size=size, channels=channels, classes=classes)
    with refusing() as refused:
        taps = architecture(spec).taps
    if not refused:
        built = build(spec, 0).train()
        seen = built.record(torch.randn(2, channels, size, size), None)
        assert {name: tuple(x.shape[1:]) for name, x in seen.items()} == taps
        assert all(x.isfinite().all() for x in seen.values())

"""The plug-ins that say what is learned: one contract for every file, and each method's own reference."""

from __future__ import annotations

import ast
import doctest
import inspect
import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from device_fixtures import current, here
from error_fixtures import one_line
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from training_fixtures import CLASSES, KNOWN, RECIPE, Assembled, assemble, frozen_teacher

from pipeline import plugin, seeding
from pipeline.data.mixing import Mixture
from pipeline.distillation import method, schedule, transform
from pipeline.distillation.method import BaseMethod, Batch, MethodConfig, Terms
from pipeline.distillation.methods import fitnet, kd
from pipeline.errors import ParamsError, ShapeError
from pipeline.features.encoding import Feature
from pipeline.matching.matching import Matching, Origin
from pipeline.networks.network import Shape
from pipeline.params.base import validate
from pipeline.params.matchings import MatchingParams
from pipeline.params.recipe import Epoch
from pipeline.tables.table import FitContext, TableConfig, load, save

pytestmark = pytest.mark.usefixtures("device")

METHODS = plugin.names("methods")
WORDS = {
    "centers": np.random.default_rng(0).normal(size=(11, 64)).astype(np.float32),
    "counts": np.ones(11, np.int64),
    "temperature": np.float32(1),
}
# Three coarse labels of the four classes, two, and one a class.
COARSE = [[0, 1, 0, 2], [0, 1, 1, 1], [0, 1, 2, 3]]
# Arrays of the tables that the defaults of a method or transform name, by plug-in and table.
TABLES: dict[tuple[str, str], Mapping[str, Any]] = {
    ("letkd", "words"): WORDS,
    ("quest", "words"): WORDS,
    ("letkd", "subclasses"): {
        "mean": np.random.default_rng(1).normal(size=64).astype(np.float32),
        "scalings": np.random.default_rng(2).normal(size=(64, 3)).astype(np.float32),
        "centers": np.random.default_rng(3).normal(size=(CLASSES * 2, 3)).astype(np.float32),
        "per_class": np.int64(2),
        "scores": np.random.default_rng(4).dirichlet(np.ones(CLASSES * 2), CLASSES * 2).astype(np.float32),
    },
} | {
    ("tdd", f"coarse{stage}"): {"coarse": np.array(labels), "sizes": np.bincount(labels)}
    for stage, labels in enumerate(COARSE, start=1)
}
# The same by table alone: those of two plug-ins that have one name are one.
BY_TABLE = {table: arrays for (_, table), arrays in TABLES.items()}
# The matchings that the defaults of a transform name, by plug-in and matching.
MATCHINGS = {
    ("permutation", "kcd"): Matching(
        Origin(
            made_by="match_channels@p", teacher="t", student="s", seed=0, recipe=MatchingParams(), theta0="",
            student_weights="", teacher_weights="", digest="", data="", classes=CLASSES, channels=32,
        ),
        {"permutation": np.array([[4, 31, 0]])},
    )
}  # fmt: skip
# Settings for plug-ins that cannot do without.
SETTINGS: dict[tuple[str, str], dict[str, Any]] = {
    ("schedules", "anchors"): {"anchors": ("anchor_025", "anchor_050", "last")},
    ("tables", "kmeans"): {"clusters": 12},
    ("tables", "lda"): {"components": 3},
    ("tables", "subclasses"): {"components": 3, "per_class": 2},
    ("transforms", "permutation"): {"features": ("stage2",)},
    ("schedules", "assistants"): {"names": ("teacher", "one", "two"), "drop": 1},
    ("schedules", "self_taught"): {"names": ("one", "two")},
}
# Every method as it is, and what its defaults leave out of its terms.
CASES: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in METHODS} | {
    "letkd of two places": ("letkd", {"places": {"final": "words", "last_block1": "subclasses"}}),
}
DISK = {"os", "io", "pathlib", "shutil", "tempfile", "pickle", "safetensors", "zarr", "tensorstore", "typer"}


def build(case: str) -> Assembled:
    name, settings = CASES[case]
    return assemble(name, settings, lambda table: TABLES[name, table])


def steps(found: Assembled) -> list[tuple[Batch, Terms]]:
    """Return a batch and its terms for every phase."""
    result = []
    for phase in found.method.phases(RECIPE):
        batch = found.batch(phase=phase.name)
        result.append((batch, found.method(found.taps(batch), batch)))
    return result


def total(found: Assembled, batch: Batch, terms: Terms) -> Tensor:
    weights = found.method.weights(batch)
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()


# ------------------------------------------------------------------ every method


@pytest.mark.cpu
@pytest.mark.parametrize("name", METHODS)
def test_method_names_its_paper_and_formula(name: str) -> None:
    text = plugin.load("methods", name).__doc__ or ""
    assert re.search(r"arXiv:\d{4}\.\d{4,5}\b", text), "no arXiv id"
    assert re.search(r"^L\w* = ", text, re.MULTILINE), "no formula"


@pytest.mark.cpu
@pytest.mark.parametrize("name", METHODS)
def test_config_has_valid_defaults_and_refuses_unknown_keys(name: str) -> None:
    model = plugin.load("methods", name).Config
    assert issubclass(model, MethodConfig)
    config = model()
    assert validate(model, config.model_dump(mode="json"), "") == config  # defaults pass their own rules
    assert all(math.isfinite(weight) for weight in config.weights.values())
    with pytest.raises(ParamsError, match=r"unknown key 'runs\.x\.config\.no_such_key'"):
        validate(model, {"no_such_key": 1}, "runs.x.config")


@pytest.mark.cpu
@pytest.mark.parametrize("name", CASES)
def test_needs_are_taps_and_features(name: str) -> None:
    found = build(name)
    assert set(found.needs.student) <= set(found.context.student_shapes)
    for feature in found.needs.teacher:
        assert set(Feature.parse(feature).encodings) <= set(plugin.names("encodings"))
    assert set(found.context.teacher_shapes) == set(found.needs.teacher)


@pytest.mark.cpu
@pytest.mark.parametrize("name", METHODS)
def test_inserted_layers_are_named_for_the_inputs(name: str) -> None:
    found, module = build(name), plugin.load("methods", name)
    operations = module.Method.operations(
        found.method.config, found.context.student_shapes, found.context.teacher_shapes, found.context.tables
    )
    assert {spec.name for spec in operations.insert.values()} <= set(getattr(module, "LAYERS", ()))


@pytest.mark.parametrize("name", METHODS)
def test_terms_are_finite_scalars_and_match_the_weights(name: str) -> None:
    seen = set()
    for case in (case for case, (tested, _) in CASES.items() if tested == name):
        found = build(case)
        for batch, terms in steps(found):
            for term, value in terms.items():
                assert value.shape == (), term
                assert value.dtype == torch.float32, term
                assert torch.isfinite(value), term
                assert term in found.method.weights(batch), f"'{term}' has no default weight"
            seen |= terms.keys()
    assert seen == found.method.config.weights.keys()  # a weight without a term weighs nothing


@pytest.mark.parametrize("name", CASES)
def test_gradients_reach_the_student_and_the_methods_own_parameters(name: str) -> None:
    found = build(name)
    reached = dict.fromkeys(found.needs.student, False)
    for phase in found.method.phases(RECIPE):
        batch = found.batch(phase=phase.name)
        taps = found.taps(batch)
        for x in taps.values():
            x.retain_grad()
        total(found, batch, found.method(taps, batch)).backward()
        for tap, x in taps.items():
            reached[tap] |= x.grad is not None and bool((x.grad != 0).any())
    assert all(reached.values()), reached
    for key, parameter in found.method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert torch.isfinite(parameter.grad).all(), key


@pytest.mark.parametrize("name", CASES)
def test_method_changes_neither_features_nor_taps(name: str) -> None:
    found = build(name)
    for phase in found.method.phases(RECIPE):
        batch = found.batch(phase=phase.name)
        taps = {tap: x.detach() for tap, x in found.taps(batch).items()}
        before = {tap: x.clone() for tap, x in (taps | batch.teacher).items()}
        assert not any(x.requires_grad for x in batch.teacher.values())  # as in training
        found.method(taps, batch)
        for tap, x in (taps | batch.teacher).items():
            torch.testing.assert_close(x, before[tap], rtol=0, atol=0)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [2, 3, 7])
def test_any_batch_size_works(name: str, size: int) -> None:
    found = build(name)
    for phase in found.method.phases(RECIPE):
        batch = found.batch(size, phase=phase.name)
        terms = found.method(found.taps(batch), batch)
        assert all(torch.isfinite(term) for term in terms.values())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("scale", [0.0, 1e-4, 1e2])
def test_what_half_precision_rounds_is_no_nan(name: str, scale: float) -> None:
    """Values that bfloat16 has rounded, zero ones and large ones among them, have finite losses and gradients."""

    def rounded(x: Tensor) -> Tensor:
        return (scale * x.detach()).bfloat16().float()

    found = build(name)
    for phase in found.method.phases(RECIPE):
        batch = found.batch(phase=phase.name)
        given = {tap: rounded(x).requires_grad_() for tap, x in found.taps(batch).items()}
        # Codes are no values of a network.
        features = {
            feature: x if Feature.parse(feature).encodings else rounded(x)
            for feature, x in batch.teacher.items()
        }
        batch = replace(batch, teacher=features)
        terms = found.method(given, batch)
        total(found, batch, terms).backward()

        assert all(torch.isfinite(term) for term in terms.values()), terms
        learned = given | dict(found.method.named_parameters())
        assert {
            key for key, x in learned.items() if x.grad is not None and not x.grad.isfinite().all()
        } == set()


@pytest.mark.parametrize("name", CASES)
def test_terms_are_a_function_of_seed_and_batch(name: str) -> None:
    torch.manual_seed(1)
    first = steps(build(name))
    torch.manual_seed(2)
    second = steps(build(name))
    for (_, one), (_, other) in zip(first, second, strict=True):
        assert {key: x.item() for key, x in one.items()} == {key: x.item() for key, x in other.items()}


@pytest.mark.parametrize("name", CASES)
def test_both_labels_of_mixed_samples_count_or_the_method_says_that_it_reads_one(name: str) -> None:
    first, second = build(name), build(name)
    reads = first.needs.label or any("per_class" in arrays for arrays in first.context.tables.values())
    same = []
    for phase in first.method.phases(RECIPE):
        batch = first.batch(phase=phase.name)
        partner, coefficient = (batch.label + 1) % CLASSES, here(torch.linspace(0.1, 0.8, len(batch.label)))
        one = replace(batch, mixture=Mixture(partner, coefficient))
        # Which of two labels is called the sample's own is a matter of words.
        other = replace(batch, label=partner, mixture=Mixture(batch.label, 1 - coefficient))
        terms = first.method(first.taps(one), one)
        swapped = second.method(second.taps(other), other)
        same += [torch.allclose(terms[term], swapped[term], rtol=1e-5, atol=1e-6) for term in terms]
        if "ce" in terms:
            logits = first.taps(batch)["logits"]
            parts = [F.cross_entropy(logits, x, reduction="none") for x in (batch.label, partner)]
            expected = (coefficient * parts[0] + (1 - coefficient) * parts[1]).mean()
            torch.testing.assert_close(terms["ce"], expected, rtol=1e-5, atol=1e-6)
    assert all(same) != reads


@pytest.mark.parametrize("name", CASES)
def test_state_is_finite_and_survives_a_checkpoint(name: str) -> None:
    found = build(name)
    steps(found)
    state = found.method.state_dict()
    assert all(torch.isfinite(x).all() for x in state.values() if x.is_floating_point())
    other = build(name)
    other.method.load_state_dict(load_tensors(save_tensors({key: x.clone() for key, x in state.items()})))
    for (_, one), (_, same) in zip(steps(found), steps(other), strict=True):
        assert {key: x.item() for key, x in one.items()} == {key: x.item() for key, x in same.items()}


@pytest.mark.cpu
@pytest.mark.parametrize("name", CASES)
def test_method_does_not_hold_the_student_or_the_teacher(name: str) -> None:
    found = build(name)
    held = {id(x) for x in found.method.parameters()}
    assert held.isdisjoint(id(x) for x in found.student.parameters())
    if found.context.teacher is not None:
        assert not any(x.requires_grad for x in found.context.teacher.parameters())


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("catalogue", "name"),
    [
        (kind, name)
        for kind in ("methods", "transforms", "schedules", "encodings")
        for name in plugin.names(kind)
    ],
)
def test_plug_in_touches_no_disk(catalogue: str, name: str) -> None:
    tree = ast.parse(Path(inspect.getfile(plugin.load(catalogue, name))).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert DISK.isdisjoint(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in DISK
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"open", "np.load", "np.save", "torch.load", "torch.save"}, called


@pytest.mark.cpu
@pytest.mark.parametrize("name", CASES)
def test_resolved_settings_are_what_the_json_of_inputs_holds(name: str) -> None:
    config = build(name).method.config
    again = validate(type(config), config.model_dump(mode="json"), "runs.x")
    assert again == config
    assert again.resolved(KNOWN) == config  # nothing is left to resolve


@pytest.mark.cpu
@pytest.mark.parametrize("name", METHODS)
def test_weights_are_merged_over_the_defaults(name: str) -> None:
    model = plugin.load("methods", name).Config
    default = model().weights
    for term in default:
        merged = validate(model, {"weights": {term: 7}}, "runs.x").weights
        assert merged == default | {term: 7.0}
        assert model().weights == default
    listed = ", ".join(default)
    with pytest.raises(
        ParamsError, match=f"'no_such' is no term of this method. Its terms are {listed}"
    ) as e:
        validate(model, {"weights": {"no_such": 1.0}}, "runs.x")
    assert "runs.x.weights" in str(e.value)
    one_line(e)


@pytest.mark.cpu
@pytest.mark.parametrize("wrong", [3, ["ce"], {"ce": "much"}])
def test_weights_of_another_form_are_refused(wrong: Any) -> None:
    with pytest.raises(ParamsError, match=r"runs\.x\.weights"):
        validate(kd.Config, {"weights": wrong}, "runs.x")


@pytest.mark.cpu
def test_a_plug_in_may_leave_its_weights_to_params() -> None:
    assert MethodConfig(weights={"anything": 2.0}).weights == {"anything": 2.0}
    with pytest.raises(ParamsError, match=r"'runs\.x\.weights' is missing"):
        validate(MethodConfig, {}, "runs.x")


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("name", "settings", "student", "teacher"),
    [
        ("fitnet", {"student_tap": "last_block1", "teacher_feature": "last"}, "stage3_block1", "stage3"),
        ("fitnet", {"teacher_feature": "last:pooled"}, "stage2", "stage3:pooled"),
        ("mimicry", {"student_tap": "last_pre", "teacher_feature": "last_pre"}, "stage3_pre", "stage3_pre"),
        ("mimicry", {}, "final", "final"),
    ],
)
def test_last_is_the_last_stage_in_every_setting(
    name: str, settings: dict[str, Any], student: str, teacher: str
) -> None:
    module = plugin.load("methods", name)
    config = module.Config(**settings).resolved(KNOWN)
    assert (config.student_tap, config.teacher_feature) == (student, teacher)
    assert module.Method.compared(config) == (student, teacher)
    needs = module.Method.needs(config)
    assert (needs.student, needs.teacher) == (("logits", student), (teacher,))


@pytest.mark.cpu
def test_inserted_layers_stand_at_full_names() -> None:
    layer = {"kd_layer": {"words": 5}}
    config = validate(kd.Config, {"insert": {"last": layer}}, "runs.x").resolved(KNOWN)
    assert set(config.insert) == {"stage3"}
    twice = validate(kd.Config, {"insert": {"last": layer, "stage3": layer}}, "runs.x")
    with pytest.raises(
        ParamsError, match="'stage3' of the student under two names, last and stage3"
    ) as error:
        twice.resolved(KNOWN)
    one_line(error)


@pytest.mark.cpu
def test_a_permutation_stands_at_full_names() -> None:
    module = plugin.load("transforms", "permutation")
    config = module.Config(features=("last", "stage3", "last:pooled"), student_tap="last").resolved(KNOWN)
    assert (config.features, config.student_tap) == (("stage3", "stage3:pooled"), "stage3")
    assert module.Transform.changes(config) == ("stage3", "stage3:pooled")


@pytest.mark.cpu
@pytest.mark.parametrize("contract", [method, schedule, transform])
def test_the_example_of_a_contract_runs(contract: ModuleType) -> None:
    results = doctest.testmod(contract)
    assert results.attempted >= 3
    assert results.failed == 0


# ------------------------------------------------------------------ other catalogues


def config_of(catalogue: str, name: str) -> Any:
    return plugin.load(catalogue, name).Config(**SETTINGS.get((catalogue, name), {}))


@pytest.mark.cpu
@pytest.mark.parametrize("catalogue", ["methods", "schedules", "transforms", "encodings", "tables", "layers"])
def test_every_plug_in_says_what_it_is(catalogue: str) -> None:
    for name in plugin.names(catalogue):
        assert (plugin.load(catalogue, name).__doc__ or "").strip(), name


@pytest.mark.parametrize("name", plugin.names("schedules"))
def test_schedule_keeps_its_contract(name: str) -> None:
    module, config = plugin.load("schedules", name), config_of("schedules", name)
    found = assemble("kd")
    needs = module.Schedule.needs(config)
    teacher = frozen_teacher().network if needs.network else None
    schedule = module.Schedule(config, replace(found.context, teacher=teacher)).to(current().device)
    assert set(needs.student) <= set(found.context.student_shapes)
    for epochs in (1, 2, 7, 240):
        every = {schedule.checkpoint(Epoch("main", number, epochs)) for number in range(epochs)}
        assert every <= set(module.Schedule.checkpoints(config))
    batch = found.batch()
    copies = {f"{copy}/logits": batch.teacher["logits"] for copy in module.Schedule.copies(config)}
    batch = replace(batch, teacher=batch.teacher | copies)
    teaching = schedule(found.taps(batch), batch)
    assert teaching.lessons
    assert teaching.terms.keys() <= teaching.weights.keys()
    names = [lesson.name for lesson in teaching.lessons]
    assert len(set(names)) == len(names)
    prefixes = tuple(f"{name}_" if name else "" for name in names)
    assert not any(f"{prefix}{term}" in teaching.terms for prefix in prefixes for term in ("ce", "kd"))
    assert all("." in name for name in schedule.diagnose())
    for lesson in teaching.lessons:
        assert math.isfinite(lesson.weight)
        assert set(found.needs.teacher) <= set(lesson.teacher)


@pytest.mark.parametrize("name", plugin.names("transforms"))
def test_transform_keeps_its_contract(name: str) -> None:
    module, config = plugin.load("transforms", name), config_of("transforms", name)
    found = assemble("fitnet")
    needs = module.Transform.needs(config)
    tables = {table: TABLES[name, table] for table in needs.tables}
    matchings = {wanted.key: MATCHINGS[name, wanted.matching] for wanted in needs.matchings}
    transform = module.Transform(config, replace(found.context, tables=tables, matchings=matchings))
    transform.to(current().device)
    batch = found.batch(5)
    before = {key: x.clone() for key, x in batch.teacher.items()}
    seen = transform(batch.teacher, batch)
    shapes = module.Transform.shapes(config, found.context.teacher_shapes, matchings)
    assert {key: tuple(x.shape) for key, x in seen.items()} == {key: (5, *shapes[key]) for key in shapes}
    transform.observe({key: x.detach() for key, x in found.taps(batch).items()}, batch)
    assert not transform.train().training
    for key, x in batch.teacher.items():
        torch.testing.assert_close(x, before[key], rtol=0, atol=0)


def encodings_without_a_table() -> list[str]:
    """The others are held by tests/features/test_codes.py."""
    encoders = {name: plugin.load("encodings", name).encode for name in plugin.names("encodings")}
    return [name for name, encode in encoders.items() if len(inspect.signature(encode).parameters) == 1]


@pytest.mark.parametrize("name", encodings_without_a_table())
def test_encoding_sees_each_sample_by_itself(name: str) -> None:
    encode = plugin.load("encodings", name).encode
    x = here(torch.randn(5, 6, 4, 4, generator=torch.Generator().manual_seed(0)))
    before = x.clone()
    code = encode(x)
    assert len(code) == 5
    assert torch.isfinite(code).all()
    torch.testing.assert_close(x, before, rtol=0, atol=0)
    rows = torch.cat([encode(row) for row in x.split(1)])
    torch.testing.assert_close(rows, code, rtol=1e-6, atol=1e-6)  # sums may run in another order


class Blocks:
    """A stream over an array, in blocks."""

    def __init__(self, array: np.ndarray, size: int) -> None:
        self.array, self.size, self.shape = array, size, array.shape

    def __iter__(self) -> Any:
        for start in range(0, len(self.array), self.size):
            block = self.array[start : start + self.size]
            yield block, (np.arange(start, start + len(block)) % CLASSES)


@pytest.mark.cpu
@pytest.mark.parametrize("name", plugin.names("tables"))
def test_table_keeps_its_contract(name: str, tmp_path: Path) -> None:
    module = plugin.load("tables", name)
    assert issubclass(module.Config, TableConfig)
    config = module.Config(feature="stage2", **SETTINGS.get(("tables", name), {}))
    array = np.random.default_rng(0).normal(size=(40, 6, 4, 4)).astype(np.float32)
    context = FitContext(CLASSES)
    assert module.UNIT is None or isinstance(module.UNIT, str)
    whole = module.fit(Blocks(array, 40), config, context)
    parts = module.fit(Blocks(array, 7), config, context)
    for key, fitted in whole.arrays.items():
        assert np.isfinite(fitted).all(), key
        np.testing.assert_allclose(parts.arrays[key], fitted, rtol=1e-6, atol=1e-9, err_msg=key)
    assert all(math.isfinite(value) for value in whole.quality.values())
    json.dumps(whole.quality)
    save(tmp_path / "table.npz", whole, {"from": name})
    arrays, origin = load(tmp_path / "table.npz", "dvc repro")
    assert origin == {"from": name}
    for key, fitted in whole.arrays.items():
        np.testing.assert_array_equal(arrays[key], fitted)


@pytest.mark.cpu
def test_anchors_are_an_even_split_of_the_epochs() -> None:
    module = plugin.load("schedules", "anchors")
    schedule = module.Schedule(module.Config(anchors=("a", "b", "last")), assemble("kd").context)
    taught = {
        epochs: [schedule.checkpoint(Epoch("main", number, epochs)) for number in range(epochs)]
        for epochs in (8, 2, 3)
    }
    assert taught == {8: ["a"] * 3 + ["b"] * 3 + ["last"] * 2, 2: ["a", "b"], 3: ["a", "b", "last"]}


@pytest.mark.cpu
def test_anchors_do_not_start_again_in_a_second_phase() -> None:
    module = plugin.load("schedules", "anchors")
    schedule = module.Schedule(module.Config(anchors=("a", "b", "last")), assemble("kd").context)
    first = [schedule.checkpoint(Epoch("boundary", number, 3, before=0, after=6)) for number in range(3)]
    second = [schedule.checkpoint(Epoch("main", number, 6, before=3, after=0)) for number in range(6)]
    assert first + second == ["a"] * 3 + ["b"] * 3 + ["last"] * 3


@pytest.mark.cpu
def test_final_schedule_is_one_lesson_of_the_teacher() -> None:
    module = plugin.load("schedules", "final")
    found = assemble("kd")
    batch = found.batch()
    (lesson,) = module.Schedule(module.Config(), found.context)(found.taps(batch), batch).lessons
    assert (lesson.weight, lesson.name) == (1.0, "")
    assert lesson.teacher is batch.teacher


# ------------------------------------------------------------------ KD


def test_kd_is_the_formula() -> None:
    found = assemble("kd")
    generator = seeding.generator(0, "kd")
    s, t = (here(3 * torch.randn(5, CLASSES, generator=generator)) for _ in range(2))
    batch = replace(found.batch(5), teacher={"logits": t})
    terms = found.method({"logits": s}, batch)
    ce = soft = 0.0
    for i in range(5):
        q1 = [math.exp(v) for v in s[i].double().tolist()]
        ce -= math.log(q1[int(batch.label[i])] / sum(q1))
        p = [math.exp(v / 4) for v in t[i].double().tolist()]
        q = [math.exp(v / 4) for v in s[i].double().tolist()]
        for k in range(CLASSES):
            pk, qk = p[k] / sum(p), q[k] / sum(q)
            soft += 4**2 * pk * (math.log(pk) - math.log(qk))
    # float32 against float64
    assert terms["ce"].item() == pytest.approx(ce / 5, rel=1e-5)
    assert terms["kd"].item() == pytest.approx(soft / 5, rel=1e-4)
    expected = 0.1 * ce / 5 + 0.9 * soft / 5
    assert total(found, batch, terms).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.cpu
def test_kd_defaults_are_those_of_the_tables() -> None:
    config = kd.Config()
    assert config.temperature == 4.0
    assert config.weights == {"ce": 0.1, "kd": 0.9}


def test_kd_of_extreme_logits_is_finite() -> None:
    found = assemble("kd")
    s = here(torch.tensor([[1e4, -1e4, 0, 0], [-1e4, 1e4, 0, 1e4]])).requires_grad_()
    batch = replace(found.batch(2), teacher={"logits": -s.detach()})
    loss = total(found, batch, found.method({"logits": s}, batch))
    loss.backward()
    assert torch.isfinite(loss)
    assert s.grad is not None
    assert torch.isfinite(s.grad).all()


@pytest.mark.cpu
def test_kd_refuses_a_temperature_of_zero() -> None:
    with pytest.raises(
        ParamsError, match=r"'runs.kd.config.temperature' is 0. Input should be greater than or equal to 0.01"
    ):
        validate(kd.Config, {"temperature": 0}, "runs.kd.config")


# ------------------------------------------------------------------ FitNet


def hint_of(found: Assembled, batch: Batch) -> tuple[float, float]:
    """Return the hint term, and the mean of squares by loops over every element."""
    taps = found.taps(batch)
    term = found.method(taps, batch)["hint"].item()
    found.method.regressor.train()
    guided = found.method.regressor(taps[found.method.config.student_tap]).tolist()
    hint = batch.teacher[found.method.config.teacher_feature].tolist()
    sum_, count = 0.0, 0
    for one, other in zip(guided, hint, strict=True):
        for channel, wanted in zip(one, other, strict=True):
            for row, target in zip(channel, wanted, strict=True):
                for a, b in zip(row, target, strict=True):
                    sum_, count = sum_ + (a - b) ** 2, count + 1
    return term, sum_ / count


def test_fitnet_hint_is_the_mean_squared_error() -> None:
    found = assemble("fitnet")
    term, expected = hint_of(found, found.batch(3))
    assert term == pytest.approx(expected, rel=1e-5)


@pytest.mark.cpu
def test_fitnet_defaults_are_those_of_crds_tables() -> None:
    config = fitnet.Config()
    assert config.weights == {"ce": 1.0, "hint": 100.0}
    assert (config.student_tap, config.teacher_feature) == ("stage2", "stage2")


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("student", "teacher", "kind", "kernel"),
    [
        ((3, 8, 8), (5, 4, 4), nn.Conv2d, (3, 3)),  # twice
        ((3, 2, 2), (5, 1, 1), nn.Conv2d, (3, 3)),
        ((3, 4, 4), (5, 8, 8), nn.ConvTranspose2d, (4, 4)),  # half
        ((3, 1, 1), (5, 2, 2), nn.ConvTranspose2d, (4, 4)),
        ((3, 8, 8), (5, 8, 8), nn.Conv2d, (1, 1)),  # equal
        ((3, 8, 8), (5, 6, 6), nn.Conv2d, (3, 3)),  # a smaller difference
        ((3, 7, 8), (5, 6, 5), nn.Conv2d, (2, 4)),
        ((3, 8, 8), (5, 1, 1), nn.Conv2d, (8, 8)),
    ],
)
def test_regressor_makes_the_teachers_shape(
    student: Shape, teacher: Shape, kind: type[nn.Module], kernel: tuple[int, int]
) -> None:
    layers = fitnet.regressor(student, teacher)
    assert type(layers[0]) is kind
    assert layers[0].kernel_size == kernel
    assert layers(torch.randn(2, *student)).shape == (2, *teacher)
    assert isinstance(layers[1], nn.BatchNorm2d)
    assert isinstance(layers[2], nn.ReLU)


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("student", "teacher", "found"),
    [((3, 4, 4), (5, 9, 9), "4x4"), ((3, 4, 4), (5, 6, 4), "4x4"), ((3, 4, 4), (10,), "two maps"),
     ((64,), (5, 4, 4), "two maps"), ((3, 4, 4), (4, 4), "two maps")],
)  # fmt: skip
def test_regressor_refuses_shapes_in_one_line(student: Shape, teacher: Shape, found: str) -> None:
    with pytest.raises(ShapeError, match=found) as error:
        fitnet.regressor(student, teacher)
    one_line(error)


def moments(mean: float, std: float, channels: int = 32) -> Any:
    return lambda table: {"mean": np.full(channels, mean), "std": np.full(channels, std)}


def test_fitnet_standardizes_the_teacher() -> None:
    found = assemble("fitnet", {"standardize": "moments"}, moments(2.0, 4.0))
    batch = found.batch(3)
    scaled = {key: (x - 2) / 4 for key, x in batch.teacher.items()}
    _, expected = hint_of(found, replace(batch, teacher=scaled))
    term, _ = hint_of(found, batch)
    assert term == pytest.approx(expected, rel=1e-5)
    assert found.needs.tables == ("moments",)
    # A standardized hint is negative in half of its places, so the regressor must be able to be.
    assert (found.method.regressor(found.taps(batch)["stage2"]) < 0).any()


def test_fitnet_survives_a_constant_channel() -> None:
    found = assemble("fitnet", {"standardize": "moments"}, moments(0.0, 0.0))
    batch = found.batch(3)
    assert torch.isfinite(found.method(found.taps(batch), batch)["hint"])


@pytest.mark.cpu
@pytest.mark.parametrize(
    "tables", [moments(0.0, 1.0, channels=16), lambda table: {"centres": np.zeros((4, 32))}]
)
def test_fitnet_refuses_a_table_of_something_else(tables: Any) -> None:
    with pytest.raises(ShapeError, match="standardizes 32 channels of 'stage2'") as error:
        assemble("fitnet", {"standardize": "moments"}, tables)
    one_line(error)


def test_fitnet_without_relu_can_be_negative() -> None:
    found = assemble("fitnet", {"relu": False})
    assert (found.method.regressor(found.taps(found.batch())["stage2"]) < 0).any()
    found = assemble("fitnet")
    assert (found.method.regressor(found.taps(found.batch())["stage2"]) >= 0).all()


def test_the_hint_reaches_the_student_up_to_its_tap_only() -> None:
    found = assemble("fitnet")
    batch = found.batch()
    found.method(found.taps(batch), batch)["hint"].backward()
    for name, parameter in found.student.named_parameters():
        before = name.startswith(("units.stem", "units.stage1", "units.stage2"))
        assert (parameter.grad is not None) == before, name
        assert not before or (parameter.grad != 0).any(), name
    for name, parameter in found.method.regressor.named_parameters():
        assert parameter.grad is not None, name


@pytest.mark.cpu
def test_base_method_says_which_file_has_no_forward() -> None:
    found = assemble("kd")
    with pytest.raises(NotImplementedError, match=r"pipeline\.distillation\.method"):
        BaseMethod(kd.Config(), found.context)({}, found.batch())

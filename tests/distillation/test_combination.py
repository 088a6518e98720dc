"""Several methods in one run: the sum of their losses, their names, layers and phases, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from device_fixtures import current, here
from error_fixtures import one_line
from test_methods import BY_TABLE, MATCHINGS
from torch import Tensor, nn
from training_fixtures import (
    CLASSES,
    KNOWN,
    RECIPE,
    STUDENT,
    Assembled,
    FixedSource,
    assemble,
    assemble_all,
    clock,
    frozen_teacher,
    plug,
    views_of,
)

from pipeline import plugin
from pipeline.distillation import combination
from pipeline.distillation.combination import Combined
from pipeline.distillation.method import (
    BaseMethod,
    Batch,
    Context,
    MethodConfig,
    Needs,
    Operations,
    Tables,
    Terms,
    Weights,
)
from pipeline.distillation.methods import fitnet
from pipeline.distillation.schedules import self_learning
from pipeline.distillation.transforms import permutation
from pipeline.errors import ParamsError, UnknownNameError
from pipeline.networks.network import Shape, Taps, build, probe
from pipeline.params.recipe import Phase, Recipe
from pipeline.training.distill import Distillation
from pipeline.training.optimizer import recipe_optimizer

pytestmark = pytest.mark.usefixtures("device")

Methods = dict[str, dict[str, Any]]
KD_FITNET: Methods = {"kd": {}, "fitnet": {}}
LETKD2 = {"places": {"final": "words", "last_block1": "subclasses"}}
SEVERAL: dict[str, Methods] = {
    "kd fitnet": KD_FITNET,
    "fitnet kd": {"fitnet": {}, "kd": {}},
    "letkd kd": {"letkd": LETKD2, "kd": {"weights": {"kd": 2.0}}},
    "kd dskd": {"kd": {}, "dskd": {}},
    "dsn byot fitnet": {"dsn": {}, "byot": {}, "fitnet": {"student_tap": "stage1", "teacher_feature": "stage1"}},
    "quest letkd fitnet": {"quest": {}, "letkd": {"places": {"last_block1": "subclasses"}}, "fitnet": {}},
}  # fmt: skip


def tables(name: str) -> Mapping[str, Any]:
    return BY_TABLE[name]


def in_float64(found: Assembled, batch: Batch) -> tuple[nn.Module, BaseMethod[Any], Batch]:
    """Return copies of student and method, and the batch, in float64."""
    teacher = {name: x.double() for name, x in batch.teacher.items()}
    batch = replace(batch, image=batch.image.double(), teacher=teacher)
    return copy.deepcopy(found.student).double(), copy.deepcopy(found.method).double(), batch


def backward(
    student: Any, method: BaseMethod[Any], taps: tuple[str, ...], batch: Batch, skip: str = ""
) -> Tensor:
    """Compute a method's own loss without the term `skip`, and its gradients."""
    terms, weights = method(student.record(batch.image, taps), batch), method.weights(batch)
    loss = torch.stack([weights[name] * term for name, term in terms.items() if name != skip]).sum()
    loss.backward()
    return loss.detach()


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: x.grad for name, x in module.named_parameters() if x.grad is not None}


# ------------------------------------------------------------------ the sum


@pytest.mark.parametrize("name", SEVERAL)
def test_it_is_the_plain_sum_of_the_methods_own_losses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each method by itself on a copy of the student, added up; only the first one's labels count."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)  # losses cast to float32 what comes in half precision
    methods = SEVERAL[name]
    found = assemble_all(methods, tables)
    assert isinstance(found.method, Combined)
    student, combined, batch = in_float64(found, found.batch())
    loss = backward(student, combined, found.needs.student, batch)

    expected: Tensor | float = 0.0
    summed: dict[str, Tensor] = {}
    own: dict[str, Tensor] = {}
    for number, (method, settings) in enumerate(methods.items()):
        alone = assemble(method, settings, tables)
        other, module, _ = in_float64(alone, batch)
        other = copy.deepcopy(found.student).double()  # with the layers of all methods
        expected = expected + backward(other, module, alone.needs.student, batch, "ce" if number else "")
        for key, x in gradients(other).items():
            summed[key] = summed[key] + x if key in summed else x
        own |= {f"methods.{method}.{key}": x for key, x in gradients(module).items()}

    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    for reached, wanted in ((gradients(student), summed), (gradients(combined), own)):
        assert reached.keys() == wanted.keys()
        for key, x in reached.items():
            torch.testing.assert_close(x, wanted[key], rtol=1e-9, atol=1e-9, msg=key)


@pytest.mark.parametrize("name", SEVERAL)
def test_every_parameter_is_trained(name: str) -> None:
    found = assemble_all(SEVERAL[name], tables)
    modules = nn.ModuleDict({"student": found.student, "method": found.method})
    before = {key: x.detach().clone() for key, x in modules.named_parameters()}
    optimizer = recipe_optimizer(list(modules.parameters()), RECIPE.model_copy(update={"weight_decay": 0.0}))
    for seed in range(2):
        optimizer.zero_grad()
        backward(found.student, found.method, found.needs.student, found.batch(seed=seed))
        optimizer.step()
    for key, x in modules.named_parameters():
        assert x.grad is not None, key
        assert torch.isfinite(x).all(), key
        # A bias before a batch norm has no effect, and no gradient but rounding.
        assert not torch.equal(x, before[key]) or "bias" in key, key


def test_each_term_trains_its_own_methods_parameters_alone() -> None:
    found = assemble_all({"kd": {}, "fitnet": {}, "dsn": {}})
    batch = found.batch()
    owners = {"ce": set(), "kd": set(), "hint": {"fitnet"}, "ce_shallow": {"dsn"}}
    units = {"ce": 4, "kd": 4, "hint": 3, "ce_shallow": 3}  # stem, stage1, stage2, stage3
    assert found.method(found.taps(batch), batch).keys() == owners.keys()
    for term, owner in owners.items():
        found.student.zero_grad()
        found.method.zero_grad()
        found.method(found.taps(batch), batch)[term].backward()
        moved, learned = (
            {key for key, x in gradients(module).items() if (x != 0).any()}
            for module in (found.method, found.student)
        )
        assert {key.split(".")[1] for key in moved} == owner, term
        reached = {key.split(".")[1] for key in learned if key.startswith("units.")}
        assert len(reached) == units[term], term
        assert ("classifier.weight" in learned) == (term in ("ce", "kd")), term
    assert not any(x.requires_grad for x in batch.teacher.values())


# ------------------------------------------------------------------ alone and together


@pytest.mark.cpu
@pytest.mark.parametrize("name", plugin.names("methods"))
def test_a_method_alone_is_itself(name: str) -> None:
    found = assemble(name, tables=tables)
    module = plugin.load("methods", name)
    assert type(found.method) is module.Method
    config = module.Config().resolved(KNOWN)
    assert found.method.config == config
    assert combination.needs({name: config}) == module.Method.needs(config) == found.needs
    assert combination.compared({name: config}) == module.Method.compared(config)


@pytest.mark.cpu
@pytest.mark.parametrize("name", SEVERAL)
def test_a_method_starts_alike_alone_and_with_others(name: str) -> None:
    found = assemble_all(SEVERAL[name], tables)
    for method, settings in SEVERAL[name].items():
        alone = assemble(method, settings, tables).method.state_dict()
        together = found.method.methods[method].state_dict()
        assert alone.keys() == together.keys()
        assert all(torch.equal(x, together[key]) for key, x in alone.items())


@pytest.mark.cpu
def test_what_several_read_is_what_either_reads() -> None:
    found = assemble_all({"kd": {}, "fitnet": {"student_tap": "last"}, "dskd": {}, "letkd": LETKD2}, tables)
    assert found.needs.student == (
        "logits", "stage3", "stage1", "stage2", "final.scores", "stage3_block1.scores",
    )  # fmt: skip
    assert found.needs.teacher == ("logits", "stage2", "stage3", "final", "stage3_block1")
    assert found.needs.tables == ("words", "subclasses")
    assert found.method.needs(found.method.config) == found.needs
    assert set(found.student.inserted) == {"final", "stage3_block1"}


@pytest.mark.cpu
def test_what_is_compared_is_the_first_methods_that_names_it() -> None:
    pairs = {"mimicry": {}, "fitnet": {}}
    for methods, expected in (
        ({"kd": {}}, None),
        (KD_FITNET, ("stage2", "stage2")),
        (pairs, ("final", "final")),
        ({"dskd": {}, "kd": {}}, None),
    ):
        configs = {
            name: plugin.load("methods", name).Config(**settings) for name, settings in methods.items()
        }
        assert combination.compared(combination.resolved(configs, KNOWN)) == expected


@pytest.mark.cpu
def test_a_method_that_does_not_exist_is_told() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown method 'fitnett'\. Did you mean 'fitnet'"):
        combination.needs({"fitnett": fitnet.Config()})


# ------------------------------------------------------------------ names and weights


@pytest.mark.parametrize(
    ("methods", "weights"),
    [
        (KD_FITNET, {"ce": 0.1, "kd": 0.9, "hint": 100.0}),
        ({"fitnet": {}, "kd": {}}, {"ce": 1.0, "hint": 100.0, "kd": 0.9}),
        ({"kd": {"weights": {"ce": 0.0}}, "fitnet": {}}, {"ce": 0.0, "kd": 0.9, "hint": 100.0}),
        (
            {"kd": {}, "dskd": {}},
            {"ce": 0.1, "kd_kd": 0.9, "dskd_kd": 1.0, "kd_shallow": 1.0, "map": 30.0, "map_shallow": 30.0},
        ),
        (
            {"dks": {}, "dsn": {}},
            {"ce": 1.0, "dks_ce_shallow": 1.0, "synergy": 1.0, "dsn_ce_shallow": 1.0},
        ),
    ],
    ids=str,
)
def test_labels_count_once_and_names_that_clash_have_their_methods_prefix(
    methods: Methods, weights: Weights
) -> None:
    found = assemble_all(methods)
    batch = found.batch()
    assert found.method.weights(batch) == weights
    assert found.method.config.weights == weights
    assert found.method(found.taps(batch), batch).keys() == weights.keys()


@pytest.mark.cpu
def test_a_name_has_its_prefix_whether_both_terms_occur_or_not() -> None:
    """letKD has no words here, and QuEST's are called as they are beside them: columns do not depend on places."""
    found = assemble_all({"quest": {}, "letkd": {"places": {"last_block1": "subclasses"}}}, tables)
    batch = found.batch()
    assert found.method(found.taps(batch), batch).keys() == {"ce", "quest_words", "subclasses"}
    assert set(found.method.weights(batch)) == {"ce", "quest_words", "letkd_words", "subclasses"}


class Toy(BaseMethod[Any]):
    """Takes all that it is from its config."""

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.factor = nn.Parameter(torch.ones(()))

    @classmethod
    def operations(
        cls, config: Any, student: Mapping[str, Shape], teacher: Mapping[str, Shape], tables: Tables
    ) -> Operations:
        return Operations(config.insert, config.width)

    def phases(self, recipe: Recipe) -> tuple[Phase, ...]:
        warm = tuple(Phase(name, recipe) for name in self.config.warm)
        return (*warm, *super().phases(recipe))

    def diagnose(self) -> dict[str, float]:
        return self.config.shown

    def forward(self, student: Taps, batch: Batch) -> Terms:
        return {name: self.factor * student["logits"].square().mean() for name in self.config.terms}


class ToyConfig(MethodConfig):
    weights: Weights = {"toy": 1.0}
    terms: tuple[str, ...] = ("toy",)
    width: int | None = None
    warm: tuple[str, ...] = ()
    shown: dict[str, float] = {}


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        plug(monkeypatch, "methods", name, Config=ToyConfig, Method=Toy)


@pytest.mark.cpu
@pytest.mark.usefixtures("toys")
def test_labels_are_the_first_methods_that_has_them() -> None:
    found = assemble_all({"one": {}, "fitnet": {"weights": {"ce": 3.0}}, "kd": {}})
    batch = found.batch()
    assert found.method.weights(batch) == {"toy": 1.0, "ce": 3.0, "hint": 100.0, "kd": 0.9}
    none = assemble_all({"one": {}, "two": {}})
    assert none.method.weights(batch) == {"one_toy": 1.0, "two_toy": 1.0}


@pytest.mark.cpu
@pytest.mark.usefixtures("toys")
def test_what_methods_show_of_an_epoch_has_prefixes_where_names_clash() -> None:
    shown = {"one": {"shown": {"a.x": 1.0, "b.x": 2.0}}, "two": {"shown": {"b.x": 3.0}}, "kd": {}}
    assert assemble_all(shown).method.diagnose() == {"a.x": 1.0, "one_b.x": 2.0, "two_b.x": 3.0}
    found = assemble_all({"kd": {}, "dskd": {}})
    batch = found.batch()
    found.method(found.taps(batch), batch)
    assert "weight.kd.stage1.50" in found.method.diagnose()


@pytest.mark.cpu
def test_a_prefixed_name_that_is_another_terms_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(ToyConfig):
        weights: Weights = {"toy": 1.0, "one_toy": 1.0}

    plug(monkeypatch, "methods", "one", Config=ToyConfig, Method=Toy)
    plug(monkeypatch, "methods", "two", Config=Other, Method=Toy)
    with pytest.raises(ParamsError, match="Two terms of the methods one, two are called 'one_toy'") as error:
        assemble_all({"one": {}, "two": {}})
    one_line(error)


# ------------------------------------------------------------------ what cannot be combined

LAYER = {"kd_layer": {"words": 5, "alpha": 1.0}}


@pytest.mark.cpu
def test_layers_that_disagree_are_told_with_both_methods() -> None:
    kd = {"insert": {"final": LAYER}}
    with pytest.raises(
        ParamsError, match="Methods 'kd' and 'letkd' of one run put different layers"
    ) as error:
        assemble_all({"kd": kd, "letkd": {}}, tables)
    assert "'final': kd_layer {words: 5, alpha: 1.0}, and kd_layer {words: 11, alpha: 1.0}" in str(
        error.value
    )
    one_line(error)


@pytest.mark.cpu
def test_layers_that_agree_are_one_layer() -> None:
    words = {"kd_layer": {"words": 11, "alpha": 1.0}}
    found = assemble_all({"kd": {"insert": {"final": words, "stage1": LAYER}}, "letkd": {}}, tables)
    assert set(found.student.inserted) == {"final", "stage1"}
    alone = assemble("letkd", tables=tables).student.inserted["final"].state_dict()
    together = found.student.inserted["final"].state_dict()
    assert all(torch.equal(x, together[key]) for key, x in alone.items())


@pytest.mark.cpu
@pytest.mark.usefixtures("toys")
def test_classifiers_of_two_widths_are_told_with_both_methods() -> None:
    configs = {
        "one": ToyConfig(width=10),
        "kd": plugin.load("methods", "kd").Config(),
        "two": ToyConfig(width=20),
    }
    with pytest.raises(
        ParamsError, match="'one' and 'two' of one run have classifiers that read 10 and 20"
    ) as e:
        combination.operations(configs, {}, {}, {})
    one_line(e)
    configs["two"] = ToyConfig(width=10)
    assert combination.operations(configs, {}, {}, {}).classifier_width == 10


@pytest.mark.cpu
@pytest.mark.usefixtures("toys")
def test_phases_are_those_of_the_one_method_that_has_its_own() -> None:
    main = Phase("main", RECIPE)
    for order in (("one", "kd"), ("kd", "one")):
        found = assemble_all({name: {"warm": ("warm",)} if name == "one" else {} for name in order})
        assert found.method.phases(RECIPE) == (Phase("warm", RECIPE), main)
        batch = found.batch()
        assert batch.phase == "warm"
        assert found.method(found.taps(batch), batch).keys() == {"toy", "ce", "kd"}
    assert assemble_all(KD_FITNET).method.phases(RECIPE) == (main,)
    both = assemble_all({"one": {"warm": ("warm",)}, "kd": {}, "two": {"warm": ("hot",)}})
    with pytest.raises(
        ParamsError, match="Methods 'one' and 'two' each train in phases of their own"
    ) as error:
        both.method.phases(RECIPE)
    one_line(error)


# ------------------------------------------------------------------ under the trainer's objective


def objective(
    methods: Methods, settings: dict[str, Any] | None = None, permuted: bool = True
) -> tuple[Distillation, Batch, Assembled]:
    """Build the objective of methods under the permutation of stage2, with SLKD's schedule."""
    found = assemble_all(methods, tables)
    batch = found.batch(5)
    features = {*found.needs.teacher, "logits"}
    batch = replace(batch, teacher=frozen_teacher().features(batch.image, sorted(features), batch.label))
    context = replace(found.context, teacher=frozen_teacher().network)
    transform, method = None, found.method
    if permuted and "stage2" in features:
        config = permutation.Config(features=("stage2",))
        matchings = {"kcd": MATCHINGS["permutation", "kcd"]}
        context = replace(context, matchings=matchings)
        transform = here(permutation.Transform(config, context))
        seen = permutation.Transform.shapes(config, context.teacher_shapes, matchings)
        assert seen["stage2"][0] == 3  # of 32 channels
        configs = {name: plugin.load("methods", name).Config(**value) for name, value in methods.items()}
        seen_by = replace(found.context, teacher_shapes=seen)
        method = here(combination.assemble(combination.resolved(configs, KNOWN), seen_by))
    schedule = here(self_learning.Schedule(self_learning.Config(**(settings or {})), context))
    self_learning.Schedule.check(schedule.config, found.needs)
    taps = (found.needs | schedule.needs(schedule.config)).student
    source, where = FixedSource(batch.teacher), current()
    made = Distillation(found.student, method, schedule, transform, source, where, 0, taps=taps)
    return made, batch, found


def step(made: Distillation, batch: Batch) -> tuple[Tensor, Terms]:
    return made(views_of(batch), {}, clock())


def test_kd_and_fitnet_under_the_permutation_with_slkds_schedule() -> None:
    made, batch, found = objective(KD_FITNET)
    loss, terms = step(made, batch)
    own = ["slt1_ce", "slt1_kd", "slt2_ce", "slt2_kd"]
    assert list(terms) == [*own, "fused_ce", "fused_kd", "ce", "kd", "hint"]
    expected = 1.0 * terms["fused_ce"] + terms["fused_kd"]
    expected = expected + 0.1 * terms["ce"] + 0.9 * terms["kd"] + 100 * terms["hint"]
    expected = expected + sum(0.1 * terms[f"slt{j}_ce"] + 0.9 * terms[f"slt{j}_kd"] for j in (1, 2))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)

    for name in ("kd", "fitnet"):  # each term is what it is alone under the same transform and schedule
        _, alone = step(*objective({name: {}})[:2])
        for term in terms.keys() & alone.keys():
            torch.testing.assert_close(terms[term], alone[term], rtol=0, atol=0)
    _, plain = step(*objective(KD_FITNET, permuted=False)[:2])
    assert plain["hint"].item() != pytest.approx(terms["hint"].item(), rel=1e-3)
    torch.testing.assert_close(plain["kd"], terms["kd"], rtol=0, atol=0)

    loss.backward()
    for module in (found.student, made.method, made.schedule):
        for key, x in module.named_parameters():
            assert x.grad is not None, key
            assert torch.isfinite(x.grad).all(), key


def test_the_methods_lesson_of_the_fused_logits_is_all_methods() -> None:
    weights = {"ce": 2.0, "kd": 3.0, "hint": 5.0}
    made, batch, _ = objective(KD_FITNET, {"lesson": "method", "beta": 0.5, "student_weights": weights})
    loss, terms = step(made, batch)
    expected = 0.1 * terms["ce"] + 0.9 * terms["kd"] + 100 * terms["hint"]
    expected = expected + 0.5 * sum(weight * terms[f"fused_{name}"] for name, weight in weights.items())
    expected = expected + sum(0.1 * terms[f"slt{j}_ce"] + 0.9 * terms[f"slt{j}_kd"] for j in (1, 2))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(terms["fused_hint"], terms["hint"], rtol=0, atol=0)  # of the teacher's map


def test_the_labels_alone_are_left_when_the_teacher_does_not_teach() -> None:
    made, batch, _ = objective(KD_FITNET, {"teachers": "self"})
    _, terms = step(made, batch)
    assert {"kd", "hint"}.isdisjoint(terms)
    assert {"ce", "fused_ce", "fused_kd"} <= terms.keys()


@pytest.mark.cpu
def test_a_schedule_asks_what_all_methods_read_together() -> None:
    config = self_learning.Config(lesson="method")
    needs = {name: assemble(name).needs for name in KD_FITNET}
    self_learning.Schedule.check(config, needs["fitnet"] | needs["kd"])
    with pytest.raises(ParamsError, match="reads stage2 of the teacher"):
        self_learning.Schedule.check(config, needs["fitnet"])
    with pytest.raises(ParamsError, match="reads nothing of the teacher"):
        self_learning.Schedule.check(config, Needs())


@pytest.mark.cpu
@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize(
    ("methods", "unweighted", "term"),
    [
        (("one",), "more", "more"),
        (("one", "kd"), "more", "one_more"),
        (("one",), "ce", "ce"),
        (("one", "two"), "ce", "one_ce"),
    ],
)
def test_a_plug_ins_term_without_a_weight_is_told_at_the_first_step(
    methods: tuple[str, ...], unweighted: str, term: str
) -> None:
    settings = {"one": {"terms": ("toy", unweighted)}}
    made, batch, _ = objective({name: settings.get(name, {}) for name in methods})
    with pytest.raises(ParamsError, match=f"Term '{term}' of the method has no weight") as error:
        step(made, batch)
    one_line(error)


@pytest.mark.cpu
def test_a_checkpoint_holds_what_each_method_has_learned() -> None:
    found, other = (assemble_all({"dskd": {}, "fitnet": {}}) for _ in range(2))
    with torch.no_grad():
        for x in found.method.parameters():
            x.add_(0.1)
    state = found.method.state_dict()
    assert {key.split(".")[1] for key in state} == {"dskd", "fitnet"}
    other.method.load_state_dict(state)
    batch = found.batch()
    taps = found.taps(batch)
    one, same = found.method(taps, batch), other.method(taps, batch)
    assert {key: x.item() for key, x in one.items()} == {key: x.item() for key, x in same.items()}


@pytest.mark.cpu
def test_the_plain_student_is_what_is_left() -> None:
    plain = build(STUDENT, 0)
    found = assemble_all(KD_FITNET)
    assert found.student.state_dict().keys() == plain.state_dict().keys()
    assert probe(plain, STUDENT.size, STUDENT.channels)["logits"] == (CLASSES,)

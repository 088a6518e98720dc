"""TDD: the coarse labels of each stage, held to loops in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from baseline_fixtures import CLASSES, EXACT, SIZES, Shapes, batch, taps
from error_fixtures import one_line
from params_fixtures import refused
from test_methods import BY_TABLE
from torch import Tensor
from training_fixtures import KNOWN, PARAMS, assemble, assemble_all, changed

from pipeline import plugin
from pipeline.distillation.method import Batch, Context
from pipeline.distillation.methods import tdd
from pipeline.errors import ParamsError
from pipeline.params.base import validate

pytestmark = pytest.mark.usefixtures("device")

Table = Mapping[str, Any]


def table(coarse: list[int]) -> Table:
    return {"coarse": np.array(coarse), "sizes": np.bincount(coarse)}


def pairs(classes: int) -> list[int]:
    """Return coarse labels of which each but the last has two classes."""
    return [label // 2 for label in range(classes)]


def one_and_rest(classes: int) -> list[int]:
    return [min(label, 1) for label in range(classes)]


def method(student: Shapes, tables: Mapping[str, Table], classes: int, **settings: Any) -> Any:
    shapes = {"logits": (classes,), **student}
    places = dict(zip(student, tables, strict=True))
    context = Context(classes, torch.arange(9), None, shapes, {"logits": (classes,)}, tables)
    return tdd.Method(tdd.Config(places=places, **settings), context).double()


def weighted(head: Any, x: Tensor, label: Tensor, coarse: list[int]) -> Tensor:
    """Return the loss of one place, class by class and pixel by pixel."""
    above = below = torch.zeros((), dtype=torch.float64)
    for features, fine in zip(x, label.tolist(), strict=True):
        pooled = features if features.ndim == 1 else torch.stack(
            [sum(channel.flatten().unbind(), torch.zeros(())) / channel.numel() for channel in features]
        )  # fmt: skip
        scores = [
            (row * pooled).sum() + bias for row, bias in zip(head.layer.weight, head.layer.bias, strict=True)
        ]
        powers = [score.exp() for score in scores]
        target = coarse[fine]
        weight = 1 / coarse.count(target)
        above = above - weight * torch.log(powers[target] / sum(powers))
        below = below + weight
    return above / below


MAPS = [{"one": (3, 4, 4)}, {"one": (6,)}, {"one": (2, 3, 5), "two": (7, 1, 1), "three": (4, 2, 2)}]


@pytest.mark.cpu
@pytest.mark.parametrize("student", MAPS, ids=str)
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("size", SIZES)
def test_the_coarse_term_is_the_formula(student: Shapes, classes: int, size: int) -> None:
    """With the gradients of student and heads."""
    labels = [pairs(classes), one_and_rest(classes), list(range(classes))][: len(student)]
    found = method(student, {f"t{n}": table(coarse) for n, coarse in enumerate(labels)}, classes)
    given = taps({"logits": (classes,), **student}, size, "student")
    now = batch(taps({"logits": (classes,)}, size, "teacher"), classes)
    term = found(given, now)["coarse"]
    expected = sum(
        (
            weighted(found.heads[tap], given[tap], now.label, coarse)
            for tap, coarse in zip(student, labels, strict=True)
        ),
        torch.zeros((), dtype=torch.float64),
    )
    torch.testing.assert_close(term, expected, **EXACT)
    learned = [*(given[tap] for tap in student), *found.parameters()]
    for own, loop in zip(*(torch.autograd.grad(x, learned) for x in (term, expected)), strict=True):
        torch.testing.assert_close(own, loop, **EXACT)


def coarse_tables(name: str) -> Table:
    return BY_TABLE[name]


def test_the_other_terms_are_kds() -> None:
    """Bit for bit; and their sum under both weights is the loss of the authors' example."""
    found, kd = assemble("tdd", {}, coarse_tables), assemble("kd")
    batch = found.batch()
    terms, plain = found.method(found.taps(batch), batch), kd.method(kd.taps(batch), batch)
    for name in ("ce", "kd"):
        torch.testing.assert_close(terms[name], plain[name], rtol=0, atol=0)
    assert tdd.Config().weights == kd.method.config.weights | {"coarse": 0.1}
    assert tdd.Config().temperature == kd.method.config.temperature == 4


def test_the_coarse_term_reaches_the_student_up_to_its_places_alone() -> None:
    places = {"places": {"stage1": "coarse1", "stage2": "coarse2"}}
    found = assemble("tdd", places, coarse_tables)
    batch = found.batch()
    found.method(found.taps(batch), batch)["coarse"].backward()
    for name, parameter in found.student.named_parameters():
        before = name.startswith(("units.stem", "units.stage1", "units.stage2"))
        assert (parameter.grad is not None and bool(parameter.grad.any())) == before, name
    heads = dict(found.method.named_parameters())
    assert {name: tuple(x.shape) for name, x in heads.items()} == {
        "heads.stage1.layer.weight": (3, 16),
        "heads.stage1.layer.bias": (3,),
        "heads.stage2.layer.weight": (2, 32),
        "heads.stage2.layer.bias": (2,),
    }
    assert all(x.grad is not None and x.grad.any() for x in heads.values())
    assert set(found.method.state_dict()) == heads.keys()  # the tables are artifacts of their own


def test_heads_start_alike_whichever_others_there_are() -> None:
    whole = assemble("tdd", {}, coarse_tables).method
    alone = assemble_all({"crd": {}, "tdd": {"places": {"stage2": "coarse2"}}}, coarse_tables).method
    torch.testing.assert_close(
        alone.methods["tdd"].heads["stage2"].layer.weight, whole.heads["stage2"].layer.weight, rtol=0, atol=0
    )


@pytest.mark.cpu
def test_places_stand_at_full_names_and_say_what_is_read() -> None:
    config = tdd.Config(places={"last": "coarse3", "stage1": "coarse3"}).resolved(KNOWN)
    assert config.places == {"stage3": "coarse3", "stage1": "coarse3"}
    needs = tdd.Method.needs(config)
    assert (needs.student, needs.teacher) == (("logits", "stage3", "stage1"), ("logits",))
    assert needs.tables == ("coarse3",)


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("places", "told"),
    [
        ({"stage1": "corse1"}, "Place 'stage1' learns the table 'corse1', and 'tables' in params.yaml has words"),
        ({"last": "coarse1", "stage3": "coarse1"}, "'stage3' of the student under two names"),
        ({}, "'runs.tdd.tdd.places' is {}. Name one at least"),
    ],
)  # fmt: skip
def test_places_that_cannot_be_are_one_line(places: dict[str, str], told: str) -> None:
    with pytest.raises(ParamsError) as caught:
        validate(tdd.Config, {"places": places}, "runs.tdd.tdd").resolved(KNOWN)
    one_line(caught, told)


@pytest.mark.cpu
def test_a_table_of_other_classes_is_one_line() -> None:
    with pytest.raises(ParamsError) as caught:
        method({"one": (3, 4, 4)}, {"t": table([0, 0, 1])}, classes=4)
    one_line(caught, "the table 't' of 3 classes, and the student has 4")


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("plug", "told"),
    [
        (
            {"moments": {}},
            "'moments', which holds mean, std: no coarse labels. Name a table that coarse made",
        ),
        (
            {"kmeans": {"clusters": 5}},
            "'moments', which holds centers, counts, temperature: no coarse labels",
        ),
    ],
    ids=str,
)
def test_a_table_of_another_kind_is_refused_before_anything_is_made(plug: dict[str, Any], told: str) -> None:
    params = changed(PARAMS, "runs.tdd", {"methods": {"tdd": {"places": {"stage2": "moments"}}}})
    name, settings = next(iter(plug.items()))
    params = changed(params, "tables.moments", {name: {"feature": "stage2", **settings}})
    runs = {"tdd": params["runs"]["tdd"]}
    assert told in refused(changed(changed(params, "runs", runs), "distill", ["pair/tdd"]))


@pytest.mark.cpu
def test_coarse_labels_are_learned_by_tdd_alone() -> None:
    """A place of letKD names what it can learn."""
    module = plugin.load("methods", "letkd")
    with pytest.raises(ParamsError, match="which holds coarse, sizes: neither words nor sub-classes"):
        module.Method.operations(
            module.Config(places={"final": "coarse1"}), {}, {}, {"coarse1": table([0, 1, 0, 1])}
        )


def test_a_batch_of_one_kind_of_label_counts_as_any() -> None:
    """The weight of a coarse label cancels in a batch of nothing else."""
    student = {"one": (3, 2, 2)}
    found = method(student, {"t": table([0, 0, 0, 1])}, classes=4)
    given = taps({"logits": (4,), **student}, 5, "student")
    now = batch(taps({"logits": (4,)}, 5, "teacher"), 4)
    now = Batch(**{**vars(now), "label": torch.full((5,), 2)})
    term = found(given, now)["coarse"]
    scores = found.heads["one"].layer(given["one"].mean(dim=(2, 3)))
    torch.testing.assert_close(term, -scores.log_softmax(dim=1)[:, 0].mean())

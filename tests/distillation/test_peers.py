"""DML: networks that learn from each other, held to a plain loop in float64."""

from __future__ import annotations

import csv
import math
from typing import Any

import pytest
import torch
from baseline_fixtures import CLASSES, EXACT, SIZES
from device_fixtures import here
from safetensors.torch import load_file
from torch import Tensor
from training_fixtures import PARAMS, STUDENT, World, assemble, changed, make_world

from pipeline import seeding
from pipeline.distillation.method import Batch, Context
from pipeline.distillation.methods import dml
from pipeline.errors import ParamsError
from pipeline.networks.network import build
from pipeline.params.base import validate

pytestmark = pytest.mark.usefixtures("device")


def method(classes: int, peers: int, seed: int = 0) -> Any:
    """Return the method beside a student of so many classes, in float64."""
    student = build(STUDENT.model_copy(update={"classes": classes}), 0)
    context = Context(classes, torch.arange(9) % classes, student, {"logits": (classes,)}, {}, seed=seed)
    return dml.Method(dml.Config(num_peers=peers), context).double()


def batch(size: int, classes: int) -> Batch:
    image = torch.randn(size, 1, 8, 8, generator=seeding.generator(0, "image"), dtype=torch.float64)
    label = torch.arange(size) % classes
    return Batch(
        image=image, label=label, index=torch.arange(size), teacher={}, epoch=torch.tensor(0), epochs=2,
        step=torch.tensor(0), phase="main", seed=0,
    )  # fmt: skip


def logits(size: int, classes: int) -> Tensor:
    generator = seeding.generator(0, "logits")
    return (2 * torch.randn(size, classes, generator=generator, dtype=torch.float64)).requires_grad_()


def reference(every: list[Tensor], label: Tensor, learner: int) -> Tensor:
    """Return L of one network, sample by sample and class by class; what the others say is given."""
    total = torch.zeros((), dtype=torch.float64)
    for i, y in enumerate(label.tolist()):
        p = []
        for number, z in enumerate(every):
            powers = [value.exp() for value in (z if number == learner else z.detach())[i]]
            p.append([power / sum(powers) for power in powers])
        own = p[learner]
        total = total - torch.log(own[y])
        for number, other in enumerate(p):
            if number != learner:
                for a, b in zip(other, own, strict=True):
                    total = total + a * torch.log(a / b) / (len(every) - 1)
    return total / len(label)


@pytest.mark.cpu
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("peers", [1, 3])
def test_every_network_has_the_loss_of_the_paper(classes: int, size: int, peers: int) -> None:
    """With its gradients: of the student's logits, and of each peer's parameters."""
    found, s, now = method(classes, peers).eval(), logits(size, classes), batch(size, classes)
    terms = found({"logits": s}, now)
    every = [s, *(peer(now.image) for peer in found.peers)]

    expected = [reference(every, now.label, number) for number in range(1 + peers)]
    torch.testing.assert_close(terms["ce"] + terms["mutual"], expected[0], **EXACT)
    torch.testing.assert_close(terms["peer_ce"] + terms["peer_mutual"], sum(expected[1:]), **EXACT)

    own = torch.autograd.grad(torch.stack(list(terms.values())).sum(), [s, *found.parameters()])
    loop = torch.autograd.grad(torch.stack(expected).sum(), [s, *found.parameters()])
    for one, other in zip(own, loop, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


def test_nobody_is_pulled_by_those_that_learn_from_it() -> None:
    found = assemble("dml", {"num_peers": 2})
    now = found.batch()
    taps = found.taps(now)
    for x in taps.values():
        x.retain_grad()
    terms = found.method(taps, now)

    (terms["peer_ce"] + terms["peer_mutual"]).backward(retain_graph=True)
    assert taps["logits"].grad is None
    for peer in found.method.peers:
        assert all(x.grad is not None and bool(x.grad.any()) for x in peer.parameters())
        peer.zero_grad()
    (terms["ce"] + terms["mutual"]).backward()
    assert taps["logits"].grad is not None
    assert not any(x.grad is not None for x in found.method.parameters())


def test_the_students_own_term_of_one_peer_is_a_kl() -> None:
    """Of equal predictions it is 0, and of the peer's it is the mean over the batch."""
    found = assemble("dml")
    now = found.batch(5)
    (peer,) = found.method.peers.eval()
    t = peer(now.image).detach()
    assert found.method({"logits": t}, now)["mutual"].item() == pytest.approx(0, abs=1e-6)
    s = here(torch.randn(5, 4, generator=seeding.generator(0, "s")))
    p, q = t.double().softmax(dim=1), s.double().softmax(dim=1)
    term = found.method({"logits": s}, now)["mutual"].item()
    assert term == pytest.approx((p * (p / q).log()).sum().item() / 5, rel=1e-5)


def test_peers_are_untrained_networks_of_the_students_own_kind() -> None:
    layer = {"insert": {"final": {"kd_layer": {"words": 5}}}}
    found = assemble("dml", {"num_peers": 2, **layer})
    one, two = found.method.peers
    plain = dict(found.student.named_parameters())
    assert any(name.startswith("inserted.final") for name in plain)
    for (name, x), (same, y) in zip(one.named_parameters(), two.named_parameters(), strict=True):
        assert name == same
        assert x.shape == plain[name].shape
        if x.ndim > 1:
            assert not torch.equal(x, y), name
            assert not torch.equal(x, plain[name]), name


@pytest.mark.cpu
def test_a_peer_starts_alike_however_many_there_are_and_apart_in_another_run() -> None:
    one, three = method(4, 1).peers[0], method(4, 3).peers[0]
    other = method(4, 1, seed=1).peers[0]
    assert torch.equal(one.classifier.weight, three.classifier.weight)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)


def test_the_peers_run_under_autocast_and_their_losses_in_float32() -> None:
    found = assemble("dml")
    now = found.batch()
    seen = []
    found.method.peers[0].register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    kind = now.image.device.type
    found.method.autocast = lambda: torch.autocast(kind, torch.bfloat16)
    terms = found.method(found.taps(now), now)
    assert seen == [torch.bfloat16]
    assert {x.dtype for x in terms.values()} == {torch.float32}
    assert all(math.isfinite(x.item()) for x in terms.values())


@pytest.mark.cpu
@pytest.mark.parametrize("number", [0, 65, "two"])
def test_no_peer_or_too_many_are_refused(number: Any) -> None:
    with pytest.raises(ParamsError, match=r"runs\.dml\.dml\.num_peers"):
        validate(dml.Config, {"num_peers": number}, "runs.dml.dml")


@pytest.fixture(scope="module")
def world(device: str, tmp_path_factory: pytest.TempPathFactory) -> World:
    runs = {
        "dml": {"methods": {"dml": {"num_peers": 2}}},
        "dml_kd": {"methods": {"dml": {}, "kd": {}}},
    }
    params = changed(changed(PARAMS, "runs", runs), "distill", [f"pair/{run}" for run in runs])
    params = changed(changed(params, "matchings", {}), "tables", {})
    return make_world(tmp_path_factory.mktemp("world"), params)


@pytest.mark.parametrize("run", ["dml", "dml_kd"])
def test_a_student_learns_beside_its_peers_and_leaves_them_behind(world: World, run: str) -> None:
    inputs = world.inputs(run)
    longer = inputs.recipe.model_copy(update={"epochs": 4})
    folder = world.distill(run, inputs.model_copy(update={"recipe": longer}))
    with (folder / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))

    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert float(rows[-1]["peer_ce"]) < float(rows[0]["peer_ce"])
    for row in rows:
        weights = {"ce": 1, "mutual": 1, "peer_ce": 1, "peer_mutual": 1, "kd": 0.9}
        total = sum(weight * float(row[name]) for name, weight in weights.items() if name in row)
        assert float(row["loss"]) == pytest.approx(total, rel=1e-4)
    assert set(load_file(folder / "weights/last.safetensors")) == set(build(STUDENT, 0).state_dict())

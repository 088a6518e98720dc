"""Machine options: other memory formats and compiled code, the same results and the same files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from device_fixtures import CPU
from safetensors.torch import load_file
from torch import Tensor, nn
from training_fixtures import RECIPE, STUDENT, TEACHER, VIEWS, job, prepared_data

from pipeline.compute.machine import Machine, cannot_compile, machine
from pipeline.data.prepared import Prepared
from pipeline.errors import MachineError
from pipeline.features.teacher import Teacher
from pipeline.networks import network as networks
from pipeline.networks.network import Network, Unit, build
from pipeline.training.alone import train

DEVICE = torch.device("cpu")
CHANNELS_LAST, COMPILED = Machine(DEVICE, channels_last=True), Machine(DEVICE, compiled=True)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared_data(tmp_path_factory.mktemp("data") / "toy", samples=60)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace and differentiate as torch.compile does, and run the result without a compiler: it would take minutes."""
    torch.compiler.reset()
    made = torch.compile(networks._walked, backend="aot_eager")
    monkeypatch.setattr(networks, "_compiled", lambda: made)


def trained(scratch: Path, prepared: Prepared, where: Machine) -> dict[str, dict[str, Tensor]]:
    """Train for six steps, and return all weights that are left."""
    # A small rate: batch norms make rounding grow from step to step.
    recipe = RECIPE.model_copy(update={"learning_rate": 1e-3})
    train(job(scratch, "options", machine=where), STUDENT, recipe, VIEWS, prepared, 3)
    return {path.name: load_file(path) for path in (scratch / "weights").glob("*.safetensors")}


def alike(found: dict[str, dict[str, Tensor]], expected: dict[str, dict[str, Tensor]]) -> None:
    assert found.keys() == expected.keys()
    for name, weights in expected.items():
        assert list(found[name]) == list(weights)  # no prefix, none missing
        for key, x in weights.items():
            torch.testing.assert_close(found[name][key], x, rtol=1e-5, atol=1e-5, msg=f"{name} {key}")
    moved = (
        expected["last.safetensors"]["classifier.weight"] - expected["init.safetensors"]["classifier.weight"]
    )
    assert moved.abs().max() > 1e-4


def test_channels_last_trains_alike(tmp_path: Path, prepared: Prepared) -> None:
    alike(trained(tmp_path / "a", prepared, CHANNELS_LAST), trained(tmp_path / "b", prepared, CPU))


def test_traced_code_trains_alike(tmp_path: Path, prepared: Prepared, traced: None) -> None:
    alike(trained(tmp_path / "a", prepared, COMPILED), trained(tmp_path / "b", prepared, CPU))


def test_maps_of_channels_last_have_channels_innermost() -> None:
    one = build(TEACHER, 0)
    CHANNELS_LAST.place(one)
    stage = one.eval().record(torch.randn(2, 1, 8, 8), ["stage2"])["stage2"]
    assert stage.is_contiguous(memory_format=torch.channels_last)
    assert not stage.is_contiguous()


@pytest.mark.parametrize("where", [CHANNELS_LAST, COMPILED], ids=["channels_last", "traced"])
def test_a_teacher_gives_the_same_features(where: Machine, traced: None) -> None:
    names = ["logits", "stage2", "stage1:attention"]
    plain, other = (Teacher(build(TEACHER, "teacher"), machine) for machine in (CPU, where))
    where.place(other.network)
    where.compile(other.network)
    for size in (5, 2):
        image, label = torch.randn(size, 1, 8, 8), torch.zeros(size, dtype=torch.int64)
        expected = plain.features(image, names, label)
        found = other.features(image, names, label)
        assert list(found) == list(expected)
        for name, x in expected.items():
            torch.testing.assert_close(found[name], x, rtol=1e-5, atol=1e-5, msg=name)


def test_a_copy_of_a_compiled_network_runs_its_own_weights(traced: None) -> None:
    one = build(STUDENT, 0).eval()
    one.compile()
    image = torch.randn(2, 1, 8, 8)
    before = one(image)
    other = copy.deepcopy(one)
    with torch.no_grad():
        other.classifier.bias += 1
    torch.testing.assert_close(other(image), before + 1, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one(image), before, rtol=0, atol=0)
    assert one.state_dict().keys() == build(STUDENT, 0).state_dict().keys()


@pytest.mark.slow  # twenty seconds of a core, most of them the compiler's
def test_compiled_code_gives_the_same_numbers() -> None:
    """With the compiler itself, on a network of one unit and without what only pays for larger ones."""
    if lacking := cannot_compile(DEVICE):
        pytest.skip(f"torch.compile needs {lacking}")
    from torch._inductor import config

    torch.compiler.reset()
    unit = Unit(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    one = Network({"stem": unit}, 4, 3).eval()
    image = torch.randn(3, 1, 8, 8)
    scalar = {"cpp.simdlen": 1, "cpp_cache_precompile_headers": False}
    with torch.no_grad(), config.patch(scalar):
        expected = one.record(image, ["stem", "logits"])
        COMPILED.compile(one)
        found = one.record(image, ["stem", "logits"])
    assert one.compiled
    for name, x in expected.items():
        torch.testing.assert_close(found[name], x, rtol=1e-5, atol=1e-5, msg=name)


def test_a_machine_that_cannot_compile_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.compute.machine.cannot_compile", lambda device: "a C++ compiler")
    with pytest.raises(MachineError, match=r"--compile needs a C\+\+ compiler, and this machine has none"):
        machine("cpu", compiled=True)
    assert not machine("cpu").compiled


def test_a_compiler_that_is_not_there_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder, exc

    def none(*values: Any) -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    assert cannot_compile(DEVICE) == "a C++ compiler"

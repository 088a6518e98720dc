"""torch without its compiler: the same steps, and no import of it. What a stage has no use for, it does not import."""

from __future__ import annotations

import gc
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from pipeline import seeding
from pipeline.artifacts.closure import root
from pipeline.compute.eager import EagerAdamW, EagerSGD
from stages import command

# Stages that compute nothing with torch until they know that there is something to compute.
LIGHT = (
    "check_params",
    "code",
    "fit_table",
    "inputs",
    "prepare_data",
    "report",
    "student_inputs",
    "teacher_inputs",
)
PROGRAMS = ("benchmark", "log", "networks", "plan", "preset")  # for people: they print tables, or call DVC
NEVER = (
    "torch._dynamo",
    "torch._inductor",
    "torchvision",
    "timm",
    "sklearn",
    "scipy.stats",
    "matplotlib",
    "rich",
)
IMPORTS = """
import ast, sys
from pathlib import Path
for name in sys.argv[1].split(","):
    for node in ast.walk(ast.parse(Path("stages", name + ".py").read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom) and getattr(node, "module", "") != "__future__":
            exec(ast.unparse(node))
print(" ".join(name for name in sys.argv[2].split(",") if name in sys.modules))
"""


@pytest.mark.parametrize(
    ("classes", "settings"),
    [
        ((SGD, EagerSGD), {"momentum": 0.9, "nesterov": True}),
        ((SGD, EagerSGD), {"momentum": 0.9, "nesterov": False}),
        ((AdamW, EagerAdamW), {"betas": (0.8, 0.9), "eps": 1e-4}),
    ],
    ids=["nesterov", "sgd", "adamw"],
)
def test_steps_are_torchs_bit_for_bit(classes: Any, settings: dict[str, Any]) -> None:
    ends = []
    for optimizer_class in classes:
        with seeding.scope("eager"):
            network = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))
        optimizer = optimizer_class(network.parameters(), lr=0.1, weight_decay=5e-4, **settings)
        for number in range(4):
            optimizer.zero_grad(set_to_none=True)
            network(torch.randn(6, 5, generator=seeding.generator(number))).square().mean().backward()
            optimizer.step()
        assert all(x.requires_grad for x in network.parameters())
        moments = [x for state in optimizer.state.values() for x in state.values()]
        ends.append([*network.parameters(), *moments])
    assert len(ends[0]) == len(ends[1]) == 6 * (4 if classes[0] is AdamW else 2)
    for expected, found in zip(*ends, strict=True):
        assert torch.equal(expected, found)


def test_training_and_counting_import_no_compiler() -> None:
    code = """
import sys, torch
from pipeline.compute.eager import EagerAdamW, EagerSGD
from pipeline.compute.graphs import Watch
from pipeline.evaluation.cost import macs
network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
with Watch(torch.device("cpu")):
    network(torch.ones(2, 3, 8, 8)).sum().backward()
torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
for optimizer in (EagerSGD(network.parameters(), momentum=0.9), EagerAdamW(network.parameters())):
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
optimizer.zero_grad()
print(macs(network, 8, 3), "torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == f"{3 * 9 * 4 * 36} False\n", done.stderr


def imported(stages: list[str], names: tuple[str, ...]) -> list[str]:
    """Return those of the modules `names` that are there after all imports of some stages, those in functions too."""
    command = [sys.executable, "-c", IMPORTS, ",".join(stages), ",".join(names)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root())
    assert not done.returncode, done.stderr
    return done.stdout.split()


def test_stages_that_compute_nothing_import_no_torch() -> None:
    assert imported(list(LIGHT), ("torch", *NEVER)) == []


def test_no_stage_imports_what_a_training_does_without() -> None:
    stages = [path.stem for path in (root() / "stages").glob("[a-z]*.py") if path.stem not in PROGRAMS]
    assert len(stages) > len(LIGHT)
    assert imported(stages, ("torch", *NEVER)) == ["torch"]


def test_what_is_imported_stays_out_of_garbage_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a process: what a second block would freeze may be garbage."""
    counts, frozen = iter([0, 5]), list[bool]()
    monkeypatch.setattr(gc, "get_freeze_count", lambda: next(counts))
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(gc.isenabled()))
    for _ in range(2):
        with command.loading():
            assert not gc.isenabled()
        assert gc.isenabled()
    assert frozen == [True]


def test_garbage_is_collected_again_after_an_import_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc, "freeze", lambda: None)
    with pytest.raises(ImportError), command.loading():
        raise ImportError
    assert gc.isenabled()

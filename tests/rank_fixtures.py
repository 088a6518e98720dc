"""Trainings that several processes share, small enough for a test to look into every step of theirs.

`main` runs in a process that `fault_fixtures` forks, as one rank or alone, and writes what it has seen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from fault_fixtures import Ended, Fault, Server
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from pipeline import distributed, seeding
from pipeline.images import ResidentImages
from pipeline.machine import machine
from pipeline.normalise import Normalise
from pipeline.params.recipe import Phase, Recipe
from pipeline.params.views import CropFlip
from pipeline.training.batches import Batches, Views
from pipeline.training.loop import Moment, Terms, Training
from pipeline.views import view_space

QUICK = {"pipeline.distributed:GRACE": 0.1, "pipeline.distributed:TIMEOUT": 60.0}
_STORES: list[dist.TCPStore] = []


class Plain(nn.Module):
    """A network without batch statistics, and parameters that are seldom or never used."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, stride=2)
        self.norm = nn.GroupNorm(2, 6)
        self.classifier = nn.Linear(54, 4)
        self.rare = nn.Parameter(torch.tensor([0.5, -2.0]))
        self.unused = nn.Parameter(torch.ones(3))


class Bank(nn.Module):
    """A projector with state of its own, as a method may have.

    Args:
        kind: "none", "norm" (a batch norm) or "bank" (a buffer of the batch's own content).
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.projector = nn.Linear(54, 5)
        self.norm = nn.BatchNorm1d(5) if kind == "norm" else nn.Identity()
        self.register_buffer("memory", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "bank":
            self.memory = x.detach().mean().repeat(3)
        return self.norm(self.projector(x))


class Loss:
    """Two terms that are means over samples; sample 7 alone uses `rare`."""

    def __init__(self, network: Plain, bank: Bank) -> None:
        self.network, self.bank = network, bank

    def begin(self, views: Views, moment: Moment) -> Callable[[], None]:
        return lambda: None

    def __call__(self, views: Views, fetched: None, moment: Moment) -> tuple[Tensor, Terms]:
        hidden = F.relu(self.network.norm(self.network.conv(views.image))).flatten(1)  # (B, 54)
        terms = {
            "ce": F.cross_entropy(self.network.classifier(hidden), views.label),
            "hint": self.bank(hidden).square().mean(),
        }
        loss = terms["ce"] + 0.3 * terms["hint"]
        if (views.index == 7).any():
            loss = loss + self.network.rare.square().sum() * (views.index == 7).sum() / len(views.index)
        return loss, terms


def main(out: Path, samples: int = 53, kind: str = "none", rate: float = 0.05) -> None:
    """Train for two epochs; write gradients and parameters of each step, and what is left at the end."""
    where = machine("cpu", ranks=distributed.join())
    draw = seeding.generator("ranks")
    images = torch.randint(0, 256, (samples, 1, 8, 8), generator=draw, dtype=torch.uint8)
    labels = torch.randint(0, 4, (samples,), generator=draw)
    with seeding.scope("init", where.ranks.rank):  # ranks differ: the first one's is everyone's
        network, bank = Plain(), Bank(kind)
    space = view_space(CropFlip(space="crop_flip", padding=1))
    normalise = Normalise((0.5,), (0.25,), where.device)
    batches = Batches(ResidentImages(images, space), labels, 5, normalise, 3, 16, ranks=where.ranks)
    out.mkdir(exist_ok=True)
    training = Training(
        modules={"student": network, "method": bank},
        objective=Loss(network, bank),
        batches=batches,
        phases=(Phase("main", Recipe(epochs=2, batch_size=16, learning_rate=rate, weight_decay=0.01)),),
        evaluate=lambda: {"top1": 1.0},
        save=lambda name: None,
        scratch=out,
        identity="ranks",
        title="ranks",
    )
    seen: dict[str, Tensor] = {}
    named = {**{f"student.{k}": x for k, x in network.named_parameters()},
             **{f"method.{k}": x for k, x in bank.named_parameters()}}  # fmt: skip
    steps = 0

    def note(optimizer: Any, values: Any, options: Any) -> None:
        nonlocal steps
        for name, x in named.items():
            seen[f"{steps}/weight/{name}"] = x.detach().clone()
            if x.grad is not None:
                seen[f"{steps}/gradient/{name}"] = x.grad.clone()
        steps += 1

    register_optimizer_step_pre_hook(note)
    history = training.run()
    for key, module in training.modules.items():
        seen |= {f"end/{key}.{name}": x.clone() for name, x in module.state_dict().items()}
    rank = where.ranks.rank if where.ranks.size > 1 else "alone"
    save_file(seen, out / f"{rank}.safetensors")
    (out / f"{rank}.json").write_text(json.dumps(history))


def start(
    server: Server,
    stage: str,
    words: Sequence[object],
    faults: Mapping[int, Fault] | None = None,
    size: int = 2,
    settings: Mapping[str, Any] | None = None,
) -> list[int]:
    """Start the ranks of a run as torchrun does, and return their processes."""
    # As torchrun does, this process holds the store in which ranks find each other, whoever of them dies.
    held = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    _STORES.append(held)
    found = []
    for rank in range(size):
        environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
                       "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(held.port),
                       "TORCHELASTIC_USE_AGENT_STORE": "True"}  # fmt: skip
        own = [faults[rank]] if faults and rank in faults else []
        found.append(
            server.start(stage, words, *own, settings=QUICK | dict(settings or {}), environment=environment)
        )
    return found


def together(server: Server, stage: str, words: Sequence[object], **options: Any) -> list[Ended]:
    """Run a stage in several ranks to their ends; see `start`."""
    return [server.wait(number) for number in start(server, stage, words, **options)]

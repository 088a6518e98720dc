"""Stages that share a process: students of the same data and batch size, which a GPU trains as branches of one graph.

Whether a stage may is written in dvc.yaml, as `meta: {cohort: [--out]}`: the command's first words are the same for
all, its arguments add up, and so do the options of the list; every other option must be the same.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.execution.stage import Stage


@dataclass(frozen=True)
class Group:
    """Stages whose commands run in one process.

    Attributes:
        stages: one or several.
        commands: as a shell reads them.
    """

    stages: tuple[Stage, ...]
    commands: tuple[str, ...]

    @property
    def name(self) -> str:
        """The first stage's, and how many others there are."""
        others = len(self.stages) - 1
        return self.stages[0].name + (f" and {others} more" if others else "")

    @property
    def gpu(self) -> bool:
        """Whether it computes on a GPU where there is one."""
        return self.stages[0].gpu


def groups(stages: Sequence[Stage], most: int) -> list[Group]:
    """Group stages in their order.

    Args:
        stages: that could start now.
        most: of one group.
    """
    found: dict[object, list[list[Stage]]] = {}
    for stage in stages:
        parts = found.setdefault(_alike(stage), [[]])
        if len(parts[-1]) >= (most if stage.each else 1):
            parts.append([])
        parts[-1].append(stage)
    return [_group(part) for parts in found.values() for part in parts]


def _group(stages: list[Stage]) -> Group:
    first = stages[0]
    if len(stages) == 1:
        return Group((first,), first.commands)

    *checks, last = first.commands
    words = list(_Words.of(last, first.each).shared)
    for stage in stages:
        words += _Words.of(stage.commands[-1], stage.each).own
    return Group(tuple(stages), (*checks, shlex.join(words)))


def _alike(stage: Stage) -> object:
    """Return what stages of one process have in common."""
    if not stage.each:
        return stage.name
    words = _Words.of(stage.commands[-1], stage.each)
    return (stage.kind, stage.commands[:-1], words.shared, *_trained(words.own))


def _trained(words: Sequence[str]) -> tuple[object, ...]:
    """Return the data and the batches of a student, from its json of inputs."""
    path = next((Path(word) for word in words if word.endswith(".json")), None)
    if path is None or not path.is_file():
        return ()
    content = json.loads(path.read_text())
    recipe = content.get("recipe", {})
    return content.get("data"), recipe.get("batch_size"), recipe.get("drop_last")


@dataclass(frozen=True)
class _Words:
    """A command's words.

    Attributes:
        shared: `python -m MODULE` and options that all students of a process have in common.
        own: arguments and options of one student.
    """

    shared: tuple[str, ...]
    own: tuple[str, ...]

    @classmethod
    def of(cls, command: str, each: Sequence[str]) -> _Words:
        words = shlex.split(command)
        shared, own = words[:3], list[str]()  # python -m MODULE
        rest = iter(words[3:])
        for word in rest:
            if word in each:
                own += [word, next(rest)]
            elif word.startswith("--"):
                shared += [word, next(rest)]
            else:
                own.append(word)
        return cls(tuple(shared), tuple(own))

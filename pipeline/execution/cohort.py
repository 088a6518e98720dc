"""Stages that share a process: students of the same data and batch size, which a GPU trains as branches of one graph.

Whether stages may is written in dvc.yaml, as `meta: {cohort: [--out]}`. Their commands then are alike but for their
arguments and the options of the list, and one command has all of these, one after another:

    python -m stages.distill a.json --code c.json --out a
    python -m stages.distill b.json --code c.json --out b
    python -m stages.distill a.json b.json --code c.json --out a --out b

A command of another form runs alone, and so does a stage whose json of inputs does not say what it is trained on.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Self

from pipeline.execution.stage import Stage
from pipeline.execution.worker import SHELL, stage_words


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


def company(first: Stage, candidates: Sequence[Stage], folder: Callable[[str], Path]) -> list[Stage]:
    """Return the stages that could share the process of one, beginning with itself.

    Args:
        first: the stage.
        candidates: stages that could start now.
        folder: gives that in which a stage's commands run, by its name.
    """
    common = _common(first, folder(first.name))
    if common is None:
        return [first]
    others = [each for each in candidates if each.kind == first.kind and each.name != first.name]
    return [first, *(each for each in others if _common(each, folder(each.name)) == common)]


def group(stages: Sequence[Stage]) -> Group:
    """Return stages of one company as a group, whose last command is that of all."""
    first = stages[0]
    if len(stages) == 1:
        return Group((first,), first.commands)

    commands = [_Command.parse(stage.commands[-1], stage.each) for stage in stages]
    parsed = [command for command in commands if command is not None]
    program, options = parsed[0].shared[:3], parsed[0].shared[3:]
    words = [*program, *(word for command in parsed for word in command.arguments), *options]
    words += [word for command in parsed for word in command.own]
    return Group(tuple(stages), (*first.commands[:-1], shlex.join(words)))


def _common(stage: Stage, folder: Path) -> Hashable | None:
    """Return what the stages of one process have in common; None where a stage runs alone."""
    command = _Command.parse(stage.commands[-1], stage.each) if stage.each and stage.commands else None
    if command is None:
        return None
    trained = {_trained(folder / argument) for argument in command.arguments}
    if len(trained) > 1 or None in trained:
        return None
    return (stage.kind, stage.gpu, stage.each, folder, stage.commands[:-1], command.shared, *trained)


def _trained(inputs: Path) -> tuple[object, ...] | None:
    """Return what `pipeline.training.cohort.require_alike` compares, from a json of inputs; None if it is not one."""
    try:
        content = json.loads(inputs.read_text())
        recipe = content["recipe"]
        return str(content["data"]), int(recipe["batch_size"]), bool(recipe["drop_last"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


@dataclass(frozen=True)
class _Command:
    """The words of `python -m stages.NAME ARGUMENTS OPTIONS`.

    Attributes:
        arguments: one or several.
        shared: `python -m stages.NAME`, and the options that all students of a process have in common.
        own: the options of the list with their values, each given once an argument.
    """

    arguments: tuple[str, ...]
    shared: tuple[str, ...]
    own: tuple[str, ...]

    @classmethod
    def parse(cls, command: str, each: Sequence[str]) -> Self | None:
        """Take a command apart; None where it is of another form.

        What follows an option is its value, or it has none: so arguments must stand before all options.

        Args:
            command: as a shell reads it.
            each: the list's options.
        """
        words = None if (SHELL - {'"'}) & set(command) else stage_words(command)
        if words is None:
            return None

        arguments = list(takewhile(lambda word: not word.startswith("-"), words[3:]))
        shared, own = words[:3], list[str]()
        rest = words[3 + len(arguments) :]
        while rest:
            word = rest.pop(0)
            name, equals, value = word.partition("=")
            if word == "--" or not word.startswith("-"):
                return None
            if name in each:
                if not equals and not rest:
                    return None
                own += [name, value if equals else rest.pop(0)]
            else:
                shared.append(word)
                if rest and not equals and not rest[0].startswith("-"):
                    shared.append(rest.pop(0))

        paired = all(own[::2].count(name) == len(arguments) for name in each)
        return cls(tuple(arguments), tuple(shared), tuple(own)) if arguments and paired else None

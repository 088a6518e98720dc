"""Where a network's first weights come from: they are drawn, its library's, or those of a file of one's own."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, field_serializer, field_validator

from pipeline.params.base import Block, validate
from pipeline.params.plug import Plug

DRAWN, LIBRARY = "none", "imagenet"
SUFFIXES = (".safetensors", ".pt", ".pth", ".th", ".bin", ".ckpt")


class FileSettings(Block):
    """How a file of weights is read.

    Attributes:
        key: where in a checkpoint its tensors are, for instance "state_dict_ema" or "ema.module"; needed where several
            places could be meant.
        names: how its names become ours, as {theirs: ours}: `theirs` is a regular expression for the beginning of a
            name, `ours` may use its groups, and null leaves such tensors out. The first one that fits is taken.
        classifier: "fresh" draws the classifier anew, for other classes than the file's.
    """

    key: str | None = None
    names: dict[str, str | None] = {}
    classifier: Literal["given", "fresh"] = "given"

    @field_validator("names", mode="before")
    @classmethod
    def _of_pairs(cls, names: Any) -> Any:
        pairs = isinstance(names, (list, tuple)) and all(
            isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str) for pair in names
        )
        return dict(names) if pairs else names

    @field_serializer("names")
    def _in_order(self, names: dict[str, str | None]) -> list[tuple[str, str | None]]:
        return list(names.items())  # a json sorts the keys of a mapping


class WeightsFile(FileSettings):
    """A file of weights, as stages depend on it.

    Attributes:
        path: the file; a relative path starts from the project's folder.
        sha256: of its content, when params.yaml was checked.
    """

    path: str
    sha256: str


# Where a teacher's classifier comes from: with the weights, or fitted to what the network gives.
Head = Literal["own", "linear"]
# What blocks of stages hold.
Weights = Literal["none", "imagenet"] | WeightsFile


def _checked(weights: Plug) -> Plug:
    if not is_file(weights) and weights.name not in (DRAWN, LIBRARY):
        raise ValueError(f"Expected '{DRAWN}' or '{LIBRARY}', or a file that ends in {', '.join(SUFFIXES)}")
    if not is_file(weights) and weights.settings:
        raise ValueError(f"'{weights.name}' has no settings, which are for a file")
    return weights


# What params.yaml holds: "none", "imagenet", or a file with or without settings.
WeightsPlug = Annotated[Plug, AfterValidator(_checked)]


def is_file(weights: Plug) -> bool:
    """Say whether these weights are a file's."""
    return PurePath(weights.name).suffix.lower() in SUFFIXES


def file_settings(weights: Plug, where: str) -> FileSettings:
    """Return how a file of weights is read.

    Args:
        weights: the file with its settings.
        where: the place that names it, for instance "teachers.resnet20.weights".

    Raises:
        ParamsError: a setting is wrong.
    """
    return validate(FileSettings, weights.settings, f"{where}.{weights.name}")


def library(weights: Plug) -> Literal["none", "imagenet"]:
    """Return weights that are no file's."""
    return "imagenet" if weights.name == LIBRARY else "none"

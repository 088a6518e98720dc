"""A plug-in in params.yaml: its name, or its name with its settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, PlainSerializer, model_serializer, model_validator

from pipeline.params.base import Block


class Plug(Block):
    """A named thing with settings: `NAME`, or `{NAME: {setting: value}}`.

    Example:
        `schedule: self_learning`, or `schedule: {self_learning: {num_networks: 1}}`.

    Attributes:
        name: a file of a catalogue, or a key of another section.
        settings: its own settings; those that are left out have their defaults.
    """

    name: str
    settings: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _as_written(cls, content: Any) -> Any:
        ((name, settings),) = plugs(content, most=1).items()
        return {"name": name, "settings": settings}

    @model_serializer
    def _written(self) -> dict[str, dict[str, Any]]:
        # As params.yaml has it, so that the json of a block reads back.
        return {self.name: self.settings}

    @classmethod
    def of(cls, name: str, **settings: Any) -> Self:
        """Return the plug-in `name` with these settings."""
        return cls.model_validate({name: settings})


def plugs(content: Any, most: int | None = None) -> dict[str, Any]:
    """Return settings by name of what params.yaml holds in the place of plug-ins.

    Args:
        content: a name, or a mapping of names to settings; no settings are the defaults.
        most: how many there may be.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(content, str):
        return {content: {}}
    if not isinstance(content, Mapping) or not content or (most is not None and len(content) > most):
        raise ValueError("Expected a name, or its settings as {name: {setting: value}}")
    # `kd:` without a value is KD with its defaults.
    for name, settings in content.items():
        if not isinstance(settings, Mapping | None):
            raise ValueError(f"Expected the settings of '{name}' as a mapping")
    return {name: settings or {} for name, settings in content.items()}


def _several(content: Any) -> tuple[dict[str, Any], ...]:
    return tuple({name: settings} for name, settings in plugs(content).items())


def _as_mapping(several: tuple[Plug, ...]) -> dict[str, dict[str, Any]]:
    return {plug.name: plug.settings for plug in several}


def _listed(content: Any) -> tuple[Any, ...]:
    is_list = isinstance(content, (list, tuple)) and content
    if not is_list or not all(isinstance(one, Mapping) and len(one) == 1 for one in content):
        return _several(content)
    names = [name for one in content for name in one]
    if len(set(names)) < len(names):
        raise ValueError("Expected each name once")
    return tuple(content)


def _as_list(several: tuple[Plug, ...]) -> list[dict[str, dict[str, Any]]]:
    return [{plug.name: plug.settings} for plug in several]


# Several that act together: a name, or a mapping of names to settings.
Plugs = Annotated[
    tuple[Plug, ...], BeforeValidator(_several), PlainSerializer(_as_mapping), Field(min_length=1)
]
# Several that act one after another. A json has them as a list: it sorts the keys of a mapping, and the order counts.
OrderedPlugs = Annotated[
    tuple[Plug, ...], BeforeValidator(_listed), PlainSerializer(_as_list), Field(min_length=1)
]

"""Contract of `pipeline/networks/layers/`: layers that a method puts into a student and that stay at inference.

A plug-in file holds `build(name, channels, **settings) -> nn.Module`. The module is called as
`layer(x, tap)`; what it computes inside it can offer under `tap(f"{name}.scores", scores)`. The annotations of the
settings say what they may be.

Example:
    def build(name: str, channels: int, *, words: int) -> nn.Module:
        return Scored(name, nn.Conv2d(channels, words, 1))
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from pydantic import create_model

from pipeline.params.base import Block, validate
from pipeline.params.plug import Plug


class LayerSpec(Plug):
    """A layer by name with its settings: everything that is needed to build it again beside saved weights.

    Attributes:
        name: a file of `pipeline/networks/layers`.
        settings: its own settings.
    """


def checked(layer: LayerSpec, make: Callable[..., Any], tap: str) -> dict[str, Any]:
    """Return the settings of a layer, each of the kind that the plug-in's `build` says.

    Args:
        layer: the layer.
        make: `build` of its plug-in.
        tap: where it is inserted, for the error.

    Raises:
        ParamsError: a setting is missing, unknown or of another kind.
    """
    # The first two are not the user's: the tap's name and its channels.
    _, _, *parameters = inspect.signature(make, eval_str=True).parameters.values()
    fields: dict[str, Any] = {
        one.name: (one.annotation, ... if one.default is one.empty else one.default) for one in parameters
    }
    model: type[Block] = create_model("Settings", __base__=Block, **fields)
    settings = validate(model, layer.settings, "", f"Layer '{layer.name}' at '{tap}'")
    return {name: getattr(settings, name) for name in layer.settings}

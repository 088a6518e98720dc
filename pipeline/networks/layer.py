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
from typing import TYPE_CHECKING, Any

from pydantic import create_model

from pipeline.errors import ShapeError
from pipeline.params.base import Block, validate
from pipeline.params.plug import Plug

if TYPE_CHECKING:
    from torch import Tensor  # stages that only read settings import no torch


class LayerSpec(Plug):
    """A layer by name with its settings: everything that is needed to build it again beside saved weights.

    Attributes:
        name: a file of `pipeline/networks/layers`.
        settings: its own settings.
    """


def require_map(x: Tensor, layer: str, tap: str) -> None:
    """Refuse to insert a layer of maps behind a tap that is none.

    Args:
        x: the tap's value (B, ...).
        layer: the layer's name, for the error.
        tap: where it is inserted.

    Raises:
        ShapeError: the tap has no height and width.
    """
    if x.ndim != 4:
        raise ShapeError(
            f"Layer '{layer}' reads a map, and student tap '{tap}' is of shape {tuple(x.shape[1:])}. Insert it at a "
            "tap that has height and width, in the run's settings in params.yaml."
        )


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

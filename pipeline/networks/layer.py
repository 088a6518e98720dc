"""Contract of `pipeline/networks/layers/`: layers that a method puts into a student and that stay at inference.

A plug-in file holds `build(name, channels, **settings) -> nn.Module`. The module is called as
`layer(x, tap)`; what it computes inside it can offer under `tap(f"{name}.scores", scores)`.

Example:
    def build(name: str, channels: int, *, words: int) -> nn.Module:
        return Scored(name, nn.Conv2d(channels, words, 1))
"""

from __future__ import annotations

from pipeline.params.plug import Plug


class LayerSpec(Plug):
    """A layer by name with its settings: everything that is needed to build it again beside saved weights.

    Attributes:
        name: a file of `pipeline/networks/layers`.
        settings: its own settings.
    """

"""A module of the user's, tried with one image: which modules inside give maps, and which linear layer is last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import ParamsError, ShapeError

STAGES = 4
PREFIX = 16  # class and register tokens, at most
# What they give was read from other maps; the map that is pooled stands before them.
_PASSING = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AvgPool2d, nn.MaxPool2d, nn.Dropout, nn.Identity)
Grid = tuple[int, int]  # height and width


@dataclass(frozen=True, eq=False)  # a tensor is compared by its values
class Call:
    """What one module gave when the network was tried.

    Attributes:
        path: of the module.
        module: the module itself.
        output: what it returned.
        version: how often the output's memory had been written to.
    """

    path: str
    module: nn.Module
    output: Tensor
    version: int

    @property
    def is_rewritten(self) -> bool:
        """Whether a later operation has changed the output in place."""
        return self.output._version != self.version


@dataclass(frozen=True)
class Place:
    """Where a tap stands.

    Attributes:
        path: of the module whose output it is.
        cloned: whether the network goes on with a copy, because it changes the output in place.
        grid: height and width of the patches, where the output is tokens (B, N, C).
    """

    path: str
    cloned: bool
    grid: tuple[int, int] | None = None


@torch.no_grad()
def tried(name: str, model: nn.Module, image: tuple[int, int, int]) -> tuple[list[Call], object]:
    """Run a module on one image of zeros, and return what each module inside gave, in their order."""
    calls: list[Call] = []

    def hook(path: str) -> Callable[[nn.Module, Any, object], None]:
        def note(module: nn.Module, inputs: Any, output: object) -> None:
            if isinstance(output, Tensor):
                calls.append(Call(path, module, output, output._version))

        return note

    model.eval()  # in training a batch norm refuses a single value a channel, and would move its statistics
    try:
        with ExitStack() as hooks:
            for path, module in model.named_modules():
                if path:
                    hooks.enter_context(module.register_forward_hook(hook(path)))
            logits: object = model(torch.zeros(1, *image))
    except Exception as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise ShapeError(
            f"Network '{name}' cannot read {'x'.join(map(str, image))} images: {type(error).__name__}: {reason}. "
            "Choose another network, or images of another size."
        ) from None
    finally:
        model.train()
    return calls, logits


def last_linear(name: str, calls: list[Call], logits: Tensor) -> Call:
    """Return the call of the linear layer whose output are the logits, and that nothing follows."""
    linear = [call for call in calls if isinstance(call.module, nn.Linear)]
    last = linear[-1] if linear else None
    # The containers around it return after it, with the same tensor.
    following = [] if last is None else calls[calls.index(last) + 1 :]
    around = all(last is not None and last.path.startswith(f"{call.path}.") for call in following)
    once = last is not None and sum(call.module is last.module for call in calls) == 1
    if last is None or last.output is not logits or not around or not once or last.is_rewritten:
        ends = calls[-1].module if calls else None
        raise ParamsError(
            f"Network '{name}' does not end in one nn.Linear, whose output is returned as it is (last module: "
            f"{type(ends).__name__}). Let its classifier be one, and return logits."
        )
    return last


def places_of(name: str, model: nn.Module, calls: list[Call], size: Grid) -> dict[str, Place]:
    """Return where the taps of a network stand, by path and by the names that all networks share.

    Args:
        name: of the network, for the error.
        model: the network.
        calls: what its modules gave for one image.
        size: of that image.

    Raises:
        ParamsError: no module gives a map.
    """
    number = Counter(call.path for call in calls)
    once = [call for call in calls if number[call.path] == 1 and not isinstance(call.module, nn.Linear)]
    places: dict[str, Place] = {}
    # The map of each resolution, in the order in which they are left: the last one of those least deep inside, since a
    # block that halves the resolution may begin with a map of the former one.
    levels: dict[Grid, str] = {}
    final = ""
    tokens: list[Call] = []
    grid, is_pooled = None, False

    for call in once:
        shape = call.output.shape
        if len(shape) == 4:
            places[call.path] = Place(call.path, call.is_rewritten)
            of_map = (shape[2], shape[3])
            if of_map != (1, 1):
                is_pooled = False
            if isinstance(call.module, _PASSING):
                is_pooled = is_pooled or of_map == (1, 1)
            # What is pooled already is no map, and what is of another form than the image has its channels last.
            elif not is_pooled and abs(of_map[0] * size[1] - of_map[1] * size[0]) < max(size):
                before = levels.pop(of_map, call.path)
                levels[of_map] = min(call.path, before, key=_depth)
                grid, final = of_map, call.path
        elif len(shape) == 3 and grid is not None and 0 <= shape[1] - grid[0] * grid[1] <= PREFIX:
            places[call.path] = Place(call.path, call.is_rewritten, grid)
            tokens.append(call)

    if not levels:
        raise ParamsError(
            f"Network '{name}' gives no map (B, C, H, W) at any module, and methods and stores read one. Choose "
            "another network."
        )
    if tokens:
        blocks = _blocks(model, tokens)
        at = (
            [blocks[len(blocks) * k // STAGES - 1] for k in range(1, STAGES + 1)]
            if len(blocks) >= STAGES
            else blocks
        )
        return _named(places, at, tokens[-1].path)
    # A single value a channel that larger maps follow belongs to an attention inside a block.
    at = [path for of_map, path in levels.items() if of_map != (1, 1) or path == [*levels.values()][-1]]
    return _named(places, at, final)


def _depth(path: str) -> int:
    return path.count(".")


def _blocks(model: nn.Module, tokens: list[Call]) -> list[str]:
    """Return the paths of a transformer's blocks: of the container that has most modules that give its last tokens."""
    width = tokens[-1].output.shape[2]
    children: dict[str, list[str]] = {}
    for call in tokens:
        parent = call.path.rpartition(".")[0]
        if call.output.shape[2] == width and isinstance(
            model.get_submodule(parent), nn.Sequential | nn.ModuleList
        ):
            children.setdefault(parent, []).append(call.path)
    return max(children.values(), key=len, default=[call.path for call in tokens])


def _named(places: dict[str, Place], at: list[str], final: str) -> dict[str, Place]:
    """Return places by path, and those that all networks have by their names; a network's own stages are left."""
    first = max(len(at) - STAGES, 0)
    names = {f"stage{index - first + 1}": path for index, path in enumerate(at) if index >= first}
    if first:
        names = {"stem": at[first - 1], **names}
    named = {path: place for path, place in places.items() if path not in ("final", "pooled", "logits")}
    if not any(name in named for name in names if name != "stem"):
        named = {name: places[path] for name, path in names.items()} | named
    return named | {"final": places[final]}


def patches(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the patch tokens of `x` (B, N, C) as a map (B, C, H, W)."""
    height, width = grid
    patches = x[:, x.shape[1] - height * width :]
    return patches.transpose(1, 2).reshape(x.shape[0], -1, height, width)


def with_patches(x: Tensor, map_: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return tokens (B, N, C) with a map (B, C, H, W) in the place of their patches."""
    prefix = x[:, : x.shape[1] - grid[0] * grid[1]]
    return torch.cat([prefix, map_.flatten(2).transpose(1, 2)], dim=1)

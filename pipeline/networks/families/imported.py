"""Any network by its import path, "package.module:function", as a teacher or a student.

The function is called with `num_classes`, `channels` and `size` (a number, or height and width), with those of them
that it takes, and returns a module that maps images (B, channels, H, W) to logits (B, num_classes). Its last operation
must be one `nn.Linear`, which becomes our classifier: `pooled` is what that reads, and `final` the last map before it.

Every module inside that gives a map is a tap by its path, "layer3.1.conv2"; one that is called several times is none.
The last map of each of the last four resolutions is `stage1` to `stage4`, and the one before them `stem`, unless the
network has modules of these names itself. The tokens of a transformer are maps too: those of the patches, on the grid
of the map that they were cut from, without the class and register tokens that stand before them.

A place whose tensor is changed in place later is recorded before that. The hash of the code, of the module's file and
of all files of the project that it imports, is part of the network (`source`).
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from pipeline.artifacts import closure
from pipeline.artifacts.hashing import content_hash
from pipeline.errors import MachineError, ParamsError
from pipeline.networks import pretrained
from pipeline.networks.network import Network, Tap
from pipeline.networks.tracing import Place, last_linear, patches, places_of, tried, with_patches
from pipeline.params.size import Size, sides

NETWORKS: tuple[str, ...] = ()
OPEN = True  # takes names that NETWORKS does not list
FORM = "package.module:function"


class ImportedNetwork(Network):
    """A module of the user's behind the taps.

    Args:
        name: its import path, for messages.
        model: the module, its classifier replaced by an identity.
        classifier: that classifier.
        places: where the taps inside stand, by tap.
        image: shape of an image, (C, H, W).
    """

    refusals = (Exception,)  # of code that is not ours

    def __init__(
        self,
        name: str,
        model: nn.Module,
        classifier: nn.Linear,
        places: Mapping[str, Place],
        image: tuple[int, int, int],
    ) -> None:
        super().__init__({}, classifier.in_features, classifier.out_features)
        self.name = name
        self.model = model
        self.classifier = classifier
        self.places = dict(places)
        self.image = image

    def compile(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: taps stand at modules that a compiled function would have melted together.

        Raises:
            MachineError: always.
        """
        raise MachineError(
            f"Network '{self.name}' comes from an import path and is not compiled. Leave out --compile."
        )

    def run(self, x: Tensor, tap: Tap) -> Tensor:
        """Run the module on images (B, C, H, W); every named place that somebody asks for is handed to `tap`."""
        at: dict[str, list[str]] = {}
        for name, place in self.places.items():
            if tap.wanted is None or name in tap.wanted or name in tap.inserted:
                at.setdefault(place.path, []).append(name)

        with ExitStack() as hooks:
            for path, names in at.items():
                offer = self._offer(tap, names)
                hooks.enter_context(self.model.get_submodule(path).register_forward_hook(offer))
            pooled = self.model(x)
        if not isinstance(pooled, Tensor):  # it was tried in evaluation
            raise ParamsError(
                f"Network '{self.name}' returns {type(pooled).__name__} in training, expected logits alone. Switch its "
                "auxiliary outputs off."
            )
        return tap("logits", self.classifier(tap("pooled", pooled)))

    def _offer(self, tap: Tap, names: list[str]) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def offer(module: nn.Module, inputs: Any, x: Tensor) -> Tensor:
            for name in names:
                place = self.places[name]
                given = x if place.grid is None else patches(x, place.grid)
                map_ = tap(name, given)
                if map_ is not given:  # a layer stands here
                    x = map_ if place.grid is None else with_patches(x, map_, place.grid)
            return x.clone() if self.places[names[0]].cloned else x

        return offer

    @torch.no_grad()
    def averages(self) -> bool:
        """Say whether the classifier reads the mean of `final`: tried with a map of other values in its place."""
        x = torch.zeros(1, *self.image, device=self.classifier.weight.device)
        tap, training = Tap(("final", "pooled"), {"final": _Counted()}), self.training
        self.eval()
        try:
            self.run(x, tap)
        finally:
            self.train(training)
        mean, pooled = tap.kept["final"].mean(dim=(2, 3)), tap.kept["pooled"]
        return mean.shape == pooled.shape and torch.allclose(mean, pooled, rtol=1e-5)

    def rest(self, after: str) -> NoReturn:
        """Refuse: what follows a place inside such a module cannot be copied.

        Raises:
            ParamsError: always.
        """
        raise ParamsError(
            f"Network '{self.name}' comes from an import path and has no auxiliary heads, at '{after}' or elsewhere. "
            "Choose a student of another family."
        )


class _Counted(nn.Module):
    """Stands for a map whose mean is known."""

    def forward(self, x: Tensor, tap: Tap) -> Tensor:
        """Return the numbers from 0 in the shape of `x`."""
        return torch.arange(float(x.numel()), device=x.device).view(x.shape)


def source(name: str) -> str:
    """Return the hash of a network's code: of its module, and of what that imports from the project's folder.

    Raises:
        ParamsError: the module cannot be found or read.
    """
    module, _ = _parted(name)
    try:
        hashes = closure.code_hashes([module], packages=None)
        if not hashes:  # of an installed package: its own file alone
            found = importlib.util.find_spec(module)
            if found is None or found.origin is None or not Path(found.origin).is_file():
                raise ModuleNotFoundError(f"No module named '{module}'")
            hashes = {module: closure.code_hash(Path(found.origin)), "version": _version(module)}
    except Exception as error:  # of the user's file: a slip in its syntax, another encoding
        raise _not_importable(name, error) from None
    return content_hash(hashes)


def _version(module: str) -> str:
    """Return the version of the package that a module was installed with; "" where it has none."""
    package = module.partition(".")[0]
    found = _distributions().get(package, [])
    return ", ".join(f"{name} {metadata.version(name)}" for name in sorted(set(found)))


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    """Return the distributions of each package: to list them takes seconds, and each build asks."""
    return metadata.packages_distributions()


def build(name: str, size: Size, channels: int, classes: int, weights: str) -> Network:
    """Build the network of an import path.

    Raises:
        ParamsError: it cannot be imported or called, or what it returns cannot serve.
        ShapeError: it cannot read images of this kind.
    """
    pretrained.refuse("imported", weights)
    # On the CPU also where only shapes count: what is tried below must be able to run.
    with torch.device("cpu"):
        model = _made(name, {"num_classes": classes, "channels": channels, "size": size})
        calls, logits = tried(name, model, (channels, *sides(size)))

    if not isinstance(logits, Tensor) or logits.shape != (1, classes):
        found = f"of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ParamsError(
            f"Network '{name}' returns {found} for one image, expected logits of shape (1, {classes}). Build it for "
            "num_classes."
        )
    last = last_linear(name, calls, logits)
    places = places_of(name, model, calls, sides(size))

    parent, _, attribute = last.path.rpartition(".")
    setattr(model.get_submodule(parent), attribute, nn.Identity())
    assert isinstance(last.module, nn.Linear)
    network = ImportedNetwork(name, model, last.module, places, (channels, *sides(size)))
    network.library_names = {key: f"model.{key}" for key in model.state_dict()} | {
        f"{last.path}.{key}": f"classifier.{key}" for key in last.module.state_dict()
    }
    return network


def _parted(name: str) -> tuple[str, str]:
    module, colon, function = name.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), function)) or not colon:
        raise ParamsError(
            f"Network '{name}' is no import path. Expected {FORM}, for instance pipeline.own.nets:build."
        )
    return module, function


def _not_importable(name: str, error: BaseException) -> ParamsError:
    reason = " ".join(str(error).split())[:200].rstrip(".")
    return ParamsError(
        f"Network '{name}' cannot be imported: {type(error).__name__}: {reason}. Expected {FORM}, installed or in "
        f"{closure.root()}."
    )


def _made(name: str, values: Mapping[str, Size]) -> nn.Module:
    """Import the function, call it with those of `values` that it takes, and return the module."""
    path, attribute = _parted(name)
    root = str(closure.root())
    if root not in sys.path:
        sys.path.append(root)
    try:
        module = importlib.import_module(path)
    except (Exception, SystemExit) as error:
        raise _not_importable(name, error) from None

    make = getattr(module, attribute, None)
    if not callable(make):
        known = [key for key, x in vars(module).items() if callable(x) and not key.startswith("_")]
        near = difflib.get_close_matches(attribute, known, n=3)
        guess = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ParamsError(f"Network '{name}': {path} has no function '{attribute}'.{guess} Expected {FORM}.")

    try:
        parameters = inspect.signature(make).parameters
        taken = {key: value for key, value in values.items() if key in parameters}
        if any(x.kind is x.VAR_KEYWORD for x in parameters.values()):
            taken["num_classes"] = values["num_classes"]
        model = make(**taken)
    except Exception as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise ParamsError(
            f"Network '{name}' cannot be built: {type(error).__name__}: {reason}. It is called with num_classes, "
            "channels and size, with those that it takes."
        ) from None
    if not isinstance(model, nn.Module):
        raise ParamsError(f"Network '{name}' returns {type(model).__name__}, expected a torch.nn.Module.")
    return model

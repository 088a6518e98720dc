"""Networks: named units in a row, with places that can be recorded and built upon.

Contract of `pipeline/networks/families/`, one architecture family a file: `NETWORKS`, the names that it knows, and
`build(name, size, channels, classes, weights) -> Network`. A name belongs to one family alone (`catalogue.py`). A
family with ImageNet weights says in `PRETRAINED` of which numbers of channels they read images.

Example:
    NETWORKS = {"tiny": 16, "small": 32}

    def build(name: str, size: Size, channels: int, classes: int, weights: str) -> Network:
        width = NETWORKS[name]
        units = {"stem": Activated("stem", *conv_bn(channels, width, 3))}
        return Network(units, width, classes, initialize=fan_out)

`size` is the side of square images, else (height, width) in pixels.

Taps, from input to output: `stem`, `stage1` to `stage4`, each with `stage<k>_block1` (after its first block)
and `_pre` (before the activation, where there is one), `final` (the map that is pooled), `pooled`, `logits`.
ResNets also have `stage<k>_conv`, what the 3x3 convolution of a stage's last block gives before its BN.
A unit hands what it computes to `tap(name, x)` and continues with what comes back; so one mechanism records,
inserts and reaches pre-activations, and survives torch.compile and export.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from pipeline import plugin, seeding
from pipeline.artifacts import advice
from pipeline.errors import ShapeError, StaleArtifactError, StillhouseError, unknown_name
from pipeline.networks import own_weights
from pipeline.networks.layer import checked
from pipeline.networks.spec import NetworkSpec
from pipeline.params.size import Size, shown, sides
from pipeline.params.weights import WeightsFile

Taps = dict[str, Tensor]
Norms = dict[str, nn.BatchNorm2d]  # by the tap that stands behind
Shape = tuple[int, ...]
M = TypeVar("M", bound=nn.Module)


class Tap:
    """Stands at every named place of one forward pass.

    Args:
        wanted: the taps to keep; None keeps all.
        inserted: layers by tap; each is called with the tensor and this tap.
    """

    def __init__(
        self, wanted: Iterable[str] | None = (), inserted: Mapping[str, nn.Module] | None = None
    ) -> None:
        self.wanted = None if wanted is None else frozenset(wanted)
        self.inserted = inserted or {}
        self.kept: Taps = {}

    def __call__(self, name: str, x: Tensor) -> Tensor:
        """Hand `x` through the layer inserted at `name`, if any, keep it if wanted, and return it."""
        if name in self.inserted:
            x = self.inserted[name](x, self)
        if self.wanted is None or name in self.wanted:
            self.kept[name] = x
        return x


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


class Unit(nn.Sequential):
    """A unit without taps inside."""

    def forward(self, x: Tensor, tap: Tap) -> Tensor:  # type: ignore[override]  # takes the tap too
        """Run the modules in their order."""
        for module in self:
            x = module(x)
        return x


class Network(nn.Module):
    """A classifier: units, a tail before pooling, global average pooling, one linear layer.

    Args:
        units: unit by tap name, in their order; each is called as `unit(x, tap)`.
        width: channels of the map that is pooled.
        classes: number of classes.
        tail: what stands between the last unit and pooling (WRN's last BN and ReLU, a last 1x1 convolution);
            it is called as a unit is.
        initialize: sets the parameters of one module; it runs over all modules now, and over the copies that
            `rest` makes. Modules that it leaves alone keep torch's default.

    Attributes:
        refusals: what its modules raise at images that they cannot read.
        library_names: our name of each tensor, by the one that the network's library has for it.
    """

    refusals: tuple[type[Exception], ...] = (RuntimeError,)

    def __init__(
        self,
        units: Mapping[str, nn.Module],
        width: int,
        classes: int,
        *,
        tail: nn.Module | None = None,
        initialize: Callable[[nn.Module], None] = lambda module: None,
    ) -> None:
        super().__init__()
        self.units = nn.ModuleDict(units)
        self.tail = tail if tail is not None else Unit()
        self.width = width
        self.classifier = nn.Linear(width, classes)
        self.inserted = nn.ModuleDict()
        self.initialize = initialize
        self.compiled = False
        self.library_names: dict[str, str] = {}
        self.apply(initialize)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile what `forward` and `record` run, when they run; names of weights stay as they are.

        torch's own way would compile `forward` alone. A flag, and one compiled function for all networks, let
        copies of a network run their own weights.
        """
        self.compiled = True

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, classes) of normalized images (B, C, H, W)."""
        return self._walk(image, ())[0]

    def record(self, image: Tensor, names: Iterable[str] | None) -> Taps:
        """Run the network and return the taps `names`, all of them for None.

        Raises:
            UnknownNameError: a tap that the network does not have.
        """
        # Gone through twice.
        names = None if names is None else tuple(names)
        _, kept = self._walk(image, names)
        missing = sorted(set(names or ()) - kept.keys())
        if missing:
            # One image is enough to learn all names for the message.
            raise unknown_name("tap", missing[0], self.record(image[:1], None))
        return kept

    def _walk(self, image: Tensor, names: tuple[str, ...] | None) -> tuple[Tensor, Taps]:
        return (_compiled() if self.compiled else _walked)(self, image, names)

    def run(self, x: Tensor, tap: Tap) -> Tensor:
        """Run all units; every named place is handed to `tap`."""
        for name, unit in self.units.items():
            x = tap(name, unit(x, tap))
        return self._head(x, tap)

    def layers(self) -> dict[str, nn.Module]:
        """Return the inserted layers by tap."""
        return dict(self.inserted.items())

    def averages(self) -> bool:
        """Say whether the classifier reads the mean of `final`, and nothing else."""
        return True

    def norms(self) -> Norms:
        """Return the BN before the activation of each place, by tap: "stage1_pre", or "stage1" that ends linearly.

        Of a residual block it is the last one of the branch, whose output the shortcut is added to. A unit says its
        own by a method of this name; one without has none.
        """
        norms: Norms = {}
        for unit in (*self.units.values(), self.tail):
            of_unit = getattr(unit, "norms", None)
            if callable(of_unit):
                norms |= of_unit()
        return norms

    def rest(self, after: str) -> Rest:
        """Return a fresh copy of what follows the unit `after`: an auxiliary head of the main branch's depth.

        It is on the CPU, whose draws are keyed.

        Raises:
            UnknownNameError: no unit ends at that tap.
        """
        names = list(self.units)
        if after not in names[:-1]:
            raise unknown_name("unit to attach a head to", after, names[:-1])
        units = {name: _on_cpu(copy.deepcopy(self.units[name])) for name in names[names.index(after) + 1 :]}
        # `width`, not what the classifier reads: a layer inserted at `final` is not in the copy.
        rest = Rest(units, self.width, self.classifier.out_features,
                    tail=_on_cpu(copy.deepcopy(self.tail)), initialize=self.initialize)  # fmt: skip
        rest.draw()
        return rest

    def fresh(self) -> Self:
        """Return a copy with parameters drawn anew (SLKD's untrained teachers), on the CPU: its draws are keyed."""
        network = _on_cpu(copy.deepcopy(self)).requires_grad_(True)
        network.draw()
        return network

    def draw(self) -> None:
        """Draw all parameters anew, from torch's global generator: wrap it in `seeding.scope`."""
        # torch's defaults first, then the family's own: the order of the first construction.
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
        self.apply(self.initialize)

    def _head(self, x: Tensor, tap: Tap) -> Tensor:
        x = tap("final", self.tail(x, tap))
        x = tap("pooled", x.mean(dim=(2, 3)))
        return tap("logits", self.classifier(x))


def _walked(network: Network, image: Tensor, names: tuple[str, ...] | None) -> tuple[Tensor, Taps]:
    """Run a network and return its logits and the taps `names`."""
    tap = Tap(names, network.layers())
    return network.run(image, tap), tap.kept


@functools.cache
def _compiled() -> Callable[[Network, Tensor, tuple[str, ...] | None], tuple[Tensor, Taps]]:
    import torch._dynamo

    # One compiled function serves all networks, in training and evaluation, with all batch sizes.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    return torch.compile(_walked)


def _on_cpu(module: M) -> M:
    """Return a module on the CPU; one without values (on torch's meta device) stays where it is."""
    return module if any(x.is_meta for x in module.state_dict().values()) else module.cpu()


class Rest(Network):
    """The part of a network that follows a unit. It reads that unit's map instead of images."""


def build(spec: NetworkSpec, *seed: int | str) -> Network:
    """Build the network of `spec`; its parameters depend on `seed` alone.

    Inserted layers draw from a scope of their own, so that the rest of the network starts alike with and
    without them.

    Raises:
        UnknownNameError: no such family, network, layer or tap.
        ParamsError: a layer does not have the settings, or a file's weights do not fit.
        DataError: a file of weights is not there, or holds none.
        StaleArtifactError: that, or the network's own code, has changed since params.yaml was checked.
    """
    family = plugin.load("networks", spec.family)
    if spec.network not in family.NETWORKS and not getattr(family, "OPEN", False):
        raise unknown_name(f"network of family '{spec.family}':", spec.network, family.NETWORKS)

    if spec.source and spec.source != family.source(spec.network):
        raise StaleArtifactError(
            f"The code of network '{spec.network}' has changed. {advice.again('dvc repro params')} Then: dvc repro"
        )
    file = spec.weights if isinstance(spec.weights, WeightsFile) else None
    library = "none" if isinstance(spec.weights, WeightsFile) else spec.weights
    with seeding.scope(*seed, "network"):
        network: Network = family.build(spec.network, spec.size, spec.channels, spec.classes, library)
    # Before layers are inserted: the file has none.
    if file is not None:
        own_weights.fill(network, file)

    if spec.inserted:
        insert(network, spec, *seed)
    if spec.classifier_width is not None:
        with seeding.scope(*seed, "classifier"):
            network.classifier = nn.Linear(spec.classifier_width, spec.classes)
            network.initialize(network.classifier)
    return network


def insert(network: Network, spec: NetworkSpec, *seed: int | str) -> None:
    """Insert the layers of `spec`; each is built for the channels that its tap has without any of them.

    Raises:
        UnknownNameError: no such layer or tap.
        ParamsError: a layer does not have the settings, or they are of another kind.
    """
    shapes = probe(network, spec.size, spec.channels)
    for name, layer in spec.inserted.items():
        if name not in shapes:
            raise unknown_name("tap", name, shapes)
        make = plugin.load("layers", layer.name).build
        settings = checked(layer, make, name)
        with seeding.scope(*seed, "layer", name):
            network.inserted[name] = make(name, shapes[name][0], **settings)


def probe(network: Network, size: Size, channels: int) -> dict[str, Shape]:
    """Return the shape of every tap without the batch axis, found by running one batch.

    Raises:
        ShapeError: images of this size are too small for the network, or of a size that it does not take.
    """
    what = f"The network cannot read {channels}x{shown(size)} images"
    advice = "Choose another network, or images of another size."
    if network.inserted:  # without them it has been probed before
        taps_of_layers = ", ".join(network.layers())
        what += f" with layers at {taps_of_layers}"
        advice = "Choose other layers, or other taps for them, in the run's settings in params.yaml."
    device = next(network.parameters()).device
    training = network.training

    # In training a batch norm refuses a single value a channel, and would move its statistics.
    network.eval()
    try:
        with torch.no_grad():
            taps = network.record(torch.zeros(1, channels, *sides(size), device=device), None)
    except StillhouseError:
        raise
    except network.refusals as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise ShapeError(f"{what}: {reason or type(error).__name__}. {advice}") from None
    finally:
        network.train(training)
    for name, x in taps.items():
        if x.numel() == 0:  # whose mean would be no number
            raise ShapeError(f"{what}: '{name}' would be of shape {tuple(x.shape[1:])}. {advice}")
    return {name: tuple(x.shape[1:]) for name, x in taps.items()}

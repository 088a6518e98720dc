"""Any image model of timm (Wightman 2019, github.com/huggingface/pytorch-image-models) as a teacher.

Names are timm's, with or without a tag: `convnext_tiny`, `vit_small_patch16_224.augreg_in1k`. Maps come from
timm's `forward_intermediates`, always as (B, C, H, W): the last four resolutions are `stage1` to `stage4` and
the one before them is `stem`; a model of one resolution (a transformer) is cut into four parts of equal
depth. `final` is the map that the head pools, for a transformer its normalized patch tokens (without class and register
tokens), and `pooled` what its classifier reads: of two classifiers whose logits are averaged (DeiT's distilled
ones) both tokens, one after the other.

A teacher is only read: layers can be inserted at `pooled` and `logits` alone, and there are no auxiliary
heads.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from pipeline.errors import MachineError, ParamsError, unknown_name
from pipeline.networks.network import Network, Tap
from pipeline.networks.pretrained import tensors_only
from pipeline.params.size import Size, shown

NETWORKS: tuple[str, ...] = ()
PRETRAINED = (1, 3)  # timm adds up the filters of the colors
OPEN = True  # takes names that NETWORKS does not list
STAGES = 4
PAIR = 2  # classifiers of a distilled transformer


class TimmNetwork(Network):
    """A timm model behind the taps.

    Args:
        name: timm's name, for messages.
        model: the model, its classifier replaced by an identity.
        classifier: that classifier.
        levels: index in the model's list of intermediate maps, by tap.
        place: timm's name of the classifier; None where it has another form there.
    """

    refusals = (Exception,)  # each architecture has its own way

    def __init__(
        self, name: str, model: nn.Module, classifier: nn.Linear, levels: dict[str, int], place: str | None
    ) -> None:
        super().__init__({}, classifier.in_features, classifier.out_features)
        self.name = name
        self.model = model
        self.classifier = classifier
        self.levels = levels
        # timm's own names, by which its checkpoints have them.
        self.library_names = {name: f"model.{name}" for name in model.state_dict()}
        if place is not None:
            self.library_names |= {
                f"{place}.{name}": f"classifier.{name}" for name in classifier.state_dict()
            }

    def run(self, x: Tensor, tap: Tap) -> Tensor:
        """Run the model on images (B, C, H, W); every named place is handed to `tap`.

        Raises:
            ParamsError: a layer is inserted inside the model.
        """
        inside = sorted(tap.inserted.keys() - {"pooled", "logits"})
        if inside:
            raise ParamsError(
                f"timm model '{self.name}' takes no layer at '{inside[0]}', only at pooled and logits. "
                "Choose a student of another family."
            )
        # An attribute of a module is a module or a tensor to the type checker.
        model: Any = self.model
        features, maps = model.forward_intermediates(x, indices=list(self.levels.values()))
        for name, map_ in zip(self.levels, maps, strict=True):
            tap(name, map_)
        tap("final", self._final(features, maps[-1]))
        pooled = tap("pooled", model.forward_head(features))
        return tap("logits", self.classifier(pooled))

    @torch.no_grad()
    def averages(self) -> bool:
        """Say whether the head is a mean: many have a norm behind it, a convolution, or a token of their own."""
        model: Any = self.model
        channels, device = self.classifier.in_features, self.classifier.weight.device
        x = torch.arange(4.0 * channels, device=device).view(1, channels, 2, 2)
        training = self.training
        self.eval()
        try:
            return torch.equal(model.forward_head(x), x.mean(dim=(2, 3)))
        except self.refusals:  # it reads no map
            return False
        finally:
            self.train(training)

    def rest(self, after: str) -> NoReturn:
        """Refuse: what follows a place inside a timm model cannot be copied.

        Raises:
            ParamsError: always.
        """
        raise ParamsError(
            f"timm model '{self.name}' has no auxiliary heads, at '{after}' or elsewhere. "
            "Choose a student of another family."
        )

    def _final(self, features: Tensor, last: Tensor) -> Tensor:
        """Return the model's features as a map (B, C, H, W), on the grid of its last intermediate map."""
        if not isinstance(features, Tensor):
            raise ParamsError(f"timm model '{self.name}' has several last maps. Choose another one.")
        if features.ndim == 4:
            is_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
            return features.permute(0, 3, 1, 2) if is_last else features
        height, width = last.shape[2:]
        if features.shape[1] < height * width:  # class tokens alone (PiT's)
            return last
        tokens = features[:, -height * width :]  # (B, H * W, C), without the class token
        return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, height, width)


def build(name: str, size: Size, channels: int, classes: int, weights: str) -> Network:
    """Build the timm model `name`.

    Raises:
        MachineError: timm is not installed, or its weights cannot be fetched.
        UnknownNameError: timm has no such model.
        ParamsError: the model has no intermediate maps or no single linear classifier, or it cannot be built
            for images of this kind.
    """
    try:
        import timm
    except ModuleNotFoundError:
        raise MachineError(
            f"Network '{name}' needs timm, which is not installed. Install it with: pip install -e '.[timm]'"
        ) from None

    if not timm.is_model(name):
        known = timm.list_models()
        near = difflib.get_close_matches(name, known, n=8, cutoff=0.3) or known[:8]
        raise unknown_name(
            "timm model", name, near, f"timm has {len(known)}; list them with timm.list_models()."
        )

    model = _create(name, size, channels, classes, pretrained=weights == "imagenet")
    if not hasattr(model, "forward_intermediates"):
        raise ParamsError(f"timm model '{name}' does not give its intermediate maps. Choose another one.")
    classifier, place = _take_classifier(name, model)
    return TimmNetwork(
        name, model, classifier, _levels([level["reduction"] for level in _info(model)]), place
    )


def _create(name: str, size: Size, channels: int, classes: int, *, pretrained: bool) -> nn.Module:
    import timm

    options: dict[str, Any] = {"in_chans": channels, "num_classes": classes}

    try:
        config = timm.get_pretrained_cfg(name)
        # A transformer's positions belong to one size; the others take any, and refuse the argument.
        if config is not None and config.fixed_input_size:
            options["img_size"] = size

        with tensors_only():
            model: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:  # each architecture refuses in its own way, and so does the download
        reason = " ".join(str(error).split())[:200]
        if pretrained:
            raise MachineError(
                f"timm model '{name}' cannot be made with its weights: {reason}. "
                "Check the connection, or set weights: none."
            ) from None
        raise ParamsError(
            f"timm model '{name}' cannot be built for {channels}x{shown(size)} images: {reason}. "
            "Choose another one."
        ) from None
    return model


def _take_classifier(name: str, model: nn.Module) -> tuple[nn.Linear, str | None]:
    """Replace the model's classifier by an identity and return it, so that it is one module with one name.

    Returns:
        The classifier, and timm's name of it where timm's is the same.
    """
    config: Any = model.pretrained_cfg
    place = config["classifier"]
    if not isinstance(place, str) and len(place) == PAIR:
        pair = [model.get_submodule(each) for each in place]
        # Within a head of several layers a classifier is one of them.
        if all(isinstance(each, nn.Linear) for each in pair) and not any("." in each for each in place):
            return _joined(model, place, pair), None
    classifier = model.get_submodule(place) if isinstance(place, str) else None
    is_linear = isinstance(classifier, nn.Linear)
    if isinstance(classifier, nn.Conv2d) and classifier.kernel_size == (1, 1) and classifier.groups == 1:
        classifier = _flat(classifier)
    if not isinstance(classifier, nn.Linear):
        raise ParamsError(f"timm model '{name}' does not end in one linear classifier. Choose another one.")
    parent, _, attribute = place.rpartition(".")
    setattr(model.get_submodule(parent), attribute, nn.Identity())
    return classifier, place if is_linear else None


def _flat(convolution: nn.Conv2d) -> nn.Linear:
    """Return a classifier that is a convolution of one pixel (DLA's, DPN's) as the linear layer that it is."""
    linear = nn.Linear(convolution.in_channels, convolution.out_channels, bias=convolution.bias is not None)
    with torch.no_grad():
        linear.weight.copy_(convolution.weight.flatten(1))
        if convolution.bias is not None:
            linear.bias.copy_(convolution.bias)
    return linear


def _joined(model: nn.Module, places: tuple[str, str], pair: Sequence[Any]) -> nn.Linear:
    """Replace two classifiers whose logits are averaged (DeiT's) by one that reads both of their tokens."""
    first, second = pair
    joined = nn.Linear(first.in_features + second.in_features, first.out_features)
    with torch.no_grad():
        joined.weight.copy_(torch.cat([first.weight, second.weight], dim=1) / PAIR)
        joined.bias.copy_((first.bias + second.bias) / PAIR)
    for index, place in enumerate(places):
        setattr(model, place, _Beside(index))
    return joined


class _Beside(nn.Module):
    """Puts one of two tokens into its half, so that the mean of both is one after the other."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, 2 C) of (B, C): twice the token, and zeros."""
        halves = [torch.zeros_like(x), torch.zeros_like(x)]
        halves[self.index] = PAIR * x
        return torch.cat(halves, dim=1)


def _info(model: nn.Module) -> list[dict[str, Any]]:
    info: Any = model.feature_info  # a list for some models, an object for others
    levels: list[dict[str, Any]] = info if isinstance(info, list) else info.get_dicts()
    return levels


def _levels(reductions: list[int]) -> dict[str, int]:
    """Return the index of each tap in a model's intermediate maps, from how far each is reduced."""
    count = len(reductions)
    if len(set(reductions)) == 1 and count > STAGES:
        return {f"stage{k}": count * k // STAGES - 1 for k in range(1, STAGES + 1)}
    first = max(count - STAGES, 0)
    levels = {"stem": first - 1} if first else {}
    return levels | {f"stage{index - first + 1}": index for index in range(first, count)}

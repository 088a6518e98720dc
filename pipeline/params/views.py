"""View spaces as params: which augmented views of an image exist."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator

from pipeline.errors import ParamsError, unknown_name
from pipeline.params.base import Block, validate
from pipeline.params.plug import Plug

Slots = Annotated[int, Field(ge=0, le=100_000)] | Literal["all"]
Strength = Annotated[float, Field(ge=0, le=10)]
Alpha = Annotated[float, Field(ge=0.01, le=100)]
Probability = Annotated[float, Field(gt=0, le=1)]


def ratio_within(ratio: tuple[float, float]) -> tuple[float, float]:
    """Return the bounds of a box's width over its height.

    Raises:
        ValueError: they are no likely ones.
    """
    if not 0.01 <= ratio[0] <= ratio[1] <= 100:
        raise ValueError(
            "Expected the smallest and the largest width over height, 0.01 <= smallest <= largest <= 100"
        )
    return ratio


class Plain(Block):
    """No augmentation: the plain image is the only view."""

    space: Literal["plain"]


class CropFlip(Block):
    """A crop out of the padded image, and a horizontal flip: (2 padding + 1)^2 views, twice that with flips.

    Attributes:
        padding: pixels on each side.
        fill: what the padding holds; letKD and QUEST reflect, the others pad with zeros.
        flip: mirrored views too. Leave it off where a mirror image means something else (digits).
    """

    space: Literal["crop_flip"]
    padding: int = Field(default=4, ge=0, le=512)
    fill: Literal["zero", "reflect"] = "zero"
    flip: bool = True


class RandomResizedCrop(Block):
    """A random box resized to the full size, and a horizontal flip: an unbounded number of views.

    Attributes:
        scale: smallest and largest share of the area, from 0.001 to 1.
        ratio: smallest and largest width over height, from 0.01 to 100.
        flip: mirrored views too.
    """

    space: Literal["random_resized_crop"]
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True

    @field_validator("scale")
    @classmethod
    def _shares(cls, scale: tuple[float, float]) -> tuple[float, float]:
        # Of a smaller box no pixel would be left, and the whole center would be shown in its place.
        if not 0.001 <= scale[0] <= scale[1] <= 1:
            raise ValueError(
                "Expected the smallest and the largest share of the area, 0.001 <= smallest <= largest <= 1"
            )
        return scale

    @field_validator("ratio")
    @classmethod
    def _ratios(cls, ratio: tuple[float, float]) -> tuple[float, float]:
        return ratio_within(ratio)


class RotateFlip(Block):
    """A rotation about the center, and a horizontal flip: 2 steps + 1 views, twice that with flips.

    As letKD augments Tiny-ImageNet; there the angle is any number within the bounds. Here angles lie at equal
    distances, so that the views can be cached: between neighbors of the default ones no pixel of a 64x64 image moves
    by more than 0.4 of one.

    Attributes:
        degrees: the largest angle, to either side, from 0.1 to below 180.
        steps: angles on each side, beside that of 0.
        flip: mirrored views too.
    """

    space: Literal["rotate_flip"]
    degrees: float = Field(default=20.0, ge=0.1, lt=180)
    steps: int = Field(default=40, ge=1, le=1000)
    flip: bool = True


class ColorJitter(Block):
    """Other brightness, contrast, saturation and hue, in this order: an unbounded number of views.

    Attributes:
        brightness: by how much its factor may differ from 1.
        contrast: likewise.
        saturation: likewise; 0 for gray images.
        hue: largest share of the circle of hues by which it may move, either way; 0 for gray images.
    """

    space: Literal["color_jitter"]
    brightness: Strength = 0.4
    contrast: Strength = 0.4
    saturation: Strength = 0.4
    hue: float = Field(default=0.0, ge=0, le=0.5)


class RandAugment(Block):
    """RandAugment: operations that are drawn from fourteen and follow each other: an unbounded number of views.

    Attributes:
        operations: how many.
        magnitude: strength of all of them, of 30.
    """

    space: Literal["rand_augment"]
    operations: int = Field(default=2, ge=1, le=14)
    magnitude: int = Field(default=9, ge=0, le=30)


class RandomErasing(Block):
    """A random box that shows nothing of the image: an unbounded number of views.

    Attributes:
        probability: of a box.
        scale: smallest and largest share of the area, from 0.001 to below 1.
        ratio: smallest and largest width over height, from 0.01 to 100.
        fill: what the box holds.
    """

    space: Literal["random_erasing"]
    probability: float = Field(default=0.5, gt=0, le=1)
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    fill: Literal["black", "noise"] = "black"

    @field_validator("scale")
    @classmethod
    def _shares(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if not 0.001 <= scale[0] <= scale[1] < 1:
            raise ValueError(
                "Expected the smallest and the largest share of the area, 0.001 <= smallest <= largest < 1"
            )
        return scale

    @field_validator("ratio")
    @classmethod
    def _ratios(cls, ratio: tuple[float, float]) -> tuple[float, float]:
        return ratio_within(ratio)


class Mixup(Block):
    """Mixup: every pixel and the label are a mean of two samples' ones: an unbounded number of views.

    Attributes:
        alpha: of Beta(alpha, alpha), which the first sample's share is drawn from.
        probability: that a sample is mixed.
    """

    space: Literal["mixup"]
    alpha: Alpha = 0.2
    probability: Probability = 1.0


class CutMix(Block):
    """CutMix: a box shows another sample, and the label is mixed by its area: an unbounded number of views.

    Attributes:
        alpha: of Beta(alpha, alpha), which the share outside the box is drawn from.
        probability: that a sample is mixed.
    """

    space: Literal["cutmix"]
    alpha: Alpha = 1.0
    probability: Probability = 1.0


class MixupOrCutMix(Block):
    """One of both, drawn for each sample: an unbounded number of views. The defaults are DeiT's.

    Attributes:
        mixup: alpha of mixup.
        cutmix: alpha of CutMix.
        switch: share of the mixed samples that CutMix has.
        probability: that a sample is mixed.
    """

    space: Literal["mixup_or_cutmix"]
    mixup: Alpha = 0.8
    cutmix: Alpha = 1.0
    switch: float = Field(default=0.5, gt=0, lt=1)
    probability: Probability = 1.0


Mixing = Mixup | CutMix | MixupOrCutMix
SPACES = (
    Plain,
    CropFlip,
    RandomResizedCrop,
    RotateFlip,
    ColorJitter,
    RandAugment,
    RandomErasing,
    *get_args(Mixing),
)
PartParams = Annotated[
    Plain | CropFlip | RandomResizedCrop | RotateFlip | ColorJitter | RandAugment | RandomErasing | Mixing,
    Field(discriminator="space"),
]


class Stack(Block):
    """Several spaces, each of which changes what the one before shows.

    Attributes:
        parts: the spaces, in their order.
    """

    space: Literal["stack"]
    parts: tuple[PartParams, ...] = Field(min_length=2)


OneView = Annotated[
    Plain
    | CropFlip
    | RandomResizedCrop
    | RotateFlip
    | ColorJitter
    | RandAugment
    | RandomErasing
    | Mixing
    | Stack,
    Field(discriminator="space"),
]


class TwoViews(Block):
    """Two views of each sample at a time: a weak and a strong one. Of slots 1, 2, 3, ... every second one is strong.

    Attributes:
        weak: what all methods learn from.
        strong: what methods that ask for both learn from beside it.
    """

    space: Literal["two_views"] = "two_views"
    weak: OneView
    strong: OneView


ViewParams = Annotated[OneView | TwoViews, Field(discriminator="space")]


def mixing(views: ViewParams) -> Mixing | None:
    """Return what mixes the samples of a view space with each other; None where nothing does."""
    last = views.parts[-1] if isinstance(views, Stack) else views
    return last if isinstance(last, Mixing) else None


def weak(views: ViewParams) -> OneView:
    """Return what a training shows that learns from one view of each sample."""
    return views.weak if isinstance(views, TwoViews) else views


def view_params(views: Sequence[Plug], where: str) -> OneView:
    """Return the view space that params.yaml names.

    Args:
        views: its name and settings; of several, each changes what the one before shows.
        where: its place, for instance "datasets.digits.views".

    Raises:
        UnknownNameError: there is no such space.
        ParamsError: its settings are wrong, or the spaces do not go together.
    """
    parts = tuple(_part(plug, where) for plug in views)
    if len(parts) == 1:
        return parts[0]

    for number, part in enumerate(parts):
        if isinstance(part, Plain):
            raise ParamsError(f"params.yaml: {where} stacks 'plain', which changes nothing. Drop it.")
        if isinstance(part, RandomResizedCrop) and number:
            raise ParamsError(
                f"params.yaml: {where} has 'random_resized_crop' after '{parts[0].space}', expected it first, because "
                "it is cut out of the whole photograph. Put it so."
            )
        if isinstance(part, Mixing) and part is not parts[-1]:
            raise _not_last(part, parts[number + 1], where)
    return Stack(space="stack", parts=parts)


def _not_last(part: Mixing, following: PartParams, where: str) -> ParamsError:
    if isinstance(following, Mixing):
        return ParamsError(
            f"params.yaml: {where} has both '{part.space}' and '{following.space}', expected one, because a label is "
            "mixed of two. Name mixup_or_cutmix alone, which draws one of both for each sample."
        )
    return ParamsError(
        f"params.yaml: {where} has '{part.space}' before '{following.space}', expected it last, because it mixes what "
        "samples show in the end. Put it so."
    )


def dataset_views(views: Sequence[Plug], strong: Sequence[Plug] | None, where: str) -> ViewParams:
    """Return the view space of a data set: of one view of each sample at a time, or of two.

    Args:
        views: its `views`.
        strong: its `strong_views`.
        where: its place, for instance "datasets.digits".

    Raises:
        UnknownNameError: there is no such space.
        ParamsError: its settings are wrong, or the spaces do not go together.
    """
    own = view_params(views, f"{where}.views")
    return own if strong is None else two_views(own, view_params(strong, f"{where}.strong_views"), where)


def two_views(weak: OneView, strong: OneView, where: str) -> TwoViews:
    """Return a weak and a strong view space as one.

    Raises:
        ParamsError: one of them mixes samples.
    """
    mixes = mixing(weak) or mixing(strong)
    if mixes is not None:
        raise ParamsError(
            f"params.yaml: {where} has strong_views and '{mixes.space}', expected no mixed samples where two views of "
            "each are shown. Drop either, then: dvc repro params"
        )
    return TwoViews(weak=weak, strong=strong)


def _part(views: Plug, where: str) -> PartParams:
    # The literal that tags each in the union is also its name in params.yaml.
    spaces: dict[str, type[PartParams]] = {
        get_args(model.model_fields["space"].annotation)[0]: model for model in SPACES
    }
    if views.name not in spaces:
        raise unknown_name(f"view space of {where}:", views.name, spaces)

    place = f"{where}.{views.name}"
    if "space" in views.settings:
        raise ParamsError(f"params.yaml: unknown key '{place}.space': the name says it. Drop it.")
    return validate(spaces[views.name], {"space": views.name, **views.settings}, place)

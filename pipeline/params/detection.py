"""Views of images with boxes, as params: the boxes move with the pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, get_args

from pydantic import Field

from pipeline.errors import ParamsError, unknown_name
from pipeline.params.base import Block, validate
from pipeline.params.numbers import Once
from pipeline.params.plug import Plug
from pipeline.params.views import SPACES, Plain

Side = Annotated[int, Field(ge=16, le=4096)]


class ScaleFlip(Block):
    """Another scale, and a horizontal flip: a view for each of the short sides, twice that with flips.

    An image keeps its proportions, to a pixel. The first of the short sides is that of the plain view, which is what
    is evaluated.

    Attributes:
        short: the short side, in pixels; each training view has one of them.
        longest: bounds the other side: where it would be longer, the image is scaled to this one instead.
        flip: mirrored views too. Leave it off where a mirror image means something else.
    """

    space: Literal["scale_flip"]
    short: Annotated[tuple[Side, ...], Once] = Field(default=(800,), min_length=1, max_length=64)
    longest: Side = 1333
    flip: bool = True


def _name(model: type[Block]) -> str:
    # The literal that tags it in the union is also its name in params.yaml.
    name: str = get_args(model.model_fields["space"].annotation)[0]
    return name


BOX_SPACES = (Plain, ScaleFlip)
BOXLESS = tuple(_name(model) for model in SPACES)  # names of those for images without boxes
BoxViews = Annotated[Plain | ScaleFlip, Field(discriminator="space")]


def box_views(views: Sequence[Plug], where: str) -> BoxViews:
    """Return the view space that params.yaml names for images with boxes.

    Args:
        views: its name and settings.
        where: its place, for instance "datasets.photos.views".

    Raises:
        UnknownNameError: there is no such space.
        ParamsError: its settings are wrong, or it is one of images without boxes.
    """
    spaces: dict[str, type[Plain | ScaleFlip]] = {_name(model): model for model in BOX_SPACES}
    for plug in views:
        if plug.name not in spaces and plug.name in BOXLESS:
            raise ParamsError(
                f"params.yaml: {where} has '{plug.name}', which moves no boxes, and the data set has some. Give "
                f"{' or '.join(spaces)}."
            )
        if plug.name not in spaces:
            raise unknown_name(f"view space of {where}:", plug.name, spaces)
    if len(views) > 1:
        raise ParamsError(
            f"params.yaml: {where} stacks several spaces, which data sets with boxes cannot. Give one."
        )

    (plug,) = views
    place = f"{where}.{plug.name}"
    if "space" in plug.settings:
        raise ParamsError(f"params.yaml: unknown key '{place}.space': the name says it. Drop it.")
    return validate(spaces[plug.name], {"space": plug.name, **plug.settings}, place)


def check_boxless(views: Sequence[Plug], where: str) -> None:
    """Refuse a space of images with boxes for a data set without any.

    Raises:
        ParamsError: it is one.
    """
    for plug in views:
        if plug.name == _name(ScaleFlip):
            raise ParamsError(
                f"params.yaml: {where} has '{plug.name}', which is for images with boxes, and the data set has none. "
                f"Give one of {', '.join(BOXLESS)}."
            )

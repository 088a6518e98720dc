"""What a place of the student learns of the teacher's pixels: words, or sub-classes (letKD, QuEST).

Both are a distribution p_T over K outcomes for every pixel, and both losses are KL(p_T || softmax(scores)),
summed over K and averaged over all pixels of the batch, with no T^2. The kind of table decides which it is. The
teacher's side comes as a whole map, or as a compact code of one outcome a pixel; where p_T is one-hot anyway, both
train the same student.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self, TypeVar

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import model_validator
from torch import Tensor, nn

from pipeline import plugin
from pipeline.distillation.losses import pixel_kl
from pipeline.distillation.method import Context, Known, Needs, Tables, resolved_taps
from pipeline.errors import ParamsError, ShapeError
from pipeline.features import codebook
from pipeline.features.encoding import Feature
from pipeline.networks.network import Shape
from pipeline.params.base import Block
from pipeline.params.numbers import Factor

Arrays = Mapping[str, NDArray[Any]]  # of one table, by name
Kind = Literal["words", "subclasses"]  # what is learned, and the name of its term
ENCODINGS: Mapping[Kind, tuple[str, ...]] = {"words": ("nearest", "top4"), "subclasses": ("subclass",)}


class Place(Block):
    """What a place of the student learns; in params.yaml, the table's name alone stands for all the rest.

    Attributes:
        table: key of `tables`: words that `kmeans` or `kernels` made, or `subclasses`.
        encoding: the compact code that is read in the place of the teacher's whole map: "nearest" or "top4" of
            words, "subclass" of sub-classes; None reads the map.
        temperature: t of p_T = softmax(-t ||x - word||^2); of kernels' activations, p_T = softmax(t a). Sub-classes
            have none.
        feature: the teacher feature that is read. It is the table's own, under `encoding`, and not for params.yaml.
    """

    table: str
    encoding: Literal["nearest", "top4", "subclass"] | None = None
    temperature: Factor = 1.0
    feature: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        return {"table": given} if isinstance(given, str) else given

    @property
    def source(self) -> str:
        """The teacher feature that is read, once it is known."""
        assert self.feature is not None, "a place is resolved before it is read"
        return self.feature

    def resolved(self, tap: str, known: Known) -> Self:
        """Return this place with its feature.

        Args:
            tap: the student's tap, for the errors.
            known: what settings are resolved with.

        Raises:
            ParamsError: there is no such table, or a feature was given that is not the table's.
        """
        feature = fitted(tap, self.table, known)
        if self.encoding is not None:
            feature = f"{feature}:{self.encoding}@{self.table}"
        # A run's json of inputs holds the feature; params.yaml cannot choose another one.
        if self.feature not in (None, feature):
            raise ParamsError(
                f"Place '{tap}' has feature '{self.feature}', and its table and encoding give '{feature}'. Drop "
                "'feature' from the place, in params.yaml."
            )
        return self.model_copy(update={"feature": feature})


def fitted(tap: str, table: str, known: Known) -> str:
    """Return the teacher feature that the table of a place is fitted to.

    Args:
        tap: the student's tap, for the error.
        table: key of `tables`.
        known: what settings are resolved with.

    Raises:
        ParamsError: there is no such table.
    """
    if table not in known.fitted:
        raise ParamsError(
            f"Place '{tap}' learns the table '{table}', and 'tables' in params.yaml has "
            f"{', '.join(known.fitted) or 'none'}. Name one of these, or add it there."
        )
    return known.teacher.resolved(known.fitted[table])


P = TypeVar("P", bound=Place)


def resolved_places(places: Mapping[str, P], known: Known) -> dict[str, P]:
    """Return places by the student's taps, all names in full.

    Raises:
        ParamsError: a table is not there, or two names are the same tap.
    """
    by_tap = resolved_taps("places", places, known.student)
    return {tap: place.resolved(tap, known) for tap, place in by_tap.items()}


def needs(places: Mapping[str, Place], scores: tuple[str, ...]) -> Needs:
    """Return what places by student tap read, with the student's taps that hold the scores."""
    features = dict.fromkeys(place.source for place in places.values())
    tables = dict.fromkeys(place.table for place in places.values())
    return Needs(student=("logits", *scores), teacher=tuple(features), tables=tuple(tables))


def learned(tap: str, place: Place, tables: Tables) -> Kind:
    """Return what a place learns, by the kind of its table.

    Raises:
        ParamsError: the table is of no such kind, or its place has settings that this kind does not have.
    """
    arrays = tables[place.table]
    if "scores" in arrays:
        kind: Kind = "subclasses"
    elif "counts" in arrays and ("centers" in arrays or "scale" in arrays):
        kind = "words"
    else:
        raise ParamsError(
            f"Place '{tap}' learns the table '{place.table}', which holds {', '.join(sorted(arrays))}: neither words "
            "nor sub-classes. Name a table that kmeans, kernels or subclasses made, in params.yaml."
        )

    encodings = ENCODINGS[kind] if "centers" in arrays else ()  # kernels have no centers to be near to
    if place.encoding not in (None, *encodings):
        raise ParamsError(
            f"Place '{tap}' has encoding '{place.encoding}', and its table '{place.table}' holds {kind}, whose "
            f"encodings are {', '.join(encodings) or 'none'}. Change one of them, in params.yaml."
        )
    if kind == "subclasses" and place.temperature != type(place).model_fields["temperature"].default:
        raise ParamsError(
            f"Place '{tap}' has a temperature, and its table '{place.table}' holds sub-classes, which have none. Drop "
            "it, in params.yaml."
        )
    return kind


def outcomes(tap: str, place: Place, tables: Tables) -> int:
    """Return K: how many outcomes a pixel has.

    Raises:
        ParamsError: as `learned`.
    """
    kind = learned(tap, place, tables)
    return len(tables[place.table]["scores" if kind == "subclasses" else "counts"])


def _channels(arrays: Arrays) -> int:
    """Return the channels of the maps that a table was fitted to."""
    if "scalings" in arrays:
        return len(arrays["scalings"])
    return arrays["centers"].shape[1] if "centers" in arrays else len(arrays["counts"])


def _arrays_read(kind: Kind, place: Place, arrays: Arrays) -> tuple[str, ...]:
    """Return the arrays of a place's table that its loss reads: of a code, what the encoding has not read already."""
    if kind == "subclasses":
        encoding: tuple[str, ...] = plugin.load("encodings", "subclass").ARRAYS
        return ("scores",) if place.encoding else ("scores", *encoding)
    if place.encoding:
        return ()
    return ("centers",) if "centers" in arrays else ("scale",)


class Target(nn.Module):
    """p_T at one place, and the loss of the student's scores against it.

    Args:
        tap: the student's tap.
        place: what is learned there, resolved.
        context: what may be known before training.
        scores: the student tap that holds the scores, for the check of sizes.

    Raises:
        ShapeError: student and teacher have maps of other sizes.
        ParamsError: the table is of another kind, or was fitted to another map.
    """

    def __init__(self, tap: str, place: Place, context: Context, scores: str) -> None:
        super().__init__()
        arrays = context.tables[place.table]
        self.place, self.kind = place, learned(tap, place, context.tables)
        self.per_class: Tensor | None = None

        shape = context.teacher_shapes[place.source]
        _check_size(tap, place, context.student_shapes[scores], shape)
        if place.encoding is None and _channels(arrays) != shape[0]:
            raise ParamsError(
                f"Place '{tap}' learns from '{place.source}' with {shape[0]} channels, and table "
                f"'{place.table}' was fitted to {_channels(arrays)}. Fit it to that feature, in params.yaml."
            )

        for name in _arrays_read(self.kind, place, arrays):
            tensor = torch.as_tensor(arrays[name])
            array = tensor.float() if tensor.is_floating_point() else tensor
            if name == "per_class":  # read as a number: on a GPU a step would wait for it
                self.per_class = array
            else:  # not saved: the table is an artifact of its own
                self.register_buffer(f"_{name}", array, persistent=False)

    def forward(self, scores: Tensor, feature: Tensor, label: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Args:
            scores: the student's, before any BN (B, K, H, W).
            feature: the teacher's map (B, C, H, W), or its code.
            label: int64 (B,).
        """
        encoding = self.place.encoding
        if self.kind == "subclasses":
            table = self._table()
            ids = feature.long() if encoding else codebook.subclass(feature, table, label)  # (B, H, W)
            return pixel_kl(F.embedding(ids, table["scores"]).movedim(-1, 1), scores)

        if encoding == "nearest":
            # The KL of a one-hot p_T, by a gather: torch's own loss of maps adds up in any order on GPUs.
            return -F.log_softmax(scores, dim=1).gather(1, feature.long()[:, None]).mean()
        if encoding == "top4":
            ids, distances = codebook.unpack(feature)  # each (B, k, H, W)
            return pixel_kl(F.softmax(-self.place.temperature * distances, dim=1), scores, ids)
        return pixel_kl(self.words(feature), scores)

    def words(self, x: Tensor) -> Tensor:
        """Return p_T (B, K, H, W) of a map (B, C, H, W)."""
        table, t = self._table(), self.place.temperature
        if "centers" in table:
            return codebook.log_words(x, table["centers"], t).exp()
        return F.softmax(t * table["scale"] * x, dim=1)  # of kernels: the activations themselves

    def _table(self) -> dict[str, Tensor]:
        arrays = {name[1:]: x for name, x in self._buffers.items() if x is not None}
        return arrays | ({} if self.per_class is None else {"per_class": self.per_class})


def _check_size(tap: str, place: Place, student: Shape, teacher: Shape) -> None:
    if student[-2:] == teacher[-2:] and len(teacher) >= 2:
        return
    halved = tuple(2 * side for side in student[-2:]) == teacher[-2:]
    cure = (
        f"Fit the table to '{Feature.parse(place.source).tap}:halved'"
        if halved
        else "Choose another place, or a table of another teacher feature"
    )
    raise ShapeError(
        f"Place '{tap}' of the student has a map of {'x'.join(map(str, student[-2:]))}, teacher feature "
        f"'{place.source}' is {'x'.join(map(str, teacher))}. {cure}, in params.yaml."
    )

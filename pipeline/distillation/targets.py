"""What a place of the student learns of the teacher's pixels: words, or sub-classes (letKD, QuEST).

Both are a distribution p_T over K outcomes for every pixel, and both losses are KL(p_T || softmax(scores)),
summed over K and averaged over all pixels of the batch, with no T^2. The teacher's side comes as a whole map, or
as a compact code of one outcome a pixel; where p_T is one-hot anyway, both train the same student.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Discriminator, Field, Tag, model_validator
from torch import Tensor, nn

from pipeline.distillation.losses import pixel_kl
from pipeline.distillation.method import Context, Needs, Tables
from pipeline.errors import ParamsError, ShapeError
from pipeline.features import codebook
from pipeline.features.encoding import Feature
from pipeline.params.base import Block

ARRAYS = {"centers", "scale", "mean", "scalings", "per_class", "scores"}  # of a table, that training reads


class _Lesson(Block):
    """What both kinds have: a feature of the teacher, and the table that it is learned with."""

    CODES: ClassVar[tuple[str, ...]]  # encodings that stand for the whole map

    feature: str
    table: str

    @property
    def code(self) -> str:
        """The encoding that makes the feature a code of the table, or nothing where it is a map."""
        asked = Feature.parse(self.feature)
        return "" if asked.table is None else asked.encodings[-1]

    @model_validator(mode="after")
    def _check_code(self) -> Self:
        _, at, table = self.feature.partition("@")
        if at and table != self.table:
            raise ValueError(f"Feature '{self.feature}' is encoded with another table than '{self.table}'")
        if self.code not in ("", *self.CODES):
            raise ValueError(f"Expected a map or one of its codes {', '.join(self.CODES)}")
        return self


class Words(_Lesson):
    """A place that learns the words of a table that `kmeans` or `kernels` made.

    Attributes:
        learns: the kind of supervision.
        feature: of the teacher: the map that the table was fitted to, or "<map>:nearest@<table>",
            "<map>:top4@<table>" for its compact codes.
        table: key of `tables`.
        temperature: t of p_T = softmax(-t ||x - word||^2), letKD's; QuEST has a default of its own. Of kernels'
            activations, p_T = softmax(t a).
    """

    CODES = ("nearest", "top4")

    learns: Literal["words"] = "words"
    feature: str = "final"
    table: str = "words"
    temperature: float = Field(default=1.0, gt=0)


class Subclasses(_Lesson):
    """A place that learns the sub-class decisions of a table that `subclasses` made.

    Attributes:
        learns: the kind of supervision.
        feature: of the teacher: the map that the table was fitted to, or "<map>:subclass@<table>".
        table: key of `tables`.
    """

    CODES = ("subclass",)

    learns: Literal["subclasses"]
    table: str = "subclasses"


def _kind(place: Any) -> Any:
    """Return which kind a place of params.yaml is: words where it does not say."""
    return place.get("learns", "words") if isinstance(place, Mapping) else getattr(place, "learns", None)


Lesson = Annotated[
    Annotated[Words, Tag("words")] | Annotated[Subclasses, Tag("subclasses")], Discriminator(_kind)
]


def needs(lessons: Mapping[str, Lesson], scores: tuple[str, ...]) -> Needs:
    """Return what lessons by student tap read, with the student's taps that hold the scores."""
    features = dict.fromkeys(lesson.feature for lesson in lessons.values())
    tables = dict.fromkeys(lesson.table for lesson in lessons.values())
    return Needs(student=("logits", *scores), teacher=tuple(features), tables=tuple(tables))


def outcomes(lesson: Lesson, tables: Tables) -> int:
    """Return K: how many outcomes a pixel has.

    Raises:
        ParamsError: the table is not of the kind that the lesson learns.
    """
    arrays = tables[lesson.table]
    key = "scores" if lesson.learns == "subclasses" else "counts"
    if key not in arrays:
        raise ParamsError(
            f"Table '{lesson.table}' holds {', '.join(sorted(arrays))}; a place that learns {lesson.learns} needs "
            f"'{key}'. Name another table in the run's config, in params.yaml."
        )
    return len(arrays[key])


def _channels(arrays: Mapping[str, NDArray[Any]]) -> int:
    """Return the channels of the maps that a table was fitted to."""
    if "scalings" in arrays:
        return len(arrays["scalings"])
    return arrays["centers"].shape[1] if "centers" in arrays else len(arrays["counts"])


class Target(nn.Module):
    """p_T at one place, and the loss of the student's scores against it.

    Args:
        place: the student's tap.
        lesson: what it learns.
        context: what may be known before training.
        scores: the student tap that holds the scores, for the check of sizes.

    Raises:
        ShapeError: student and teacher have maps of other sizes.
        ParamsError: the table was fitted to another map.
    """

    def __init__(self, place: str, lesson: Lesson, context: Context, scores: str) -> None:
        super().__init__()
        self.lesson, self.code = lesson, lesson.code
        self.per_class: Tensor | None = None
        seen = context.teacher_shapes[lesson.feature]
        self._check_size(place, context.student_shapes[scores], seen)
        fitted = _channels(context.tables[lesson.table])
        if not self.code and fitted != seen[0]:
            raise ParamsError(
                f"Place '{place}' learns from '{lesson.feature}' with {seen[0]} channels, and table "
                f"'{lesson.table}' was fitted to {fitted}. Fit it to that feature, in params.yaml."
            )
        for name in ARRAYS & context.tables[lesson.table].keys():
            tensor = torch.as_tensor(context.tables[lesson.table][name])
            wanted = tensor.float() if tensor.is_floating_point() else tensor
            if name == "per_class":  # read as a number: on a GPU a step would wait for it
                self.per_class = wanted
                continue
            # Not saved: the table is an artifact of its own.
            self.register_buffer(f"_{name}", wanted, persistent=False)

    def forward(self, scores: Tensor, feature: Tensor, label: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Args:
            scores: the student's, before any BN (B, K, H, W).
            feature: the teacher's map (B, C, H, W), or its code.
            label: int64 (B,).
        """
        if isinstance(self.lesson, Subclasses):
            table = self._table()
            ids = feature.long() if self.code else codebook.subclass(feature, table, label)
            return pixel_kl(F.embedding(ids, table["scores"]).movedim(-1, 1), scores)
        if self.code == "nearest":
            return F.cross_entropy(scores, feature.long())  # the KL of a one-hot p_T
        if self.code == "top4":
            ids, distances = codebook.unpack(feature)
            return pixel_kl(F.softmax(-self.lesson.temperature * distances, dim=1), scores, ids)
        return pixel_kl(self.words(feature), scores)

    def words(self, x: Tensor) -> Tensor:
        """Return p_T (B, K, H, W) of a map (B, C, H, W)."""
        table, t = self._table(), self.lesson.temperature if isinstance(self.lesson, Words) else 1.0
        if "centers" in table:
            return codebook.log_words(x, table["centers"], t).exp()
        return F.softmax(t * table["scale"] * x, dim=1)  # of kernels: the activations themselves

    def _table(self) -> dict[str, Tensor]:
        found = {name[1:]: x for name, x in self._buffers.items() if x is not None}
        return found | ({} if self.per_class is None else {"per_class": self.per_class})

    def _check_size(self, place: str, student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
        if student[-2:] == teacher[-2:] and len(teacher) >= 2:
            return
        halved = tuple(2 * side for side in student[-2:]) == teacher[-2:]
        tap = Feature.parse(self.lesson.feature).tap
        cure = (
            f"Fit the table to '{tap}:halved' and learn from it"
            if halved
            else "Choose another place or another teacher feature"
        )
        raise ShapeError(
            f"Place '{place}' of the student has a map of {'x'.join(map(str, student[-2:]))}, teacher feature "
            f"'{self.lesson.feature}' is {'x'.join(map(str, teacher))}. {cure}, in params.yaml."
        )

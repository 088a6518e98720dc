"""A rehearsal of a run before anything is made: its student and its methods, without weights.

Shapes follow from architectures, and of a table only the sizes of its arrays count. So what would not fit together
after a teacher has been trained and its tables have been fitted is an error of `dvc repro params`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from numpy.typing import NDArray

from pipeline import plugin
from pipeline.distillation import combination
from pipeline.distillation.method import Context, Known
from pipeline.features.encoding import Feature
from pipeline.networks.architecture import blank, undrawn
from pipeline.networks.network import Network, Shape, probe
from pipeline.networks.spec import NetworkSpec
from pipeline.params.recipe import Recipe
from pipeline.runs.composition import Composition

StandIns = Mapping[str, Mapping[str, NDArray[Any]]]


def rehearse(
    run: Composition,
    student: NetworkSpec,
    known: Known,
    tables: StandIns,
    build: Callable[[NetworkSpec], Network] = blank,
) -> None:
    """Build a run's student and its methods without weights.

    A run whose transform reads matchings is skipped: what its methods see depends on these, which are not there.

    Args:
        run: its plug-ins, resolved.
        student: the plain student.
        known: both networks.
        tables: arrays of the tables' sizes, by table and array name.
        build: returns a network without weights; who rehearses many runs can keep them, since nothing changes one.

    Raises:
        ParamsError: methods disagree about the student, or a table is of another kind.
        ShapeError: student and teacher cannot be paired.
        UnknownNameError: a layer is inserted at a tap that the student does not have.
    """
    if run.needs.matchings or not set(run.needs.tables) <= set(tables):
        return
    read = {name: tables[name] for name in run.needs.tables}
    shapes = {name: feature_shape(known.teacher.taps, name, student.classes) for name in run.needs.teacher}
    if run.transform is not None:
        shapes = dict(run.transform.shapes(run.transform_config, shapes, {}))
    operations = combination.operations(run.methods, known.student.taps, shapes, read)

    spec = student.model_copy(
        update={"inserted": dict(operations.insert), "classifier_width": operations.classifier_width}
    )
    network = build(spec)
    context = Context(
        num_classes=spec.classes,
        labels=torch.zeros(spec.classes, dtype=torch.int64),
        student=network,
        # A student that nothing is inserted into has been probed.
        student_shapes=probe(network, spec.size, spec.channels) if spec.inserted else known.student.taps,
        teacher_shapes=shapes,
        tables=read,
    )
    with undrawn():
        method = combination.assemble(run.methods, context)
    method.phases(Recipe())  # two methods may each have phases of their own


def feature_shape(taps: Mapping[str, Shape], name: str, classes: int) -> Shape:
    """Return the shape of a teacher's feature without the batch axis.

    Args:
        taps: shapes of the teacher's taps.
        name: the feature.
        classes: number of classes.

    Raises:
        ShapeError: an encoding cannot encode its tap.
    """
    feature = Feature.parse(name)
    x = torch.zeros(1, *taps[feature.tap])
    # Only the last encoding can read a table.
    *plain, last = feature.encodings or ("",)
    if feature.table is None:
        return tuple(feature.encode(x).shape[1:])

    # No table is fitted yet: the least one that the encoding reads.
    x = Feature(feature.tap, tuple(plain)).encode(x)
    table = plugin.load("encodings", last).stand_in(x.shape[1], classes)
    code = Feature(feature.tap, (last,), feature.table)
    label = torch.zeros(1, dtype=torch.int64)
    return tuple(code.encode(x, {feature.table: table}, label).shape[1:])

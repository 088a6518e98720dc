"""What a run, a table and a matching demand of a teacher and a student, checked before anything is made.

Each error is one line that says what to add to params.yaml.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pipeline.errors import ParamsError, UnknownNameError, unknown_name
from pipeline.features.encoding import Feature, tables_of
from pipeline.networks.architecture import Architecture
from pipeline.params.base import placed
from pipeline.params.course import check_shares
from pipeline.params.pairs import RunBlock
from pipeline.params.teachers import checkpoints_of
from pipeline.params.top import check_kept
from pipeline.params.wording import described
from pipeline.runs import taught
from pipeline.runs.rehearsal import feature_shape

if TYPE_CHECKING:
    from pipeline.runs.project import Project

# A stage, or a place in it: "stage2", "stage2_block1", "stage2_pre".
_STAGE = re.compile(r"(?P<stage>stage\d+)(?P<place>(_\w+)?)")


def check_run(project: Project, pair: str, run: RunBlock, taps: tuple[str, ...], where: str) -> None:
    """Check that a pair's networks and its teacher's store have what a run reads.

    Args:
        project: all of params.yaml.
        pair: key of `pairs`.
        run: the run.
        taps: student taps that it reads.
        where: its place in params.yaml.

    Raises:
        ParamsError: something is not asked for, or not enough of it.
        UnknownNameError: something does not exist.
    """
    names = project.params.pairs[pair]
    _check_student_taps(project, names.student, taps, where)
    _check_views(project, names.teacher, run, where)
    _check_reads(project, names.teacher, run, where)
    taught.check_read(project, names.teacher, run, where)
    _check_matchings(project, pair, run, where)


def _check_student_taps(project: Project, student: str, taps: tuple[str, ...], where: str) -> None:
    network = project.architecture("students", student)
    for tap in taps:
        # What an inserted layer computes is recorded as "<tap>.<name>".
        if tap.partition(".")[0] not in network.taps:
            name = project.params.students[student].network
            raise _no_tap(f"student tap of {where}:", tap, name, network)


def _check_views(project: Project, teacher: str, run: RunBlock, where: str) -> None:
    """Check that a run with views of its own reads nothing that is stored of its data set's views."""
    dataset = project.params.teachers[teacher].dataset
    if run.views in (None, project.views[dataset]):
        return
    own, theirs = described(run.views), described(project.views[dataset])
    if run.source == "cached" and run.features:
        raise ParamsError(
            f"params.yaml: {where}.views is {own}, and the store of teacher '{teacher}' holds "
            f"datasets.{dataset}.views, {theirs}. Set 'source: online' of the run, or drop its views."
        )
    if run.copies:
        raise ParamsError(
            f"params.yaml: {where}.views is {own}, and the logits of '{next(iter(run.copies))}' are stored of "
            f"datasets.{dataset}.views, {theirs}. Drop the views of the run, or its schedule."
        )


def check_feature(project: Project, teacher: str, name: str, where: str) -> None:
    """Check that a teacher has the tap of a feature, and that its encodings can encode it.

    Raises:
        UnknownNameError: it has no such tap, or there is no such encoding.
        ShapeError: an encoding cannot encode the tap.
    """
    network, spec = project.architecture("teachers", teacher), project.spec("teachers", teacher)
    with placed(where):
        feature = Feature.parse(name)
    if feature.tap not in network.taps:
        known = project.params.teachers[teacher].network
        raise _no_tap(f"teacher tap of {where}:", feature.tap, known, network)
    with placed(where):
        feature_shape(network.taps, name, spec.classes)  # which the encodings can encode


def check_top(project: Project, teacher: str, name: str, kept: int) -> None:
    """Check that the largest values of a feature can stand for it.

    Args:
        project: all of params.yaml.
        teacher: key of `teachers`.
        name: of the feature, "last" replaced.
        kept: number of values that are kept.

    Raises:
        ParamsError: it is not the logits, or there are no more of them.
    """
    if name != "logits":
        raise ParamsError(
            f"params.yaml: teachers.{teacher}.features.{name}.top is {kept}, and only of logits the largest can stand "
            "for all. Drop it."
        )
    classes = project.images_of(teacher).classes
    # None where only the files know the classes: then the stage finds out.
    if classes is not None:
        check_kept(kept, classes, f"teachers.{teacher}")


def _check_whole(project: Project, teacher: str, name: str, what: str) -> None:
    """Refuse the largest logits where all values of a feature are needed."""
    kept = project.features(teacher)[name].top
    if kept is not None:
        raise ParamsError(
            f"params.yaml: {what} '{name}', of which the store of teacher '{teacher}' keeps the {kept} largest alone. "
            f"Drop teachers.{teacher}.features.{name}.top, or name another feature."
        )


def _check_reads(project: Project, teacher: str, run: RunBlock, where: str) -> None:
    """Check that the teacher has what a run reads, and that its store holds it where the run is cached."""
    for name in run.tables:
        if name not in project.params.tables:
            raise unknown_name(f"table of {where}:", name, project.params.tables, "Add it to 'tables'.")
        # The table speaks of channels in the order that they had before the transform.
        if project.table(teacher, name).feature in run.changes:
            raise ParamsError(
                f"params.yaml: {where} reads table '{name}', which is fitted to "
                f"'{project.table(teacher, name).feature}', and its transform changes that feature. Drop the "
                "transform, or take the feature out of its features."
            )
        check_table(project, teacher, name)

    for name in run.features:
        check_feature(project, teacher, name, where)
        # A code needs its table to be made, though the student itself may not read it.
        for table in tables_of([name]):
            if table not in project.params.tables:
                raise unknown_name(f"table of {where}:", table, project.params.tables, "Add it to 'tables'.")
            check_table(project, teacher, table)

    kept = project.params.teachers[teacher]
    check_shares(run.recipe, len(run.checkpoints), where)
    for checkpoint in run.checkpoints:
        if checkpoint not in (names := checkpoints_of(kept)):
            hint = f"Training keeps anchor_025 where teachers.{teacher}.anchors has 0.25."
            raise unknown_name(f"checkpoint of {where}:", checkpoint, names, hint)
        if run.source == "cached" and checkpoint not in kept.checkpoints:
            raise ParamsError(
                f"params.yaml: {where} learns from checkpoint '{checkpoint}', and the store of teacher '{teacher}' "
                f"holds {', '.join(kept.checkpoints)}. Add it to teachers.{teacher}.checkpoints."
            )

    if run.source == "cached":
        _check_stored(project, teacher, run, where)


def _check_stored(project: Project, teacher: str, run: RunBlock, where: str) -> None:
    stored = project.features(teacher)
    for name in run.features:
        if tables_of([name]):
            if any(checkpoint != "last" for checkpoint in run.checkpoints):
                raise ParamsError(
                    f"params.yaml: {where} learns from the codes '{name}' of {', '.join(run.checkpoints)}, and "
                    "codes are made of the last checkpoint. Set 'source: online' of the run."
                )
            continue  # made where a run asks for it
        if name not in stored:
            raise ParamsError(
                f"params.yaml: {where} reads '{name}' of teacher '{teacher}', whose store holds "
                f"{', '.join(stored)}. Add it to teachers.{teacher}.features, or set 'source: online' of the run."
            )

        place = f"teachers.{teacher}.features.{name}.slots"
        slots = project.slots(teacher, stored[name].slots, place)
        if run.slots is not None and slots < run.slots:
            raise ParamsError(
                f"params.yaml: {where} shows {run.slots} view slots, and {place} is {slots}. Raise it, or set "
                "'slots' or 'source: online' of the run."
            )


def check_table(project: Project, teacher: str, name: str) -> None:
    """Check that a teacher's store holds what a table is fitted to.

    Raises:
        ParamsError: it does not; the message says what to add.
    """
    feature, stored = project.table(teacher, name).feature, project.features(teacher)
    check_feature(project, teacher, feature, f"tables.{name}")

    _check_directions(project, teacher, name, feature)
    if feature not in stored:
        raise ParamsError(
            f"params.yaml: tables.{name} is fitted to '{feature}', and the store of teacher '{teacher}' holds "
            f"{', '.join(stored)}. Add {feature}: {{slots: 0}} to teachers.{teacher}.features."
        )
    _check_whole(project, teacher, feature, f"tables.{name} is fitted to")

    if "last" not in project.params.teachers[teacher].checkpoints:
        raise ParamsError(
            f"params.yaml: tables.{name} is fitted to the last checkpoint of teacher '{teacher}', and its store "
            f"holds {', '.join(project.params.teachers[teacher].checkpoints)}. Add last to "
            f"teachers.{teacher}.checkpoints."
        )


def _check_directions(project: Project, teacher: str, name: str, feature: str) -> None:
    """Check that the pixels of a feature differ in as many directions as a table keeps."""
    components = getattr(project.table(teacher, name), "components", None)
    if components is None:
        return  # a table of another kind
    spec, classes = project.spec("teachers", teacher), project.images_of(teacher).classes
    channels = feature_shape(project.architecture("teachers", teacher).taps, feature, spec.classes)[0]
    # None where only the files know the classes.
    most = channels if classes is None else min(channels, classes - 1)
    sizes = f"{channels} channels" if classes is None else f"{channels} channels and {classes} classes"
    if components > most:
        raise ParamsError(
            f"params.yaml: tables.{name} keeps {components} components of '{feature}' of teacher '{teacher}', whose "
            f"{sizes} give {most} at most. Lower components."
        )


def _check_matchings(project: Project, pair: str, run: RunBlock, where: str) -> None:
    names = project.params.pairs[pair]
    for wanted in run.matchings:
        if wanted.matching not in project.params.matchings:
            known = project.params.matchings
            raise unknown_name(f"matching of {where}:", wanted.matching, known, "Add it to 'matchings'.")

        if wanted.seed is not None and wanted.seed not in project.params.seeds:
            raise ParamsError(
                f"params.yaml: {where} takes the matching of seed {wanted.seed}, and seeds are "
                f"{', '.join(map(str, project.params.seeds))}. Name one of these."
            )

        if wanted.teacher is not None and project.borrowed(pair, wanted.teacher, wanted.matching) is None:
            raise ParamsError(
                f"params.yaml: {where} takes the matching '{wanted.matching}' with teacher '{wanted.teacher}'. "
                f"Add {wanted.teacher}-{wanted.matching}: {{pair: {pair}, teacher: {wanted.teacher}, student: "
                f"{names.student}, matching: {wanted.matching}}} to 'borrowed'."
            )

        check_matching(project, wanted.teacher or names.teacher, names.student, wanted.matching)


def check_matching(project: Project, teacher: str, student: str, name: str) -> None:
    """Check that a matching's student has the tap, and that its teacher's store holds the feature.

    Raises:
        ParamsError: it does not; the message says what to add.
    """
    recipe, where = project.matching(teacher, student, name), f"matchings.{name}"
    _check_student_taps(project, student, (recipe.student_tap,), where)
    check_feature(project, teacher, recipe.teacher_feature, where)

    stored, kept = project.features(teacher), project.params.teachers[teacher].checkpoints
    if recipe.teacher_feature not in stored:
        raise ParamsError(
            f"params.yaml: {where} matches '{recipe.teacher_feature}', and the store of teacher '{teacher}' holds "
            f"{', '.join(stored)}. Add it to teachers.{teacher}.features."
        )
    _check_whole(project, teacher, recipe.teacher_feature, f"{where} matches")
    if recipe.teacher_checkpoint not in kept:
        raise ParamsError(
            f"params.yaml: {where} matches checkpoint '{recipe.teacher_checkpoint}', and the store of teacher "
            f"'{teacher}' holds {', '.join(kept)}. Add it to teachers.{teacher}.checkpoints."
        )

    # None where only the files know. `pictured` counts from 0, so it needs one class more than it says.
    classes = project.images[project.params.students[student].dataset].classes
    for setting, value in (("ranges", recipe.ranges), ("pictured", recipe.pictured + 1)):
        if classes is not None and value > classes:
            raise ParamsError(
                f"params.yaml: {where}.{setting} is {getattr(recipe, setting)}, and the data have {classes} "
                "classes. Lower it."
            )


def _no_tap(what: str, tap: str, name: str, network: Architecture) -> UnknownNameError:
    """Return the error for a tap that a network does not have; it advises the one that the last stage has."""
    hint = ""
    if ":" in tap:
        hint = "A student's tap has no encoding."
    elif (match := _STAGE.fullmatch(tap)) and network.stages and match["stage"] not in network.stages:
        last, place = network.stages[-1], match["place"]
        if last + place in network.taps:
            hint = f"The last stage of {name} is {last}: write {last}{place}, or last{place}."
    return unknown_name(what, tap, network.taps, hint)

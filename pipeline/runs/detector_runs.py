"""Runs whose networks are detectors: what they consist of, and what of a run is there for classifiers alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pipeline.detection.architecture import SIDE, architecture
from pipeline.detection.blocks import DetectorMatchBlock, DetectorPairBlock, DetectorRunBlock
from pipeline.detection.detector_settings import DetectorSettings
from pipeline.distillation import combination, map_lesson
from pipeline.distillation.method import Known
from pipeline.errors import ParamsError, unknown_name
from pipeline.matching.assignment import ONE_TO_ONE
from pipeline.networks.architecture import Architecture, undrawn
from pipeline.networks.network import Shape
from pipeline.params.base import placed, validate
from pipeline.params.course import check_course
from pipeline.params.matchings import LEARNED, MatchingParams
from pipeline.params.plug import Plug
from pipeline.params.recipe import Recipe
from pipeline.params.runs import RunParams
from pipeline.params.sections import changed
from pipeline.params.tables import AskedBlock, Matched
from pipeline.params.teachers import checkpoints_of
from pipeline.runs import detection
from pipeline.runs.composition import Composition
from pipeline.runs.project import Project

OTHER = 160  # height of another image than methods are built for, in pixels


def pair_block(project: Project, name: str) -> DetectorPairBlock:
    """Return a pair of detectors with the runs that `distill` asks of it.

    Raises:
        ParamsError: a run asks for what is there for classifiers alone, or does not fit.
        UnknownNameError: it names what does not exist.
    """
    params, pair = project.params, project.params.pairs[name]
    return DetectorPairBlock(
        stage=f"inputs@{name}",
        pair=name,
        teacher=pair.teacher,
        student=detection.student_block(project, pair.student),
        seeds=params.seeds,
        runs={run: run_block(project, name, run) for run in params.runs_of(name)},
    )


def match_block(project: Project, name: str) -> DetectorMatchBlock:
    """Return the matchings that runs of a pair of detectors ask for."""
    params, pair = project.params, project.params.pairs[name]
    recipes = {
        wanted.matching: recipe_of(project, name, wanted.matching)
        for run in params.runs_of(name)
        for wanted in run_block(project, name, run).matchings
    }
    return DetectorMatchBlock(
        stage=f"match_channels@{name}",
        pair=name,
        teacher=pair.teacher,
        student=pair.student,
        dataset=params.students[pair.student].dataset,
        # Without recipes no seed is named either: a new seed would run a stage that makes nothing.
        seeds=params.seeds if recipes else (),
        recipes=recipes,
    )


def asked(project: Project, teacher: str) -> AskedBlock:
    """Return what runs ask to be made of a detector: matchings alone, for nothing is stored."""
    params = project.params
    matched = {
        Matched(feature=recipe.teacher_feature, checkpoint=recipe.teacher_checkpoint)
        for name, pair in params.pairs.items()
        if pair.teacher == teacher
        for recipe in match_block(project, name).recipes.values()
    }
    nothing = dict.fromkeys(params.tables)
    ordered = tuple(sorted(matched, key=lambda one: (one.feature, one.checkpoint)))
    return AskedBlock(teacher=teacher, tables=nothing, codes=nothing, matched=ordered)


def known(project: Project, pair: str, height: int = SIDE) -> Known:
    """Return the two detectors of a pair, for an image of some height in pixels."""
    names = project.params.pairs[pair]
    return Known(
        _architecture(project, "students", names.student, height),
        _architecture(project, "teachers", names.teacher, height),
    )


def run_block(project: Project, pair: str, run: str) -> DetectorRunBlock:
    """Return a run of a pair of detectors, checked; see `pair_block`."""
    names, settings = project.params.pairs[pair], project.params.run(pair, run)
    where = f"pairs.{pair}.overrides.{run}" if run in names.overrides else f"runs.{run}"
    _check_settings(settings, where)
    both = known(project, pair)
    with placed(f"{where} (of pair {pair})"):
        composition = Composition.of(settings, where, both)
        _check_needs(composition, both)

    plain = project.recipe("students", names.student).model_dump(mode="json")
    recipe = validate(Recipe, changed(plain, settings.recipe), f"{where}.recipe")
    check_course(recipe, f"{where}.recipe")
    detection.check_recipe(recipe, where)

    needs = composition.needs
    with placed(f"{where} (of pair {pair})"):
        # On an image of another size than the methods are built for: theirs have any.
        other = known(project, pair, OTHER)
        _rehearse(
            composition,
            (both, shapes_seen(project, pair, composition, both)),
            (other, shapes_seen(project, pair, composition, other)),
        )
    transform = settings.transform
    return DetectorRunBlock(
        methods=composition.plugs(),
        transform=None
        if transform is None
        else Plug.of(transform.name, **composition.transform_config.model_dump(mode="json")),
        recipe=recipe,
        features=needs.teacher,
        matchings=needs.matchings,
        plugins=composition.plugins,
    )


def recipe_of(project: Project, pair: str, name: str) -> MatchingParams:
    """Return the recipe of a matching of detectors, checked.

    Raises:
        UnknownNameError: there is no such matching, tap or checkpoint.
        ParamsError: it is one of classifiers.
    """
    if name not in project.params.matchings:
        raise unknown_name("matching:", name, project.params.matchings, "Add it to 'matchings'.")
    both, recipe, where = known(project, pair), project.params.matchings[name], f"matchings.{name}"
    teacher = project.params.teachers[project.params.pairs[pair].teacher]
    recipe = recipe.model_copy(
        update={
            "student_tap": both.student.resolved(recipe.student_tap),
            "teacher_feature": both.teacher.resolved(recipe.teacher_feature),
        }
    )
    for tap, network, of in (
        (recipe.student_tap, both.student, "student"),
        (recipe.teacher_feature, both.teacher, "teacher"),
    ):
        if tap not in network.taps:
            raise unknown_name(f"{of} tap of {where}:", tap, network.taps)
    if recipe.teacher_checkpoint not in (points := checkpoints_of(teacher)):
        raise unknown_name(f"checkpoint of {where}:", recipe.teacher_checkpoint, points)

    if recipe.strategy in LEARNED or recipe.ranges > 1:
        setting = f"strategy {recipe.strategy}" if recipe.strategy in LEARNED else f"ranges {recipe.ranges}"
        raise ParamsError(
            f"params.yaml: {where} has {setting}, which is there for images with one label each. Give a strategy that "
            "is a permutation, and one range."
        )
    ours, theirs = both.student.taps[recipe.student_tap], both.teacher.taps[recipe.teacher_feature]
    if ours[1:] != theirs[1:]:
        raise ParamsError(
            f"params.yaml: {where} pairs student tap '{recipe.student_tap}' with teacher feature "
            f"'{recipe.teacher_feature}', whose pixels are of other sizes. Choose taps of one stride."
        )
    if recipe.strategy in ONE_TO_ONE and theirs[0] < ours[0]:
        raise ParamsError(
            f"params.yaml: {where} has strategy {recipe.strategy}, and the teacher's {theirs[0]} channels are fewer "
            f"than the student's {ours[0]}. Choose strategy greedy, or other taps."
        )
    return recipe


def _architecture(project: Project, section: str, name: str, height: int) -> Architecture:
    network, where = getattr(project.params, section)[name], f"{section}.{name}"
    with placed(f"{where}.network"):
        return architecture(
            network.network, validate(DetectorSettings, network.detector, f"{where}.detector"), height
        )


def _check_settings(run: RunParams, where: str) -> None:
    """Refuse what is there for classifiers alone."""
    if run.source != "online":
        raise ParamsError(
            f"params.yaml: {where} reads a store, and of a detector nothing is stored. Set 'source: online' of the "
            "run, or of pairs.PAIR.overrides."
        )
    for key, value, only in (
        ("schedule", run.schedule.name, "final"),
        ("transform", "permutation" if run.transform is None else run.transform.name, "permutation"),
        ("slots", run.slots, "all"),
        ("views", "" if run.views is None else "set", ""),
    ):
        if value != only:
            raise ParamsError(
                f"params.yaml: {where}.{key} is {value}, and detectors have "
                f"{f'{only} alone' if only else 'those of their data set'}. Drop it, then: dvc repro params"
            )


def _check_needs(run: Composition, both: Known) -> None:
    """Refuse a run that reads what detectors do not have."""
    needs, transform = run.needs, run.transform_config
    given = transform.model_dump()
    if any(given.get(key) is not None for key in ("dynamic", "teacher", "seed")):
        raise ParamsError(
            "The transform has dynamic, teacher or seed, and detectors take the matching of their own pair and seed, "
            "made once. Drop these from its settings."
        )

    for of, taps, network in (
        ("student", needs.student, both.student),
        ("teacher", needs.teacher, both.teacher),
    ):
        for tap in taps:
            if tap not in network.taps and (of, tap) != ("student", map_lesson.LOGITS):
                raise unknown_name(f"map of the {of}, which finds boxes:", tap, network.taps)
    if needs.tables or needs.network or any(config.insert for config in run.methods.values()):
        what = "tables" if needs.tables else "modules of the teacher" if needs.network else "inserted layers"
        raise ParamsError(
            f"The run has {what}, which detectors have none of. Name methods that read maps alone, in params.yaml."
        )


def shapes_seen(project: Project, pair: str, run: Composition, both: Known) -> Mapping[str, Shape]:
    """Return the shapes of the teacher's maps as the methods see them: a permutation gives the student's channels."""
    seen = {name: both.teacher.taps[name] for name in run.needs.teacher}
    for wanted in run.needs.matchings:
        recipe = recipe_of(project, pair, wanted.matching)
        matched = both.teacher.taps[recipe.teacher_feature][0]
        for feature in run.changes:
            if seen[feature][0] != matched:
                raise ParamsError(
                    f"The transform permutes '{feature}' of {seen[feature][0]} channels, and matchings."
                    f"{wanted.matching} has '{recipe.teacher_feature}' of {matched}. Match that feature."
                )
            seen[feature] = (both.student.taps[recipe.student_tap][0], *seen[feature][1:])
    return seen


def _rehearse(
    run: Composition, at: tuple[Known, Mapping[str, Shape]], again: tuple[Known, Mapping[str, Shape]]
) -> None:
    """Build the methods of a run for images of one size, and try them on those of another."""
    built, seen = at
    with undrawn():
        method = combination.assemble(run.methods, map_lesson.context(built.student.taps, seen))
    for x in method.parameters():
        torch.nn.init.constant_(x.data, 0.1)  # what the memory held may be no number

    tried, shown = again
    read = {name: tried.student.taps[name] for name in run.needs.student if name != map_lesson.LOGITS}
    map_lesson.rehearse(method, read, {name: shown[name] for name in run.needs.teacher})

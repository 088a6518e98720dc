"""The blocks that stages depend on: one json each, with its settings and the hash of the code that they run.

DVC tracks keys that are there, and a key that is left to its default is not. So the stage `params` writes every block
as a json with its defaults filled in, and each stage depends on its own block: an edit reruns what reads it, and
spelling out a default reruns nothing. What runs ask for decides which tables, codes and matchings are made.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from pipeline import plugin
from pipeline.artifacts import closure
from pipeline.features.encoding import Feature, encodings_of, tables_of
from pipeline.networks.spec import NetworkSpec
from pipeline.params import tasks
from pipeline.params.base import Block, StageBlock
from pipeline.params.copies import CopyBlock, TaughtParams
from pipeline.params.datasets import PrepareBlock
from pipeline.params.exports import ExportBlock
from pipeline.params.matchings import MatchBlock, MatchingParams
from pipeline.params.pairs import PairBlock
from pipeline.params.recipe import Recipe
from pipeline.params.students import StudentBlock
from pipeline.params.tables import AskedBlock, EncodeBlock, FitBlock, Matched
from pipeline.params.tasks import DETECTION
from pipeline.params.teacher import TrainBlock
from pipeline.params.teachers import CheckBlock, CodeBlock, ExtractBlock
from pipeline.params.teaching import TEACHER, Drop
from pipeline.params.views import weak
from pipeline.runs import demands, detection, detector_runs, taught, temperatures
from pipeline.runs.project import Kind, Project

S = TypeVar("S", bound=StageBlock)


def blocks(project: Project) -> dict[str, Block]:
    """Return all blocks, by file name without its ending.

    Raises:
        ParamsError: something in params.yaml does not fit together.
    """
    params = project.params
    # What others build on comes first: a mistake is reported where it stands, not at what reads it.
    every: dict[str, Block] = {"project": params}
    detection.check(project)
    # Which looks at the settings of sources and views.
    for name in (*project.views, *project.box_views):
        every[f"datasets/{name}"] = _prepare(project, name)
    for name in params.teachers:
        if detection.is_detector(project, name):
            every |= _detector(project, name)
            continue
        every |= _teacher(project, name)
        every[f"teachers/{name}/asked"] = asked(project, name)
    for name in params.students:
        learns_boxes = detection.learns_boxes(project, name)
        every[f"students/{name}"] = (detection.student_block if learns_boxes else _student)(project, name)

    for name in params.copies:
        every[f"copies/{name}"] = _copy(project, name)
    for name in params.assistants:
        every[f"assistants/{name}"] = _assistant(project, name)
    for name, pair in params.pairs.items():
        if detection.learns_boxes(project, pair.student):
            every |= _detectors(project, name)
            continue
        every[f"pairs/{name}"] = _pair(project, name)
        every[f"matchings/{name}"] = _match(project, name)
    for name in params.borrowed:
        every[f"borrowed/{name}"] = _borrowed(project, name)
    for name in params.exports:
        every[f"exports/{name}"] = _export(project, name)
    return every


def unasked(project: Project) -> list[str]:
    """Return the names of blocks that are null: their stages, of which DVC has one a teacher, make nothing."""
    return [
        f"teachers/{name}/{block}" for name in detection.detectors(project) for block in ("extract", "check")
    ]


def asked(project: Project, teacher: str) -> AskedBlock:
    """Return what runs ask to be made of a teacher's store: tables, codes, and features to match."""
    params, own = project.params, project.params.teachers[teacher]
    tables = dict.fromkeys(own.tables)
    codes: dict[str, dict[str, int]] = {}
    matched: dict[tuple[str, str], None] = {}

    for pair, _, run in project.distilled():
        names = params.pairs[pair]
        if names.teacher == teacher:
            tables |= dict.fromkeys((*run.tables, *tables_of(run.features)))
            # A teacher that runs online makes its codes beside the student: only cached runs need them stored.
            for feature in run.features if run.source == "cached" else ():
                if (table := Feature.parse(feature).table) is not None and run.slots is not None:
                    slots = codes.setdefault(table, {})
                    # One store serves all runs: it holds as many slots as the run with the most views reads.
                    slots[feature] = max(run.slots, slots.get(feature, 0))
        # A matching may be with another teacher than the pair's, and is then made from that one's store.
        for wanted in run.matchings:
            if (wanted.teacher or names.teacher) == teacher:
                recipe = project.matching(teacher, names.student, wanted.matching)
                matched[recipe.teacher_feature, recipe.teacher_checkpoint] = None

    for borrowed in params.borrowed.values():
        if borrowed.teacher == teacher:
            recipe = project.matching(teacher, borrowed.student, borrowed.matching)
            matched[recipe.teacher_feature, recipe.teacher_checkpoint] = None

    # Also those that only `teachers.<name>.tables` asks for, which no run has checked.
    for table in tables:
        demands.check_table(project, teacher, table)

    # None where nobody asks: DVC's matrix of teachers and tables is a full product, and every stage of it reads a json.
    # Matched features are sorted, so that the order of runs in params.yaml changes nothing.
    return AskedBlock(
        teacher=teacher,
        tables={name: _fit(project, teacher, name) if name in tables else None for name in params.tables},
        codes={
            name: _encode(project, teacher, name, codes[name]) if name in codes else None
            for name in params.tables
        },
        matched=tuple(Matched(feature=feature, checkpoint=point) for feature, point in sorted(matched)),
    )


def _prepare(project: Project, name: str) -> PrepareBlock:
    source, task = project.params.datasets[name].source, project.tasks[name]
    block = PrepareBlock(
        stage=f"prepare_data@{name}", dataset=name, source=source.name, settings=source.settings, task=task
    )
    modules = ["stages.prepare_data", plugin.module("datasets", source.name)]
    return _coded(project, block, [*modules, *([tasks.module("prepare_data")] if task == DETECTION else [])])


def _teacher(project: Project, name: str) -> dict[str, Block]:
    """Return what training, extraction, its check and evaluation depend on: another feature retrains no teacher."""
    teacher, spec = project.params.teachers[name], project.spec("teachers", name)
    features, views = project.features(name), project.views[teacher.dataset]
    for feature, stored in features.items():
        # For its errors alone: more slots than there are views.
        project.slots(name, stored.slots, f"teachers.{name}.features.{feature}.slots")

    project.check_weights("teachers", name)
    recipe = project.recipe("teachers", name)
    if recipe.trains:  # one that is kept only evaluates
        project.check_training("teachers", name)
    family = plugin.module("networks", spec.family)
    encodings = [plugin.module("encodings", encoding) for encoding in encodings_of(features)]

    train = TrainBlock(
        stage=f"train_teacher@{name}",
        teacher=name,
        dataset=teacher.dataset,
        family=spec.family,
        network=spec.network,
        source=spec.source,
        weights=spec.weights,
        head=teacher.head,
        seed=teacher.seed,
        recipe=recipe,
        anchors=teacher.anchors,
        views=weak(views),
    )

    extract = ExtractBlock(
        stage=f"extract_features@{name}",
        teacher=name,
        views=views,
        features=features,
        checkpoints=teacher.checkpoints,
        compression=teacher.compression,
    )

    kept = any(feature.top is not None for feature in features.values())
    # Only where something is lost: else a run's temperature would repeat the check of a store that it says nothing of.
    read_at = temperatures.of(project, name) if kept else ()
    check = CheckBlock(stage=f"check_features@{name}", teacher=name, temperatures=read_at)
    evaluate = CodeBlock(stage=f"evaluate_teacher@{name}", teacher=name)
    return {
        f"teachers/{name}/train": _coded(project, train, ["stages.train_teacher", family]),
        f"teachers/{name}/extract": _coded(project, extract, ["stages.extract_features", family, *encodings]),
        f"teachers/{name}/check": _coded(project, check, ["stages.check_features", family, *encodings]),
        f"teachers/{name}/evaluate": _coded(project, evaluate, ["stages.evaluate", family]),
    }


def _detector(project: Project, name: str) -> dict[str, Block]:
    """Return what training and evaluation of a detector depend on."""
    evaluate = CodeBlock(stage=f"evaluate_teacher@{name}", teacher=name)
    modules = {stage: [f"stages.{stage}", tasks.module(stage)] for stage in ("train_teacher", "evaluate")}
    return {
        f"teachers/{name}/train": _coded(
            project, detection.train_block(project, name), modules["train_teacher"]
        ),
        f"teachers/{name}/evaluate": _coded(project, evaluate, modules["evaluate"]),
        f"teachers/{name}/asked": detector_runs.asked(project, name),
    }


def _detectors(project: Project, name: str) -> dict[str, Block]:
    """Return what a pair of detectors consists of, and how its channels are matched."""
    match = detector_runs.match_block(project, name)
    modules = ["stages.match_channels", tasks.module("match_channels")]
    return {
        f"pairs/{name}": detector_runs.pair_block(project, name),
        f"matchings/{name}": _coded(project, match, modules if match.recipes else []),
    }


def _fit(project: Project, teacher: str, name: str) -> FitBlock:
    plug = project.params.tables[name].name
    block = FitBlock(
        stage=f"fit_table@{teacher}-{name}",
        teacher=teacher,
        dataset=project.params.teachers[teacher].dataset,
        name=name,
        table=plug,
        config=project.table(teacher, name).model_dump(mode="json"),
    )
    return _coded(project, block, ["stages.fit_table", plugin.module("tables", plug)])


def _encode(project: Project, teacher: str, table: str, codes: dict[str, int]) -> EncodeBlock:
    own = project.params.teachers[teacher]
    block = EncodeBlock(
        stage=f"encode_views@{teacher}-{table}",
        teacher=teacher,
        dataset=own.dataset,
        table=table,
        codes=codes,
        views=project.views[own.dataset],
        compression=own.compression,
    )
    encodings = [plugin.module("encodings", encoding) for encoding in encodings_of(codes)]
    return _coded(project, block, ["stages.encode_views", _family(project, "teachers", teacher), *encodings])


def _student(project: Project, name: str) -> StudentBlock:
    student, spec = project.params.students[name], project.spec("students", name)
    project.architecture("students", name)  # which can read the images
    project.check_weights("students", name)
    project.check_training("students", name)  # by runs too, whose recipes are their own
    # Without a code hash: `student_inputs` puts the hashes of the code into its json itself.
    return StudentBlock(
        stage=f"student_inputs@{name}",
        student=name,
        dataset=student.dataset,
        family=spec.family,
        network=spec.network,
        source=spec.source,
        weights=spec.weights,
        recipe=project.recipe("students", name),
        views=weak(project.views[student.dataset]),
    )


def _copy(project: Project, name: str) -> CopyBlock:
    copy = project.params.copies[name]
    project.check_training("teachers", copy.teacher)
    spec, recipe = project.spec("teachers", copy.teacher), project.recipe("students", copy.student)
    return _taught(project, name, copy, spec, recipe, (TEACHER,))


def _assistant(project: Project, name: str) -> CopyBlock:
    assistant = project.params.assistants[name]
    project.architecture("assistants", name)  # which can read the images
    project.check_training("assistants", name)
    spec, recipe = project.spec("assistants", name), project.recipe("assistants", name)
    return _taught(project, name, assistant, spec, recipe, assistant.teachers, assistant.drop)


def _taught(
    project: Project,
    name: str,
    params: TaughtParams,
    spec: NetworkSpec,
    recipe: Recipe,
    learns_from: tuple[str, ...],
    drop: Drop = 0,
) -> CopyBlock:
    taught.check_taught(project, name)
    teacher = project.params.teachers[params.teacher]
    block = CopyBlock(
        stage=taught.stage_of(project, name),
        name=name,
        teacher=params.teacher,
        dataset=teacher.dataset,
        family=spec.family,
        network=spec.network,
        source=spec.source,
        recipe=recipe,
        views=project.views[teacher.dataset],
        learns_from=learns_from,
        drop=drop,
        seed=params.seed,
        temperature=params.temperature,
        weights=params.weights,
        slots=params.slots,
        compression=teacher.compression,
    )

    # By what it learns (`training/copies.py`), whose code counts too.
    learned = (plugin.module("methods", "kd"), plugin.module("schedules", "assistants"))
    return _coded(project, block, ["stages.train_copy", *learned, plugin.module("networks", spec.family)])


def _pair(project: Project, name: str) -> PairBlock:
    params, pair = project.params, project.params.pairs[name]
    lent = {key: entry for key, entry in params.borrowed.items() if entry.pair == name}
    return PairBlock(
        stage=f"inputs@{name}",
        pair=name,
        teacher=pair.teacher,
        teacher_family=project.spec("teachers", pair.teacher).family,
        teacher_licence=params.teachers[pair.teacher].licence,
        student=_student(project, pair.student),
        seeds=params.seeds,
        runs={run: project.run(name, run) for run in params.runs_of(name)},
        borrowed={f"{entry.teacher}/{entry.matching}": key for key, entry in lent.items()},
    )


def _match(project: Project, name: str) -> MatchBlock:
    pair = project.params.pairs[name]
    recipes = {
        wanted.matching: project.matching(pair.teacher, pair.student, wanted.matching)
        for run in project.params.runs_of(name)
        for wanted in project.run(name, run).matchings
        # A borrowed matching has a stage of its own.
        if wanted.teacher is None
    }
    return _matched(project, f"match_channels@{name}", name, pair.teacher, recipes)


def _borrowed(project: Project, name: str) -> MatchBlock:
    entry = project.params.borrowed[name]
    demands.check_matching(project, entry.teacher, entry.student, entry.matching)
    recipes = {entry.matching: project.matching(entry.teacher, entry.student, entry.matching)}
    return _matched(project, f"match_borrowed@{name}", entry.pair, entry.teacher, recipes)


def _export(project: Project, name: str) -> ExportBlock:
    # Of the student's own plug-ins no code counts: what changes them trains it anew.
    settings = project.params.exports[name]
    # A seed that params.yaml no longer has may still lie in the folder of the students.
    seeds = project.params.seeds if settings.seed == "best" else (settings.seed,)
    block = ExportBlock(stage=f"export@{name}", student=name, seeds=seeds, settings=settings)
    return _coded(project, block, ["stages.export"])


def _matched(
    project: Project, stage: str, pair: str, teacher: str, recipes: dict[str, MatchingParams]
) -> MatchBlock:
    student = project.params.pairs[pair].student
    # Without recipes no seed is named either: a new seed would run a stage that makes nothing.
    block = MatchBlock(
        stage=stage,
        pair=pair,
        teacher=teacher,
        student=student,
        dataset=project.params.students[student].dataset,
        seeds=project.params.seeds if recipes else (),
        recipes=recipes,
    )

    families = (_family(project, "teachers", teacher), _family(project, "students", student))
    return _coded(project, block, ["stages.match_channels", *families] if recipes else [])


def _family(project: Project, kind: Kind, name: str) -> str:
    return plugin.module("networks", project.spec(kind, name).family)


def _coded(project: Project, block: S, modules: Iterable[str]) -> S:
    """Return the block with the hash of its code, unless the project is only checked."""
    return block.model_copy(update={"code_hash": closure.digest(modules)}) if project.hashed else block

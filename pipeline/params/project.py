"""All of params.yaml: checked as a whole, and cut into the blocks that the stages depend on.

DVC tracks keys that are there, and a key that is left to its default is not. So the stage `params` writes every
block as a json with its defaults filled in, and each stage depends on its own block: an edit reruns what reads
it, spelling out a default reruns nothing, and a mistake anywhere is told before anything runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field

from pipeline import plugin
from pipeline.errors import ParamsError, unknown_name
from pipeline.params.base import Block, validate
from pipeline.params.codes import CodeBlock, CodeParams
from pipeline.params.copies import SelfTaughtBlock, SelfTaughtParams
from pipeline.params.dataset import DatasetParams, PrepareBlock
from pipeline.params.extract import CheckBlock, ExtractBlock, TeacherParams
from pipeline.params.matching import MatchBlock, MatchesBlock, MatchingParams, MatchParams
from pipeline.params.pairs import PairBlock, PairParams
from pipeline.params.recipe import Recipe
from pipeline.params.runs import RunParams
from pipeline.params.students import StudentBlock, StudentParams
from pipeline.params.tables import DerivedParams, FitBlock, FitParams, TableParams
from pipeline.params.teacher import TrainBlock, TrainingParams, anchor_name

FEATURES = "features"  # the file among a teacher's tables that says what its store holds
ALONE = "student"  # what the report calls a student that is trained alone
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


class Sections(Block):
    """All of params.yaml.

    Attributes:
        seeds: of the students; for one seed all runs share init, order and views.
        datasets: data sets by name.
        teachers: teachers by name.
        students: students by name.
        pairs: teacher-student pairs by name.
        runs: runs by name.
        tables: table recipes by name.
        fits: which teachers get which tables, by name.
        derived: which teachers get which tables that are fitted in the space of another one, by name.
        codes: which teachers' views are encoded with which tables, by name.
        matchings: recipes of channel matchings, by name.
        matches: which pairs get which matchings, by name.
        self_taught: which teachers have copies that learn from them, by name.
        distill: what to distill, as "pair/run".
    """

    seeds: tuple[int, ...] = Field(min_length=1)
    datasets: dict[str, DatasetParams] = Field(min_length=1)
    teachers: dict[str, TeacherParams] = {}
    students: dict[str, StudentParams] = {}
    pairs: dict[str, PairParams] = {}
    runs: dict[str, RunParams] = {}
    tables: dict[str, TableParams] = {}
    fits: dict[str, FitParams] = {}
    derived: dict[str, DerivedParams] = {}
    codes: dict[str, CodeParams] = {}
    matchings: dict[str, MatchingParams] = {}
    matches: dict[str, MatchParams] = {}
    self_taught: dict[str, SelfTaughtParams] = {}
    distill: tuple[str, ...] = ()


def check(content: Mapping[str, Any]) -> Sections:
    """Check the whole of params.yaml, except the settings of plug-ins.

    Args:
        content: what the yaml holds.

    Raises:
        ParamsError: a block is wrong.
        UnknownNameError: a block names another that is not there.
    """
    # Section by section first: so an error names its place, not the whole file.
    params = validate(Sections, content, "").model_copy()

    # A name becomes a file, a stage and a part of commands.
    for section in (
        "datasets",
        "teachers",
        "students",
        "pairs",
        "runs",
        "tables",
        "fits",
        "derived",
        "codes",
        "matchings",
        "matches",
        "self_taught",
    ):
        for name in getattr(params, section):
            if not _NAME.fullmatch(name):
                raise ParamsError(
                    f"params.yaml: '{section}.{name}' becomes a file's name. Use letters, digits and any of _.+-"
                )

    for section in ("teachers", "students"):
        for name, network in getattr(params, section).items():
            _known(f"dataset of {section}.{name}:", network.dataset, params.datasets)

    for name, teacher in params.teachers.items():
        kept = ("init", "last", "best", *map(anchor_name, teacher.anchors))
        for checkpoint in teacher.extract.checkpoints:
            _known(f"checkpoint of teachers.{name}.extract:", checkpoint, kept)

    for name, pair in params.pairs.items():
        _known(f"teacher of pairs.{name}:", pair.teacher, params.teachers)
        _known(f"student of pairs.{name}:", pair.student, params.students)
        one, other = params.teachers[pair.teacher].dataset, params.students[pair.student].dataset
        if one != other:
            raise ParamsError(
                f"params.yaml: pairs.{name} has a teacher of data set '{one}' and a student of '{other}'. "
                "Pair networks of one data set."
            )
        for run in pair.overrides:
            _known(f"run of pairs.{name}.overrides:", run, params.runs)
            _run(params, name, run)

    _check_tables(params)
    _check_matches(params)
    _check_self_taught(params)

    for item in params.distill:
        pair_name, slash, run = item.partition("/")
        if not slash:
            raise ParamsError(f"params.yaml: distill has '{item}', expected pair/run.")
        if run == ALONE:
            raise ParamsError(
                f"params.yaml: distill has '{item}', but '{ALONE}' is the student alone. Rename the run."
            )
        _known(f"pair of distill '{item}':", pair_name, params.pairs)
        _known(f"run of distill '{item}':", run, params.runs)

    for name, values in (("seeds", params.seeds), ("distill", params.distill)):
        if len(set(values)) < len(values):
            raise ParamsError(f"params.yaml: {name} names something twice. Name it once.")
    return params


def _check_tables(params: Sections) -> None:
    """Check which tables and codes are asked for: each once, its teacher and what it is made with too."""
    asked: dict[tuple[str, str], str] = {}
    for section in ("fits", "derived"):
        for name, fit in getattr(params, section).items():
            _known(f"teacher of {section}.{name}:", fit.teacher, params.teachers)
            _known(f"table of {section}.{name}:", fit.table, params.tables)
            other = asked.setdefault((fit.teacher, fit.table), f"{section}.{name}")
            if other != f"{section}.{name}":
                raise ParamsError(
                    f"params.yaml: {other} and {section}.{name} both ask for table '{fit.table}' of teacher "
                    f"'{fit.teacher}'. Ask for it once."
                )
    for name, derived in params.derived.items():
        fitted = [fit.table for fit in params.fits.values() if fit.teacher == derived.teacher]
        _known(f"base of derived.{name}:", derived.base, fitted)
    for name, code in params.codes.items():
        _known(f"teacher of codes.{name}:", code.teacher, params.teachers)
        fitted = [table for teacher, table in asked if teacher == code.teacher]
        _known(f"table of codes.{name}:", code.table, fitted)
        if name == FEATURES:
            raise ParamsError(f"params.yaml: codes.{name} is the name of another file. Rename it.")


def _check_matches(params: Sections) -> None:
    """Check which matchings are asked for: each once, of a pair's own student and of networks that exist."""
    asked: dict[tuple[str, str, str], str] = {}
    for name, match in params.matches.items():
        _known(f"pair of matches.{name}:", match.pair, params.pairs)
        _known(f"teacher of matches.{name}:", match.teacher, params.teachers)
        _known(f"matching of matches.{name}:", match.matching, params.matchings)
        pair = params.pairs[match.pair]
        if match.student != pair.student:
            raise ParamsError(
                f"params.yaml: matches.{name} has student '{match.student}', and its pair '{match.pair}' has "
                f"'{pair.student}'. Name that one."
            )
        one, other = (params.teachers[key] for key in (match.teacher, pair.teacher))
        if (one.dataset, one.family, one.network) != (other.dataset, other.family, other.network):
            raise ParamsError(
                f"params.yaml: matches.{name} has teacher '{match.teacher}', expected '{pair.teacher}' of its pair "
                "or the same network trained on the same data from another seed."
            )
        first = asked.setdefault((match.pair, match.teacher, match.matching), name)
        if first != name:
            raise ParamsError(
                f"params.yaml: matches.{first} and matches.{name} ask for the same. Ask for it once."
            )


def _check_self_taught(params: Sections) -> None:
    """Check that teachers and students of self-taught copies are there, and that their names are free."""
    for name, copy in params.self_taught.items():
        _known(f"teacher of self_taught.{name}:", copy.teacher, params.teachers)
        _known(f"student of self_taught.{name}:", copy.student, params.students)
        one, other = params.teachers[copy.teacher].dataset, params.students[copy.student].dataset
        if one != other:
            raise ParamsError(
                f"params.yaml: self_taught.{name} has a teacher of data set '{one}' and a student of '{other}'. "
                "Take networks of one data set."
            )
        if copy.weights.keys() != {"ce", "kd"}:
            named = ", ".join(copy.weights) or "nothing"
            raise ParamsError(f"params.yaml: self_taught.{name}.weights names {named}, expected ce and kd.")
        # What is said of it lies among the teacher's tables, as what is said of codes does.
        if name == FEATURES or name in params.codes:
            raise ParamsError(f"params.yaml: self_taught.{name} is the name of another file. Rename it.")


def check_plugins(params: Sections) -> None:
    """Check that every plug-in that is named exists, and that its settings are of its form. Imports them.

    Raises:
        ParamsError: settings are wrong.
        UnknownNameError: no such plug-in or network.
    """
    named = [("datasets", d.source, d.prepare, f"datasets.{n}.prepare") for n, d in params.datasets.items()]
    named += [("tables", t.table, t.config, f"tables.{n}.config") for n, t in params.tables.items()]
    runs = {f"runs.{name}": run for name, run in params.runs.items()}
    for name, pair in params.pairs.items():
        runs |= {f"pairs.{name}.overrides.{run}": _run(params, name, run) for run in pair.overrides}
    for where, run in runs.items():
        validate(Recipe, run.recipe, f"{where}.recipe")
        named.append(("methods", run.method, run.config, f"{where}.config"))
        named.append(("schedules", run.schedule, run.schedule_config, f"{where}.schedule_config"))
        if run.transform is not None:
            named.append(("transforms", run.transform, run.transform_config, f"{where}.transform_config"))
    for catalogue, plug, config, where in named:
        validate(plugin.load(catalogue, plug).Config, config, where)
    features = [feature for teacher in params.teachers.values() for feature in teacher.extract.features]
    for feature in (*features, *(code.code for code in params.codes.values())):
        for encoding in feature.partition("@")[0].split(":")[1:]:  # of tap:encoding@table
            plugin.load("encodings", encoding)
    networks: list[TeacherParams | StudentParams] = [*params.teachers.values(), *params.students.values()]
    for network in networks:
        family = plugin.load("networks", network.family)
        if network.network not in family.NETWORKS and not getattr(family, "OPEN", False):
            raise unknown_name(f"network of family '{network.family}':", network.network, family.NETWORKS)


def blocks(params: Sections) -> dict[str, Block]:
    """Return the blocks that the stages depend on, by file name without its ending."""
    found: dict[str, Block] = {"project": params}

    for name, dataset in params.datasets.items():
        found[f"datasets/{name}"] = PrepareBlock(source=dataset.source, prepare=dataset.prepare)

    for name, teacher in params.teachers.items():
        views, extract = params.datasets[teacher.dataset].views, teacher.extract
        training = {key: getattr(teacher, key) for key in TrainingParams.model_fields}
        # Apart from what is extracted: another feature retrains no teacher.
        found[f"teachers/{name}/train"] = TrainBlock(teacher=name, views=views, **training)
        found[f"teachers/{name}/extract"] = ExtractBlock(
            teacher=name,
            views=views,
            features=extract.features,
            checkpoints=extract.checkpoints,
            compression=extract.compression,
        )
        found[f"teachers/{name}/check"] = CheckBlock(teacher=name)

    for section in ("fits", "derived"):
        for name, fit in getattr(params, section).items():
            table, dataset_name = params.tables[fit.table], params.teachers[fit.teacher].dataset
            found[f"{section}/{name}"] = FitBlock(
                dataset=dataset_name, table=table.table, config=table.config
            )

    for name, code in params.codes.items():
        coded = params.teachers[code.teacher]
        found[f"codes/{name}"] = CodeBlock(
            dataset=coded.dataset,
            table=code.table,
            code=code.code,
            slots=code.slots,
            views=params.datasets[coded.dataset].views,
            compression=coded.extract.compression,
        )

    for name, copy in params.self_taught.items():
        taught = params.teachers[copy.teacher]
        found[f"self_taught/{name}"] = SelfTaughtBlock(
            name=name,
            dataset=taught.dataset,
            recipe=params.students[copy.student].recipe,
            views=params.datasets[taught.dataset].views,
            seed=copy.seed,
            temperature=copy.temperature,
            weights=copy.weights,
            slots=copy.slots,
            compression=taught.extract.compression,
        )

    for name in params.students:
        found[f"students/{name}"] = _student(params, name)
    for name in params.pairs:
        found[f"pairs/{name}"] = _pair(params, name)
        asked = {key: match for key, match in params.matches.items() if match.pair == name}
        found[f"matched/{name}"] = MatchesBlock(pair=name, matches=asked)

    for name, match in params.matches.items():
        found[f"matches/{name}"] = MatchBlock(
            **match.model_dump(),
            name=name,
            dataset=params.students[match.student].dataset,
            seeds=params.seeds,
            recipe=params.matchings[match.matching],
        )
    return found


def _student(params: Sections, name: str) -> StudentBlock:
    student = params.students[name]
    settings = {key: getattr(student, key) for key in StudentParams.model_fields}
    return StudentBlock(student=name, views=params.datasets[student.dataset].views, **settings)


def _pair(params: Sections, name: str) -> PairBlock:
    pair = params.pairs[name]
    asked = [item.partition("/")[2] for item in params.distill if item.partition("/")[0] == name]
    return PairBlock(
        pair=name,
        teacher=pair.teacher,
        teacher_family=params.teachers[pair.teacher].family,
        student=_student(params, pair.student),
        seeds=params.seeds,
        runs={run: _run(params, name, run) for run in asked},
    )


def _run(params: Sections, pair: str, run: str) -> RunParams:
    """Return a run as a pair has it: its overrides merged."""
    block = merged(params.runs[run].model_dump(mode="json"), params.pairs[pair].overrides.get(run, {}))
    return validate(RunParams, block, f"pairs.{pair}.overrides.{run}")


def merged(base: Mapping[str, Any], update: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `update` merged into it, mapping by mapping."""
    result = dict(base)
    for key, value in update.items():
        inner = result.get(key)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            value = merged(inner, value)
        result[key] = value
    return result


def _known(kind: str, name: str, valid: Iterable[str]) -> None:
    if name not in valid:
        raise unknown_name(kind, name, valid)

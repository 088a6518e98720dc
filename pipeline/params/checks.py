"""What can be said of params.yaml without a plug-in: names that are paths, and names that name each other.

It takes a quarter of a second, so it can run before any stage whose command is made of these names
(`stages.check_params`). What plug-ins know is checked in `pipeline/runs/check.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.errors import ParamsError, unknown_name
from pipeline.params import names, values
from pipeline.params.anchors import check_anchors
from pipeline.params.base import validate
from pipeline.params.course import check_course
from pipeline.params.sections import ALONE, Sections
from pipeline.params.teachers import TeacherParams, checkpoints_of
from pipeline.params.teaching import TEACHER

LISTS = ("seeds", "distill")


def check(content: Mapping[str, Any]) -> Sections:
    """Check all of params.yaml, except what plug-ins know.

    Args:
        content: what the yaml holds.

    Raises:
        ParamsError: a section is wrong.
        UnknownNameError: an entry names another that is not there.
    """
    if not isinstance(content, Mapping):
        raise ParamsError(f"params.yaml holds {type(content).__name__}, expected a mapping of blocks.")
    values.check(content)
    _check_sections(content)
    params = validate(Sections, _filled(content), "")
    # After the models: of a misspelled `seeds` they say which key was meant, not that one is missing.
    _check_lists(content)
    names.check(params)
    _check_recipes(params)

    for section in ("teachers", "students"):
        for name, network in getattr(params, section).items():
            _known(f"dataset of {section}.{name}:", network.dataset, params.datasets)
    for name, teacher in params.teachers.items():
        for checkpoint in teacher.checkpoints:
            _known(f"checkpoint of teachers.{name}.checkpoints:", checkpoint, checkpoints_of(teacher))
        for table in teacher.tables:
            _known(f"table of teachers.{name}.tables:", table, params.tables)

    _check_pairs(params)
    _check_copies(params)
    _check_assistants(params)
    _check_borrowed(params)
    _check_distill(params)
    _check_exports(params)
    return params


def check_form(content: Mapping[str, Any]) -> None:
    """Refuse entries of a part of params.yaml that are not of their form, whatever else it lacks.

    Raises:
        ParamsError: a section or an entry is wrong.
    """
    validate(Sections, _filled({section: x for section, x in content.items() if x is not None}), "")


def _check_sections(content: Mapping[str, Any]) -> None:
    """Refuse a section without a value, which DVC cannot merge with its default."""
    for section in Sections.model_fields:
        if section in content and content[section] is None:
            empty = "[]" if section in LISTS else "{}"
            raise ParamsError(f"params.yaml: '{section}' has no value. Write {section}: {empty}")


def _filled(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return `content` with every entry of a section that has no value as an empty mapping."""
    # `short:` alone is a recipe with all its defaults; what is no mapping is left for the models to refuse.
    return {
        section: {name: {} if entry is None else entry for name, entry in entries.items()}
        if isinstance(entries, Mapping)
        else entries
        for section, entries in content.items()
    }


def _check_lists(content: Mapping[str, Any]) -> None:
    """Refuse a list that is left out: dvc.yaml can have a default for a mapping, and for no list."""
    for section in LISTS:
        if section not in content:
            raise ParamsError(f"params.yaml: '{section}' is missing, which DVC needs. Add {section}: []")


def _check_recipes(params: Sections) -> None:
    for section in ("teachers", "students", "assistants"):
        for name, network in getattr(params, section).items():
            where = f"{section}.{name}.recipe"
            # An unknown name, or a change that does not fit, is an error of this already.
            recipe = params.recipe(network.recipe, where)
            check_course(recipe, where)
            if isinstance(network, TeacherParams):
                check_anchors(network.anchors, recipe, f"teachers.{name}.anchors")


def _check_pairs(params: Sections) -> None:
    for name, pair in params.pairs.items():
        _known(f"teacher of pairs.{name}:", pair.teacher, params.teachers)
        _known(f"student of pairs.{name}:", pair.student, params.students)
        _check_same_data(f"pairs.{name}", params, pair.teacher, pair.student)
        for run in pair.overrides:
            _known(f"run of pairs.{name}.overrides:", run, params.runs)
            # For its errors alone: an override that does not fit its run.
            params.run(name, run)


def _check_copies(params: Sections) -> None:
    for name, copy in params.copies.items():
        _known(f"teacher of copies.{name}:", copy.teacher, params.teachers)
        _known(f"student of copies.{name}:", copy.student, params.students)
        _check_same_data(f"copies.{name}", params, copy.teacher, copy.student)


def _check_assistants(params: Sections) -> None:
    copies = {name.casefold(): name for name in params.copies}
    for name, assistant in params.assistants.items():
        # Both lie in one folder, and are read by their names alone.
        if (copy := copies.get(name.casefold())) is not None:
            raise ParamsError(
                f"params.yaml: assistants.{name} and copies.{copy} have one name, and lie in one folder. Rename one."
            )
        _known(f"teacher of assistants.{name}:", assistant.teacher, params.teachers)
        _check_teachers(params, name)


def _check_teachers(params: Sections, name: str) -> None:
    """Check that an assistant learns from its own teacher's, and from those that come before it alone."""
    assistant, where = params.assistants[name], f"assistants.{name}"
    before = _before(params, name)
    if assistant.follows not in assistant.teachers:
        raise ParamsError(
            f"params.yaml: {where}.learns_from lacks '{assistant.follows}', which it follows. Add it, or follow one "
            "that it learns from."
        )

    for source in assistant.teachers:
        if source not in before:
            hint = "It learns from those that come before it."
            raise unknown_name(f"entry of {where}.learns_from:", source, before, hint)


def _before(params: Sections, name: str) -> list[str]:
    """Return what comes before an assistant, the teacher first.

    Raises:
        UnknownNameError: one follows what is not there.
        ParamsError: they go round in a circle, or one is another teacher's.
    """
    teacher, chain = params.assistants[name].teacher, [name]
    own = [key for key, entry in params.assistants.items() if entry.teacher == teacher]
    while (follows := params.assistants[chain[-1]].follows) != TEACHER:
        where = f"assistants.{chain[-1]}"
        if follows in params.assistants and follows not in own:
            raise ParamsError(
                f"params.yaml: {where} follows '{follows}', which has another teacher than '{teacher}'. Name an "
                f"assistant of '{teacher}', or {TEACHER}."
            )
        _known(f"assistant that {where} follows:", follows, [TEACHER, *own])
        if follows in chain:
            circle = ", ".join(chain[chain.index(follows) :])
            raise ParamsError(
                f"params.yaml: {where} follows '{follows}', so {circle} go round in a circle. Let one follow {TEACHER}."
            )
        chain.append(follows)
    return [TEACHER, *reversed(chain[1:])]


def _check_borrowed(params: Sections) -> None:
    """Check that borrowed matchings are of a pair's own student, of networks that exist, and each there once."""
    first: dict[tuple[str, str, str], str] = {}
    for name, borrowed in params.borrowed.items():
        _known(f"pair of borrowed.{name}:", borrowed.pair, params.pairs)
        _known(f"teacher of borrowed.{name}:", borrowed.teacher, params.teachers)
        _known(f"matching of borrowed.{name}:", borrowed.matching, params.matchings)
        pair = params.pairs[borrowed.pair]

        # It stands in the entry because dvc.yaml cannot look it up through the pair.
        if borrowed.student != pair.student:
            raise ParamsError(
                f"params.yaml: borrowed.{name} has student '{borrowed.student}', and its pair '{borrowed.pair}' has "
                f"'{pair.student}'. Name that one."
            )

        # Channels of another network have no counterparts here, and the pair's own teacher needs no lending.
        lender, own = params.teachers[borrowed.teacher], params.teachers[pair.teacher]
        if (lender.dataset, lender.network) != (own.dataset, own.network) or borrowed.teacher == pair.teacher:
            raise ParamsError(
                f"params.yaml: borrowed.{name} has teacher '{borrowed.teacher}', expected the network of "
                f"'{pair.teacher}' of its pair, trained on the same data from another seed."
            )

        # A run finds it by these three, so it would never read the second of two.
        other = first.setdefault((borrowed.pair, borrowed.teacher, borrowed.matching), name)
        if other != name:
            raise ParamsError(
                f"params.yaml: borrowed.{other} and borrowed.{name} ask for the same matching. Ask for it once."
            )


def _check_distill(params: Sections) -> None:
    for item in params.distill:
        pair, slash, run = item.partition("/")
        if not slash:
            raise ParamsError(f"params.yaml: distill has '{item}', expected pair/run.")
        if run == ALONE:
            raise ParamsError(
                f"params.yaml: distill has '{item}', but '{ALONE}' is the student alone. Rename the run."
            )
        _known(f"pair of distill '{item}':", pair, params.pairs)
        _known(f"run of distill '{item}':", run, params.runs)

    for section in ("seeds", "distill"):
        values = getattr(params, section)
        # Each is part of a stage's name, of which there can be one.
        if len(set(values)) < len(values):
            raise ParamsError(f"params.yaml: {section} contains duplicates. Name each once.")
    # Else DVC's matrix of students would be empty, and nothing would say so.
    if params.distill and not params.seeds:
        raise ParamsError(
            "params.yaml: distill asks for students, and seeds is empty. Add a seed: seeds: [0]"
        )


def _check_exports(params: Sections) -> None:
    for name, export in params.exports.items():
        _known("student of exports:", name, params.distill)
        if export.seed != "best" and export.seed not in params.seeds:
            seeds = ", ".join(map(str, params.seeds))
            raise ParamsError(
                f"params.yaml: exports.{name} has seed {export.seed}, expected best or one of seeds: {seeds}."
            )


def _check_same_data(where: str, params: Sections, teacher: str, student: str) -> None:
    # Stored outputs go by the position of a sample in the teacher's own data.
    of_teacher, of_student = params.teachers[teacher].dataset, params.students[student].dataset
    if of_teacher != of_student:
        raise ParamsError(
            f"params.yaml: {where} has a teacher of data set '{of_teacher}' and a student of '{of_student}'. "
            "Pair networks of one data set."
        )


def _known(kind: str, name: str, valid: Iterable[str]) -> None:
    if name not in valid:
        raise unknown_name(kind, name, valid)

"""Damaged and swapped files of a reported project: the same figures, an entry of what is missing, or one line.

Never a traceback, and never another figure.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from error_fixtures import FULL, one_line
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from report_fixtures import Project, provenance_of

from pipeline.errors import StillhouseError
from pipeline.report.collect import collect as collecting
from pipeline.report.results import Results

NUMBERS = {"gamma": {"identity": 1.25}, "dead": {"teacher": 2, "student": 0}, "overlap": {}}
Items = dict[tuple[str, ...], bytes]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Return a project with something of every kind that is reported."""
    project = Project(tmp_path_factory.mktemp("project"), {"big-small": ["kd"]}, (0, 1))
    project.fit("kmeans", {"counts": np.array([3, 2, 1])})
    place = {"table": "kmeans", "encoding": "nearest"}
    project.distill("words", methods={"letkd": {"places": {"stage2": place}}})
    project.codes("kmeans", {"stage2:nearest@kmeans": {"slots": 9, "mean_kl_lost": 0.0625}})
    places = {"student_tap": "stage2", "teacher_feature": "stage2"}
    project.params["matchings"] = {"kcd": places}
    project.ask("kcd", methods={"mimicry": places}, transform={"permutation": {"features": ["stage2"]}})
    project.match("own", "kcd", {str(seed): NUMBERS for seed in project.seeds})
    for seed in project.seeds:
        project.student("big-small", "kcd", seed)

    # It asks git, which takes longer than all else.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collecting, "gather", lambda folder: provenance_of("2001"))
        yield project


@pytest.fixture(scope="module")
def figures(project: Project) -> Items:
    """Return all that is reported of the undamaged project."""
    results = project.collect()
    assert results.missing == ()
    assert len(items(results)) == 13
    return items(results)


def items(results: Results) -> Items:
    """Return all that is reported, thing by thing, as bytes."""
    found: dict[tuple[str, ...], Any] = {("data set", name): name for name in results.datasets}
    for name, teacher in results.teachers.items():
        found["teacher", name] = (teacher.trained, teacher.store, teacher.check)
    for pair in results.pairs:
        for run in pair.runs:
            for student in run.students:
                found[pair.name, run.name, str(student.seed)] = (student, run.settings, run.composition)
        for matched in pair.matchings:
            found[pair.name, "matching", matched.name] = (matched.numbers, matched.arrays)
    for table in results.tables:
        found["table", table.title] = (table.quality, table.arrays)
    for code in results.codes:
        found["code", code.name] = code
    # Keys are sorted: their order is no figure.
    return {key: pickle.dumps(_plain(value)) for key, value in found.items()}


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        value = {name: getattr(value, name) for name in value.__dataclass_fields__}
    if isinstance(value, dict):
        return [(str(key), _plain(value[key])) for key in sorted(value, key=str)]
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return (value.dtype.str, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else repr(value)


def files(project: Project) -> list[Path]:
    return sorted(path for path in (project.folder / "artifacts").rglob("*") if path.is_file())


@contextmanager
def with_bytes(path: Path, content: bytes | None) -> Iterator[None]:
    """Put other bytes, or None for no file, in the place of a file within the block."""
    before = path.read_bytes()
    try:
        path.unlink() if content is None else path.write_bytes(content)
        yield
    finally:
        path.write_bytes(before)


def require_true(project: Project, figures: Items) -> None:
    """Hold that the report is refused in one line, or that all that it shows is what it was, and the rest is named."""
    try:
        results = project.collect()
    except StillhouseError as error:
        one_line(error, "dvc repro")
        return
    found = items(results)
    assert {key: figures.get(key) for key in found} == found
    assert bool(results.missing) == (found.keys() != figures.keys())
    assert all(FULL.search(entry.reason) for entry in results.missing), results.missing


@given(data=st.data())
def test_bytes_that_change(project: Project, figures: Items, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(files(project)), "file")
    content = path.read_bytes()
    kind = data.draw(st.sampled_from(["flip", "cut", "gone", "put"]), "kind")
    place = data.draw(st.integers(0, len(content) - 1), "place")
    damaged: bytes | None
    if kind == "flip":
        bit = data.draw(st.integers(0, 7), "bit")
        damaged = content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :]
    elif kind == "put":
        damaged = content[:place] + data.draw(st.binary(min_size=1, max_size=8), "bytes") + content[place:]
    else:
        damaged = content[:place] if kind == "cut" else None
    with with_bytes(path, damaged):
        require_true(project, figures)


@settings(max_examples=settings().max_examples // 2)
@given(data=st.data())
def test_a_file_of_something_else(project: Project, figures: Items, data: st.DataObject) -> None:
    """Of another seed, run or teacher, as a copy by hand leaves it."""
    path = data.draw(st.sampled_from(files(project)), "file")
    alike = [other for other in files(project) if other.suffix == path.suffix and other != path]
    assume(alike)
    other = data.draw(st.sampled_from(alike), "other")
    with with_bytes(path, other.read_bytes()):
        require_true(project, figures)


NAN, INF = float("nan"), float("inf")
ODD = st.sampled_from([None, True, -1, 0, 1e308, NAN, INF, "", "x\ny", [], {}, [1], {"a": 1}, 10**400])


@settings(max_examples=settings().max_examples // 2)
@given(data=st.data())
def test_a_value_of_a_json(project: Project, figures: Items, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from([path for path in files(project) if path.suffix == ".json"]), "file")
    content = json.loads(path.read_text())
    place, key = content, data.draw(st.sampled_from(sorted(content)), "key")
    while isinstance(place[key], dict) and place[key] and data.draw(st.booleans(), "deeper"):
        place, key = place[key], data.draw(st.sampled_from(sorted(place[key])), "key")
    place[key] = data.draw(ODD, "value")
    with with_bytes(path, json.dumps(content).encode()):
        require_true(project, figures)

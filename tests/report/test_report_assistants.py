"""What the report says of assistants and copies: how good each is, and which are left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from report_fixtures import Project

from pipeline.artifacts.hashing import content_hash
from pipeline.params.copies import CopyBlock
from pipeline.report.sections import assistants

FIRST = {"teacher": "big", "network": "resnet14", "follows": "teacher"}
CHAIN = {"a1": FIRST, "a2": FIRST | {"network": "resnet8", "follows": "a1", "learns_from": ["teacher", "a1"]}}


def write(project: Project, name: str, **update: Any) -> None:
    """Write what an assistant says of itself."""
    block = project.block(CopyBlock, f"assistants/{name}")
    said = {
        "made_by": block.stage,
        "teacher": "big",
        "weights": project.weights("teachers/big")["last"],
        "data": project.meta.fingerprint,
        "settings": content_hash(block.model_dump(mode="json")),
        "learned_from": {source: f"logits of {source}" for source in block.learns_from},
        "logits": f"logits of {name}",
        "top1": {"a1": 71.25, "a2": 64.5}[name],
    }
    project.json(f"copies/big/{name}/copy.json", said | update)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path, {"big-small": ["kd"]}, seeds=(0,))
    made.params["assistants"] = CHAIN
    made.write_params()
    for name in CHAIN:
        write(made, name)
    return made


def test_assistants_are_listed_with_what_they_learned_from(project: Project) -> None:
    results = project.collect()
    assert [(x.name, x.network, x.learned_from, x.top1) for x in results.taught] == [
        ("a1", "resnet14", ("teacher",), 71.25),
        ("a2", "resnet8", ("teacher", "a1"), 64.5),
    ]
    assert results.missing == ()
    shown = str(assistants.section(results))
    assert all(part in shown for part in ("a1", "a2", "resnet14", "teacher, a1", "71.25", "64.50"))


def test_a_project_without_assistants_has_no_such_section(tmp_path: Path) -> None:
    results = Project(tmp_path, {"big-small": ["kd"]}, seeds=(0,)).collect()
    assert results.taught == ()
    assert not assistants.section(results)


@pytest.mark.parametrize(
    ("name", "update", "left", "reason"),
    [
        ("a2", {"settings": "0"}, ["a1"], "is of other settings than params.yaml has"),
        ("a1", {"settings": "0"}, [], "is of other settings than params.yaml has"),
        ("a1", {"logits": "0"}, ["a1"], "has learned from another 'a1' than there is now"),
        ("a1", {"weights": "0"}, [], "is of a copy of another teacher"),
    ],
)
def test_what_is_stale_is_left_out_with_its_students(
    project: Project, name: str, update: dict[str, str], left: list[str], reason: str
) -> None:
    project.distill("takd", methods="kd", schedule={"assistants": {"names": ["a2"]}})
    write(project, name, **update)
    results = project.collect()
    assert [x.name for x in results.taught] == left
    assert [run.name for run in results.pairs[0].runs] == ["student", "kd"]
    missing = {entry.what: entry for entry in results.missing}
    assert missing["assistant a2 of teacher big"].command == "dvc repro train_assistant@a2"
    assert reason in missing["assistant a2 of teacher big"].reason
    assert "student of big-small/takd, seed 0" in missing

"""The order of a run, and what becomes of each stage."""

from __future__ import annotations

from pathlib import Path

import pytest
from scheduler_fixtures import Fate, Room, World, stage, write_inputs

from pipeline.errors import MachineError
from pipeline.execution.stage import Verdict


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_inputs(tmp_path / "a.json", "data/a")
    write_inputs(tmp_path / "b.json", "data/b")
    return tmp_path


def test_what_most_others_wait_for_starts_first(tmp_path: Path) -> None:
    stages = [stage("lone"), stage("pair", "teacher"), stage("teacher"), stage("report", "pair", "lone")]
    world = World(tmp_path, stages, room=Room(slots=1))
    world.run()
    assert world.begun == ["teacher", "lone", "pair", "report"]


def test_a_failure_lets_running_stages_end_and_starts_nothing(tmp_path: Path) -> None:
    stages = [stage("bad"), stage("long"), stage("after", "bad"), stage("other"), stage("later", "long")]
    world = World(tmp_path, stages, {"bad": Fate(fails=True), "long": Fate(ticks=5)})
    outcome = world.run()
    assert outcome.ran == ["long"]
    assert outcome.failed == {"bad": "bad has failed"}
    assert outcome.skipped == {"after": "bad", "other": "bad", "later": "bad"}
    assert outcome.logs == {"bad": tmp_path / "logs/bad.log"}


def test_keep_going_skips_only_what_depends_on_the_failure(tmp_path: Path) -> None:
    stages = [
        stage("bad"),
        stage("after", "bad"),
        stage("far", "after"),
        stage("other"),
        stage("last", "other"),
    ]
    world = World(tmp_path, stages, {"bad": Fate(fails=True)}, Room(slots=1), keep_going=True)
    outcome = world.run()
    assert outcome.ran == ["other", "last"]
    assert outcome.skipped == {"after": "bad", "far": "bad"}


def test_each_verdict_has_its_list(tmp_path: Path) -> None:
    fates = {
        "same": Fate(Verdict.UNCHANGED),
        "cached": Fate(Verdict.RESTORED),
        "killed": Fate(Verdict.ADOPTED),
        "none": Fate(None),
        "refused": Fate(refused=True),
        "nowhere": Fate(unplaced=True),
    }
    outcome = World(tmp_path, [stage(name) for name in fates], fates, keep_going=True).run()
    assert (outcome.unchanged, outcome.restored, outcome.ran) == (["same"], ["cached"], ["killed"])
    assert outcome.failed == {
        "none": "none cannot begin",
        "nowhere": "there is no such machine",
        "refused": "DVC refuses",
    }
    assert list(outcome.logs) == ["refused"]


def test_a_gpu_takes_one_job_while_other_stages_go_on_beside_it(tmp_path: Path) -> None:
    stages = [stage("train", gpu=True), stage("fit", gpu=True), stage("list"), stage("report", "list")]
    world = World(tmp_path, stages, {"train": Fate(ticks=9)}, Room(slots=3, gpus=1))
    world.run()
    assert world.begun == ["list", "train", "report", "fit"]


def test_a_place_that_never_is_ends_the_run(tmp_path: Path) -> None:
    world = World(tmp_path, [stage("fit")], room=Room(slots=0))
    with pytest.raises(MachineError, match="no place for fit"):
        world.run()
    assert world.looked_at == []


def test_students_of_the_same_data_share_a_process(root: Path) -> None:
    stages = [
        stage(f"distill@{name}", gpu=True, shares=True, root=root, inputs=f"{name[0]}.json")
        for name in ("a0", "b0", "a1", "b1", "a2")
    ]
    world = World(root, stages, room=Room(slots=4, gpus=2, places=2))
    world.run(cohort=2)
    assert world.jobs == [
        ("distill@a0", "distill@a1"),
        ("distill@b0", "distill@b1"),
        ("distill@a2",),
    ]


def test_what_is_up_to_date_takes_nobodys_place_in_a_process(root: Path) -> None:
    stages = [stage(f"distill@{index}", gpu=True, shares=True, root=root) for index in range(4)]
    fates = {"distill@0": Fate(Verdict.UNCHANGED), "distill@2": Fate(Verdict.RESTORED)}
    world = World(root, stages, fates, Room(gpus=1))
    world.run(cohort=2)
    assert world.jobs == [("distill@1", "distill@3")]


def test_free_gpus_divide_students_between_them(root: Path) -> None:
    stages = [stage(f"distill@{index}", gpu=True, shares=True, root=root) for index in range(9)]
    world = World(root, stages, room=Room(slots=4, gpus=2, places=2))
    world.run(cohort=8)
    assert [len(job) for job in world.jobs] == [5, 4]

    busy = World(
        root, [stage("train", gpu=True), *stages], {"train": Fate(ticks=9)}, Room(slots=4, gpus=2, places=2)
    )
    busy.run(cohort=8)
    assert [len(job) for job in busy.jobs] == [1, 8, 1]


def test_a_students_failure_leaves_the_others_their_results(root: Path) -> None:
    stages = [stage(f"distill@{index}", gpu=True, shares=True, root=root) for index in range(3)]
    stages.append(stage("evaluate@0", "distill@0"))
    world = World(root, stages, {"distill@1": Fate(fails=True)}, keep_going=True)
    outcome = world.run(cohort=8)
    assert outcome.ran == ["distill@0", "distill@2", "evaluate@0"]
    assert outcome.failed == {"distill@1": "distill@1 has failed"}
    assert outcome.logs == {"distill@1": root / "logs/distill@0.log"}


def test_a_failure_without_outs_is_a_failure_in_company_too(root: Path) -> None:
    stages = [stage(f"distill@{index}", shares=True) for index in range(2)]
    stages = [type(each)(**{**vars(each), "outs": ()}) for each in stages]
    world = World(root, stages, {"distill@1": Fate(fails=True)})
    assert list(world.run(cohort=2).failed) == ["distill@0", "distill@1"]


def test_company_of_a_stage_that_cannot_begin_is_given_back(root: Path) -> None:
    stages = [stage(f"distill@{index}", shares=True, root=root) for index in range(3)]
    world = World(root, stages, {"distill@1": Fate(None)})
    outcome = world.run(cohort=8)
    assert (world.jobs, world.handed) == ([], {"distill@0": 1})
    assert outcome.skipped == {"distill@2": "distill@1", "distill@0": "distill@1"}


def test_a_stop_records_what_has_ended_and_lists_the_rest(root: Path) -> None:
    stages = [stage("short"), stage("long"), stage("later", "long")]
    world = World(root, stages, {"long": Fate(ticks=99)})
    outcome = world.run(lambda: "short" in world.handed)
    assert outcome.ran == ["short"]
    assert outcome.stopped == ["long", "later"]
    assert not outcome.failed
    assert world.handed == {"short": 1, "long": 1}


def test_nothing_begins_after_a_stop_was_asked_for(tmp_path: Path) -> None:
    asked: list[str] = []
    world = World(tmp_path, [stage("first"), stage("next")], room=Room(slots=1))
    world.trap = lambda call: asked.append(call) if call == "wait" else None
    outcome = world.run(lambda: bool(asked))
    assert (outcome.ran, outcome.stopped) == (["first"], ["next"])
    assert world.looked_at == ["first"]


def test_a_row_is_taken_away_after_its_stage_is_settled(tmp_path: Path) -> None:
    world = World(tmp_path, [stage("train")])
    world.run()
    assert world.shown == ["train started somewhere", "train ran", "train ended"]


def test_an_empty_plan_is_over_at_once(tmp_path: Path) -> None:
    outcome = World(tmp_path, []).run()
    assert (outcome.ran, outcome.failed) == ([], {})

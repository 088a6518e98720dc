"""How long a run will still take."""

from __future__ import annotations

import pytest

from pipeline.execution.estimate import Estimate, Left, Running

NAMES = ["prepare@a", "distill@0", "distill@1", "distill@2", "distill@3", "report"]


def test_nothing_is_known_before_a_stage_has_taken_time() -> None:
    estimate = Estimate(NAMES)
    assert estimate.left(0.0, {}) is None
    assert estimate.left(5.0, {}) is None
    estimate.settle("prepare@a", None)  # it was up to date
    assert estimate.left(5.0, {}) is None


def test_each_takes_as_long_as_others_of_its_kind_one_at_a_time() -> None:
    estimate = Estimate(NAMES[:5])
    estimate.settle("prepare@a", 10.0)
    estimate.settle("distill@0", 30.0)
    estimate.settle("distill@1", 50.0)
    assert estimate.left(90.0, {}) == Left(80.0, least=False)
    # A quarter of the third has passed.
    assert estimate.left(100.0, {"distill@2": Running(10.0)}) == Left(70.0, least=False)


def test_as_many_run_at_once_as_so_far() -> None:
    estimate = Estimate(NAMES[:5])
    estimate.settle("prepare@a", 0.0)
    estimate.settle("distill@0", 40.0)
    estimate.settle("distill@1", 40.0)
    assert estimate.left(40.0, {}) == Left(40.0, least=False)


def test_a_run_takes_as_long_as_its_longest_stage() -> None:
    estimate = Estimate(["a@0", "a@1", "a@2", "a@3", "a@4"])
    for number in range(4):
        estimate.settle(f"a@{number}", 40.0)
    assert estimate.left(40.0, {}) == Left(40.0, least=False)


def test_a_kind_of_which_none_has_ended_makes_it_the_least() -> None:
    estimate = Estimate(NAMES)
    estimate.settle("prepare@a", 10.0)
    assert estimate.left(10.0, {}) is None
    # What it says of itself counts until it, or another of its kind, has ended.
    assert estimate.left(20.0, {"distill@0": Running(10.0, left=25.0)}) == Left(25.0, least=True)
    for number in range(4):
        estimate.settle(f"distill@{number}", 20.0)
    assert estimate.left(90.0, {"report": Running(0.0)}) is None
    estimate.settle("report", 5.0)
    assert estimate.left(95.0, {}) is None


def test_what_a_stage_says_of_itself_counts_where_it_is_longer() -> None:
    estimate = Estimate(NAMES[:3])
    estimate.settle("prepare@a", 10.0)
    estimate.settle("distill@0", 20.0)
    assert estimate.left(40.0, {"distill@1": Running(10.0, left=60.0)}) == Left(60.0, least=False)


def test_stages_that_were_up_to_date_let_others_be_so() -> None:
    estimate = Estimate(NAMES[1:5])
    estimate.settle("distill@0", None)
    estimate.settle("distill@1", 30.0)
    assert estimate.left(30.0, {}) == Left(30.0, least=False)


@pytest.mark.parametrize("seconds", [0.1, None])
def test_a_failure_says_nothing_of_others(seconds: float | None) -> None:
    estimate = Estimate(NAMES[1:4])
    estimate.settle("distill@0", 30.0)
    estimate.settle("distill@1", seconds, counts=False)
    assert estimate.left(30.0, {}) == Left(30.0, least=False)

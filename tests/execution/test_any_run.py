"""What holds of every run: random graphs, durations, ends, machines and interruptions (see `World` for the rest)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scheduler_fixtures import Fate, Room, World, stage, write_inputs

from pipeline.errors import MachineError
from pipeline.execution.outcome import Outcome
from pipeline.execution.stage import Verdict

WELL = (Verdict.UNCHANGED, Verdict.RESTORED, Verdict.ADOPTED)
FATES = st.one_of(
    st.builds(Fate, ticks=st.integers(1, 6)),
    st.builds(Fate, st.sampled_from(WELL)),
    st.builds(Fate, ticks=st.integers(1, 6), fails=st.booleans(), refused=st.booleans()),
    st.sampled_from([Fate(None), Fate(unplaced=True)]),
)
COHORTS = st.fixed_dictionaries({"cohort": st.integers(1, 4)})


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        for data in "ab":
            write_inputs(Path(name) / f"{data}.json", data)
        yield Path(name)


@st.composite
def runs(draw: st.DrawFn) -> Callable[[Path], World]:
    """Return what makes a random run in a folder."""
    number = draw(st.integers(1, 12))
    after = [
        draw(st.sets(st.integers(0, index - 1), max_size=3)) if index else set() for index in range(number)
    ]
    kinds = draw(st.lists(st.sampled_from(["fit", "list", "a", "b"]), min_size=number, max_size=number))
    names = [f"{'distill' if kind in 'ab' else kind}@{index}" for index, kind in enumerate(kinds)]
    fates = {name: draw(FATES) for name in names}
    order = draw(st.permutations(range(number)))
    room = Room(draw(st.integers(1, 4)), draw(st.integers(0, 2)), draw(st.integers(1, 3)))
    keep_going = draw(st.booleans())

    def make(root: Path) -> World:
        stages = [
            stage(
                names[index],
                *(names[other] for other in after[index]),
                gpu=kinds[index] != "list",
                shares=kinds[index] in "ab",
                root=root,
                inputs=f"{kinds[index]}.json",
            )
            for index in order
        ]
        return World(root, stages, fates, room, keep_going)

    return make


def check_lists(world: World, outcome: Outcome) -> None:
    lists = (
        outcome.ran, outcome.restored, outcome.unchanged, outcome.failed, outcome.skipped, outcome.stopped,
    )  # fmt: skip
    assert sorted(name for each in lists for name in each) == sorted(each.name for each in world.stages)


def check_hands(world: World) -> None:
    assert world.handed == dict.fromkeys(world.begun, 1)
    assert world.running == []


@given(run=runs(), options=COHORTS)
def test_every_stage_ends_in_one_list(
    folder: Path, run: Callable[[Path], World], options: dict[str, int]
) -> None:
    world = run(folder)
    outcome = world.run(**options)
    check_lists(world, outcome)
    check_hands(world)
    assert outcome.stopped == []
    assert all(len(job) <= options["cohort"] for job in world.jobs)

    well = {*outcome.ran, *outcome.restored, *outcome.unchanged}
    for each in world.stages:
        if each.name in well:
            assert each.after <= well
        elif world.keep_going:
            assert (each.name in outcome.failed) == (each.after <= well)
        if each.name in outcome.skipped:
            assert outcome.skipped[each.name] in outcome.failed
    assert world.keep_going or outcome.failed or len(well) == len(world.stages)


@given(run=runs(), options=COHORTS, asked=st.integers(0, 40))
def test_a_stop_at_any_moment_leaves_nothing_running(
    folder: Path, run: Callable[[Path], World], options: dict[str, int], asked: int
) -> None:
    world = run(folder)
    looks = iter(range(asked))
    outcome = world.run(lambda: next(looks, None) is None, **options)
    check_lists(world, outcome)
    check_hands(world)


@given(
    run=runs(),
    options=COHORTS,
    moment=st.integers(0, 250),
    error=st.sampled_from([KeyboardInterrupt, MachineError, OSError]),
)
def test_whatever_raises_each_begun_stage_is_handed_back_once(
    folder: Path,
    run: Callable[[Path], World],
    options: dict[str, int],
    moment: int,
    error: type[BaseException],
) -> None:
    calls: list[str] = []

    def trap(call: str) -> None:
        calls.append(call)
        # An executor that has started a job does not say that it could not.
        if len(calls) == moment + 1 and (call, error) != ("started", MachineError):
            raise error("trapped")

    world = run(folder)
    world.trap = trap
    with suppress(error):
        check_lists(world, world.run(**options))

    lost = calls[moment] if moment < len(calls) else ""
    # Of a stage that is begun, and nobody is told: DVC's own end gives it back.
    last = world.begun[-1:] if lost == "begun" else []
    known = world.begun[:-1] if last and last[0] not in world.handed else world.begun
    assert world.handed == dict.fromkeys(known, 1)
    assert lost == "stop" or world.running == []

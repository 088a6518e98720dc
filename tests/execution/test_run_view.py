"""What people see of a run."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.execution import table
from pipeline.execution.job import Job, Progress
from pipeline.execution.outcome import Outcome
from pipeline.execution.view import summary, view

HOSTILE = "distill@[red]a[/red]\x1b[31m\n[bold]"


class Clock:
    """Time that stands still unless a test moves it."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class Screen:
    """A terminal that remembers what it was sent."""

    def __init__(self, width: int = 120, height: int = 40) -> None:
        self.file = io.StringIO()
        self.console = self._console(self.file, width, height)

    @property
    def text(self) -> str:
        return self.file.getvalue()

    def lines(self, shown: table.Table) -> list[str]:
        """Return the table as it stands, without the spaces at the ends of its lines."""
        file = io.StringIO()
        self._console(file, *self.console.size).print(shown._live.renderable)
        return [line.rstrip() for line in file.getvalue().splitlines() if line.strip()]

    @staticmethod
    def _console(file: io.StringIO, width: int, height: int) -> Console:
        return Console(file=file, force_terminal=True, width=width, height=height, color_system=None)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(table, "time", made)
    return made


def job(name: str) -> Job:
    return Job(name, ("true",), Path(), Path("log"))


def names(number: int) -> list[str]:
    """Return the names of stages that no test starts."""
    return [f"unknown@{index}" for index in range(number)]


def test_lines_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with view(names(5)) as shown:
        shown.started(job("a"), "cpu")
        shown.moved({"a": Progress("training", 1, 2)})
        shown.recording(job("a"))
        shown.settled("a", "ran", "", 1.26)
        shown.ended(job("a"))
        shown.settled("b", "unchanged")
        shown.settled("c", "failed", "the disk is full", 3700.0)
        shown.settled("d", "skipped", "c")
        shown.settled("e", "restored")
    assert capsys.readouterr().out.splitlines() == [
        "[1/5] a: ran in 1.3 s",
        "[3/5] c: failed after 1:01:40: the disk is full",
        "[5/5] e: restored",
    ]


def test_a_row_says_where_how_far_and_how_long(clock: Clock) -> None:
    screen = Screen()
    with view(names(9), screen.console) as shown:
        assert isinstance(shown, table.Table)
        shown.started(job("train_teacher@big"), "GPU 0")
        clock.now += 10
        shown.moved({"train_teacher@big": Progress("big", 40, 100, "")})  # it resumes from a checkpoint
        clock.now += 60
        shown.moved({"train_teacher@big": Progress("big", 60, 100, "top-1 71.2 %")})
        row, footer = screen.lines(shown)
    assert row.split("  ")[:3] == ["GPU 0", "train_teacher@big", "1:10"]
    assert row.endswith("2:00 left  60/100 top-1 71.2 %")
    assert footer == "0 of 9 stages, 1:10"


def test_a_new_bar_of_a_job_is_timed_anew(clock: Clock) -> None:
    screen = Screen()
    with view(names(1), screen.console) as shown:
        assert isinstance(shown, table.Table)
        shown.started(job("fit"), "cpu")
        shown.moved({"fit": Progress("k-means", 0, 10)})
        clock.now += 1000
        shown.moved({"fit": Progress("quality", 0, 10)})
        clock.now += 5
        shown.moved({"fit": Progress("quality", 5, 10)})
        row, footer = screen.lines(shown)
    assert row.endswith("0:05 left  5/10 quality")
    assert footer == "0 of 1 stage, 16:45"


def test_a_job_is_recorded_and_its_row_is_taken_away(clock: Clock) -> None:
    screen = Screen()
    with view(names(2), screen.console) as shown:
        assert isinstance(shown, table.Table)
        shown.started(job("a"), "cpu")
        shown.recording(job("a"))
        assert screen.lines(shown)[0].endswith("recording")
        shown.settled("a", "failed", "no", 1.0)
        shown.ended(job("a"))
        assert screen.lines(shown) == ["1 of 2 stages, 0:00, 1 failed"]


def test_the_last_line_says_how_long_the_others_will_take(clock: Clock) -> None:
    screen = Screen()
    with view([*(f"distill@{index}" for index in range(4)), "report"], screen.console) as shown:
        assert isinstance(shown, table.Table)
        shown.started(
            Job("distill@0-1", ("true",), Path(), Path("log"), stages=("distill@0", "distill@1")), "cpu"
        )
        clock.now += 60
        shown.settled("distill@0", "ran", "", 60.0)
        shown.settled("distill@1", "failed", "no", 60.0)
        shown.ended(job("distill@0-1"))
        shown.started(job("distill@2"), "cpu")
        clock.now += 20
        shown.moved({})
        assert screen.lines(shown)[-1] == "2 of 5 stages, 1:20, at least 1:40 left, 1 failed"
        shown.settled("report", "unchanged")
        assert screen.lines(shown)[-1] == "3 of 5 stages, 1:20, about 1:40 left, 1 failed"


@pytest.mark.parametrize("width", [20, 40, 60, 80, 110, 200])
def test_rows_fit_any_terminal(clock: Clock, width: int) -> None:
    screen = Screen(width, height=12)
    with view(names(58), screen.console) as shown:
        assert isinstance(shown, table.Table)
        for index in range(16):
            name = f"distill@a-long-name-of-a-pair-of-networks/with-a-run-{index:02}"
            shown.started(job(name), f"GPU {index}")
            shown.moved({name: Progress("students", 0, 99)})
        clock.now += 30
        shown.moved({name: Progress("students", 9, 99, "a note that says much more than there is room for")})
        lines = screen.lines(shown)
    assert len(lines) == 11
    assert all(len(line) <= width for line in lines)
    if width >= 40:
        assert lines[0].startswith("GPU 0")
        assert "-00 " in lines[0]
        assert lines[-1] == "0 of 58 stages, 0:30, 6 more run"


def test_names_are_printed_as_they_are(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    with view(names(1), screen.console) as shown:
        assert isinstance(shown, table.Table)
        shown.started(job(HOSTILE), "[blue]cpu")
        shown.moved({HOSTILE: Progress("[bold]t", 0, 0, "\x1b[2J")})
        row = screen.lines(shown)[0]
        shown.settled(HOSTILE, "failed", "[/red]\x07")
    assert row.split() == ["[blue]cpu", r"distill@[red]a[/red]\x1b[31m\n[bold]", "0:00", r"\x1b[2J"]
    assert capsys.readouterr().out == r"[1/1] distill@[red]a[/red]\x1b[31m\n[bold]: failed: [/red]\x07" + "\n"
    assert summary(Outcome(failed={HOSTILE: "\x1b[31m"}), 0)[1] == (
        r"failed: distill@[red]a[/red]\x1b[31m\n[bold]: \x1b[31m"
    )


def test_prints_stand_above_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, mine = Screen(), io.StringIO()
    monkeypatch.setattr(mine, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", mine)
    with view(names(1), screen.console) as shown:
        shown.started(job("a"), "cpu")
        print("[red]from elsewhere")
        print("a warning", file=sys.stderr)
        shown.settled("a", "ran", "", 2.0)
    assert mine.getvalue() == ""
    assert "[red]from elsewhere\n" in screen.text
    assert "a warning\n" in screen.text
    assert "[1/1] a: ran in 2.0 s\n" in screen.text


def test_lines_go_into_the_file_that_the_user_names(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    with view(names(1), screen.console) as shown:
        shown.settled("a", "ran", "", 2.0)
    assert capsys.readouterr().out == "[1/1] a: ran in 2.0 s\n"
    assert "ran in" not in screen.text


def test_the_summary_says_what_happened() -> None:
    outcome = Outcome(
        ran=["a", "b"],
        unchanged=["c"],
        failed={"d": "the disk is full", "e": "exit status 1"},
        skipped={**{f"s{index}": "d" for index in range(10)}, "t": "e"},
        stopped=["u"],
        logs={"d": Path("logs/d.log")},
    )
    assert summary(outcome, 75.0) == [
        "17 stages: 2 ran, 1 unchanged, 2 failed, 11 skipped, 1 stopped; 1:15.",
        "failed: d: the disk is full",
        "  what it printed: logs/d.log",
        "  skipped after it: s0, s1, s2, s3, s4, s5, s6, s7 and 2 more",
        "failed: e: exit status 1",
        "  skipped after it: t",
        "Mend what failed, then run the same command again: what has run is kept.",
    ]


def test_the_summary_of_a_run_without_work() -> None:
    assert summary(Outcome(unchanged=["a"]), 0.31) == ["1 stage: 1 unchanged; 0.3 s."]
    assert summary(Outcome(restored=["a", "b"]), 1.0) == ["2 stages: 2 came out of the run cache; 1.0 s."]
    assert summary(Outcome(), 0.0) == ["0 stages: nothing to do; 0.0 s."]

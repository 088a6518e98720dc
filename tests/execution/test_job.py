"""Why a job has failed, from what it has printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.execution import job
from pipeline.execution.done import Mark
from pipeline.execution.job import Job, from_json, to_json


@pytest.mark.parametrize(
    ("printed", "reason"),
    [
        ("", "exit status 1"),
        ("\n \n", "exit status 1"),
        ("warning: w\nerror: the disk is full. Free it.\n", "the disk is full. Free it."),
        ("error: first\nerror: last\nbye\n", "last"),
        ("Traceback\n  line\nValueError: no\n\n", "exit status 1: ValueError: no"),
        (" 10 %\r 20 %\r", "exit status 1: 20 %"),
        ("\xff", "exit status 1: \ufffd"),
    ],
)
def test_the_last_error_or_the_last_line(tmp_path: Path, printed: str, reason: str) -> None:
    log = tmp_path / "log"
    log.write_bytes(printed.encode("latin-1"))
    assert job.failure(log, "exit status 1") == reason


def test_a_log_that_is_missing(tmp_path: Path) -> None:
    assert job.failure(tmp_path / "log", "it was killed by SIGKILL") == "it was killed by SIGKILL"


def test_of_a_long_log_the_end_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("error: early\n" + "x" * job.TAIL + "\n" + "y" * 5000)
    assert job.failure(log, "exit status 1") == "exit status 1: " + "y" * job.SHOWN


def test_a_job_reaches_another_machine_as_it_is(tmp_path: Path) -> None:
    mark = Mark(tmp_path / "mark.json", "key", (tmp_path / "out", tmp_path / "b c"))
    sent = Job(
        "a@b/c-0", ("echo 'é'", "true"), tmp_path, tmp_path / "a.log", {"A": "1"}, gpu=True, marks=(mark,)
    )
    assert from_json(to_json(sent)) == sent

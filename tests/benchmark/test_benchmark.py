"""The benchmark: its list, its records and its clock. No test asserts on how fast something is."""

from __future__ import annotations

import json
import math
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from pipeline import errors
from pipeline.artifacts.publish import read_json
from pipeline.benchmark import fits, memory, photographs, record, repro, startup, suite
from pipeline.benchmark.material import FULL, QUICK, Bench
from pipeline.benchmark.record import Record, missing
from pipeline.benchmark.timing import Rates, interleaved, timed
from pipeline.compute import precision as precisions
from pipeline.compute.machine import Machine
from pipeline.networks.network import Network, _walked
from stages import benchmark as stage
from stages import command

TINY = replace(
    QUICK,
    rounds=2,
    size=8,
    batch_size=4,
    steps=2,
    extracted=6,
    stored=10,
    remembered=4,
    fitted=600,
    photographs=6,
    pairs=(("resnet.resnet14", "resnet.resnet8"), ("wrn.wrn_16_1", "resnet.resnet8")),
    pair=("resnet.resnet14", "resnet.resnet8"),
    channels=12,
    method_steps=2,
    images=9,
    toolkit_steps=2,
    workers=0,
    seeds=2,
    epochs=1,
    compared_pair=("resnet.resnet8", "resnet.resnet8x0.25"),
)
IN_PROCESS = ("cached_step", "self_learning", "costs", "extract", "matching", "read", "input_pipeline", "options",
              "fits_gpu")  # fmt: skip


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(TINY, Machine(torch.device("cpu")), tmp_path)


class Clock:
    """A clock that moves only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.now += seconds

        return run


# Timing.


def test_a_rate_is_units_over_seconds() -> None:
    clock = Clock()
    assert timed(clock.work(0.5), 100, clock)() == 200


def test_runs_take_turns_there_and_back_after_a_round_that_does_not_count() -> None:
    seen: list[str] = []
    given = {"a": iter([9.0, 1.0, 5.0, 3.0]), "b": iter([9.0, 2.0, 2.0, 2.0])}

    def run(name: str) -> Callable[[], float]:
        def call() -> float:
            seen.append(name)
            return next(given[name])

        return call

    rates = interleaved("test", {name: run(name) for name in given}, 3)
    assert seen == ["b", "a", "a", "b", "b", "a", "a", "b"]
    assert rates.rounds == ({"a": 1, "b": 2}, {"a": 5, "b": 2}, {"a": 3, "b": 2})
    assert (rates.median("a"), rates.median("b")) == (3, 2)


def test_a_ratio_is_the_median_over_rounds_and_not_the_ratio_of_medians() -> None:
    """The machine halves its speed in one round: both runs slow down, their ratio stays."""
    rates = Rates(({"a": 10, "b": 8}, {"a": 5, "b": 4}, {"a": 12, "b": 3}))
    assert rates.ratio("b", to="a") == 0.8
    assert rates.median("b") / rates.median("a") == 0.4


# Records.


@pytest.mark.parametrize(
    ("value", "target", "text", "holds"),
    [
        (0.95, {"at_least": 0.95}, ">= 0.95", True),
        (0.94, {"at_least": 0.95}, ">= 0.95", False),
        (5.0, {"at_most": 5}, "<= 5", True),
        (5.1, {"at_most": 5}, "<= 5", False),
        (7.0, {}, None, None),
    ],
)
def test_a_record_says_whether_its_target_holds(
    value: float, target: dict[str, float], text: str | None, holds: bool | None
) -> None:
    assert record.record("a", value, "s", **target) == Record("a", value, "s", text, holds)


def test_records_are_written_and_shown(tmp_path: Path) -> None:
    records = [record.record("a/b", 12345.6, "images/s", at_least=2), missing("c", "s", "no file")]
    facts = record.facts("cpu")
    record.write(tmp_path / "new" / "out.json", facts, records)
    written = read_json(tmp_path / "new" / "out.json", "")
    assert written["machine"].items() >= {"device": "cpu", "torch": torch.__version__.split("+")[0]}.items()
    assert written["machine"]["cores"] > 0
    assert written["records"] == [
        {"name": "a/b", "value": 12345.6, "unit": "images/s", "target": ">= 2", "holds": True, "note": ""},
        {"name": "c", "value": None, "unit": "s", "target": None, "holds": None,
         "note": "not measured: no file"},
    ]  # fmt: skip
    console = Console(width=120, record=True, quiet=False, file=(tmp_path / "shown").open("w"))
    record.show(console, facts, records)
    console.file.close()
    shown = (tmp_path / "shown").read_text()
    for part in ("a/b", "12,346", ">= 2", "yes", "not measured: no file"):
        assert part in shown


def check(found: list[Record], name: str) -> None:
    assert found
    assert len({one.name for one in found}) == len(found)
    for one in found:
        assert one.name.startswith(name)
        if one.name.startswith("options/") and one.name.endswith("/compile"):
            assert one.note == "not measured: compiling takes minutes, leave out --quick"
            continue
        assert one.value is not None
        assert math.isfinite(one.value)
        assert (one.holds is None) == (one.target is None)


# Measurements, at the smallest sizes.


@pytest.mark.parametrize("name", IN_PROCESS)
def test_measurements_give_finite_numbers(name: str, bench: Bench) -> None:
    check(suite.measure(name, bench), name)


def test_every_pair_is_timed_three_ways(bench: Bench) -> None:
    names = {one.name for one in suite.measure("cached_step", bench)}
    sides = ("alone", "cached", "online", "speed_up")
    pairs = ("resnet14-resnet8", "wrn_16_1-resnet8")
    assert names == {f"cached_step/{pair}/{side}" for pair in pairs for side in sides}


def test_every_option_is_timed_beside_the_default(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile is switched on as everywhere; the compiler itself is left out of this test."""
    compiled: list[Network] = []

    def walk(network: Network, image: torch.Tensor, names: Any) -> Any:
        compiled.append(network)
        return _walked(network, image, names)

    monkeypatch.setattr("pipeline.networks.network._compiled", lambda: walk)
    monkeypatch.setattr("pipeline.benchmark.options.cannot_compile", lambda device: None)
    found = suite.measure("options", replace(bench, scale=replace(TINY, compiled=True)))
    sides = ("default", "channels_last", "bfloat16", "compile")
    names = {f"options/{what}/{side}" for what in ("step/resnet8", "forward/resnet14") for side in sides}
    assert {one.name for one in found} == names
    assert all(one.value is not None for one in found)
    assert len(set(map(id, compiled))) == 2  # of four machines, one compiles its student and its teacher


def test_a_machine_without_a_compiler_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.benchmark.options.cannot_compile", lambda device: "a C++ compiler")
    found = suite.measure("options", replace(bench, scale=replace(TINY, compiled=True)))
    notes = [one.note for one in found if one.value is None]
    assert notes == ["not measured: torch.compile needs a C++ compiler"] * 2


def test_peak_memory_is_compared(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here in this process, where both sizes have the same peak."""

    def here(task: str, samples: int, folder: Path) -> float:
        memory.TASKS[task](folder / f"data-{samples}", folder / f"memory-{samples}.zarr")
        return 100.0 if samples == TINY.remembered else 120.0

    monkeypatch.setattr(memory, "apart", here)
    found = memory.memory(bench)
    check(found, "memory")
    assert [one.value for one in found] == pytest.approx([20, 20])
    assert [one.holds for one in found] == [False, False]


def test_peaks_of_an_indexed_folder_are_compared_and_its_decoding_timed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def here(task: str, samples: int, folder: Path, module: str) -> float:
        assert module == "photographs"
        photographs.TASKS[task](folder, samples)
        return 100.0 if samples == TINY.photographs else 106.0

    monkeypatch.setattr(photographs, "apart", here)
    found = suite.measure("photographs", bench)
    check(found, "photographs")
    assert [one.value for one in found[:2]] == pytest.approx([6, 6])
    assert [one.holds for one in found[:2]] == [False, False]
    assert len(photographs.prepared(bench.folder, 24).split("train")) == 24


def test_a_process_of_its_own_tells_its_peak(bench: Bench) -> None:
    """Torch alone takes more than 50 MB, and so does this process."""
    bench.prepared(4)
    assert memory.apart("extract", 4, bench.folder) > 50
    assert memory.peak() > 50


def test_a_task_that_fails_in_its_process_is_told(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="MissingArtifactError"):
        memory.apart("read", 4, tmp_path)


def test_fits_are_compared_with_scikit_learn(bench: Bench) -> None:
    """LDA in processes of their own; faiss may be missing, and is told so."""
    found = fits.fits(bench)
    check([one for one in found if one.value is not None], "fits")
    assert [one.name for one in found] == [
        *(f"fits/kmeans/{what}" for what in ("held", "of_sklearn", "streamed", "of_faiss")),
        *("fits/lda/time", "fits/lda/memory"),
    ]
    assert all(one.note.startswith(record.MISSING) for one in found if one.value is None)


def test_both_engines_of_a_fit_see_the_same_pixels() -> None:
    stream = fits.Generated.of(5000, 8)
    x, label = stream.rows()
    assert x.shape == (78 * 64, 8)
    assert label.tolist() == [sample % fits.CLASSES for sample in range(78) for _ in range(64)]
    blocks = [block for block, _ in stream]
    again = np.moveaxis(np.concatenate(blocks), 1, -1).reshape(-1, 8)
    np.testing.assert_array_equal(x, again)


def test_an_engine_that_fails_in_its_process_is_told() -> None:
    with pytest.raises(RuntimeError, match="KeyError: 'none'"):
        fits.apart("none", 64)


def test_start_up_names_the_worst_stage() -> None:
    found = startup.compare(["code", "params"], 1)
    check(found, "startup")
    assert found[-1].note in ("stages.code", "stages.params")


# dvc repro with nothing to do.


class Dvc:
    """Stands for dvc."""

    def __init__(self, status: int, output: str) -> None:
        self.status, self.output, self.calls = status, output, list[str]()

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        self.calls.append(arguments[0])
        return subprocess.CompletedProcess(arguments, self.status, self.output, "")


def test_repro_is_timed_a_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("dvc.yaml", "dvc.lock"):
        (tmp_path / name).touch()
    dvc = Dvc(0, "Stage 'a' didn't change, skipping\nStage 'b@0' didn't change, skipping\nAll is well.\n")
    found = repro.compare(3, dvc)
    check(found, "repro")
    assert found[1].note == "2 stages"
    assert found[0].value == pytest.approx((found[1].value or 0) / 2)
    assert dvc.calls == ["status", "repro", "repro", "repro"]


@pytest.mark.parametrize(
    ("files", "status", "output", "why"),
    [
        ((), 0, "", "no dvc.yaml"),
        (("dvc.yaml",), 0, "", "no dvc.lock"),
        (("dvc.yaml", "dvc.lock"), 1, "", "not up to date"),
        (("dvc.yaml", "dvc.lock"), 0, "", "names no stage"),
    ],
)
def test_repro_is_not_run_where_something_is_not_up_to_date(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: tuple[str, ...],
    status: int,
    output: str,
    why: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in files:
        (tmp_path / name).touch()
    dvc = Dvc(status, output)
    (found,) = repro.compare(1, dvc)
    assert (found.value, found.holds) == (None, None)
    assert found.note.startswith("not measured: ")
    assert why in found.note
    assert "repro" not in dvc.calls or status == 0


# The command.


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, arguments)])
    with pytest.raises(SystemExit) as exited:
        command.run(stage.main)
    return int(exited.value.code or 0)


def test_names_are_selected_in_their_order() -> None:
    assert suite.select([]) == list(suite.MEASUREMENTS)
    assert suite.select(["read", "extract"]) == ["extract", "read"]
    assert suite.select([], quick=True) == [name for name in suite.MEASUREMENTS if name not in suite.LONG]
    assert suite.select(["fits"], quick=True) == ["fits"]
    with pytest.raises(errors.UnknownNameError, match=r"Unknown measurement 'reed'. Did you mean 'read'"):
        suite.select(["read", "reed"])


def test_every_measurement_is_a_documented_function() -> None:
    for name, place in suite.MEASUREMENTS.items():
        function = pkgutil.resolve_name(f"pipeline.benchmark.{place}")
        assert function.__doc__, name
        assert list(signature(function).parameters) == ["bench"], name


def test_an_unknown_name_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--only", "memori") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: Unknown measurement 'memori'. Did you mean 'memory'")
    assert "cached_step" in line


def test_a_folder_is_no_json_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(monkeypatch, "--json", tmp_path) == 2
    assert "--json" in capsys.readouterr().err


def test_a_page_without_a_place_for_tables_is_an_error_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "page.md").write_text("# Speed\n")
    for path in (tmp_path / "page.md", tmp_path / "none.md"):
        assert run(monkeypatch, "--markdown", path) == 2
        assert "<!-- measured: NAME -->" in capsys.readouterr().err


def test_the_command_writes_tables_into_a_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        "pipeline.benchmark.reading.read", lambda bench: [record.record("read/it/speed", 3.0, "GB/s")]
    )
    (tmp_path / "page.md").write_text("<!-- measured: read -->\n<!-- end -->\n")
    options: list[Any] = ["--only", "read", "--device", "cpu", "--markdown", tmp_path / "page.md"]
    assert run(monkeypatch, *options) == 0
    written = (tmp_path / "page.md").read_text()
    assert "| `it` | 3 |  |" in written
    assert "cores" in written


def test_a_folder_without_training_images_is_an_error_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(monkeypatch, "--data", tmp_path) == 2
    assert "has no folder 'train'" in capsys.readouterr().err


@pytest.mark.parametrize("quick", [True, False])
def test_the_command_measures_what_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, quick: bool
) -> None:
    seen: list[Bench] = []

    def measured(bench: Bench) -> list[Record]:
        assert bench.folder.is_dir()
        seen.append(bench)
        return [record.record("read/it", 3.0, "GB/s", at_least=4)]

    monkeypatch.setattr("pipeline.benchmark.reading.read", measured)
    (tmp_path / "images" / "train").mkdir(parents=True)
    options: list[Any] = ["--only", "read", "--device", "cpu", "--json", tmp_path / "out.json"]
    options += ["--precision", "bfloat16", "--data", tmp_path / "images"]
    with precisions.using("float32"):  # the command sets what its process computes in
        assert run(monkeypatch, *options, *(["--quick"] if quick else [])) == 0
    assert seen[0].scale == (QUICK if quick else FULL)
    assert seen[0].machine.precision == "bfloat16"
    assert seen[0].data == tmp_path / "images"
    assert not seen[0].folder.exists()
    shown = capsys.readouterr().out
    assert "read (1 of 1)" in shown
    assert "read/it" in shown
    (one,) = json.loads((tmp_path / "out.json").read_text())["records"]
    assert (one["name"], one["value"], one["target"], one["holds"]) == ("read/it", 3.0, ">= 4", False)


@pytest.mark.parametrize("error", [RuntimeError("no kernel\nhere"), errors.DataError("no images")])
def test_a_measurement_that_fails_takes_no_other_with_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, error: Exception
) -> None:
    def failing(bench: Bench) -> list[Record]:
        raise error

    monkeypatch.setattr("pipeline.benchmark.extraction.extract", failing)
    monkeypatch.setattr(
        "pipeline.benchmark.reading.read", lambda bench: [record.record("read/it", 3.0, "GB/s")]
    )
    options: list[Any] = [
        "--only",
        "read",
        "--only",
        "extract",
        "--device",
        "cpu",
        "--json",
        tmp_path / "o.json",
    ]
    assert run(monkeypatch, *options) == 1

    failed, read = json.loads((tmp_path / "o.json").read_text())["records"]
    text = " ".join(str(error).split())
    assert (failed["name"], failed["note"]) == ("extract", f"not measured: {type(error).__name__}: {text}")
    assert read["value"] == 3
    shown = capsys.readouterr().err
    assert ("Traceback" in shown) == (not isinstance(error, errors.StillhouseError))


def test_names_are_checked_before_heavy_imports() -> None:
    code = (
        "import sys; from stages import benchmark; from pipeline.benchmark import suite; suite.select(['read']);"
        "print('torch' in sys.modules, 'zarr' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]

"""Faults: processes killed, full disks, damaged files, diverging training, two runs at once.

What other tests hold of this, nearer to the code: checkpoints of phases and of anchors (test_training), a shard
whose record is lost and stores of other settings (test_extract), damaged chunks and manifests (test_store), damaged
tables (test_table), damaged prepared data and failing downloads (test_datasets), what a run or its student lacks
and files that are not those of its inputs (test_distill), mistakes in params.yaml (test_params), argument files that
are no json (test_errors).
"""

from __future__ import annotations

import ast
import errno
import importlib
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dvc_project import ONE, RECIPE, make
from execution_fixtures import PATIENCE
from fault_fixtures import Ended, Fault, Server, contents, serving
from safetensors.torch import load_file, save_file
from training_fixtures import PARAMS, World, prepared_data

from pipeline.artifacts import publish, system
from pipeline.artifacts.closure import root
from pipeline.errors import MachineError
from pipeline.params.sections import merged
from pipeline.training import checkpoint
from stages import command

KILLED = -signal.SIGKILL
CODED = {"places": {"stage2": {"table": "words", "encoding": "top4"}}}
SMALL = merged(
    PARAMS,
    {
        "seeds": [0],
        "distill": ["pair/kd", "pair/fitnet", "pair/standardized", "pair/kcd", "pair/coded"],
        "runs": {"coded": {"methods": {"letkd": CODED}}},
        "tables": {
            "words": {"kmeans": {"feature": "stage2", "clusters": 5}},
            "idle": {"moments": {"feature": "stage2"}},  # nobody asks for it
        },
        "copies": {"copy": {"teacher": "big", "student": "small"}},
        "assistants": {
            "a1": {"teacher": "big", "network": "resnet8", "recipe": "quick", "follows": "teacher"},
            "a2": {"teacher": "big", "network": "resnet8x0.25", "recipe": "quick", "follows": "a1"},
        },
    },
)
EVERY_EPOCH = {"pipeline.training.loop:CHECKPOINT_SECONDS": -1.0}
BLOCKS = {"pipeline.data.preparation:prepare": {"block_bytes": 9000}}
SHARDS = {"pipeline.features.extract:Extraction": {"shard_bytes": 4000}}
COPY_SHARDS = {"pipeline.training.copies:Extraction": {"shard_bytes": 4000}}
CODE_SHARDS = {"pipeline.features.codes:Extraction": {"shard_bytes": 4000}}


@dataclass(frozen=True)
class Job:
    """A stage's command.

    Attributes:
        stage: its name.
        words: its arguments, beside its outs.
        outs: what it makes, by option, below `artifacts`.
        settings: attributes to set; they make small data behave as large.
    """

    stage: str
    words: tuple[object, ...]
    outs: dict[str, str]
    settings: dict[str, Any]

    def arguments(self, artifacts: Path) -> list[object]:
        return [
            *self.words,
            *(word for o, path in self.outs.items() for word in (f"--{o}", artifacts / path)),
        ]

    def made(self, artifacts: Path) -> dict[str, Any]:
        """Return what there is of the outs."""
        paths = [path for path in self.outs.values() if (artifacts / path).exists()]
        return {path: contents(artifacts / path) for path in paths}


@dataclass(frozen=True)
class Plant:
    """A finished project, its stages' commands, and the processes that run them."""

    world: World
    jobs: dict[str, Job]
    server: Server

    @property
    def artifacts(self) -> Path:
        return self.world.path("artifacts")

    def run(self, name: str, artifacts: Path, *faults: Fault, **options: Any) -> Ended:
        job = self.jobs[name]
        options.setdefault("settings", job.settings)
        return self.server.run(job.stage, job.arguments(artifacts), *faults, **options)


def jobs(world: World) -> dict[str, Job]:
    """Return every stage's command, in their order."""
    a, data = world.path("artifacts"), world.path("data/prepared/toy")
    block, asked = a / "params/teachers/big", a / "inputs/teachers/big"
    params, digits = world.path("small.yaml"), world.path("digits.json")
    params.write_text(json.dumps(SMALL))
    digits.write_text(json.dumps({"dataset": "digits", "source": "digits", "settings": {"holdout": 0.1}}))
    prepared, weights, store = (
        world.path("data/prepared"),
        a / "teachers/big/weights",
        a / "features/big.zarr",
    )

    cpu = ("--device", "cpu")
    extract = ("--data", data, "--weights", weights, *cpu, "--batch-size", 30)
    check = ("--store", store, "--data", data, "--weights", weights, *cpu)
    places = ("--prepared", prepared, "--weights", weights, "--store", store)
    made = (
        "--tables", a / "tables/big", "--codes", a / "codes/big", "--copies", a / "copies/big",
        "--matchings", a / "matchings/pair", "--evaluation", a / "predictions/teachers/big.npz", "--code", a / "code",
    )  # fmt: skip
    small = a / "inputs/students/small.json"

    def job(stage: str, *words: object, settings: Any = None, **outs: str) -> Job:
        return Job(stage, words, outs, settings or {})

    def evaluate(key: str, *words: object) -> Job:
        outs = {"predictions": f"predictions/{key}.npz", "out": f"metrics/{key}.json"}
        return job("evaluate", a / key, *words, *cpu, **outs)

    def fit(table: str) -> Job:
        outs = {"out": f"tables/big/{table}.npz", "metrics": f"metrics/tables/big/{table}.json"}
        return job(
            "fit_table", asked / f"tables/{table}.json", "--prepared", prepared, "--store", store, **outs
        )

    def distill(run: str) -> Job:
        inputs = a / f"inputs/pairs/pair/{run}/0.json"
        return job("distill", inputs, *cpu, settings=EVERY_EPOCH, out=f"students/pair/{run}/0")

    return {
        "code": job("code", out="code"),
        "params": job("params", "--params", params, out="params", mark="marked"),
        "prepare": job("prepare_data", digits, settings=BLOCKS, out="digits"),
        "train": job("train_teacher", block / "train.json", "--data", data, *cpu, settings=EVERY_EPOCH,
                     out="teachers/big"),
        "evaluate": evaluate("teachers/big", "--data", data),
        "extract": job("extract_features", block / "extract.json", *extract, settings=SHARDS,
                       out="features/big.zarr"),
        "check": job("check_features", block / "check.json", *check, summary="checks/big.json",
                     out="metrics/features/big.json"),
        "teacher_inputs": job("teacher_inputs", block / "asked.json", "--store", store, out="inputs/teachers/big",
                              mark="marks"),
        "fit": fit("moments"),
        "fit_words": fit("words"),
        "fit_nothing": fit("idle"),
        "encode": job("encode_views", asked / "codes/words.json", *places, "--table", a / "tables/big/words.npz", *cpu,
                      "--batch-size", 30, settings=CODE_SHARDS, out="codes/big/words",
                      metrics="metrics/codes/big/words.json"),
        "encode_nothing": job("encode_views", asked / "codes/idle.json", *places, "--table", a / "tables/big/idle.npz",
                              out="codes/big/idle", metrics="metrics/codes/big/idle.json"),
        "copy": job("train_copy", a / "params/copies/copy.json", *places, *cpu, settings=EVERY_EPOCH | COPY_SHARDS,
                    out="copies/big/copy"),
        **{name: job("train_copy", a / f"params/assistants/{name}.json", *places, "--copies", a / "copies/big", *cpu,
                     settings=EVERY_EPOCH | COPY_SHARDS, out=f"copies/big/{name}") for name in ("a1", "a2")},
        "student_inputs": job("student_inputs", a / "params/students/small.json", "--data", data, "--code",
                              a / "code", out="inputs/students/small.json"),
        "pretrain": job("pretrain_student", small, "--seed", 0, *cpu, settings=EVERY_EPOCH, out="pretrained/small/0"),
        "evaluate_alone": evaluate("pretrained/small/0"),
        "match": job("match_channels", a / "params/matchings/pair.json", *places, "--students",
                     a / "pretrained/small", *cpu, out="matchings/pair/own", metrics="metrics/matchings/pair/own.json"),
        "inputs": job("inputs", a / "params/pairs/pair.json", *places, *made, out="inputs/pairs/pair"),
        "distill": distill("kd"),
        "evaluate_student": evaluate("students/pair/kd/0"),
        "fitnet": distill("fitnet"),
        "evaluate_fitnet": evaluate("students/pair/fitnet/0"),
        "standardized": distill("standardized"),
        "evaluate_standardized": evaluate("students/pair/standardized/0"),
        "kcd": distill("kcd"),
        "evaluate_kcd": evaluate("students/pair/kcd/0"),
        "coded": distill("coded"),
        "evaluate_coded": evaluate("students/pair/coded/0"),
        "report": job("report", a / "params", "--artifacts", a, "--prepared", prepared, out="report"),
    }  # fmt: skip


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    """Make every artifact once, undisturbed."""
    folder = tmp_path_factory.mktemp("server")
    world = World(tmp_path_factory.mktemp("world"), SMALL)
    prepared_data(world.path("data/prepared/toy"))
    with serving(folder) as server:
        plant = Plant(world, jobs(world), server)
        for name in plant.jobs:
            ended = plant.run(name, plant.artifacts)
            assert ended.status == 0, (name, ended.text)
        yield plant


def hidden(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob(".*")]


def one_line(ended: Ended, *parts: str, status: int = 1) -> str:
    assert ended.status == status, ended
    assert ended.text.startswith("error: "), ended.text
    assert ended.text.count("\n") == 1, ended.text
    for part in parts:
        assert part in ended.text
    return ended.text


# ------------------------------------------------------------------ killed

REPLACE, TEXT = "pathlib:Path.replace", "pathlib:Path.write_text"
BYTES = "pathlib:Path.write_bytes"
EPOCH, KEEP = "pipeline.training.step:Step.start", "pipeline.training.loop:Training._keep"
STEP, SAVE = "pipeline.compute.eager:EagerSGD.step", "pipeline.training.checkpoint:save"
FINISH = "pipeline.training.result:finish"
SHARD, RECORD = "pipeline.features.store:StoredArray.write", "pipeline.features.shards:Progress.save"
MANIFEST = "pipeline.features.store:set_manifest"
CREATE = "pipeline.features.store:create"
SAVEZ = "numpy:savez"

TRAINING = [
    Fault(STEP, 8),
    Fault(KEEP, 2),
    Fault(SAVE, 1, "after"),
    Fault(BYTES, 3, "half"),  # the first checkpoint: init and best come before it
    Fault(FINISH, 1),
    Fault(FINISH, 1, "after"),
]
MOMENTS = {
    "code": [Fault(TEXT, 1, "half"), Fault(REPLACE, 9)],
    "params": [Fault(TEXT, 4, "half"), Fault(REPLACE, 5, "after")],
    "prepare": [
        Fault("pipeline.data.preparation:_Writer.write", 1),
        Fault("pipeline.data.preparation:_Writer.write", 9, "after"),
        Fault(BYTES, 2, "half"),
        Fault(TEXT, 1, "half"),
        Fault(REPLACE, 2),
    ],
    "train": [*TRAINING, Fault(BYTES, 5, "half")],
    "evaluate": [Fault(SAVEZ), Fault(REPLACE, 1), Fault(TEXT, 1, "half"), Fault(REPLACE, 2)],
    "extract": [
        Fault(CREATE, 1, "after"),
        Fault(SHARD, 3),
        Fault(RECORD, 2),  # between a shard and its record
        Fault(RECORD, 9, "after"),
        Fault(TEXT, 4, "half"),
        Fault(REPLACE, 2),  # zarr's own, of a group's metadata
        Fault(MANIFEST),
        Fault(MANIFEST, 1, "after"),
    ],
    "check": [Fault("pipeline.features.check:summarize"), Fault(TEXT, 1, "half"), Fault(REPLACE, 2)],
    "teacher_inputs": [Fault(TEXT, 3, "half"), Fault(REPLACE, 2), Fault(REPLACE, 1, "after")],
    "fit": [Fault(SAVEZ, 1, "after"), Fault(REPLACE, 1, "after"), Fault(TEXT, 1, "half")],
    "fit_nothing": [Fault(TEXT, 1, "half"), Fault(REPLACE, 2)],
    "encode": [
        Fault(SHARD, 3),
        Fault(RECORD, 2),
        Fault(MANIFEST, 1, "after"),
        Fault("pipeline.features.codes:Encoder.lost"),
        Fault(REPLACE, 2),
    ],
    "copy": [
        TRAINING[1],
        TRAINING[-1],
        Fault(SHARD, 3),
        Fault(MANIFEST, 1, "after"),
        Fault(TEXT, 1, "half"),
        Fault(REPLACE, 2, "after"),
    ],
    "a2": [TRAINING[1], Fault(SHARD, 3), Fault(TEXT, 1, "half")],
    "student_inputs": [Fault(TEXT, 1, "half"), Fault(REPLACE)],
    "pretrain": [Fault(STEP, 7)],
    "match": [Fault(SAVEZ, 2), Fault(SAVEZ, 2, "after"), Fault(TEXT, 1, "half"), Fault(REPLACE, 2)],
    "inputs": [Fault(TEXT, 2, "half"), Fault(REPLACE, 3)],
    "distill": [TRAINING[1], TRAINING[3], TRAINING[-1]],
    "fitnet": [Fault(STEP, 7)],
    "report": [Fault("pipeline.report.export:export", 1, "after"), Fault(TEXT, 1, "half"), Fault(REPLACE)],
}


@pytest.mark.slow
def test_every_stage_is_killed(plant: Plant) -> None:
    makes = re.compile(r"publish\.\w|distributed\.building")
    made = {path.stem for path in (root() / "stages").glob("*.py") if makes.search(path.read_text())}
    # Exports hold latencies, so no two are alike: tests/export has what a killed one leaves.
    assert {plant.jobs[name].stage for name in MOMENTS} == made - {"command", "export", "publish"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fault"), [pytest.param(n, f, id=f"{n}-{f.place.split(':')[1]}-{f.call}-{f.kind}")
                        for n, faults in MOMENTS.items() for f in faults]
)  # fmt: skip
def test_a_killed_run_leaves_no_half_and_ends_alike(
    plant: Plant, tmp_path: Path, name: str, fault: Fault
) -> None:
    whole = plant.jobs[name].made(plant.artifacts)
    assert len(whole) == len(plant.jobs[name].outs)
    ended = plant.run(name, tmp_path, fault)
    assert ended.status == KILLED, ended.text
    for path, content in plant.jobs[name].made(tmp_path).items():
        assert content == whole[path], path  # it is there only when it is whole
    ended = plant.run(name, tmp_path)
    assert ended.status == 0, ended.text
    assert plant.jobs[name].made(tmp_path) == whole
    assert hidden(tmp_path) == []


@pytest.mark.slow
def test_a_killed_training_does_not_train_again_what_it_has_done(plant: Plant, tmp_path: Path) -> None:
    """The teacher has two epochs: killed in the second, it trains one more."""
    assert plant.run("train", tmp_path, Fault(KEEP, 2)).status == KILLED
    assert plant.run("train", tmp_path, Fault(EPOCH, 2)).status == 0


@pytest.mark.slow
def test_a_killed_extraction_does_not_compute_again_what_it_has_written(plant: Plant, tmp_path: Path) -> None:
    forward = "pipeline.features.teacher:Teacher.features"
    assert plant.run("extract", tmp_path, Fault(MANIFEST)).status == KILLED
    # One forward pass probes the shapes; no other is left to do.
    assert plant.run("extract", tmp_path, Fault(forward, 2)).status == 0


@pytest.mark.slow
def test_what_a_killed_run_left_is_nothing_to_one_with_other_settings(plant: Plant, tmp_path: Path) -> None:
    job = plant.jobs["distill"]
    (out,) = job.outs.values()
    assert plant.run("distill", tmp_path, Fault(KEEP, 2)).status == KILLED
    assert (publish.scratch(tmp_path / out) / "checkpoint.safetensors").exists()
    fitnet = plant.jobs["fitnet"].words[0]
    other = [fitnet, *job.arguments(tmp_path)[1:]]
    assert plant.server.run(job.stage, other).status == 0
    clean = [fitnet, *job.arguments(tmp_path / "clean")[1:]]
    assert plant.server.run(job.stage, clean).status == 0
    assert job.made(tmp_path) == job.made(tmp_path / "clean")
    assert job.made(tmp_path) != job.made(plant.artifacts)


# ------------------------------------------------------------------ two at once


def wait_for(path: Path) -> None:
    end = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "extract", "evaluate"])
def test_of_two_runs_at_once_the_second_is_refused(plant: Plant, tmp_path: Path, name: str) -> None:
    job = plant.jobs[name]
    out = tmp_path / job.outs["out"]
    lock = out.with_name(f".{out.name}.lock.scratch")
    # The first stands still in the middle, as a slow one does.
    place = {"train": STEP, "extract": SHARD, "evaluate": SAVEZ}[name]
    first = plant.server.start(
        job.stage, job.arguments(tmp_path), Fault(place, 1, "stop"), settings=job.settings
    )
    wait_for(lock)
    while Path(f"/proc/{first}/stat").read_text().split()[2] != "T":
        time.sleep(0.01)
    one_line(plant.run(name, tmp_path), f"is being made by process {first}", "Wait for it, or stop it")
    os.kill(first, signal.SIGCONT)
    ended = plant.server.wait(first)
    assert ended.status == 0, ended.text
    assert job.made(tmp_path) == job.made(plant.artifacts)
    assert hidden(tmp_path) == []


def test_a_lock_is_its_own_outs_alone(tmp_path: Path) -> None:
    with publish.building(tmp_path / "a"), publish.replacing(tmp_path / "b", tmp_path / "c"):
        for path in (tmp_path / "a", tmp_path / "c"):
            with (
                pytest.raises(MachineError, match=str(os.getpid())),
                publish.replacing(tmp_path / "d", path),
            ):
                pass
    with publish.replacing(tmp_path / "b", tmp_path / "d"):  # all are free again
        pass
    assert hidden(tmp_path) == []


# ------------------------------------------------------------------ full disks, Ctrl-C, memory

ROOM = {
    "code": 300, "params": 300, "prepare": 20_000, "train": 100_000, "evaluate": 500, "extract": 1000,
    "check": 200, "fit": 300, "student_inputs": 300, "pretrain": 100_000, "match": 500,
    "teacher_inputs": 100, "encode": 500, "copy": 100_000, "inputs": 300, "distill": 100_000, "report": 2000,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ROOM)
def test_a_file_that_the_system_refuses_is_one_line(plant: Plant, tmp_path: Path, name: str) -> None:
    """A limit on a file's size is a full disk that every test can have."""
    ended = plant.run(name, tmp_path, limit=ROOM[name])
    one_line(ended, str(tmp_path), "File too large", "run the same command again")
    assert plant.jobs[name].made(tmp_path) == {}
    assert plant.run(name, tmp_path).status == 0
    assert plant.jobs[name].made(tmp_path) == plant.jobs[name].made(plant.artifacts)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "extract", "fit", "prepare"])
def test_a_full_disk_is_one_line(plant: Plant, tmp_path: Path, name: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    size = {"train": "size=300k", "extract": "size=200k", "fit": "size=4k", "prepare": "size=128k"}[name]
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no right to mount a small disk")
    try:
        ended = plant.run(name, disk)
        line = one_line(ended)
        assert "No space left on device" in line or "MB free" in line, line
        assert plant.jobs[name].made(disk) == {}
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
def test_a_disk_that_cannot_be_written_is_one_line(plant: Plant, tmp_path: Path) -> None:
    (tmp_path / "teachers").write_text("a file, not a folder")
    one_line(plant.run("train", tmp_path), str(tmp_path / "teachers"), "File exists")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "fit"])
def test_ctrl_c_is_one_line_and_the_next_run_goes_on(plant: Plant, tmp_path: Path, name: str) -> None:
    place = KEEP if name == "train" else SAVEZ
    ended = plant.run(name, tmp_path, Fault(place, 2 if name == "train" else 1, "interrupt"))
    one_line(ended, "interrupted. Run the same command again", status=130)
    assert plant.jobs[name].made(tmp_path) == {}
    assert plant.run(name, tmp_path).status == 0
    assert plant.jobs[name].made(tmp_path) == plant.jobs[name].made(plant.artifacts)


class OutOfMemoryError(RuntimeError):
    """Stands for torch's, which a machine without a GPU never raises."""


def _too_much() -> None:
    torch.empty(2**50)


def _no_gpu_memory() -> None:
    raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee documentation.")


def _no_array() -> None:
    np.zeros(2**50)


@pytest.mark.parametrize("main", [_too_much, _no_gpu_memory, _no_array])
def test_memory_that_is_not_there_is_one_line(
    main: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["stage"])
    with pytest.raises(SystemExit) as end:
        command.run(main)
    text = capsys.readouterr().err
    one_line(Ended(int(str(end.value.code)), text), "memory is full", "then run the same command again")


ADVICE = {
    "prepare_data": "storage: indexed", "train_teacher": "recipe.batch_size", "pretrain_student": "recipe.batch_size",
    "distill": "STILLHOUSE_RESIDENT", "train_copy": "STILLHOUSE_BATCH_SIZE",
    "extract_features": "STILLHOUSE_BATCH_SIZE",
    "encode_views": "STILLHOUSE_BATCH_SIZE", "fit_table": "max_samples", "check_features": "--rows",
    "match_channels": "ranges", "evaluate": "--device", "report": "fewer runs", "plan": "Free memory",
}  # fmt: skip


@pytest.mark.parametrize("stage", ADVICE)
def test_advice_on_memory_fits_the_stage(
    stage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it names is a setting of the stage, or an option that the stage has."""
    module = importlib.import_module(f"stages.{stage}")

    def main() -> None:
        raise MemoryError("Unable to allocate 1 TiB")

    code = main.__code__.replace(co_filename=module.__file__)
    monkeypatch.setattr(main, "__code__", code)
    monkeypatch.setattr(sys, "argv", [stage])
    with pytest.raises(SystemExit) as end:
        command.run(main)
    text = capsys.readouterr().err
    one_line(Ended(int(str(end.value.code)), text), "Unable to allocate 1 TiB", ADVICE[stage])
    for name in re.findall(r"STILLHOUSE_\w+|--[a-z-]+", text):
        option = name.removeprefix("STILLHOUSE_").removeprefix("--").lower().replace("-", "_")
        assert option in inspect.signature(module.main).parameters, name
    if "recipe" not in ADVICE[stage] and stage != "distill" and stage != "train_copy":
        assert "recipe" not in text  # it has no recipe


@pytest.mark.parametrize("number", sorted({*system.DISK_ERRORS, errno.ETIMEDOUT, errno.EREMOTEIO}))
@pytest.mark.parametrize("form", ["python", "rust", "c++"])
def test_errors_of_the_disk_are_one_line_whoever_tells_them(
    number: int, form: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        match form:
            case "python":
                raise OSError(number, os.strerror(number), "the/path")
            case "rust":
                raise RuntimeError(f"Error while serializing: I/O error (os error {number})")
            case _:
                raise ValueError(f"Error writing local file \"the/path\": refused [os_error_code='{number}']")

    monkeypatch.setattr(sys, "argv", ["stage"])
    with pytest.raises(SystemExit) as end:
        command.run(main)
    text = capsys.readouterr().err
    path = "A file" if form == "rust" else "the/path"
    line = one_line(Ended(int(str(end.value.code)), text), path, os.strerror(number))
    assert ("Free space" in line) == (number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
    assert ("Mend the permissions" in line) == (number in (errno.EACCES, errno.EPERM, errno.EROFS))


@pytest.mark.parametrize("error", [ValueError("x"), FileNotFoundError(2, "none"), RuntimeError("os error 2")])
def test_our_own_errors_keep_their_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def main() -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["stage"])
    with pytest.raises(type(error)):
        command.run(main)


# ------------------------------------------------------------------ damaged files


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    match how:
        case "truncated":
            content = content[: len(content) // 2]
        case "empty":
            content = bytearray()
        case "flipped":  # the last byte of safetensors is a weight's
            content[-1] ^= 16
        case "flipped in the middle":
            content[len(content) // 2] ^= 16
        case "list":
            content = bytearray(b"[]")
        case "mapping":
            content = bytearray(b"{}")
        case "text":
            content = bytearray(b"\xff\xfe no json")
    path.write_bytes(content)


WEIGHTS, SPEC = "teachers/big/weights/last.safetensors", "teachers/big/weights/network.json"
DAMAGE = [
    *(("evaluate", WEIGHTS, how) for how in ("truncated", "empty", "flipped", "flipped in the middle")),
    ("evaluate", "teachers/big/weights/best.safetensors", "flipped"),
    *(("extract", WEIGHTS, how) for how in ("truncated", "flipped")),
    ("check", WEIGHTS, "flipped"),
    *(("evaluate", SPEC, how) for how in ("truncated", "list", "mapping", "text")),
    ("extract", SPEC, "truncated"),
    *(("evaluate", "teachers/big/training.json", how) for how in ("truncated", "list", "mapping")),
    *(("evaluate_student", "students/pair/kd/0/inputs.json", how) for how in ("truncated", "text")),
    *(("evaluate_student", "predictions/teachers/big.npz", how) for how in ("truncated", "empty", "text")),
    ("evaluate_student", "predictions/teachers/big.npz", "flipped in the middle"),
    ("report", "predictions/students/pair/kd/0.npz", "truncated"),
    ("report", "metrics/students/pair/kd/0.json", "truncated"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "file", "how"), DAMAGE)
def test_a_damaged_file_is_named_in_one_line(
    plant: Plant, tmp_path: Path, name: str, file: str, how: str
) -> None:
    path, kept = plant.artifacts / file, tmp_path / "kept"
    shutil.copy(path, kept)
    try:
        damage(path, how)
        line = one_line(plant.run(name, tmp_path), str(path), "dvc repro")
        assert "Delete " in line or "Make it again with" in line
        assert plant.jobs[name].made(tmp_path) == {}
    finally:
        shutil.copy(kept, path)


@pytest.mark.slow
def test_weights_without_their_hash_are_refused(plant: Plant, tmp_path: Path) -> None:
    path, kept = plant.artifacts / WEIGHTS, tmp_path / "kept"
    shutil.copy(path, kept)
    try:
        save_file(load_file(path), path)
        one_line(plant.run("evaluate", tmp_path), str(path), "do not have the hash")
    finally:
        shutil.copy(kept, path)


# ------------------------------------------------------------------ diverging


def diverging(plant: Plant, tmp_path: Path, **recipe: Any) -> list[object]:
    """Return the arguments of training a teacher with another recipe."""
    content = json.loads((plant.artifacts / "params/teachers/big/train.json").read_text())
    content["recipe"] |= recipe
    block = tmp_path / "train.json"
    block.write_text(json.dumps(content))
    _, *words = plant.jobs["train"].arguments(tmp_path)
    return [block, *words]


@pytest.mark.slow
def test_weights_that_the_last_step_spoils_are_not_saved(plant: Plant, tmp_path: Path) -> None:
    # One step, whose loss is finite and whose update is not.
    words = diverging(plant, tmp_path, epochs=1, batch_size=100, learning_rate=1e38, milestones=[], momentum=0.0,
                      weight_decay=1.0e3)  # fmt: skip
    ended = plant.server.run("train_teacher", words)
    one_line(
        ended, "teacher big: 'student.", "is not finite after epoch 1, step 1", "learning_rate", "dvc repro"
    )
    assert not (tmp_path / "teachers/big").exists()
    kept = publish.scratch(tmp_path / "teachers/big") / "weights"
    assert [path.name for path in kept.glob("*.safetensors")] == ["init.safetensors"]


@pytest.mark.slow
def test_divergence_is_one_line_and_publishes_nothing(plant: Plant, tmp_path: Path) -> None:
    words = diverging(plant, tmp_path, learning_rate=1e12, milestones=[])
    ended = plant.server.run("train_teacher", words)
    one_line(ended, "teacher big: term 'ce' is ", " in epoch 1, step ", "learning_rate", "dvc repro")
    assert not (tmp_path / "teachers/big").exists()


# ------------------------------------------------------------------ pickle

BANNED = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNPICKLER = (
    "pipeline/data/raw/cifar_batches.py"  # builds nothing but arrays and strings; test_datasets holds it
)


LOADERS = {"torch.load", "torch.serialization.load", "torch.hub.load_state_dict_from_url", "torch.hub.load"}
# What libraries call it when they open weights themselves, whatever it is called on.
FETCHERS = {"get_state_dict", "load_state_dict_from_hf", "load_pretrained", "from_pretrained", "create_model",
            "get_model"}  # fmt: skip
HARMLESS = {"pydantic.create_model"}  # it makes a class
GUARD = "tensors_only()"  # a block in which torch builds nothing else; test_pretrained holds it


def loaders(path: Path) -> list[str]:
    """Return what a source says that could load a pickle."""
    tree = ast.parse(path.read_text())
    names, allowed, found = imported(tree), careful(tree), list[str]()
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=aliases):
                found += [alias.name for alias in aliases if alias.name.split(".")[0] in BANNED]
            case ast.ImportFrom(module=str(module), names=aliases):
                brought = {f"{module}.{alias.name}" for alias in aliases} & LOADERS
                found += [module] if module.split(".")[0] in BANNED else sorted(brought)
            case ast.Attribute() | ast.Name() if node not in allowed:
                first, dot, rest = ast.unparse(node).partition(".")
                name = names.get(first, first) + dot + rest
                if name in LOADERS or (name.rpartition(".")[2] in FETCHERS and name not in HARMLESS):
                    found.append(name)
            case ast.Call(func=function, keywords=keywords):
                options = {word.arg: ast.unparse(word.value) for word in keywords}
                name = ast.unparse(function)
                if options.get("allow_pickle", "False") != "False":
                    found.append(f"{name}(allow_pickle)")
                # Unless told otherwise, numpy writes pickles but does not read them.
                if name in ("np.savez", "np.savez_compressed") and "allow_pickle" not in options:
                    found.append(f"{name} without allow_pickle=False")
    return found


def imported(tree: ast.AST) -> dict[str, str]:
    """Return what names stand for: after `import torch as t`, t is torch."""
    found = {}
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=aliases):
                found |= {alias.asname: alias.name for alias in aliases if alias.asname}
            case ast.ImportFrom(module=str(module), names=aliases):
                found |= {alias.asname or alias.name: f"{module}.{alias.name}" for alias in aliases}
    return found


def careful(tree: ast.AST) -> set[ast.AST]:
    """Return the nodes that load nothing but tensors: calls that say so, and what stands in a guarded block."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=function, keywords=keywords):
                if ast.unparse(function) == "torch.load" and "weights_only=True" in map(
                    ast.unparse, keywords
                ):
                    found.add(function)
            case ast.With(items=items):
                if any(ast.unparse(item.context_expr).endswith(GUARD) for item in items):
                    found |= set(ast.walk(node))
    return found


def test_nothing_loads_a_pickle() -> None:
    sources = [path for package in ("pipeline", "stages") for path in (root() / package).rglob("*.py")]
    assert len(sources) > 50
    found = {path.relative_to(root()).as_posix(): loaders(path) for path in sources}
    assert found.pop(UNPICKLER) == ["pickle"]
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "text",
    ["import pickle", "from joblib import load", "torch.load(x)", "torch.load(x, weights_only=False)",
     "from torch import load", "np.savez(x)", "np.load(x, allow_pickle=True)", "table.load(x, allow_pickle=y)",
     "import torch as t\nt.load(x)", "from torch import hub\nhub.load_state_dict_from_url(x, check_hash=True)",
     "from torch import serialization as s\ns.load(x)", "partial(torch.load, weights_only=True)",
     "torch.hub.load(x, y)", "torch.hub.load_state_dict_from_url(x, weights_only=True)",
     "weights.get_state_dict(check_hash=True)", "import timm\ntimm.create_model(x, pretrained=True)",
     "with other():\n    torch.load(x)", "with tensors_only():\n    pass\ntorch.load(x)"],
)  # fmt: skip
def test_a_pickle_would_be_found(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.py").write_text(text)
    assert loaders(tmp_path / "a.py")


@pytest.mark.parametrize(
    "text",
    ["torch.load(x, weights_only=True)", "with tensors_only():\n    timm.create_model(x)",
     "np.savez(x, allow_pickle=False)", "safetensors.torch.load(x)", "network.load_state_dict(x)"],
)  # fmt: skip
def test_what_loads_tensors_alone_passes(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.py").write_text(text)
    assert loaders(tmp_path / "a.py") == []


# ------------------------------------------------------------------ through dvc


@pytest.mark.slow
def test_a_killed_repro_goes_on_to_the_same_artifacts(tmp_path: Path) -> None:
    """dvc and its stage die together, as they do when a machine goes down; the same command goes on."""
    recipe = RECIPE | {"epochs": 40, "batch_size": 64}  # long enough to be killed amid it
    params = ONE | {"recipes": {"quick": recipe}}
    whole, cut = (make(tmp_path / name, params) for name in ("whole", "cut"))
    for project in (whole, cut):
        loop = project.folder / "pipeline/training/loop.py"
        text = loop.read_text()
        assert "CHECKPOINT_SECONDS = 10.0" in text
        loop.write_text(text.replace("CHECKPOINT_SECONDS = 10.0", "CHECKPOINT_SECONDS = -1.0"))
    target = "train_teacher@ada"
    whole.repro(target)

    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    repro = subprocess.Popen(
        ["dvc", "repro", target], cwd=cut.folder, start_new_session=True,
        env=os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    out = cut.folder / "artifacts/teachers/ada"
    wait_for(publish.scratch(out) / "checkpoint.safetensors")
    os.killpg(repro.pid, signal.SIGKILL)
    assert repro.wait() == KILLED
    assert not out.exists()
    begun = checkpoint.state(publish.scratch(out) / "checkpoint.safetensors")
    assert begun is not None
    assert 0 < len(begun["history"]) < 40

    assert cut.repro(target) == {target}  # what was finished is not made again
    for name in ("data/prepared", "artifacts/teachers"):
        assert contents(cut.folder / name) == contents(whole.folder / name), name
    assert cut.repro(target) == set()

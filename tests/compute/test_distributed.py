"""Several processes share a run: gradients, stores, checkpoints and errors, against one process."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from execution_fixtures import PATIENCE
from fault_fixtures import Ended, Fault, Server, contents, serving
from feature_fixtures import extraction, network, no_progress, prepare
from rank_fixtures import start, together
from safetensors.torch import load_file
from torch import Tensor
from training_fixtures import World, make_world

from pipeline.artifacts import publish
from pipeline.artifacts.closure import root
from pipeline.compute.distributed import ALONE, Ranks
from pipeline.compute.machine import machine
from pipeline.errors import MachineError
from pipeline.features import layout as cutting
from pipeline.features import store
from pipeline.features.shards import Progress
from pipeline.features.store import StoredArray
from pipeline.params.recipe import cut
from pipeline.training import checkpoint

EVERY_EPOCH = {"pipeline.training.loop:CHECKPOINT_SECONDS": -1.0}
SHARDS = {"pipeline.features.extract:Extraction": {"shard_bytes": 20_000}}
STEP, KEEP = "pipeline.compute.eager:EagerSGD.step", "pipeline.training.loop:Training._keep"
SHARD, RECORD = "pipeline.features.store:StoredArray.write", "pipeline.features.shards:Progress.save"
MANIFEST = "pipeline.features.store:set_manifest"
KILLED = -signal.SIGKILL


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def words(world: World, stage: str, out: Path) -> list[object]:
    """Return the arguments of a stage that several processes can share."""
    a, data = world.path("artifacts"), world.path("data/prepared/toy")
    block = a / "params/teachers/big"
    own: dict[str, list[object]] = {
        "train_teacher": [block / "train.json", "--data", data],
        "extract_features": [block / "extract.json", "--data", data, "--weights", a / "teachers/big/weights",
                             "--batch-size", 7],
        "pretrain_student": [a / "inputs/students/small.json", "--seed", 0],
        "distill": [a / "inputs/pairs/pair/fitnet/0.json"],
    }  # fmt: skip
    return [*own[stage], "--device", "cpu", "--out", out]


def well(ended: list[Ended]) -> None:
    assert [(one.status, one.text) for one in ended] == [(0, "")] * len(ended)


def one_line(ended: list[Ended], *parts: str) -> None:
    """Check that all ranks have failed, and that one has told why."""
    text = "".join(one.text for one in ended)
    assert all(one.status != 0 for one in ended), ended
    assert text.startswith("error: "), text
    assert text.count("\n") == 1, text
    for part in parts:
        assert part in text


def alone(server: Server, stage: str, arguments: list[object], settings: Any = None) -> None:
    ended = server.run(stage, arguments, settings=settings)
    assert ended.status == 0, ended.text


# ------------------------------------------------------------------ gradients


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """float32, to 1e-5: sums are taken in another order."""
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        torch.testing.assert_close(found[name], x, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("samples", "size"),
    [
        pytest.param(48, 2, id="even"),
        pytest.param(53, 2, id="last-batch-of-5"),
        pytest.param(51, 2, id="last-batch-too-small-to-divide"),
        pytest.param(53, 3, id="three-ranks"),
        pytest.param(49, 3, id="last-batch-of-17"),
    ],
)
def test_ranks_take_the_steps_of_one_process(server: Server, tmp_path: Path, samples: int, size: int) -> None:
    given = [tmp_path, "--samples", samples]
    alone(server, "rank_fixtures", given)
    well(together(server, "rank_fixtures", given, size=size))
    expected = load_file(tmp_path / "alone.safetensors")
    ranks = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(size)]
    close(ranks[0], expected)
    for other in ranks[1:]:  # at every step, bit for bit
        assert other.keys() == ranks[0].keys()
        assert all(torch.equal(other[name], x) for name, x in ranks[0].items())
    steps = 2 * len(cut(samples, 16))
    moved = expected["end/student.classifier.weight"] - expected["0/weight/student.classifier.weight"]
    assert moved.abs().max() > 1e-3  # the tolerance is far below what the training does
    # `rare` has a gradient in the one step of each epoch that shows sample 7, on whatever rank; `unused` has none.
    assert sum(f"{step}/gradient/student.rare" in expected for step in range(steps)) == 2
    assert torch.equal(ranks[0]["end/student.unused"], torch.ones(3))


def test_ranks_end_with_the_same_step_within_an_epoch(server: Server, tmp_path: Path) -> None:
    given = [tmp_path, "--samples", 53, "--iterations", 6]
    alone(server, "rank_fixtures", given)
    well(together(server, "rank_fixtures", given))
    expected = load_file(tmp_path / "alone.safetensors")
    close(load_file(tmp_path / "0.safetensors"), expected)
    assert "5/weight/student.conv.weight" in expected
    assert "6/weight/student.conv.weight" not in expected
    one, first = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("alone", 0))
    for row, other in zip(one, first, strict=True):  # means of 4 steps and of 2
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert row["learning_rate"] == other["learning_rate"]
    assert [row["learning_rate"] for row in one] == pytest.approx([0.005, 0.0005], rel=1e-12)


def test_the_history_is_a_mean_over_the_global_batch(server: Server, tmp_path: Path) -> None:
    given = [tmp_path, "--samples", 53]
    alone(server, "rank_fixtures", given)
    well(together(server, "rank_fixtures", given))
    one, first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("alone", 0, 1))
    assert [list(row) for row in first] == [list(row) for row in one]
    for row, expected in zip(first, one, strict=True):
        for name in ("epoch", "phase", "learning_rate", "ce", "hint", "loss", "top1"):
            assert row[name] == (
                expected[name] if name == "phase" else pytest.approx(expected[name], abs=1e-5)
            )
    assert [row["loss"] for row in second] == [row["loss"] for row in first]


def test_ranks_divide_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    for samples, size in ((16, 2), (5, 2), (7, 3), (64, 5)):
        index = torch.randperm(samples)
        parts = [Ranks(rank, size).part(index) for rank in range(size)]
        assert torch.equal(torch.cat(parts), index)
        assert min(map(len, parts)) >= 2
        shares = [Ranks(rank, size).share(samples) for rank in range(size)]
        assert shares == pytest.approx([len(part) / samples for part in parts], rel=1e-12)
    for rank in range(3):  # not two for each: all take all
        assert Ranks(rank, 3).part(torch.arange(5)).tolist() == [0, 1, 2, 3, 4]
        assert Ranks(rank, 3).share(5) == 1 / 3
    assert ALONE.part(torch.arange(1)).tolist() == [0]
    assert ALONE.share(1) == 1


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_have_no_batch_of_one_sample(server: Server, tmp_path: Path, size: int) -> None:
    """16 + 16 + 17 samples, through a batch norm of vectors, which cannot do with one."""
    well(together(server, "rank_fixtures", [tmp_path, "--kind", "norm", "--samples", 49], size=size))
    seen = load_file(tmp_path / "0.safetensors")
    assert seen["end/method.norm.num_batches_tracked"].item() == 2 * 3


def test_running_statistics_are_the_mean_over_ranks(server: Server, tmp_path: Path) -> None:
    """Parts of equal size, of a network that stands still: the mean of their means is the global batch's."""
    given = [tmp_path, "--kind", "norm", "--rate", "1e-12", "--samples", 48]
    alone(server, "rank_fixtures", given)
    well(together(server, "rank_fixtures", given))
    one, first, second = (load_file(tmp_path / f"{name}.safetensors") for name in ("alone", 0, 1))
    ends = {name: x for name, x in first.items() if name.startswith("end/method.norm")}
    assert all(torch.equal(second[name], x) for name, x in ends.items())
    mean, variance = (f"end/method.norm.running_{name}" for name in ("mean", "var"))
    torch.testing.assert_close(ends[mean], one[mean], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(ends[variance], one[variance], rtol=1e-3)  # of 8 samples, not of 16


def test_the_average_of_weights_is_one_for_all_ranks(server: Server, tmp_path: Path) -> None:
    """By a plain loop over what each rank has seen, in float64; an epoch ends with the mean of their statistics."""
    decay, steps = 0.7, 4
    given = [tmp_path, "--kind", "norm", "--ema", decay, "--samples", 53]
    well(together(server, "rank_fixtures", given))
    ranks = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)]
    ends = {name: x for name, x in ranks[0].items() if name.startswith("end/average.")}
    assert all(torch.equal(ranks[1][name], x) for name, x in ends.items())

    names = [name.removeprefix("0/weight/") for name in ranks[0] if name.startswith("0/weight/")]
    for name in names:
        weights = [ranks[0][f"{step}/weight/{name}"].double() for step in range(2 * steps)]
        expected = weights[0]
        for now in (*weights[1:], ranks[0][f"end/{name}"].double()):
            expected = decay * expected + (1 - decay) * now
        torch.testing.assert_close(ends[f"end/average.{name}"].double(), expected, rtol=1e-5, atol=1e-6)
    moved = ends["end/average.student.conv.weight"] - ranks[0]["end/student.conv.weight"]
    assert moved.abs().max() > 1e-3  # it is not what the training ends with

    for name, first in (("running_mean", 0.0), ("running_var", 1.0)):
        own = [torch.full((5,), first, dtype=torch.float64) for _ in ranks]
        for epoch in range(2):
            for step in range(epoch * steps, (epoch + 1) * steps):
                seen = [rank[f"{step}/statistic/method.norm.{name}"].double() for rank in ranks]
                own = [decay * x + (1 - decay) * y for x, y in zip(own, seen, strict=True)]
            own = [sum(own) / len(own)] * len(own)
        torch.testing.assert_close(
            ends[f"end/average.method.norm.{name}"].double(), own[0], rtol=1e-5, atol=1e-6
        )
    assert ends["end/average.method.norm.num_batches_tracked"] == 2 * steps


def test_state_that_ranks_do_not_share_is_refused(server: Server, tmp_path: Path) -> None:
    ended = together(server, "rank_fixtures", [tmp_path, "--kind", "bank"])
    one_line(ended, "'method.memory'", "differs between processes", "unset STILLHOUSE_PROCESSES")


def test_a_batch_too_small_for_the_ranks_is_told(server: Server, tmp_path: Path) -> None:
    ended = together(server, "rank_fixtures", [tmp_path], size=9)
    one_line(ended, "a batch of 16 has no two samples for each of 9 processes", "to 8 or less")


# ------------------------------------------------------------------ stages


def history(out: Path) -> list[dict[str, str]]:
    with (out / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("stage", ["train_teacher", "pretrain_student", "distill"])
def test_ranks_leave_what_one_process_leaves(
    server: Server, world: World, tmp_path: Path, stage: str
) -> None:
    """Batch norms make other numbers; files, names, columns and the first weights are the same."""
    alone(server, stage, words(world, stage, tmp_path / "one"))
    well(together(server, stage, words(world, stage, tmp_path / "two")))
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert one.keys() == two.keys()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    for name in one:
        if name in ("weights/init.safetensors", "weights/network.json", "inputs.json"):
            assert one[name] == two[name]
        elif name.endswith(".safetensors"):
            shapes = [{k: x.shape for k, x in load_file(tmp_path / n / name).items()} for n in ("one", "two")]
            assert shapes[0] == shapes[1]
    assert [list(row) for row in history(tmp_path / "two")] == [
        list(row) for row in history(tmp_path / "one")
    ]
    summaries = [json.loads((tmp_path / n / "training.json").read_text()) for n in ("one", "two")]
    assert summaries[0].keys() == summaries[1].keys()
    for a, b in zip(history(tmp_path / "one"), history(tmp_path / "two"), strict=True):
        assert float(b["loss"]) == pytest.approx(float(a["loss"]), rel=0.3)


@pytest.mark.parametrize("stage", ["train_teacher", "distill"])
@pytest.mark.parametrize("victim", [0, 1])
def test_ranks_that_were_killed_end_alike(
    server: Server, world: World, tmp_path: Path, stage: str, victim: int
) -> None:
    well(together(server, stage, words(world, stage, tmp_path / "whole"), settings=EVERY_EPOCH))
    given = words(world, stage, tmp_path / "cut")
    ended = together(server, stage, given, faults={victim: Fault(STEP, 8)}, settings=EVERY_EPOCH)
    assert ended.pop(victim) == Ended(KILLED, "")
    one_line(ended, "have lost each other", "Run the same command again")
    assert not (tmp_path / "cut").exists()
    state = checkpoint.state(publish.scratch(tmp_path / "cut") / "checkpoint.safetensors")
    assert state is not None
    assert len(state["history"]) == 1
    # It trains one epoch more, and no other.
    well(together(server, stage, given, faults={0: Fault(KEEP, 2)}, settings=EVERY_EPOCH))
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_run_goes_on_with_another_number_of_processes(server: Server, world: World, tmp_path: Path) -> None:
    """Machine options are in no identity."""
    given = words(world, "train_teacher", tmp_path / "out")
    ended = server.run("train_teacher", given, Fault(KEEP, 2), settings=EVERY_EPOCH)
    assert ended.status == KILLED
    well(together(server, "train_teacher", given, faults={0: Fault(KEEP, 2)}, settings=EVERY_EPOCH))
    assert len(history(tmp_path / "out")) == 2


# ------------------------------------------------------------------ extraction


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("shard_bytes", [20_000, 64 << 20])
def test_a_store_of_ranks_is_that_of_one_process(
    server: Server, world: World, tmp_path: Path, size: int, shard_bytes: int
) -> None:
    settings = {"pipeline.features.extract:Extraction": {"shard_bytes": shard_bytes}}
    stage = "extract_features"
    alone(server, stage, words(world, stage, tmp_path / "one.zarr"), settings)
    well(together(server, stage, words(world, stage, tmp_path / "two.zarr"), size=size, settings=settings))
    one = contents(tmp_path / "one.zarr")
    assert any("/c/" in name for name in one)
    assert contents(tmp_path / "two.zarr") == one
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.zarr", "two.zarr"]


@pytest.mark.parametrize(
    ("victim", "fault", "again"),
    [
        pytest.param(0, Fault(SHARD, 20), 2, id="shard"),
        pytest.param(1, Fault(RECORD, 6), 1, id="record-then-one-process"),
        pytest.param(1, Fault(RECORD, 9, "after"), 3, id="record-then-three-ranks"),
        pytest.param(1, Fault("numpy:savez", 2, "after"), 2, id="piece"),
        pytest.param(0, Fault(MANIFEST), 1, id="manifest"),
    ],
)
def test_an_extraction_whose_ranks_were_killed_ends_alike(
    server: Server, world: World, tmp_path: Path, victim: int, fault: Fault, again: int
) -> None:
    stage = "extract_features"
    alone(server, stage, words(world, stage, tmp_path / "whole.zarr"), SHARDS)
    given = words(world, stage, tmp_path / "cut.zarr")
    quick = SHARDS | {"pipeline.compute.distributed:STANDSTILL": 2.0}
    ended = together(server, stage, given, faults={victim: fault}, settings=quick)
    assert ended.pop(victim) == Ended(KILLED, "")
    one_line(ended)
    if again == 1:
        alone(server, stage, given, SHARDS)
    else:
        well(together(server, stage, given, size=again, settings=SHARDS))
    assert contents(tmp_path / "cut.zarr") == contents(tmp_path / "whole.zarr")


@pytest.mark.parametrize("batch_size", [4, 9, 64])
@pytest.mark.parametrize("shard_bytes", [1500, 30_000, 1 << 20])
@pytest.mark.parametrize("size", [2, 5])
def test_no_two_ranks_write_one_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int, shard_bytes: int, size: int
) -> None:
    """One rank after another, in one process: each shard is written once, by one of them."""
    monkeypatch.setattr(cutting, "CHUNK_BYTES", 300)
    prepared, (one, spec) = prepare(tmp_path / "data"), network(0)
    options: dict[str, Any] = {"shard_bytes": shard_bytes, "batch_size": batch_size}
    whole = extraction(prepared, {"last": one}, spec, **options)
    expected = whole.run(tmp_path / "whole.zarr", no_progress)
    written: list[tuple[Path, int, int]] = []
    forwards: list[int] = []
    write = StoredArray.write

    def noted(self: StoredArray, slot: int, start: int, values: Any) -> None:
        written.append((self.path, slot, start))
        write(self, slot, start, values)

    monkeypatch.setattr(StoredArray, "write", noted)
    path = tmp_path / "ranks.zarr"
    layouts = {split: whole._layouts(split) for split in prepared.splits}
    for rank in range(size):
        made = extraction(prepared, {"last": one}, spec, **options, ranks=Ranks(rank, size))
        if rank == 0:
            store.create(path, {"last": layouts}, made.compression)
        log = Progress(path, made.ranks)
        for part in made._parts(layouts):
            made._fill(path, log, part, lambda units=1, note="": forwards.append(units))
    first = extraction(prepared, {"last": one}, spec, **options, ranks=Ranks(0, size))
    assert first._finish(path, layouts) == expected
    assert contents(path) == contents(tmp_path / "whole.zarr")
    assert len(set(written)) == len(written) > 0
    assert sum(forwards) == whole.num_forwards()  # and no sample is seen twice


# ------------------------------------------------------------------ errors


def test_a_training_that_diverges_is_one_line(server: Server, tmp_path: Path) -> None:
    """Both ranks find out at once."""
    ended = together(server, "rank_fixtures", [tmp_path, "--rate", "1e30"])
    one_line(ended, "Lower recipe.learning_rate")


@pytest.mark.parametrize("victim", [0, 1])
def test_an_error_of_one_rank_ends_all(server: Server, world: World, tmp_path: Path, victim: int) -> None:
    given = words(world, "distill", tmp_path / "out")
    ended = together(server, "distill", given, faults={victim: Fault(STEP, 3, "full")})
    one_line(ended, "No space left on device")
    assert ended[victim].text != ""  # the one that knows
    assert not (tmp_path / "out").exists()


def test_mistakes_are_told_once(server: Server, world: World, tmp_path: Path) -> None:
    stage = "train_teacher"
    missing = [world.path("nothing.json"), *words(world, stage, tmp_path / "out")[1:]]
    one_line(together(server, stage, missing), "nothing.json does not exist")
    wrong = [*words(world, stage, tmp_path / "out"), "--device", "cuda:0"]
    one_line(together(server, stage, wrong), "names one GPU for 2 processes")


def test_the_lock_is_the_first_ranks(server: Server, world: World, tmp_path: Path) -> None:
    given = words(world, "train_teacher", tmp_path / "out")
    with publish.building(tmp_path / "out"):
        one_line(together(server, "train_teacher", given), f"is being made by process {os.getpid()}")


def test_a_rank_that_stands_still_is_not_waited_for_for_ever(
    server: Server, world: World, tmp_path: Path
) -> None:
    given = words(world, "train_teacher", tmp_path / "out")
    first, second = start(
        server,
        "train_teacher",
        given,
        {1: Fault(STEP, 3, "stop")},
        settings={"pipeline.compute.distributed:TIMEOUT": 2.0},
    )
    one_line([server.wait(first)], "have lost each other", "imed out")
    os.kill(second, signal.SIGKILL)
    server.wait(second)


# ------------------------------------------------------------------ torchrun


def shell(world: World, stage: str, out: Path, *, torchrun: bool = False) -> subprocess.Popen[str]:
    """Start a stage as a user does, in two processes."""
    given = ["-m", f"stages.{stage}", *map(str, words(world, stage, out))]
    environment = os.environ | {"PYTHONPATH": str(root())}
    if torchrun:
        given = [
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--local-addr=127.0.0.1",
            "--nproc-per-node=2",
            *given,
        ]
    else:
        environment["STILLHOUSE_PROCESSES"] = "2"
    return subprocess.Popen(
        [sys.executable, *given], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


@pytest.mark.slow
def test_a_stage_starts_its_processes(server: Server, world: World, tmp_path: Path) -> None:
    with shell(world, "train_teacher", tmp_path / "own") as process:
        well(together(server, "train_teacher", words(world, "train_teacher", tmp_path / "forked")))
        text, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode, text) == (0, "")
    assert contents(tmp_path / "own") == contents(tmp_path / "forked")


@pytest.mark.slow
def test_a_stage_joins_torchrun(server: Server, world: World, tmp_path: Path) -> None:
    with shell(world, "extract_features", tmp_path / "own.zarr", torchrun=True) as process:
        alone(server, "extract_features", words(world, "extract_features", tmp_path / "one.zarr"))
        text, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, text
    assert contents(tmp_path / "own.zarr") == contents(tmp_path / "one.zarr")


def children(process: int) -> list[int]:
    ranks = []
    for child in Path(f"/proc/{process}/task/{process}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError):  # a child that has ended since
            if b"stages." in Path(f"/proc/{child}/cmdline").read_bytes():
                ranks.append(int(child))
    return ranks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status", "line"),
    [
        pytest.param(signal.SIGKILL, 1, "error: Process 1 of 2 was ended by SIGKILL", id="killed"),
        pytest.param(signal.SIGINT, 130, "error: interrupted.", id="interrupted"),
    ],
)
def test_a_run_that_is_ended_is_one_line_of_the_stage(
    world: World, tmp_path: Path, number: int, status: int, line: str
) -> None:
    """A rank is killed, or the stage gets Ctrl-C."""
    with shell(world, "train_teacher", tmp_path / "out") as process:
        scratch, end = publish.scratch(tmp_path / "out"), time.monotonic() + PATIENCE
        while not scratch.exists():
            assert time.monotonic() < end
            assert process.poll() is None, process.stdout.read() if process.stdout else ""
            time.sleep(0.02)
        ranks = children(process.pid)
        os.kill(ranks[1] if number == signal.SIGKILL else process.pid, number)
        text, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == status
    assert text.startswith(line)
    assert text.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)


@pytest.mark.slow
def test_ranks_do_not_outlive_the_stage(world: World, tmp_path: Path) -> None:
    with shell(world, "train_teacher", tmp_path / "out") as process:
        end = time.monotonic() + PATIENCE
        while len(ranks := children(process.pid)) < 2 or not publish.scratch(tmp_path / "out").exists():
            assert time.monotonic() < end
            time.sleep(0.02)
        for rank in ranks:
            os.kill(rank, signal.SIGSTOP)  # so that they are not done before
        process.kill()
        process.wait()
        for rank in ranks:
            os.kill(rank, signal.SIGCONT)
        while any(Path(f"/proc/{rank}").exists() for rank in ranks):
            assert time.monotonic() < end
            time.sleep(0.05)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------ rules


def test_one_module_knows_torchs_processes() -> None:
    """import-linter sees packages of others as one."""
    files = [path for folder in ("pipeline", "stages") for path in (root() / folder).rglob("*.py")]
    users = {
        path.name
        for path in files
        if re.search(r"torch\.distributed|import distributed as", path.read_text())
    }
    assert users - {"loop.py"} == {"distributed.py"}


def test_one_process_is_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.compute.distributed import join

    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert join() is ALONE
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert join() is ALONE
    monkeypatch.delenv("RANK")
    monkeypatch.setenv("WORLD_SIZE", "4")  # a cluster's own, of no torchrun
    assert join() is ALONE


def test_a_process_without_a_gpu_of_its_own_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(MachineError, match="Process 2 of this machine finds 1 GPUs"):
        machine("cuda", ranks=Ranks(1, 2, 1))

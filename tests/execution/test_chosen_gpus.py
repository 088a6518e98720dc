"""Which GPUs a run takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from params_fixtures import line_of

from pipeline.execution import devices


@pytest.fixture(autouse=True)
def no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "STILLHOUSE_DEVICE", "STILLHOUSE_PROCESSES"):
        monkeypatch.delenv(name, raising=False)


def machine(folder: Path, *files: str) -> Path:
    """Return a folder of device files."""
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("files", "names"),
    [
        ((), []),
        (("nvidiactl", "nvidia-uvm"), []),
        (("nvidiactl", "nvidia0", "nvidia1"), ["0", "1"]),
        (("nvidia5",), ["0"]),
        (("dri/renderD128",), []),
        (("kfd", "dri/renderD128", "dri/renderD129"), ["0", "1"]),
        (("dxg",), ["0"]),
        (("nvmap",), ["0"]),
    ],
)
def test_device_files(tmp_path: Path, files: tuple[str, ...], names: list[str]) -> None:
    assert devices.available(machine(tmp_path, *files)) == names


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        ("", []),
        ("-1", []),
        ("0,2", ["0", "2"]),
        ("2, 0", ["2", "0"]),
        ("1,-1,0", ["1"]),
        ("1,,0", ["1"]),
        ("GPU-3f5e,MIG-1", ["GPU-3f5e", "MIG-1"]),
    ],
)
def test_the_users_choice_is_read_as_cuda_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str, names: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert devices.available(machine(tmp_path, "nvidia0", "nvidia1", "nvidia2")) == names


def test_a_choice_makes_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert devices.available(tmp_path) == []


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "available", lambda: ["0", "1", "GPU-3f5e"])


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize(
    ("option", "names"),
    [
        ("auto", ["0", "1", "GPU-3f5e"]),
        ("cpu", []),
        ("1", ["1"]),
        (" 1, 0", ["1", "0"]),
        ("GPU-3f5e", ["GPU-3f5e"]),
    ],
)
def test_the_option_names_gpus(option: str, names: list[str]) -> None:
    assert devices.gpus(option) == names


@pytest.mark.usefixtures("three")
def test_a_machine_that_is_told_to_compute_on_its_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_DEVICE", "cpu")
    assert devices.gpus("auto") == []
    assert devices.gpus("1") == ["1"]


@pytest.mark.usefixtures("three")
def test_the_device_of_all_stages_is_theirs_here_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_DEVICE", "cuda:2")
    assert devices.gpus("auto") == ["GPU-3f5e"]
    assert devices.gpus("1") == ["1"]
    monkeypatch.setenv("STILLHOUSE_DEVICE", "cuda")
    assert devices.gpus("auto") == ["0", "1", "GPU-3f5e"]
    monkeypatch.setenv("STILLHOUSE_DEVICE", "cuda:3")
    assert line_of(lambda: devices.gpus("auto")).endswith(
        "STILLHOUSE_DEVICE is cuda:3; this machine has GPUs 0, 1, GPU-3f5e. Unset it, or give --devices."
    )


@pytest.mark.usefixtures("three")
def test_a_stage_on_several_gpus_is_for_dvc_repro(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_PROCESSES", "2")
    assert devices.gpus("cpu") == []
    assert line_of(lambda: devices.gpus("auto")).endswith(
        "STILLHOUSE_PROCESSES is 2, and stages.run gives each stage one GPU. Unset it, or give --devices cpu, or take "
        "dvc repro."
    )


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize(
    ("option", "what"),
    [
        ("0,0", "names a GPU twice"),
        ("1,", "has an empty name"),
        ("", "has an empty name"),
        ("cuda:0", "names GPU 'cuda:0'"),
        ("gpu", "names GPU 'gpu'"),
        ("0,7", "names GPU '7'"),
    ],
)
def test_no_such_gpu(option: str, what: str) -> None:
    assert line_of(lambda: devices.gpus(option)).endswith(
        f"--devices '{option}' {what}; this machine has GPUs 0, 1, GPU-3f5e. Give auto, cpu, or some of its GPUs, as "
        "in 0,1."
    )


def test_no_gpu_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "available", list)
    assert devices.gpus("auto") == []
    assert line_of(lambda: devices.gpus("0")).endswith(
        "--devices '0' names GPU '0'; this machine has no GPU. Give auto or cpu."
    )

"""Pretrained weights from a cache that anyone may write to: the published file is loaded, and nothing is run."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from error_fixtures import one_line
from torchvision.models import ResNet18_Weights, WeightsEnum

from pipeline.errors import DataError, MachineError, ParamsError
from pipeline.networks import pretrained
from pipeline.networks.network import build
from pipeline.networks.spec import NetworkSpec

WEIGHTS = ResNet18_Weights.IMAGENET1K_V1
STATE = {"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.zeros(2)}


class Command:
    """What a planted file holds: opened as any pickle, it runs a command."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.sign}",)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def sign(tmp_path: Path) -> Path:
    """Return the file that a planted command makes."""
    return tmp_path / "owned"


def publish(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(WeightsEnum, "url", property(lambda self: f"https://weights.example/{name}"))


def serve(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    class Response(io.BytesIO):
        def info(self) -> Any:
            return type("Headers", (), {"getheaders": lambda self, name: []})()

    monkeypatch.setattr(torch.hub, "urlopen", lambda request: Response(content))


def saved(content: object, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def begins(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:8]


def refused() -> str:
    with pytest.raises(DataError) as error:
        pretrained.fetch(WEIGHTS, 3)
    one_line(error)
    return str(error.value)


def test_a_planted_file_would_run_its_command(sign: Path) -> None:
    """It does what the other tests say that it never does."""
    torch.load(io.BytesIO(saved(Command(sign))), weights_only=False)
    assert sign.exists()


@pytest.mark.parametrize("form", ["torch", "pickle", "tensors", "empty"])
def test_a_file_with_another_hash_is_refused(cache: Path, sign: Path, form: str) -> None:
    path = cache / "resnet18-f37072fd.pth"  # what torchvision calls it
    content = {"torch": saved(Command(sign)), "pickle": pickle.dumps(Command(sign)), "tensors": saved(STATE)}
    path.write_bytes(content.get(form, b""))
    message = refused()
    found = hashlib.sha256(content.get(form, b"")).hexdigest()
    assert f"{path} has sha256 {found}, expected one that begins with f37072fd" in message
    assert f"Delete it and put {WEIGHTS.url} there" in message
    assert not sign.exists()


@pytest.mark.parametrize("hashed", [True, False])
def test_a_file_of_something_else_than_tensors_is_refused(
    cache: Path, sign: Path, monkeypatch: pytest.MonkeyPatch, hashed: bool
) -> None:
    for content in (
        saved(Command(sign)),
        pickle.dumps(Command(sign)),
        saved([1]),
        saved({"a": 1}),
        b"",
        b"<html>",
    ):
        name = f"net-{begins(content)}.pth" if hashed else "net.pth"
        publish(monkeypatch, name)
        (cache / name).write_bytes(content)
        message = refused()
        assert f"{cache / name} holds something else than tensors by name" in message
        assert "weights_only" not in message  # torch advises to trust the file
        assert not sign.exists()


@pytest.mark.parametrize("hashed", [True, False])
@pytest.mark.parametrize(
    "zipped", [True, False]
)  # some of torchvision's files are older than the zipped form
def test_a_file_of_tensors_is_loaded(
    cache: Path, monkeypatch: pytest.MonkeyPatch, hashed: bool, zipped: bool
) -> None:
    content = saved(STATE | {"fc.bias": torch.nn.Parameter(STATE["fc.bias"])}, zipped)
    name = f"net-{begins(content)}.pth" if hashed else "net-small.pth"
    publish(monkeypatch, name)
    (cache / name).write_bytes(content)
    found = pretrained.fetch(WEIGHTS, 3)
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[key], x) for key, x in STATE.items())
    with pytest.raises(ParamsError, match="read 3 channels, the images have 1"):
        pretrained.fetch(WEIGHTS, 1)


def test_a_download_is_kept_only_with_the_published_hash(
    cache: Path, sign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.rmdir()  # as on a new machine
    content = saved(STATE)
    publish(monkeypatch, f"net-{begins(content)}.pth")
    serve(monkeypatch, saved(Command(sign)))
    with pytest.raises(
        MachineError, match=r"cannot be fetched \(invalid hash value.*Put https://weights"
    ) as error:
        pretrained.fetch(WEIGHTS, 3)
    one_line(error)
    assert list(cache.iterdir()) == []

    serve(monkeypatch, content)
    assert pretrained.fetch(WEIGHTS, 3).keys() == STATE.keys()
    assert [path.name for path in cache.iterdir()] == [f"net-{begins(content)}.pth"]
    assert not sign.exists()


def test_weights_that_cannot_be_fetched_are_told(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(request: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "urlopen", fail)
    with pytest.raises(
        MachineError, match=r"no route to host.*Put https://download\.pytorch\.org.*checkpoints"
    ):
        pretrained.fetch(WEIGHTS, 3)


# ------------------------------------------------------------------ libraries that load weights themselves

VARIABLES = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")


@pytest.mark.parametrize("set_before", [(), *((name,) for name in VARIABLES)])
def test_tensors_only_holds_whatever_is_asked_of_torch(
    sign: Path, monkeypatch: pytest.MonkeyPatch, set_before: tuple[str, ...]
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name in set_before:
        monkeypatch.setenv(name, "1")
    before = {name: os.environ.get(name) for name in VARIABLES}
    with pytest.raises(pickle.UnpicklingError), pretrained.tensors_only():
        torch.load(io.BytesIO(saved(Command(sign))), weights_only=False)
    with pretrained.tensors_only():
        assert torch.load(io.BytesIO(saved(STATE))).keys() == STATE.keys()
    assert {name: os.environ.get(name) for name in VARIABLES} == before
    assert not sign.exists()


def test_timm_builds_nothing_but_tensors(cache: Path, sign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    (cache / "net.pth").write_bytes(saved(Command(sign)))

    def careless(*names: object, **options: object) -> None:
        torch.load(cache / "net.pth", weights_only=False)

    monkeypatch.setattr(timm, "create_model", careless)
    spec = NetworkSpec(family="timm", network="resnet18", size=64, channels=3, classes=10, weights="imagenet")
    with pytest.raises(MachineError, match="cannot be made with its weights"):
        build(spec, 0)
    assert not sign.exists()

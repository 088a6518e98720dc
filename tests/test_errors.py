"""Errors that a user causes: their tree, their one line, and how stage commands end."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import typer
from error_fixtures import one_line
from execution_fixtures import PATIENCE
from typer.models import ArgumentInfo, OptionInfo

from pipeline import errors
from pipeline.artifacts import hashing, publish
from pipeline.artifacts.closure import root
from pipeline.compute.machine import machine
from pipeline.errors import (
    DamagedArtifactError,
    MachineError,
    MissingArtifactError,
    StillhouseError,
    unknown_name,
)
from stages import command

STAGES = sorted(
    path.stem for path in (root() / "stages").glob("*.py") if path.stem not in ("__init__", "command")
)
HEAVY = ("torch", "numpy", "sklearn", "zarr", "tensorstore", "pydantic", "matplotlib", "torchvision")


# ------------------------------------------------------------------ the tree


def test_every_error_is_of_the_tree_and_built_in_too() -> None:
    for name, error in inspect.getmembers(errors, inspect.isclass):
        if issubclass(error, Exception) and error is not StillhouseError:
            assert issubclass(error, StillhouseError), name
            assert any(
                base.__module__ == "builtins" and base is not Exception for base in error.__mro__[2:-3]
            ), name


def test_unknown_names_list_the_valid_ones() -> None:
    message = str(unknown_name("method", "fitnets", ["kd", "fitnet"], "Change it."))
    assert message == "Unknown method 'fitnets'. Did you mean 'fitnet'? Known: fitnet, kd. Change it."
    assert str(unknown_name("layer", "x", [])) == "Unknown layer 'x'. Known: none."


def test_a_message_is_one_line_whatever_name_is_in_it() -> None:
    message = str(unknown_name("run", "a\nb\r\x1b[2J\u2028caf\xe9", ["kd"]))
    assert message == "Unknown run 'a\\nb\\r\\x1b[2J\\u2028caf\xe9'. Known: kd."


# ------------------------------------------------------------------ artifacts, machine


def test_hash_and_json_of_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifactError, match="does not exist"):
        hashing.file_hash(tmp_path / "none")
    with pytest.raises(MissingArtifactError, match="Make it with: dvc repro x"):
        publish.read_json(tmp_path / "none", "dvc repro x")
    with pytest.raises(DamagedArtifactError, match="is a folder"):
        publish.read_json(tmp_path, "dvc repro x")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DamagedArtifactError, match="is not valid json"):
        publish.read_json(tmp_path / "bytes", "dvc repro x")


def test_an_artifact_appears_only_when_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()

    def cut_off() -> None:
        with publish.building(out) as scratch:
            (scratch / "part").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_off()
    assert not out.exists()
    with publish.building(out, resume=True) as scratch:
        assert (scratch / "part").exists()  # it goes on
    assert (out / "part").exists()
    assert not publish.scratch(out).exists()
    with publish.building(out) as scratch:
        assert not list(scratch.iterdir())


def test_publishing_leaves_the_target_of_a_link_alone(tmp_path: Path) -> None:
    cache = tmp_path / "cache.json"
    cache.write_text("kept")
    out = tmp_path / "out.json"
    out.symlink_to(cache)
    publish.write_json(out, {"a": 1})
    assert cache.read_text() == "kept"
    assert not out.is_symlink()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (("cpu", "float16"), "--precision is 'float16'. Give auto, float32, tf32 or bfloat16"),
        (("gpu", "float32"), "--device 'gpu' cannot be used"),
        (("", "float32"), "--device '' cannot be used"),
        (("cuda:99", "float32"), "--device 'cuda:99' cannot be used"),
    ],
)
def test_machine_options_are_told_in_one_line(options: tuple[str, str], match: str) -> None:
    with pytest.raises(MachineError, match=match) as error:
        machine(*options)
    one_line(error)


def test_machine_is_there() -> None:
    assert machine("cpu").device.type == "cpu"
    assert machine().device.type in ("cpu", "cuda")


# ------------------------------------------------------------------ stage commands

HELP = """
import importlib, sys
name, *heavy = sys.argv[1:]
sys.argv = [name, "--help"]
module = importlib.import_module(f"stages.{name}")
try:
    module.command.run(module.main)
except SystemExit as error:
    print("exit", error.code or 0)
print("heavy", *sorted({module.split(".")[0] for module in sys.modules} & set(heavy)))
"""


def test_help_comes_at_once() -> None:
    running = {
        stage: subprocess.Popen(
            [sys.executable, "-c", HELP, stage, *HEAVY],
            cwd=root(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for stage in STAGES
    }
    for stage, process in running.items():
        out, error = process.communicate(timeout=PATIENCE)
        assert "exit 0" in out, (stage, error)
        assert "--help" in out, stage
        assert out.splitlines()[-1].strip() == "heavy", (stage, out.splitlines()[-1])


def test_a_stage_is_a_module_to_run() -> None:
    names = (
        "prepared",
        "weights",
        "store",
        "tables",
        "codes",
        "copies",
        "matchings",
        "evaluation",
        "code",
        "out",
    )
    options = [f"--{name}=a" for name in names]
    done = subprocess.run(
        [sys.executable, "-m", "stages.inputs", "none.json", *options],
        cwd=root(), text=True, capture_output=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "error: none.json does not exist. Make it with: dvc repro params\n"


def module(stage: str) -> Any:
    return __import__(f"stages.{stage}", fromlist=["main"])


def arguments(main: Callable[..., None], folder: Path, argument: Path) -> list[str] | None:
    """Return arguments for a command that reads the file `argument`; None when it reads none."""
    hints = get_type_hints(main, include_extras=True)
    words: list[str] = []
    reads = False
    for name, parameter in inspect.signature(main).parameters.items():
        if parameter.default is not inspect.Parameter.empty:
            continue
        kind, *notes = get_args(hints[name]) if get_origin(hints[name]) is not None else (hints[name],)
        value = (
            "0" if kind is int or kind == list[int] else str(folder / ("out.zarr" if name == "out" else name))
        )
        if any(isinstance(note, ArgumentInfo) for note in notes):
            words.append(str(argument))
            reads = True
        elif any(isinstance(note, OptionInfo) for note in notes):
            words += [f"--{name.replace('_', '-')}", value]
    return words if reads else None


def finish(
    main: Callable[..., None],
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> tuple[Any, str]:
    monkeypatch.setattr(sys, "argv", ["stage", *words])
    with pytest.raises(SystemExit) as end:
        command.run(main)
    return end.value.code, capsys.readouterr().err


READERS = [stage for stage in STAGES if arguments(module(stage).main, Path("x"), Path("x")) is not None]


def test_there_are_stages_that_read_a_file() -> None:
    assert {"distill", "evaluate", "extract_features", "fit_table", "inputs", "train_teacher"} <= set(READERS)


@pytest.mark.parametrize("stage", READERS)
@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", '{"no_such_key": 1}', "folder"])
def test_a_bad_argument_file_is_one_line(
    stage: str,
    content: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    argument = tmp_path / "argument.json"
    if content == "folder":
        argument.mkdir()
    elif content is not None:
        argument.write_text(content)
    (tmp_path / "out.zarr").mkdir()  # of an earlier run
    words = arguments(module(stage).main, tmp_path, argument)
    assert words is not None
    code, text = finish(module(stage).main, words, monkeypatch, capsys)
    assert code == 1
    assert text.startswith("error: ")
    assert text.count("\n") == 1, text
    assert (tmp_path / "out.zarr").exists()  # a slip costs nothing


@pytest.mark.parametrize("stage", ["params", "code"])
def test_stages_that_read_no_json(stage: str) -> None:
    assert stage not in READERS


@pytest.mark.parametrize(
    ("content", "match"),
    [(None, "does not exist"), ("- 1", "expected a mapping"), ("seeds: [0", "not valid yaml"),
     ("seedz: [0]\n", "Did you mean 'seeds'?"),
     ("seeds: []\ndistill: []\ndatasets: {d: {source: {digits: {std: [63.0]}}, views: plain}}\n", "by 255")],
)  # fmt: skip
def test_bad_params_are_one_line(
    content: str | None,
    match: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "params.yaml"
    if content is not None:
        path.write_text(content)
    words = ["--params", str(path), "--out", str(tmp_path / "out")]
    code, text = finish(module("params").main, words, monkeypatch, capsys)
    assert (code, text.count("\n")) == (1, 1)
    assert match in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [("--precision", "float16"), ("--device", "tpu")])
def test_a_slip_in_a_machine_option_does_not_cost_the_artifact(
    option: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from training_fixtures import PARAMS, RECIPE, STUDENT, VIEWS, prepared_data

    from pipeline.runs import check
    from pipeline.runs.blocks import blocks

    prepared = prepared_data(tmp_path / "data")
    train = blocks(check.project(PARAMS))["teachers/big/train"].model_dump(mode="json")
    student = {
        "student": "small", "dataset": "toy", "network": STUDENT.model_dump(mode="json"),
        "recipe": RECIPE.model_dump(mode="json"), "views": VIEWS.model_dump(mode="json"),
        "data": str(prepared.folder), "fingerprint": prepared.meta.fingerprint,
        "mean": prepared.meta.mean, "std": prepared.meta.std, "code": {},
    }  # fmt: skip
    out = tmp_path / "out"
    out.mkdir()
    (out / "training.json").touch()
    for stage, block, more in (
        ("train_teacher", train, ["--data", str(prepared.folder)]),
        ("pretrain_student", student, ["--seed", "0"]),
    ):
        path = tmp_path / f"{stage}.json"
        path.write_text(json.dumps(block))
        words = [str(path), *more, "--out", str(out), *option]
        code, text = finish(module(stage).main, words, monkeypatch, capsys)
        assert (code, text.count("\n")) == (1, 1), text
        assert option[0] in text
        assert (out / "training.json").exists(), stage


def test_our_own_mistakes_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def main() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(sys, "argv", ["stage"])
    with pytest.raises(ZeroDivisionError):
        command.run(main)


def test_a_package_that_is_missing_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(name: str) -> None:
        importlib.import_module(name)

    code, text = finish(main, ["no_such_package.inside"], monkeypatch, capsys)
    assert (code, text.count("\n")) == (1, 1)
    assert "has no module 'no_such_package'" in text
    assert "pip install -e ." in text

    monkeypatch.setattr(sys, "argv", ["stage", "pipeline.no_such_module"])
    with pytest.raises(ModuleNotFoundError):  # our own mistake
        command.run(main)


def test_windows_is_refused_in_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    code, text = finish(lambda: None, [], monkeypatch, capsys)
    assert (code, text.count("\n")) == (1, 1)
    assert "WSL" in text


def test_usage_errors_end_with_two(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(number: int = typer.Option(..., min=1)) -> None:
        pass

    code, text = finish(main, ["--number", "0"], monkeypatch, capsys)
    assert code == 2
    assert "Traceback" not in text

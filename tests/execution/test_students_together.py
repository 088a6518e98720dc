"""Which stages share a process, and the command that they get: read from what the stages really write and take."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from ruamel.yaml import YAML
from scheduler_fixtures import stage, write_inputs

from pipeline.execution.cohort import company, group
from pipeline.execution.stage import Stage
from pipeline.networks.spec import NetworkSpec
from pipeline.params.plug import Plug
from pipeline.params.recipe import Recipe
from pipeline.params.views import CropFlip
from pipeline.runs.inputs import RunInputs
from pipeline.runs.student import StudentInputs
from stages import distill, pretrain_student

DVC = YAML(typ="safe").load(Path(__file__).parents[2] / "dvc.yaml")["stages"]
STUDENT = StudentInputs(
    student="small",
    dataset="toy",
    network=NetworkSpec(family="resnet", network="resnet8", size=8, channels=1, classes=10),
    recipe=Recipe(epochs=2, milestones=()),
    views=CropFlip(space="crop_flip", padding=1, flip=False),
    data="data/prepared/toy",
    fingerprint={},
    mean=(0.5,),
    std=(0.5,),
    code={},
)
RUN = RunInputs(
    **{name: getattr(STUDENT, name) for name in StudentInputs.model_fields},
    pair="pair",
    run="kd",
    seed=0,
    teacher="big",
    methods=(Plug.of("kd"),),
    transform=None,
    schedule=Plug.of("constant"),
    source="cached",
    slots=1,
    features=("logits",),
    teacher_network=False,
    weights_folder="",
    weights={},
    stored={},
    tables={},
    teacher_weights="",
    teacher_evaluation="",
)


def write(file: Path, inputs: StudentInputs, **recipe: Any) -> None:
    """Write a json of inputs as its stage does."""
    changed = inputs.model_copy(update={"recipe": inputs.recipe.model_copy(update=recipe)})
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(changed.model_dump(mode="json")))


def cell(kind: str, name: str, **item: str) -> Stage:
    """Return a stage of dvc.yaml with the values of its cell."""
    entry = DVC[kind]
    commands = [command.strip() for command in entry["cmd"]]
    for key, value in item.items():
        commands = [command.replace(f"${{item.{key}}}", value) for command in commands]
    return Stage(
        f"{kind}@{name}", frozenset(), True, tuple(entry["meta"]["cohort"]), tuple(commands), (Path(name),)
    )


def names(first: Stage, *others: Stage, folder: Path) -> list[str]:
    """Return who shares a process with a stage."""
    return [each.name for each in company(first, [first, *others], lambda _: folder)]


def parsed(module: Any, command: str) -> dict[str, Any]:
    """Return the options that a stage's own parser makes of a command."""
    app = typer.Typer(add_completion=False)
    app.command()(module.main)
    program = typer.main.get_command(app)
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", module.__name__]
    with program.make_context(words[2], words[3:]) as context:
        return context.params


def test_distilled_students_of_the_same_data_and_batches(tmp_path: Path) -> None:
    inputs = tmp_path / "artifacts/inputs/pairs"
    write(inputs / "pair/kd/0.json", RUN)
    write(inputs / "pair/kd/1.json", RUN, epochs=9)
    write(inputs / "pair/wide/0.json", RUN, batch_size=128)
    write(inputs / "pair/whole/0.json", RUN, drop_last=True)
    write(inputs / "other/kd/0.json", RUN.model_copy(update={"data": "data/prepared/other"}))
    stages = [
        cell("distill", f"{student}-{seed}", student=student, seed=seed)
        for student, seed in (
            ("pair/kd", "0"), ("pair/wide", "0"), ("pair/whole", "0"), ("other/kd", "0"), ("pair/kd", "1"),
        )
    ]  # fmt: skip
    assert names(*stages, folder=tmp_path) == ["distill@pair/kd-0", "distill@pair/kd-1"]

    made = group([stages[0], stages[-1]])
    assert made.name == "distill@pair/kd-0 and 1 more"
    assert made.commands[:-1] == stages[0].commands[:-1]
    options = parsed(distill, made.commands[-1])
    assert [str(each) for each in options["inputs"]] == [
        f"artifacts/inputs/pairs/pair/kd/{seed}.json" for seed in (0, 1)
    ]
    assert [str(out) for out in options["out"]] == [f"artifacts/students/pair/kd/{seed}" for seed in (0, 1)]
    assert str(options["code"]) == "artifacts/code/stages/distill.json"


def test_students_alone_share_a_process_with_their_seeds(tmp_path: Path) -> None:
    inputs = tmp_path / "artifacts/inputs/students"
    write(inputs / "small.json", STUDENT)
    write(inputs / "large.json", STUDENT)
    stages = [
        cell("pretrain_student", f"{student}-{seed}", student=student, seed=seed)
        for student, seed in (("small", "0"), ("small", "1"), ("large", "0"))
    ]
    assert len(names(*stages, folder=tmp_path)) == 3

    options = parsed(pretrain_student, group(stages).commands[-1])
    assert [Path(each).stem for each in options["inputs"]] == ["small", "small", "large"]
    assert options["seed"] == [0, 1, 0]
    assert [str(out) for out in options["out"]] == [
        f"artifacts/pretrained/{name}" for name in ("small/0", "small/1", "large/0")
    ]


def test_another_kind_does_not_join(tmp_path: Path) -> None:
    write_inputs(tmp_path / "a.json", "a")
    one, two = stage("distill@0", shares=True), stage("mine@0", shares=True)
    assert names(one, two, folder=tmp_path) == ["distill@0"]


@pytest.mark.parametrize(
    "command",
    [
        "python -m stages.distill a.json --out x && touch y",
        "python -m stages.distill $JSON --out x",
        "python -m stages.distill a.json --out 'x",
        "python -m mine.distill a.json --out x",
        "python train.py a.json --out x",
        "OMP_NUM_THREADS=1 python -m stages.distill a.json --out x",
        "python -m stages.distill --out x a.json",
        "python -m stages.distill --deterministic a.json --out x",
        "python -m stages.distill a.json --out x -- b.json",
        "python -m stages.distill a.json",
        "python -m stages.distill a.json --out",
        "python -m stages.distill a.json --out x --out y",
        "python -m stages.distill --out x",
        "python -m stages.distill missing.json --out x",
        "python -m stages.distill list.json --out x",
        "python -m stages.distill half.json --out x",
        "python -m stages.distill other.json --out x",
        "python -m",
        "",
    ],
)
def test_what_is_not_understood_runs_alone(tmp_path: Path, command: str) -> None:
    write_inputs(tmp_path / "a.json", "a")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "half.json").write_text('{"data"')
    (tmp_path / "other.json").write_text('{"data": "a", "recipe": {"batch_size": 64}}')
    stages = [Stage(f"distill@{index}", frozenset(), True, ("--out",), (command,), ()) for index in range(2)]
    assert names(*stages, folder=tmp_path) == ["distill@0"]
    assert group(stages[:1]).commands == (command,)


def test_flags_quotes_and_equals_signs(tmp_path: Path) -> None:
    for name in ("a b", "c"):
        write_inputs(tmp_path / f"{name}.json", "data")
    commands = {
        "distill@0": "python -m stages.distill 'a b.json' --deterministic --out='x y' --code c.json --steps=eager",
        "distill@1": 'python -m stages.distill "c.json" --deterministic --out -z --code c.json --steps=eager',
        "distill@2": "python -m stages.distill c.json --out z --code c.json --steps=eager",
    }
    stages = [
        Stage(name, frozenset(), True, ("--out",), (command,), ()) for name, command in commands.items()
    ]
    assert names(*stages, folder=tmp_path) == ["distill@0", "distill@1"]

    options = parsed(distill, group(stages[:2]).commands[-1])
    assert [str(each) for each in options["inputs"]] == ["a b.json", "c.json"]
    assert [str(each) for each in options["out"]] == ["x y", "-z"]
    assert options["deterministic"] is True
    assert options["steps"] == "eager"

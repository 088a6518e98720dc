"""Small data, a whole small project, and toy plug-ins, for the tests of methods and training."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from device_fixtures import current, here
from torch import Tensor

from pipeline import plugin, seeding
from pipeline.dataset import ArraySplit, DatasetConfig, Source
from pipeline.encoding import taps_of
from pipeline.features.teacher import Teacher, on_device
from pipeline.method import BaseMethod, Batch, Context, MethodConfig, Needs, Tables
from pipeline.network import Network, NetworkSpec, build, load, probe
from pipeline.params import project
from pipeline.params.base import load as load_block
from pipeline.params.recipe import Recipe
from pipeline.params.views import CropFlip
from pipeline.prepare import prepare
from pipeline.prepared import Prepared
from pipeline.training import distil as distilling
from pipeline.training.inputs import RunInputs, StudentInputs

torch.set_num_threads(1)  # networks this small lose by more, and threads of busy cores wait for each other
CLASSES = 4
STUDENT = NetworkSpec(family="resnet", network="resnet8", size=8, channels=1, classes=CLASSES)
TEACHER = STUDENT.model_copy(update={"network": "resnet14"})
RECIPE = Recipe(epochs=2, batch_size=20, learning_rate=0.05, milestones=(1,))
VIEWS = CropFlip(space="crop_flip", padding=1, flip=False)
TIMES = ("seconds", "images_per_second")  # columns of the history that differ from run to run

PARAMS: dict[str, Any] = {
    "seeds": [0, 1],
    "datasets": {"toy": {"source": "digits", "views": VIEWS.model_dump(mode="json")}},
    "teachers": {
        "big": {
            "dataset": "toy",
            "family": "resnet",
            "network": "resnet14",
            "anchors": [0.5],
            "recipe": RECIPE.model_dump(mode="json"),
            "extract": {
                "features": {"logits": {"dtype": "float32"}, "stage2": {"dtype": "float32"}},
                "checkpoints": ["last", "anchor_050"],
            },
        }
    },
    "students": {
        "small": {
            "dataset": "toy",
            "family": "resnet",
            "network": "resnet8",
            "recipe": RECIPE.model_dump(mode="json"),
        }
    },
    "pairs": {"pair": {"teacher": "big", "student": "small"}},
    "runs": {
        "kd": {"method": "kd"},
        "fitnet": {"method": "fitnet"},
        "standardised": {"method": "fitnet", "config": {"standardise": "moments"}},
        "online": {"method": "fitnet", "source": "online"},
        "rco": {
            "method": "kd",
            "schedule": "anchors",
            "schedule_config": {"anchors": ["anchor_050", "last"]},
        },
        "kcd": {
            "method": "mimicry",
            "config": {"student_tap": "stage2", "teacher_feature": "stage2"},
            "transform": "permutation",
            "transform_config": {"features": ["stage2"]},
        },
    },
    "tables": {"moments": {"table": "moments", "config": {"feature": "stage2"}}},
    "fits": {"big-moments": {"teacher": "big", "table": "moments"}},
    "matchings": {"kcd": {"student_tap": "stage2", "teacher_feature": "stage2"}},
    "matches": {"pair-kcd": {"pair": "pair", "teacher": "big", "student": "small", "matching": "kcd"}},
    "distill": ["pair/kd", "pair/fitnet", "pair/standardised", "pair/online", "pair/rco", "pair/kcd"],
}


def prepared_data(folder: Path, samples: int = 100, holdout: float = 0.0) -> Prepared:
    """Prepare noisy images of four patterns, 8x8."""
    rng = np.random.default_rng(0)
    patterns = rng.uniform(0, 255, (CLASSES, 1, 8, 8))

    def split(count: int) -> ArraySplit:
        labels = np.arange(count, dtype=np.int64) % CLASSES
        images = patterns[labels] + rng.normal(0, 60, (count, 1, 8, 8))
        return ArraySplit(images.clip(0, 255).astype(np.uint8), labels)

    source = Source([str(k) for k in range(CLASSES)], 1, 8, split(samples), split(60))
    prepare(source, "toy", DatasetConfig(holdout=holdout), folder)
    return Prepared.open(folder)


@dataclass(frozen=True)
class World:
    """A project on disk, made by the stages' own commands."""

    root: Path
    params: Mapping[str, Any] = field(default_factory=lambda: PARAMS)

    def path(self, name: str) -> Path:
        return self.root / name

    @property
    def prepared(self) -> Prepared:
        return Prepared.open(self.path("data/prepared/toy"))

    def student(self) -> StudentInputs:
        return load_block(StudentInputs, self.path("artifacts/inputs/students/small.json"))

    def inputs(self, run: str = "kd", seed: int = 0, **update: Any) -> RunInputs:
        found = load_block(RunInputs, self.path(f"artifacts/inputs/pairs/pair/{run}/{seed}.json"))
        return found.model_copy(update=update)

    def resolve(self, out: Path, **places: Path) -> dict[str, bytes]:
        """Run stages.inputs, with some of its paths changed, and return the json of every run, of its seed 0."""
        from stages import inputs as stage

        standard = {
            "block": self.path("artifacts/params/pairs/pair.json"),
            "prepared": self.path("data/prepared"),
            "weights": self.path("artifacts/teachers/big/weights"),
            "store": self.path("artifacts/features/big.zarr"),
            "codes": self.path("artifacts/codes/big"),
            "tables": self.path("artifacts/tables/big"),
            "matchings": self.path("artifacts/matchings/pair"),
            "evaluation": self.path("artifacts/predictions/teachers/big.npz"),
            "code": self.path("artifacts/code"),
        }
        stage.main(**(standard | places), out=out)
        return {folder.name: (folder / "0.json").read_bytes() for folder in out.iterdir()}

    def blocks(self, **sections: Any) -> Path:
        """Return the folder of blocks of the world's params with `sections` merged into them."""
        folder = self.root / "changed" / str(seeding.derive(json.dumps(sections, sort_keys=True)))
        for name, block in project.blocks(project.check(project.merged(self.params, sections))).items():
            path = folder / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(block.model_dump(mode="json")))
        return folder

    def match(self, out: Path, name: str = "pair-kcd", **places: Path) -> Path:
        """Run stages.match_channels, with some of its paths changed, and return the folder that it made."""
        from stages import match_channels

        standard = {
            "block": self.path(f"artifacts/params/matches/{name}.json"),
            "prepared": self.path("data/prepared"),
            "students": self.path("artifacts/pretrained/small"),
            "weights": self.path("artifacts/teachers/big/weights"),
            "store": self.path("artifacts/features/big.zarr"),
            "metrics": out.with_suffix(".json"),
        }
        match_channels.main(**(standard | places), out=out, device=str(current().device))
        return out

    def distil(self, name: str, inputs: RunInputs, seed: int = 0, **options: Any) -> Path:
        """Distil into a scratch folder and return it."""
        scratch = self.root / "scratch" / name
        scratch.mkdir(parents=True, exist_ok=True)
        inputs = inputs.model_copy(update={"seed": seed})
        distilling.distil(scratch, inputs, current(), identity=options.pop("identity", name), **options)
        return scratch


def make_world(
    root: Path,
    params: Mapping[str, Any] = PARAMS,
    runs: bool = True,
    prepare_data: Callable[[Path], object] = prepared_data,
) -> World:
    """Run the whole chain up to the runs' inputs: a few seconds. Without `runs` these are left to the test."""
    from stages import (
        code,
        evaluate,
        extract_features,
        fit_table,
        list_matches,
        pretrain_student,
        student_inputs,
        train_teacher,
    )
    from stages import params as params_stage

    device = str(current().device)
    prepare_data(root / "data/prepared/toy")
    artifacts = root / "artifacts"
    file = root / "params.yaml"
    file.write_text(json.dumps(params))  # json is yaml
    code.main(out=artifacts / "code")
    params_stage.main(out=artifacts / "params", params=file)
    block, data = artifacts / "params/teachers/big", root / "data/prepared/toy"
    teacher, store = artifacts / "teachers/big", artifacts / "features/big.zarr"
    train_teacher.main(block / "train.json", data=data, out=teacher, device=device)
    evaluate.main(
        teacher,
        data=data,
        out=artifacts / "metrics/big.json",
        predictions=artifacts / "predictions/teachers/big.npz",
        device=device,
    )
    extract_features.main(
        block / "extract.json",
        data=data,
        weights=teacher / "weights",
        out=store,
        device=device,
        batch_size=50,
    )
    fit_table.main(
        artifacts / "params/fits/big-moments.json",
        prepared=root / "data/prepared",
        store=store,
        out=artifacts / "tables/big/moments.npz",
        metrics=artifacts / "metrics/moments.json",
    )
    student_inputs.main(
        artifacts / "params/students/small.json",
        data=data,
        code=artifacts / "code",
        out=artifacts / "inputs/students/small.json",
    )
    world = World(root, params)
    for seed in params["seeds"]:
        alone = artifacts / f"pretrained/small/{seed}"
        pretrain_student.main(artifacts / "inputs/students/small.json", seed=seed, out=alone, device=device)
    list_matches.main(artifacts / "params/matched/pair.json", out=artifacts / "matchings/pair/index.json")
    kcd = artifacts / "matchings/pair/pair-kcd"
    world.match(kcd, metrics=artifacts / "metrics/matchings/pair-kcd.json")
    if runs:
        world.resolve(artifacts / "inputs/pairs/pair")
    return world


def plug(monkeypatch: pytest.MonkeyPatch, catalogue: str, name: str, **content: Any) -> ModuleType:
    """Add a plug-in that has no file to a catalogue."""
    module = ModuleType(f"pipeline.{catalogue}.{name}")
    for key, value in content.items():
        setattr(module, key, value)
    monkeypatch.setitem(__import__("sys").modules, module.__name__, module)
    listed = plugin.names
    monkeypatch.setattr(plugin, "names", lambda kind: listed(kind) + ([name] if kind == catalogue else []))
    return module


@dataclass(frozen=True)
class Assembled:
    """A method on a small student, with what it needs."""

    student: Network
    method: BaseMethod[Any]
    needs: Needs
    context: Context

    def batch(self, size: int = 6, seed: int = 0, **update: Any) -> Batch:
        generator = seeding.generator(seed, "batch")
        image = here(torch.randn(size, 1, STUDENT.size, STUDENT.size, generator=generator))
        label = here(torch.randint(CLASSES, (size,), generator=generator))
        fields = {
            "image": image,
            "label": label,
            "index": torch.arange(size),
            "teacher": frozen_teacher(self.context.tables).features(image, self.needs.teacher, label),
            "epoch": 0,
            "epochs": 2,
            "step": 0,
            "phase": self.method.phases(RECIPE)[0].name,
            "generator": seeding.generator(seed, "step"),
        }
        return Batch(**(fields | update))

    def taps(self, batch: Batch) -> dict[str, Tensor]:
        return self.student.record(batch.image, self.method.taps)


def frozen_teacher(tables: Tables | None = None) -> Teacher:
    return Teacher(build(TEACHER, "teacher"), current(), on_device(tables or {}, current()))


def assemble(
    name: str,
    settings: Mapping[str, Any] | None = None,
    tables: Callable[[str], Mapping[str, Any]] | None = None,
) -> Assembled:
    """Build the method `name` and the student that it operates on."""
    module = plugin.load("methods", name)
    config: MethodConfig = module.Config(**(settings or {}))
    needs: Needs = module.Method.needs(config)
    plain = probe(build(STUDENT, 0), STUDENT.size, STUDENT.channels)
    arrays = {key: tables(key) if tables else {} for key in needs.tables}
    teacher = frozen_teacher(arrays)
    every = probe(teacher.network, TEACHER.size, TEACHER.channels)
    assert taps_of(needs.teacher) <= set(every), f"{name} needs teacher taps that no network has"
    image, label = (
        here(torch.zeros(1, 1, STUDENT.size, STUDENT.size)),
        here(torch.zeros(1, dtype=torch.int64)),
    )
    seen = {key: tuple(x.shape[1:]) for key, x in teacher.features(image, needs.teacher, label).items()}
    operations = module.Method.operations(config, plain, seen, arrays)
    spec = STUDENT.model_copy(
        update={"inserted": dict(operations.insert), "classifier_width": operations.classifier_width}
    )
    student = build(spec, 0).to(current().device)
    context = Context(
        num_classes=CLASSES,
        labels=torch.arange(100) % CLASSES,
        student=student,
        student_shapes=probe(student, spec.size, spec.channels),
        teacher_shapes=seen,
        tables=arrays,
        teacher=teacher.network if needs.network else None,
    )
    with seeding.scope(0, "method"):
        method = module.Method(config, context)
    return Assembled(student, method.to(current().device), needs, context)


def weights(folder: Path, name: str = "last") -> dict[str, Tensor]:
    """Return the saved weights of a training."""
    return dict(load(folder / "weights", name)[0].state_dict())


def changed(params: Mapping[str, Any], place: str, value: Any) -> dict[str, Any]:
    """Return a copy of `params` with the key at `place`, dotted, set to `value`; `...` removes it."""
    result: dict[str, Any] = copy.deepcopy(dict(params))
    *path, last = place.split(".")
    inner = result
    for key in path:
        inner = inner.setdefault(key, {})
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return result

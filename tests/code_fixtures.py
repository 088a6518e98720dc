"""A small project whose runs learn words and sub-classes, for the tests of codes and of letKD's layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from device_fixtures import current, here
from numpy.typing import NDArray
from torch import Tensor
from training_fixtures import CLASSES, PARAMS, World, changed, make_world

from pipeline.features import manifest as manifests
from pipeline.features.store import StoredArray, array_path
from pipeline.features.teacher import Teacher
from pipeline.network import load
from pipeline.normalise import Normalise
from pipeline.params.project import merged
from pipeline.table import Fitted, save
from pipeline.table import load as load_table

Array = NDArray[Any]
WORDS, PER_CLASS, AXES = 6, 2, 3
INNER = "stage3_block1"
HARD, SOFT, SUBCLASS = "final:nearest@words", "final:top4@words", f"{INNER}:subclass@subclasses"
CODES = {"big-nearest": HARD, "big-top4": SOFT, "big-subclass": SUBCLASS}


def _letkd(final: str, inner: str | None = None) -> dict[str, Any]:
    places: dict[str, Any] = {"final": {"learns": "words", "feature": final, "temperature": 0.5}}
    if inner is not None:
        places[INNER] = {"learns": "subclasses", "feature": inner}
    return {"method": "letkd1" if inner is None else "letkd2", "config": {"places": places}}


RUNS: dict[str, Any] = {
    "hard": _letkd(HARD, SUBCLASS),
    "soft": _letkd(SOFT, SUBCLASS),
    "whole": _letkd("final", INNER),
    "letkd1": _letkd("final"),
    "quest": {"method": "quest", "config": {"places": {"final": {"feature": HARD}}}},
    "capacity": {"method": "fitnet", "config": {"insert": {"final": {"layer": "kd_layer", "settings": {"words": 5}}}}},
}  # fmt: skip
ONLINE = ("hard", "soft", "whole")
RUNS |= {f"{name}-online": RUNS[name] | {"source": "online"} for name in ONLINE}
CODED = merged(
    changed(PARAMS, "distill", [f"pair/{run}" for run in ("kd", *RUNS)]),
    {
        "runs": RUNS,
        "teachers": {
            "big": {"extract": {"features": {tap: {"dtype": "float32"} for tap in ("final", INNER)}}}
        },
        # The tables are written by `write_tables`: their own fits are not what these tests are about.
        "tables": {
            "words": {"table": "moments", "config": {"feature": "final"}},
            "subclasses": {"table": "moments", "config": {"feature": INNER}},
        },
        "fits": {
            f"big-{table}": {"teacher": "big", "table": table} for table in ("moments", "words", "subclasses")
        },
        "codes": {
            name: {"teacher": "big", "table": code.partition("@")[2], "feature": code.partition("@")[0]}
            for name, code in CODES.items()
        },
    },
)


def make_coded_world(root: Path) -> World:
    """Run the whole chain up to the codes and the runs' inputs."""
    world = make_world(root, CODED, runs=False)
    write_tables(world)
    for name in CODES:
        encode(world, name)
    world.resolve(world.path("artifacts/inputs/pairs/pair"))
    return world


def write_tables(world: World, folder: Path | None = None, seed: int = 0, **origin: Any) -> None:
    """Write a table of words and one of sub-classes, drawn from the pixels of the teacher's plain maps."""
    random, store = np.random.default_rng(seed), world.path("artifacts/features/big.zarr")
    folder = folder or world.path("artifacts/tables/big")
    labels = np.asarray(world.prepared.split("train").labels)
    manifest = manifests.read(store)
    for name, feature in (("words", "final"), ("subclasses", INNER)):
        maps = StoredArray(array_path(store, "last", "train", feature)).all()[0]  # (N, C, H, W)
        pixels = np.moveaxis(maps, 1, -1).reshape(-1, maps.shape[1]).astype(np.float64)
        label = np.repeat(labels, maps.shape[2] * maps.shape[3])
        arrays = _words(pixels, random) if name == "words" else _subclasses(pixels, label, random)
        about = {
            "table": {"config": {"feature": feature}},
            "teacher": "big",
            "digest": manifest.features[feature].digest["last/train"],
        }
        save(folder / f"{name}.npz", Fitted(arrays, {}), about | origin)


def _words(pixels: Array, random: np.random.Generator) -> dict[str, Array]:
    chosen = pixels[random.choice(len(pixels), WORDS, replace=False)]
    centers = chosen + 0.1 * pixels.std() * random.normal(size=chosen.shape)
    counts = np.bincount(_distances(pixels, centers).argmin(axis=1), minlength=WORDS)
    return {"centers": centers.astype(np.float32), "counts": counts, "temperature": np.float32(0.5)}


def _subclasses(pixels: Array, label: Array, random: np.random.Generator) -> dict[str, Array]:
    mean, scalings = pixels.mean(axis=0), random.normal(size=(pixels.shape[1], AXES))
    z = (pixels - mean) @ scalings
    centers = np.concatenate([z[label == c][random.choice(20, PER_CLASS, False)] for c in range(CLASSES)])
    number = CLASSES * PER_CLASS
    return {
        "mean": mean,
        "scalings": scalings,
        "centers": centers,
        "scores": random.dirichlet(np.ones(number), number),
        "counts": np.full(number, len(pixels) // number),
        "per_class": np.int64(PER_CLASS),
    }


def _distances(pixels: Array, centers: Array) -> Array:
    found: Array = ((pixels[:, None] - centers[None]) ** 2).sum(axis=2)
    return found


def encode(world: World, name: str, **places: Any) -> Path:
    """Run stages.encode_views, with some of its paths changed, and return the store."""
    from stages import encode_views

    standard = {
        "block": world.path(f"artifacts/params/codes/{name}.json"),
        "prepared": world.path("data/prepared"),
        "weights": world.path("artifacts/teachers/big/weights"),
        "store": world.path("artifacts/features/big.zarr"),
        "table": world.path(f"artifacts/tables/big/{CODES[name].partition('@')[2]}.npz"),
        "out": world.path(f"artifacts/codes/big/{name}.zarr"),
        "summary": world.path(f"artifacts/tables/big/{name}.json"),
        "metrics": world.path(f"artifacts/metrics/codes/{name}.json"),
        "batch_size": 50,
    }
    asked: dict[str, Any] = standard | places
    encode_views.main(**asked, device=str(current().device))
    return Path(asked["out"])


def table_of(world: World, name: str) -> dict[str, Array]:
    return load_table(world.path(f"artifacts/tables/big/{name}.npz"))[0]


def plain_maps(world: World, feature: str) -> Tensor:
    """Return what the teacher gives at a tap of the plain training images, (N, C, H, W)."""
    data, meta = world.prepared.split("train"), world.prepared.meta
    teacher = Teacher(load(world.path("artifacts/teachers/big/weights"))[0], current())
    image = Normalise(meta.mean, meta.std, current().device)(here(torch.from_numpy(np.array(data.images))))
    return teacher.features(image, [feature], here(torch.from_numpy(np.array(data.labels))))[feature]

"""A whole project on generated photographs of 12x20 pixels: from the files to evaluated students and the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from training_fixtures import PARAMS, RECIPE, World, make_world

from pipeline.data.datasets import image_folder
from pipeline.data.preparation import prepare
from pipeline.features import manifest as manifests
from pipeline.networks.weights import load
from pipeline.params.sections import merged
from pipeline.report.collect.collect import collect
from pipeline.report.results import PLACES
from pipeline.tables import table
from stages import check_features, distill, encode_views, evaluate, report

pytestmark = pytest.mark.cpu

HEIGHT, WIDTH = 12, 20
PLACE = {"places": {"stage2": {"table": "words", "encoding": "nearest"}}}
RUNS = {
    "kd": {"methods": "kd"},
    "maps": {"methods": {"fitnet": {}, "at": {}, "reviewkd": {}}, "source": "online"},
    "online": {"methods": "kd", "source": "online", "views": "random_resized_crop"},
    "letkd": {"methods": {"letkd": PLACE}},
    "kcd": PARAMS["runs"]["kcd"],
}


def params(raw: Path) -> dict[str, object]:
    source = {"image_folder": {"path": str(raw), "size": [HEIGHT, WIDTH], "split": 0.25}}
    recipe = RECIPE.model_copy(update={"class_weights": "balanced"})
    return {
        **merged(
            PARAMS,
            {
                "seeds": [0],
                "recipes": {"quick": recipe.model_dump(mode="json")},
                "datasets": {"toy": {"source": source}},
                "tables": {"words": {"kmeans": {"feature": "stage2", "clusters": 5}}},
                "matchings": {"kcd": {"pictured": 1}},
            },
        ),
        "runs": RUNS,
        "distill": [f"pair/{name}" for name in RUNS],
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Return the project, made by the stages' commands down to the last evaluation."""
    root = tmp_path_factory.mktemp("world")
    draw = np.random.default_rng(0)
    for number in range(60):
        # Three classes of unequal sizes: bright left, bright top, noise.
        pixels = draw.integers(0, 120, (24 + number % 5, 40 + number % 7, 3), dtype=np.uint8)
        kind = "left" if number % 2 else "top" if number % 4 else "noise"
        pixels[:, :20] += 100 * np.uint8(kind == "left")
        pixels[:12] += 100 * np.uint8(kind == "top")
        path = root / "raw" / kind / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)

    def prepare_data(out: Path) -> None:
        config = image_folder.Config(path=root / "raw", size=(HEIGHT, WIDTH), split=0.25)
        prepare(image_folder.open_source(config), "image_folder", config, out, made_by="prepare_data@toy")

    world = make_world(root, params(root / "raw"), runs=False, prepare_data=prepare_data)
    a, data = world.path("artifacts"), world.path("data/prepared")
    store, weights = a / "features/big.zarr", a / "teachers/big/weights"
    check_features.main(
        a / "params/teachers/big/check.json", store=store, data=data / "toy", weights=weights,
        out=a / "metrics/features/big.json", summary=a / "checks/big.json", device="cpu",
    )  # fmt: skip
    encode_views.main(
        a / "inputs/teachers/big/codes/words.json", prepared=data, weights=weights, store=store,
        table=a / "tables/big/words.npz", out=a / "codes/big/words", metrics=a / "metrics/codes/big/words.json",
        device="cpu", precision="float32", batch_size=50,
    )  # fmt: skip
    world.resolve(a / "inputs/pairs/pair")
    keys = ["pretrained/small/0", *(f"students/pair/{run}/0" for run in RUNS)]
    for key, run in zip(keys, (None, *RUNS), strict=True):
        if run is not None:
            distill.main([a / f"inputs/pairs/pair/{run}/0.json"], out=[a / key], device="cpu")
        outs = {"out": a / f"metrics/{key}.json", "predictions": a / f"predictions/{key}.npz"}
        evaluate.main(a / key, **outs, device="cpu")
    return world


def test_store_table_and_students_are_of_oblong_maps(world: World) -> None:
    a = world.path("artifacts")
    manifest = manifests.read(a / "features/big.zarr", "dvc repro")
    assert manifest.network.size == (HEIGHT, WIDTH)
    assert manifest.features["stage2"].shape == (32, 6, 10)
    arrays, _ = table.load(a / "tables/big/words.npz", "dvc repro")
    assert int(arrays["counts"].sum()) == 6 * 10 * world.prepared.meta.samples["train"]
    _, rows, columns = (arrays[name] for name in PLACES)
    assert rows.max() <= 5 < columns.max() <= 9

    alone = json.loads((a / "metrics/pretrained/small/0.json").read_text())
    for run in RUNS:
        _, spec = load(a / f"students/pair/{run}/0/weights")
        assert spec.size == (HEIGHT, WIDTH)
        measured = json.loads((a / f"metrics/students/pair/{run}/0.json").read_text())
        assert measured["macs"] >= alone["macs"] > 0  # more where a layer is inserted
        assert measured["top1"] > 40  # of three classes, of which two are easy: their sides are not mixed up


def test_the_gate_has_compared_the_store_and_found_its_receptive_fields(world: World) -> None:
    summary = json.loads(world.path("artifacts/checks/big.json").read_text())
    field = summary["features"]["stage2"]["field"]
    assert (len(field["rows"]), len(field["columns"])) == (6, 10)
    assert (field["rows"][-1][1], field["columns"][-1][1]) == (HEIGHT - 1, WIDTH - 1)


def test_the_report_shows_everything(world: World) -> None:
    folders = [world.path(name) for name in ("artifacts/params", "artifacts", "data/prepared")]
    assert collect(*folders).missing == ()
    report.main(params=folders[0], artifacts=folders[1], prepared=folders[2], out=world.path("report"))
    page = (world.path("report") / "index.html").read_text()
    assert "3\N{MULTIPLICATION SIGN}12\N{MULTIPLICATION SIGN}20" in page
    assert f'<svg viewBox="0 0 {WIDTH} {HEIGHT}"' in page

"""The page "Your own images", from nothing to a folder that can be published."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from dvc_project import ONE, ROOT, make
from PIL import Image
from ruamel.yaml import YAML

pytestmark = [pytest.mark.cpu, pytest.mark.slow]

PAGE = (ROOT / ".github/docs/own-images.md").read_text("utf-8")
SHAPES = ((60, 80), (90, 70))  # height and width
FORMATS = ("jpg", "png", "tif")
CLASSES = ("circle", "square", "stripes")


def fences(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def draw(folder: Path) -> int:
    """Draw photographs of two shapes in three formats, and return how many there are."""
    drawn = np.random.default_rng(0)
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for index in range(12):
            height, width = SHAPES[index % 2]
            y, x = (
                np.mgrid[:height, :width]
                - np.array([[[height]], [[width]]]) / 2
                + drawn.normal(size=(2, 1, 1))
            )
            marked = (y**2 + x**2 < 300, np.maximum(abs(y), abs(x)) < 16, x // 6 % 2 == 0)[number]
            image = drawn.random((height, width, 3)) * 80 + marked[..., None] * 150
            Image.fromarray(image.astype(np.uint8)).save(folder / name / f"{index:02}.{FORMATS[index % 3]}")
    return 12 * len(CLASSES)


def test_the_page_is_what_happens(tmp_path: Path) -> None:
    timm, torch = pytest.importorskip("timm"), pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    project = make(tmp_path, ONE)
    number = draw(project.folder / "data/raw/photos")
    torch.manual_seed(0)
    state = timm.create_model("resnet18", num_classes=len(CLASSES)).state_dict()
    weights = project.folder / "data/raw/weights/teacher.pth"
    weights.parent.mkdir()
    torch.save({"state_dict": {f"module.{name}": x for name, x in state.items()}}, weights)  # as in the wild

    (params,) = fences("yaml")
    assert "seeds: [0, 1]\n" in params
    # The second seed's students are made as the first one's, for half of the time.
    (project.folder / "params.yaml").write_text(params.replace("seeds: [0, 1]\n", "seeds: [0]\n"))
    commands = [line for fence in fences("sh") for line in fence.splitlines() if not line.startswith("pip ")]
    assert len(commands) == 5
    for command in commands:
        project.run(*command.split())

    artifacts = project.folder / "artifacts"
    assert (artifacts / "report/index.html").exists()
    for of, kinds in (("big-mobile", ("int8", "onnx", "program")), ("big-vit", ("onnx",))):
        assert (
            tuple(
                sorted(path.name for path in (artifacts / f"exports/{of}/kd_at").iterdir() if path.is_dir())
            )
            == kinds
        )
    for name in ("predictions.csv", "of-vit.csv"):
        rows = list(csv.DictReader((project.folder / name).read_text().splitlines()))
        assert len(rows) == number
        assert {row["class"] for row in rows} <= set(CLASSES)
        assert all(abs(sum(float(row[f"p_{each}"]) for each in CLASSES) - 1) < 1e-4 for row in rows)

    published = project.folder / "published"
    _, front, _ = (published / "README.md").read_text().split("---\n", 2)
    assert YAML(typ="safe").load(front)["license"] == "apache-2.0"
    model = timm.create_model(f"local-dir:{published}", pretrained=True).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 48, 64)).shape == (1, len(CLASSES))
    assert project.repro() == set()

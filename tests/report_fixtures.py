"""A project of small artifacts made by hand, as the stages would have left them, for the tests of the report."""

from __future__ import annotations

import csv
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ruamel.yaml import YAML

from pipeline.dataset import Meta, images_path, labels_path, meta_path
from pipeline.params import project as sections
from pipeline.report.collect import collect
from pipeline.table import Fitted, save
from stages import report

PRINT = "5e1f" * 8
EPOCHS = 6


class Project:
    """A folder with params.yaml, prepared data and artifacts, as the stages would have left them."""

    def __init__(
        self,
        folder: Path,
        runs: dict[str, list[str]] | None = None,
        seeds: tuple[int, ...] = (0, 1, 2),
        classes: tuple[str, ...] = ("cat", "dog", "owl"),
    ) -> None:
        self.folder, self.seeds, self.classes = folder, seeds, classes
        self.runs = {"big-small": ["kd", "fitnet"]} if runs is None else runs
        self.random = np.random.default_rng(0)
        self.label = np.arange(60) % len(classes)
        network = {"dataset": "pets", "family": "resnet", "network": "resnet8"}
        extract: dict[str, Any] = {"features": {"logits": {}, "stage2": {}}}
        names = sorted({run for runs in self.runs.values() for run in runs})
        self.params: dict[str, Any] = {
            "seeds": list(seeds),
            "datasets": {"pets": {"source": "digits", "views": {"space": "crop_flip"}}},
            "teachers": {"big": network | {"extract": extract}},
            "students": {"small": network},
            "pairs": {pair: {"teacher": "big", "student": "small"} for pair in self.runs},
            "runs": {name: {"method": "kd" if name == "kd" else "fitnet"} for name in names},
            "distill": [f"{pair}/{run}" for pair, runs in self.runs.items() for run in runs],
        }
        self.write()

    def write(self) -> None:
        self.write_params()
        self._data()
        self._trained("teachers/big", {}, 0.9)
        features = {
            "logits": {"shape": [3], "dtype": "float32", "slots": 9, "channels": 3, "dead_channels": 0},
            "stage2": {"shape": [4, 2, 2], "dtype": "float16", "slots": 9, "channels": 4, "dead_channels": 1},
        }
        described = {"mean": 0.5, "std": 1.5, "min": 0.0, "max": 3.0, "zeros": 0.25}
        self.json(
            "tables/big/features.json",
            {"bytes": 1000, "files": 3, "features": {name: f | described for name, f in features.items()}},
        )
        error = {"last/train/logits": 0.0, "last/train/stage2": 4e-4, "last/test/stage2": 3e-4}
        self.json(
            "metrics/features/big.json",
            {
                "bytes": 1000,
                "files": 3,
                "precision": "float32",
                "largest_error": 4e-4,
                "largest_share": 0.2,
                "error": error,
            },
        )
        for seed in self.seeds:
            about = {"dataset": "pets", "student": "small", "seed": seed}
            self._trained(f"pretrained/small/{seed}", about, 0.6)
            for pair, runs in self.runs.items():
                for run in runs:
                    self.student(pair, run, seed)

    def student(self, pair: str, run: str, seed: int) -> None:
        method = "kd" if run == "kd" else "fitnet"
        about = {"dataset": "pets", "student": "small", "seed": seed, "pair": pair, "run": run}
        about |= {"method": method, "teacher": "big", "source": "cached", "slots": 9, "agreement": 80.0}
        self._trained(f"students/{pair}/{run}/{seed}", about, 0.7)

    def write_params(self) -> None:
        with (self.folder / "params.yaml").open("w") as file:
            YAML(typ="safe").dump(self.params, file)

    def json(self, path: str, content: Any) -> None:
        target = self.folder / "artifacts" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(content))

    def metrics(self, key: str, **changed: Any) -> dict[str, Any]:
        path = self.folder / "artifacts" / "metrics" / f"{key}.json"
        content: dict[str, Any] = json.loads(path.read_text()) | changed
        path.write_text(json.dumps(content))
        return content

    def fit(self, table: str, arrays: dict[str, NDArray[Any]], **config: Any) -> None:
        """Ask for a table of teacher `big`, under the name of its plug-in, and write it."""
        self.params.setdefault("tables", {})[table] = {
            "table": table,
            "config": {"feature": "stage2"} | config,
        }
        self.params.setdefault("fits", {})[f"big-{table}"] = {"teacher": "big", "table": table}
        self.write_params()
        block = sections.blocks(sections.check(self.params))[f"fits/big-{table}"]
        self.json(f"metrics/tables/big-{table}.json", {"pixels": 8.0})
        origin = {"teacher": "big", "table": block.model_dump(mode="json")}
        save(self.folder / f"artifacts/tables/big/{table}.npz", Fitted(arrays, {}), origin)

    def run(self, out: str = "report") -> Path:
        places = {name: self.folder / name for name in ("artifacts", "prepared", out)}
        report.main(places["artifacts"], places["prepared"], places[out], self.folder / "params.yaml")
        return places[out]

    def collect(self) -> Any:
        return collect(self.folder / "params.yaml", self.folder / "artifacts", self.folder / "prepared")

    def _data(self) -> None:
        folder = self.folder / "prepared" / "pets"
        folder.mkdir(parents=True, exist_ok=True)
        for split, number in (("train", 90), ("test", 60)):
            np.save(images_path(folder, split), self.random.integers(0, 255, (number, 3, 4, 4), np.uint8))
            np.save(labels_path(folder, split), np.arange(number) % len(self.classes))
        meta = Meta(
            source="digits",
            classes=self.classes,
            channels=3,
            size=4,
            samples={"train": 90, "test": 60},
            mean=(0.5, 0.5, 0.5),
            std=(0.2, 0.2, 0.2),
            fingerprint={"train": "a" * 32, "test": PRINT},
        )
        meta_path(folder).write_text(meta.model_dump_json())

    def _trained(self, key: str, about: dict[str, Any], share: float) -> None:
        """Write metrics, predictions and history of a network that is right with probability `share`."""
        wrong = (self.label + 1) % len(self.classes)
        prediction = np.where(self.random.random(60) < share, self.label, wrong)
        top1 = 100 * float((prediction == self.label).mean())
        found = {
            "network": "resnet8",
            "top1": top1,
            "top5": 100.0,
            "best_top1": min(100.0, top1 + 1),
            "best_top5": 100.0,
            "best_epoch": 4,
            "epochs": EPOCHS,
            "params": 1234,
            "macs": 56789,
            "latency_ms": 0.5,
            "train_seconds": 12.5,
            "images_per_second": 1000.0,
            "peak_bytes": 3 << 28,
        }
        self.json(f"metrics/{key}.json", found | about)
        path = self.folder / "artifacts" / "predictions" / f"{key}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        last = prediction.astype(np.int32)
        np.savez(
            path,
            label=self.label,
            last=last,
            fingerprint=np.array(PRINT),
            correlation=np.corrcoef(self.random.normal(size=(len(self.classes), 50))).astype(np.float32),
            pooled=self.random.normal(size=(30, 5)).astype(np.float32),
            pooled_index=np.arange(0, 60, 2),
        )
        folder = self.folder / "artifacts" / key
        folder.mkdir(parents=True, exist_ok=True)
        terms = {"kd": ["kd"], "fitnet": ["hint", "ce2"]}.get(str(about.get("method")), [])
        lines = [",".join(["epoch", "phase", "ce", *terms, "loss", "top1", "seconds"])]
        for epoch in range(1, EPOCHS + 1):
            values = [1 / epoch + 0.1 * self.random.random() for _ in range(2 + len(terms))]
            lines.append(",".join(map(str, [epoch, "main", *values, top1 - 10 / epoch, 0.1])))
        (folder / "history.csv").write_text("\n".join(lines) + "\n")


class Links(HTMLParser):
    """Collects what a page would load, its identifiers, and the elements that are not closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.names: list[str] = []
        self.targets: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in {"src", "srcset", "href", "xlink:href", "data", "action"}:
                (self.targets if (value or "").startswith("#") else self.loaded).append(value or "")
            if name == "id":
                self.names.append(value or "")
        if tag not in {"meta", "link", "img", "br", "hr", "input"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in {"meta", "img"}:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))

"""The README of a published student: front matter that the Hub reads, and a page that people do."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML

from pipeline.export import licences
from pipeline.export.preprocessing import Preprocessing
from pipeline.report.statistics import Estimate, estimate

_OURS = """\
import json
from safetensors.torch import load_file
from pipeline.networks.network import build
from pipeline.networks.spec import NetworkSpec

with open("config.json") as file:
    spec = NetworkSpec.model_validate_json(json.dumps(json.load(file)["network"]))
network = build(spec.model_copy(update={"weights": "none"}), 0).eval()
network.load_state_dict(load_file("model.safetensors"))
"""
_TIMM = """\
import timm

network = timm.create_model("local-dir:.", pretrained=True).eval()  # or "hf-hub:USER/NAME"
"""


@dataclass(frozen=True)
class Facts:
    """What a card says.

    Attributes:
        run: "pair/run".
        seed: whose weights are published.
        weights: "last" or "best".
        network: of the student.
        teacher: its name and network, in words.
        methods: how it was distilled.
        dataset: the data set as the Hub or params.yaml names it.
        chooser: the split that the best epoch was chosen on.
        samples: of the test split.
        metrics: of every seed, as `evaluate` has measured them.
        preprocessing: what the network must be shown.
        timm: timm reads the weights.
        base_model: the teacher on the Hub; "" where it is not there, or not known to be.
        licence: of the weights; "" where it is not known.
        licence_link: where its text is; "" where the Hub knows, or nothing is known.
        code: the import path of a network whose code is not in the folder; "" of any other.
    """

    run: str
    seed: int
    weights: str
    network: str
    teacher: str
    methods: tuple[str, ...]
    dataset: str
    chooser: str
    samples: int
    metrics: Mapping[int, Mapping[str, Any]]
    preprocessing: Preprocessing
    timm: bool
    base_model: str
    licence: str
    licence_link: str = ""
    code: str = ""

    @property
    def library(self) -> str:
        """The library that reads the weights."""
        return "timm" if self.timm else "stillhouse"


def card(facts: Facts) -> str:
    """Return the README."""
    stream = io.StringIO()
    yaml = YAML()
    yaml.width = 4096  # a line each: the Hub's own parser takes them folded, people do not
    yaml.dump(front_matter(facts), stream)
    return f"---\n{stream.getvalue()}---\n\n{_page(facts)}"


def front_matter(facts: Facts) -> dict[str, Any]:
    """Return what the Hub reads of a card."""
    content: dict[str, Any] = {"library_name": facts.library, "pipeline_tag": "image-classification"}
    content |= licences.matter(facts.licence, facts.licence_link)
    if facts.base_model:
        content["base_model"] = facts.base_model
    content |= {
        "datasets": [facts.dataset],
        "metrics": ["accuracy"],
        "tags": ["image-classification", "knowledge-distillation", *facts.methods],
        "model-index": [{"name": facts.run, "results": [_result(facts)]}],
    }
    return content


def _result(facts: Facts) -> dict[str, Any]:
    own = "top1" if facts.weights == "last" else "best_top1"
    metrics = [
        (f"top-1 of these weights: seed {facts.seed}, {facts.weights} epoch", facts.metrics[facts.seed][own])
    ]
    metrics += [(_described(rule, found), found.mean) for rule, found in _estimates(facts)]
    return {
        "task": {"type": "image-classification"},
        "dataset": {"name": facts.dataset, "type": facts.dataset, "split": "test"},
        "metrics": [
            {"type": "accuracy", "name": name, "value": round(value / 100, 6)} for name, value in metrics
        ],
    }


def _estimates(facts: Facts) -> Sequence[tuple[str, Estimate]]:
    rules = {"top1": "last epoch", "best_top1": f"best epoch, chosen on {facts.chooser}"}
    return [
        (rule, estimate([float(metrics[name]) for metrics in facts.metrics.values()]))
        for name, rule in rules.items()
    ]


def _described(rule: str, found: Estimate) -> str:
    """Return which mean it is, and how sure."""
    if found.half is None:
        return f"top-1, {rule}, of one seed: there is no interval"
    low, high = (max(0.0, (found.mean - found.half) / 100), (found.mean + found.half) / 100)
    return f"top-1, {rule}, mean of {found.count} seeds, 95 % interval over seeds {low:.4f} to {min(1.0, high):.4f}"


def _page(facts: Facts) -> str:
    shape, shown = "x".join(map(str, facts.preprocessing.shape)), facts.preprocessing
    rows = [f"| {rule} | {_cell(found)} |" for rule, found in _estimates(facts)]
    own = facts.metrics[facts.seed]["top1" if facts.weights == "last" else "best_top1"]
    code = (
        f"The code of the network, `{facts.code}`, is not in this folder: it must be importable.\n\n"
        * bool(facts.code)
    )
    licence = facts.licence or "Not known: none was given for the teacher's weights or for these."
    return f"""\
# {facts.run}

{facts.network}, distilled from {facts.teacher} by {" + ".join(facts.methods)} on {facts.dataset}
({len(shown.classes)} classes). The weights are those of seed {facts.seed}, {facts.weights} epoch: top-1 {own:.2f} % of
{facts.samples:,} test images.

| epoch | top-1 in percent, mean over {len(facts.metrics)} seeds, with its 95 % interval |
|---|---|
{chr(10).join(rows)}

The last epoch is the primary figure. The best one was chosen on `{facts.chooser}`.

## Use

{code}```python
{_TIMM if facts.timm else _OURS}```

It reads images of {shape}, normalized: `preprocessing.json` says how a file becomes one, step by step, and has the
classes in the order of the logits.

## Where it comes from

`provenance.json` has the hashes of the teacher, of its stored outputs, of the code and of the settings.

Licence: {licence}{f" ({facts.licence_link})" * bool(facts.licence_link)}
"""


def _cell(found: Estimate) -> str:
    return f"{found.mean:.2f}" if found.half is None else f"{found.mean:.2f} ± {found.half:.2f}"

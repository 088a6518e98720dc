"""The table of all methods, schedules and transforms: paper, what each needs, and what it gains where it was measured.

`gains.csv` beside this file is the one that a report writes; without it the table has no columns of gains.
"""

from __future__ import annotations

import csv
import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

from pipeline import plugin
from pipeline.benchmark.costs import Fitted
from pipeline.distillation.method import BaseMethod, Known, Needs
from pipeline.networks.architecture import architecture
from pipeline.networks.spec import NetworkSpec
from pipeline.report.drawing import text

GAINS = Path(__file__).with_name("gains.csv")
NETWORKS = ("resnet20", "resnet8")  # teacher and student whose names of features the table has
KINDS = {"methods": "Method", "schedules": "Schedule", "transforms": "Transform"}
_PAPER = re.compile(r"\([^()]*?(?:arXiv:(?P<number>\d{4}\.\d{4,5})|(?P<venue>\w+ \d{4}))\)")


def table(path: Path = GAINS) -> str:
    """Return the table, with gains where `path` is there."""
    gains = _gains(path)
    head = ["method", "paper", "what it does", "what it reads and leaves"]
    head += ["gain over the student alone", "gain over KD"] if gains else []
    lines = [_line(head), _line(["---"] * len(head))]
    listed = [(catalogue, name) for catalogue in KINDS for name in plugin.names(catalogue)]
    listed.remove(("schedules", "final"))  # what every run has that names none
    lines += [_line([*_about(*place), *_measured(gains, *place)]) for place in listed]
    return "\n".join([*lines, "", _how(gains)]) + "\n"


def _about(catalogue: str, name: str) -> list[str]:
    module = plugin.load(catalogue, name)
    kind = KINDS[catalogue]
    remark = "" if kind == "Method" else f" ({kind.lower()})"
    return [
        f"[`{name}`](#{name}){remark}",
        _paper(module),
        _first(getattr(module, kind)),
        _needs(catalogue, module),
    ]


def _paper(module: ModuleType) -> str:
    """Return the arXiv number of a plug-in's own paper as a link, or its venue: what the first brackets end in."""
    match = _PAPER.search(" ".join((module.__doc__ or "").split()))
    if match is None:
        return ""
    number, venue = match["number"], match["venue"]
    return f"[{number}](https://arxiv.org/abs/{number})" if number else venue


def _first(documented: type) -> str:
    """Return the first sentence of a docstring, without the name that the row has already."""
    sentence = " ".join(inspect.cleandoc(documented.__doc__ or "").partition("\n\n")[0].split())
    name, colon, rest = sentence.partition(": ")
    meaning = rest if colon and " " not in name else sentence
    return meaning[:1].upper() + meaning[1:]


def _needs(catalogue: str, module: ModuleType) -> str:
    """Return in words what a plug-in reads under its defaults, and what it leaves in the student."""
    words = []
    if catalogue == "methods":
        config = module.Config().resolved(_known())
        needs = module.Method.needs(config)
        words += _read(needs)
        if module.Method.phases is not BaseMethod.phases:
            words.append("a phase of its own")
        if layers := getattr(module, "LAYERS", ()):
            words.append(f"leaves {_listed(layers)} in the student")
    elif catalogue == "transforms":
        config = module.Config()
        words += [
            *_read(module.Transform.needs(config)),
            f"changes {_listed(module.Transform.changes(config))}",
        ]
    else:
        words.append("other teachers than the final one")
    return "; ".join(words) or "labels alone"


def _read(needs: Needs) -> Iterator[str]:
    """Give what is read of the teacher, in words."""
    if needs.teacher:
        yield _listed(needs.teacher)
    if needs.tables:
        yield f"table {_listed(needs.tables)}"
    if needs.matchings:
        yield f"matching {_listed(wanted.key for wanted in needs.matchings)}"
    if needs.network:
        yield "the teacher's own layers"
    if needs.strong:
        yield "a strong view too"


def _known() -> Known:
    teacher, student = (
        architecture(NetworkSpec(family="resnet", network=name, size=32, channels=3, classes=100))
        for name in NETWORKS
    )
    return Known(student, teacher, Fitted())


def _gains(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["key"] != "student"]


def _measured(gains: list[dict[str, str]], catalogue: str, name: str) -> list[str]:
    if not gains:
        return []
    runs = [row for row in gains if name in _parts(row["key"])[catalogue]]
    return [_column(runs, name, "gain"), _column(runs, name, "gain_over_kd")]


def _parts(key: str) -> dict[str, tuple[str, ...]]:
    """Return the plug-ins in whose rows a run stands: its transform's, else its schedule's, else its methods'."""
    rest, _, transform = key.partition("|")
    methods, _, schedule = rest.partition("/")
    plain = [re.sub(r"\[.*?\]", "", word) for word in (transform, schedule)]
    parts = {"transforms": plain[:1], "schedules": [] if transform else plain[1:], "methods": []}
    if not transform and not schedule:
        parts["methods"] = re.sub(r"\[.*?\]", "", methods).split("+")
    return {catalogue: tuple(names) for catalogue, names in parts.items()}


def _column(rows: list[dict[str, str]], name: str, column: str) -> str:
    cells = []
    for row in rows:
        if row[column]:
            gain, half = float(row[column]), row[f"{column}_half"]
            shown = text.signed(gain) + (f" {text.ABOUT} {text.fixed(float(half))}" if half else "")
            if half and abs(gain) > float(half):
                shown = f"**{shown}**"
            # A run is named where it is not the row's method alone.
            cells.append(shown if row["key"] == name else f"`{row['key']}` {shown}")
    return "<br>".join(cells)


def _how(gains: list[dict[str, str]]) -> str:
    names = (
        f"Features are named for {NETWORKS[0]} teaching {NETWORKS[1]}, under the defaults of every setting."
    )
    if not gains:
        return names
    pairs = " and ".join(dict.fromkeys(row["pair"] for row in gains))
    seeds = " or ".join(dict.fromkeys(row["seeds"] for row in gains))
    return (
        f"{names} Gains are points of top-1 on {pairs}, paired by seed over {seeds} seeds, with half the 95 % "
        "interval; in bold where it excludes zero. [`gains.csv`](gains.csv) has the means."
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

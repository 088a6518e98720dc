"""Where the report comes from: the code, the versions, and the machines."""

from __future__ import annotations

from collections import Counter

from markupsafe import Markup

from pipeline.report.detectors import Detector
from pipeline.report.drawing import markup, text
from pipeline.report.results import Results, Trained

TITLE = "Provenance"
LEAD = "whether this is the code and these are the versions that you mean to compare."
GROUP, ORDER = "closing", 100
NUMBERS = {"provenance.json": "the same for programs"}

MOST_PATHS = 12  # changed files that are named


def section(results: Results) -> Markup:
    """Return commit, versions and machines."""
    source = results.provenance
    code: list[tuple[markup.Content, markup.Content]] = [
        ("made", Markup("<time>{}</time>").format(source.made)),
        ("commit", source.commit or source.git),
        ("files that differ from it", str(len(source.changed)) if source.commit else text.DASH),
        ("dvc.lock without the report's entry", source.lock or "none"),
    ]
    trained = Counter(network.device for network in _networks(results))
    devices = "; ".join(
        f"{text.count(number, 'network')} on {device}" for device, number in sorted(trained.items())
    )
    machine = [*source.machine.items(), ("trained", devices or text.DASH)]

    blocks = [
        Markup("<h4>Code</h4>{}{}").format(markup.facts(code), _changed(source.changed)),
        Markup("<h4>Versions</h4>{}").format(markup.facts(source.versions.items())),
        Markup("<h4>Machine</h4>{}").format(markup.facts(machine)),
        markup.note(
            "Versions and machine are those that the report was made with; networks may have been trained elsewhere, "
            "and say the kind of device that they were trained on. Latency is measured where a network is evaluated."
        ),
    ]
    return Markup("<section>{}</section>").format(Markup().join(blocks))


def _networks(results: Results) -> list[Trained | Detector]:
    """Return every network once: the student alone is shared by the pairs that have it."""
    networks: dict[str, Trained | Detector] = dict(results.detection.detectors)
    networks |= {f"teachers/{name}": teacher.trained for name, teacher in results.teachers.items()}
    for pair in results.pairs:
        for run in pair.runs:
            # The folder of a student alone has no pair in its name.
            owner = f"pretrained/{pair.student}" if run is pair.alone else f"students/{pair.name}/{run.name}"
            networks |= {f"{owner}/{student.seed}": student for student in run.students}
    return list(networks.values())


def _changed(paths: tuple[str, ...]) -> Markup:
    if not paths:
        return Markup()
    shown = ", ".join(paths[:MOST_PATHS])
    more = len(paths) - MOST_PATHS
    return markup.note(f"Changed or new: {shown}" + (f" and {more} more." if more > 0 else "."))

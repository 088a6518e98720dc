"""Every preset passes the whole check, in both forms: what it names exists, and fits together."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.params.document import parse
from pipeline.presets import preset as presets
from pipeline.presets.quick import quick
from pipeline.presets.text import written
from pipeline.runs.check import check


@pytest.mark.parametrize("form", ["full", "quick"])
@pytest.mark.parametrize("name", presets.names())
def test_a_preset_passes_the_check(name: str, form: str) -> None:
    """It builds every network and rehearses every run."""
    preset = presets.load(name)
    block = presets.block(preset)
    content = quick(block, preset.quick) if form == "quick" else block
    params = check(parse(written(content), Path("params.yaml")))
    assert len(params.distill) * len(params.seeds) == presets.num_students(content)

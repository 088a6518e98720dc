"""A network's name is enough to find its family."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from pipeline import plugin
from pipeline.errors import UnknownNameError
from pipeline.networks.catalogue import family_of

ROOT = Path(__file__).parents[2]
FAMILIES = {family: plugin.load("networks", family) for family in plugin.names("networks")}
NAMES = [(family, name) for family, module in FAMILIES.items() for name in module.NETWORKS]


def test_no_two_families_share_a_name() -> None:
    assert max(Counter(name for _, name in NAMES).values()) == 1
    assert not any("/" in name for _, name in NAMES)


@pytest.mark.parametrize(("family", "name"), NAMES)
def test_a_network_is_found_by_its_name(family: str, name: str) -> None:
    assert family_of(name) == (family, name)
    assert family_of(f"{family}/{name}") == (family, name)


def test_an_open_family_is_named() -> None:
    assert family_of("timm/convnext_tiny.fb_in1k") == ("timm", "convnext_tiny.fb_in1k")
    assert family_of("timm/hf_hub:someone/model") == ("timm", "hf_hub:someone/model")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (
            "resnet8x5",
            [
                "'resnet8x5'. Did you mean 'resnet8x4'",
                "wrn (wrn_16_1 ",
                "resnet8 resnet14 and 12 more",
            ],
        ),
        ("resnet/resnet8x5", ["'resnet/resnet8x5'. Did you mean 'resnet8x4'"]),
        ("convnext_tiny", ["'timm/NAME'"]),
        ("resnett/resnet8", ["Unknown network family 'resnett'. Did you mean 'resnet'?"]),
        ("timm/", ["Unknown network 'timm/'"]),
        ("", ["Unknown network ''"]),
    ],
)
def test_an_unknown_name_is_one_short_line_with_near_names_first(name: str, parts: list[str]) -> None:
    with pytest.raises(UnknownNameError) as error:
        family_of(name)
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 700
    for part in parts:
        assert part in text


@pytest.mark.parametrize("name", ["resnet/resnet8", "timm/convnext_tiny", "resnet8x4", "wrn_16_2"])
def test_other_families_are_not_imported_for_it(name: str) -> None:
    code = (
        f"import sys; from pipeline.networks.catalogue import family_of; family_of({name!r})\n"
        "print([name for name in ('torchvision', 'timm') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

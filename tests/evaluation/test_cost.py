"""What a network costs, against numbers counted by hand, and the list of networks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.evaluation import cost
from pipeline.networks.network import Network, Unit, build
from pipeline.networks.spec import NetworkSpec
from stages import networks as stage


def tiny() -> Network:
    units = {
        "stem": Unit(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        "stage1": Unit(nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2, bias=False)),
    }
    return Network(units, 8, 5)


def test_a_network_counted_by_hand() -> None:
    network = tiny()
    assert cost.num_params(network) == (3 * 4 * 9 + 4) + 2 * 4 + 2 * 4 * 9 * 2 + (8 * 5 + 5)
    by_hand = 6 * 6 * 4 * (3 * 9) + 3 * 3 * 8 * (2 * 9) + 8 * 5
    assert cost.macs(network, 6, 3) == by_hand
    assert network.training
    assert not network.units["stem"][1].num_batches_tracked  # type: ignore[index]


def test_published_resnet20_multiplies() -> None:
    # 40.8 M: He et al. 2016, plus the 1x1 shortcuts and a head of 100 classes.
    plain = 27 * 16 + 6 * 144 * 16  # multiplications by pixel of the 32x32 maps
    middle = 9 * 16 * 32 + 5 * 9 * 32 * 32 + 16 * 32
    last = 9 * 32 * 64 + 5 * 9 * 64 * 64 + 32 * 64
    spec = NetworkSpec(family="resnet", network="resnet20", size=32, channels=3, classes=100)
    with torch.device("meta"):
        network = build(spec, 0)
    assert cost.macs(network, 32, 3) == 1024 * plain + 256 * middle + 64 * last + 64 * 100


def test_latency_is_a_time_and_leaves_the_network_alone() -> None:
    network = tiny()
    assert 0 < cost.latency(network, 8, 3, batch_size=2, repeats=3) < 10_000
    assert network.training


def test_the_list_tells_costs_taps_and_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage.main(size=4, channels=1, classes=10, json=tmp_path / "networks.json")
    printed = capsys.readouterr().out
    records = {record["name"]: record for record in json.loads((tmp_path / "networks.json").read_text())}
    assert records["resnet8"]["family"] == "resnet"
    assert records["resnet8"]["params"] == 83_892 - 2 * 9 * 16 - 90 * 65
    assert records["resnet8"]["macs"] > 0
    assert records["resnet8"]["taps"]["stage3_pre"] == [64, 1, 1]
    assert "cannot read 1x4x4 images" in records["vgg8"]["reason"]
    assert "resnet20x0.5" in printed
    assert "Family 'timm' takes any name" in printed


def test_the_list_s_help_and_errors_come_before_heavy_imports() -> None:
    code = "import sys, stages.networks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    refused = subprocess.run(
        [sys.executable, "-m", "stages.networks", "--size", "0"], check=False, capture_output=True, text=True
    )
    assert refused.returncode == 2
    assert "--size" in refused.stderr

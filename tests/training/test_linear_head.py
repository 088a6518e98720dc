"""A linear classifier on a backbone's features, against scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from training_fixtures import PARAMS, changed, job, prepared_data

from pipeline.data.normalize import Normalize
from pipeline.networks import weights
from pipeline.networks.network import build
from pipeline.networks.spec import NetworkSpec
from pipeline.params.recipe import Recipe
from pipeline.params.teacher import TrainBlock
from pipeline.params.views import Plain
from pipeline.runs.blocks import blocks
from pipeline.runs.check import project
from pipeline.training import linear_head
from pipeline.training.alone import train


def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    # Three of its 64 pixels are always black.
    return torch.from_numpy(data.data).float(), torch.from_numpy(data.target).long()


@pytest.mark.parametrize("chunk", [65536, 500])
def test_it_is_logistic_regression(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(linear_head, "CHUNK", chunk)
    features, label = digits()
    weight, bias = linear_head.regression(features, label, 10)

    x = features.double().numpy()
    std = x.std(axis=0)
    std[std == 0] = 1
    standard = (x - x.mean(axis=0)) / std
    reference = LogisticRegression(C=1.0, tol=1e-8, max_iter=5000).fit(standard, label.numpy())
    expected = reference.predict_log_proba(standard)
    scores = torch.log_softmax(features.double() @ weight.T + bias, dim=1).numpy()
    np.testing.assert_allclose(scores, expected, atol=2e-3)


def test_a_teacher_gets_one_and_keeps_its_backbone(tmp_path: Path) -> None:
    prepared = prepared_data(tmp_path / "data", samples=60)
    spec = NetworkSpec(family="resnet", network="resnet8", **prepared.meta.kind)
    (tmp_path / "out").mkdir()
    work = job(tmp_path / "out")
    train(work, spec, Recipe(epochs=0), Plain(space="plain"), prepared, 0, head="linear")

    network, _ = weights.load(tmp_path / "out" / "weights")
    untrained = build(spec, 0).eval()
    state, before = network.state_dict(), untrained.state_dict()
    assert [name for name in state if not torch.equal(state[name], before[name])] == [
        "classifier.weight",
        "classifier.bias",
    ]
    # It is fitted to the plain view of the training images, whose labels it knows better than the untrained one.
    split = linear_head.PlainSplit.of(
        prepared, "train", Normalize(prepared.meta.mean, prepared.meta.std, work.machine.device), work.machine
    )
    images = torch.cat([*split.batches()])
    with torch.no_grad():
        fitted = (network(images).argmax(dim=1) == split.labels).float().mean()
        drawn = (untrained(images).argmax(dim=1) == split.labels).float().mean()
    assert fitted > max(0.6, drawn)


def test_it_is_part_of_what_a_teacher_is() -> None:
    block = blocks(project(changed(PARAMS, "teachers.big.head", "linear")))["teachers/big/train"]
    assert isinstance(block, TrainBlock)
    assert block.head == "linear"

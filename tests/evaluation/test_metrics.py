"""Accuracy, agreement and the linear probe, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.evaluation.accuracy import top
from pipeline.evaluation.agreement import agreement
from pipeline.evaluation.probe import fisher


def scores(samples: int = 57, classes: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(samples, classes, generator=generator), torch.randint(
        classes, (samples,), generator=generator
    )


@pytest.mark.parametrize("k", [1, 3, 5])
def test_top_k_against_numpy(k: int) -> None:
    logits, label = scores()
    best = np.argsort(-logits.numpy(), axis=1)[:, :k]
    expected = 100 * np.mean([label[i].item() in row for i, row in enumerate(best)])
    assert top(logits, label, k) == pytest.approx(expected, abs=1e-9)
    assert 0 < top(logits, label, k) < 100


def test_top_k_of_fewer_classes_is_all() -> None:
    logits, label = scores(classes=4)
    assert top(logits, label, 5) == 100.0


def test_agreement_against_numpy() -> None:
    one, other = scores()[1], scores()[0].argmax(1)
    expected = 100 * np.mean(one.numpy() == other.numpy())
    assert agreement(one, other) == pytest.approx(expected, abs=1e-9)
    assert agreement(one, one) == 100.0


def test_the_fisher_probe_is_the_closed_form_of_an_lda() -> None:
    """Classes share one covariance: argmax of x S^-1 mu - mu S^-1 mu / 2 + log of the class's share."""
    random, classes = np.random.default_rng(0), 5
    means, mixing = random.normal(size=(classes, 7)), random.normal(size=(7, 7))

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        label = random.choice(classes, count, p=[0.4, 0.3, 0.1, 0.1, 0.1])
        return (means[label] + random.normal(size=(count, 7)) @ mixing).astype(np.float32), label

    (train, label), (test, wanted) = draw(300), draw(200)
    mu = np.stack([train[label == c].astype(float).mean(axis=0) for c in range(classes)])
    within = sum(np.outer(x - mu[c], x - mu[c]) for x, c in zip(train, label, strict=True)) / len(train)
    inverse, share = np.linalg.inv(within), np.bincount(label) / len(label)
    right = 0
    for x, c in zip(test, wanted, strict=True):
        rule = [x @ inverse @ m - m @ inverse @ m / 2 + np.log(p) for m, p in zip(mu, share, strict=True)]
        right += int(np.argmax(rule)) == c
    found = fisher(train, label, test, wanted)
    # The covariance may be divided by N or N - K: a sample on a border may fall either way.
    assert found == pytest.approx(100 * right / 200, abs=0.5)
    assert 40 < found < 100


def test_the_fisher_probe_bears_dead_channels() -> None:
    train = (
        np.repeat(np.eye(3, dtype=np.float32), 10, axis=0) + 0.01 * np.arange(30, dtype=np.float32)[:, None]
    )
    train[:, 2] = 0
    label = np.arange(30) // 10
    assert fisher(train, label, train[::-1], label[::-1]) == 100

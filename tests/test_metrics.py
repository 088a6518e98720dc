"""Accuracy, agreement and confusion, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.metrics.accuracy import agreement, confusion, top


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


def test_confusion_against_loops() -> None:
    logits, label = scores()
    predicted = logits.argmax(1)
    expected = np.zeros((9, 9), dtype=np.int64)
    for row, column in zip(label.tolist(), predicted.tolist(), strict=True):
        expected[row, column] += 1
    found = confusion(predicted, label, 9)
    np.testing.assert_array_equal(found.numpy(), expected)
    assert found.sum() == 57
    assert 100 * found.diagonal().sum().item() / 57 == pytest.approx(top(logits, label, 1))


def test_confusion_counts_classes_that_nobody_predicts() -> None:
    found = confusion(torch.tensor([0, 0], dtype=torch.int32), torch.tensor([0, 2], dtype=torch.int32), 4)
    assert found.tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]

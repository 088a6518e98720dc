"""Fisher probe: how well a linear discriminant tells classes apart in pooled features (letKD, supplementary Table 4).

Before and after an inserted layer it says what the layer adds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def fisher(train: NDArray[Any], label: NDArray[Any], test: NDArray[Any], test_label: NDArray[Any]) -> float:
    """Return the accuracy, in percent, of an LDA that is fitted to training features, on test features.

    Args:
        train: (N, C).
        label: classes int64 (N,).
        test: (M, C).
        test_label: classes int64 (M,).
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis  # a second that most networks save

    lda = LinearDiscriminantAnalysis().fit(train.astype(np.float64), label)
    return 100 * float((lda.predict(test.astype(np.float64)) == test_label).mean())

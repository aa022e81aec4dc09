"""Measures how far model inputs have moved since training, by the population stability index over bins of training.

    PSI = Σ over bins of (actual - expected) · ln(actual / expected), of the shares of each bin now and in training

(N. Siddiqi: Credit Risk Scorecards, Wiley 2006, chapter 8: below 0.1 the change is negligible, above 0.25 it is
another population). Bins are the deciles of training. Knows nothing of models.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from features.contract.release import ReferenceDistribution

BINS = 10
ROWS = 100_000
"""Most training rows that are read; they are evenly spread."""
SMALLEST_SHARE = 1e-4
"""Share that an empty bin is assumed to hold, so that its logarithm is finite."""


def reference_distributions(features: NDArray[np.float32], names: Sequence[str]) -> dict[str, ReferenceDistribution]:
    """Returns the distribution of each column of training inputs, shape [N, len(names)]; none if there are no rows."""
    if not len(features):
        return {}
    rows = features[:: -(-len(features) // ROWS)]
    return {name: reference_distribution(rows[:, column]) for column, name in enumerate(names)}


def reference_distribution(values: NDArray[np.float32]) -> ReferenceDistribution:
    """Returns bins between the deciles of `values`, shape [N > 0]; fewer where deciles coincide.

    >>> reference_distribution(np.array([0, 0, 0, 0, 0, 0, 0, 0, 1, 2], dtype=np.float32)).edges
    (0.0, 1.0)
    """
    deciles = np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1], method="inverted_cdf").astype(np.float32)
    edges = np.unique(deciles[deciles < values.max()])
    counts = np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1)
    return ReferenceDistribution(edges=tuple(edges.tolist()), shares=tuple((counts / len(values)).tolist()))


def population_stability_index(expected: Sequence[float], counts: NDArray[np.int64]) -> float:
    """Returns the PSI of the counts of each bin against the expected shares. The counts must sum to more than 0.

    >>> population_stability_index([0.5, 0.5], np.array([10, 10]))
    0.0
    >>> round(population_stability_index([0.5, 0.5], np.array([90, 10])), 3)
    0.879
    """
    smoothed = np.maximum(np.asarray(expected, dtype=np.float64), SMALLEST_SHARE)
    actual = np.maximum(counts / counts.sum(), SMALLEST_SHARE)
    return float(np.sum((actual - smoothed) * np.log(actual / smoothed)))

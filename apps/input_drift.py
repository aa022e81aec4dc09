"""Counts what the models in service are given into the bins of their training, and says how far it has moved.

One request in `one_in` is looked at, so that the others pay for a counter only. Knows nothing of what the inputs mean.
"""

import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from features.contract.drift import population_stability_index
from features.contract.release import ReferenceDistribution

ROWS_SEEN = 100
"""Rows of one request that are counted, at most: evenly spread ones."""
LEAST_REQUESTS = 300
"""Looked-at requests below which nothing is said: rows of one request are alike, and a payment has but one. Of ten bins
that did not change, the index of n independent rows is about 9 / n: over 24 features the largest of 30 rows was 1.6, of
100 rows 0.2, of 300 rows 0.06 (median of 500 draws)."""


class DriftMonitor:
    """The inputs of one model over the last `window_seconds`, give or take a half of it. Safe to use from threads."""

    def __init__(
        self,
        references: Mapping[str, ReferenceDistribution],
        names: Sequence[str],
        *,
        one_in: int,
        window_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        """names: the columns of the matrices to come; clock: seconds."""
        self._columns = [(place, name) for place, name in enumerate(names) if name in references]
        self._shares = {name: references[name].shares for _, name in self._columns}
        self._edges = [np.array(references[name].edges, dtype=np.float32) for _, name in self._columns]
        self._one_in = one_in
        self._half_seconds = window_seconds / 2
        self._clock = clock
        self._skipped = 0
        self._lock = threading.Lock()
        self._began = clock()
        self._now, self._before = self._nothing(), self._nothing()
        self._requests_now = self._requests_before = 0

    def _nothing(self) -> list[NDArray[np.int64]]:
        return [np.zeros(len(edges) + 1, dtype=np.int64) for edges in self._edges]

    def observe(self, features: NDArray[np.float32]) -> None:
        """Count the inputs of one request, shape [rows, len(names)], if it is its turn."""
        self._skipped += 1  # two threads may count one: it is a sample
        if self._skipped < self._one_in or not len(features):
            return
        self._skipped = 0
        rows = features[:: -(-len(features) // ROWS_SEEN)]
        with self._lock:
            self._turn()
            self._requests_now += 1
            for (place, _), edges, counts in zip(self._columns, self._edges, self._now, strict=True):
                counts += np.bincount(np.searchsorted(edges, rows[:, place]), minlength=len(counts))

    def _turn(self) -> None:
        while self._clock() - self._began >= self._half_seconds:
            self._before, self._now = self._now, self._nothing()
            self._requests_before, self._requests_now = self._requests_now, 0
            self._began = max(self._began + self._half_seconds, self._clock() - self._half_seconds)

    def stability_indices(self) -> dict[str, float]:
        """PSI of each feature; empty while too few requests were looked at."""
        with self._lock:
            self._turn()
            if self._requests_now + self._requests_before < LEAST_REQUESTS:
                return {}
            counted = [now + before for now, before in zip(self._now, self._before, strict=True)]
        return {
            name: population_stability_index(self._shares[name], counts)
            for (_, name), counts in zip(self._columns, counted, strict=True)
        }

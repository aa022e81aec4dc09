"""Reconstructs the history of each payment's card or terminal as of the payment's arrival.

The scorer and the stream job both cut the past here, so that they see the same. The order of arrival decides, whatever
the event times. What counts is the latest `cap` entries within the horizon, by time and then by hash, of all that had
arrived. This cut is the same whether it is taken once or repeatedly from what the last cut kept. Does not know stores.
"""

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.contract import columns
from features.history.arrays import History
from features.history.fold import FoldResult

_ARRIVAL = "arrival"


class PointInTimeHistory:
    """The payments of a fold, each with the history of its key (card or terminal) just before it arrived.

    key, times: shape [payments], as they were folded, in the order of arrival.
    """

    def __init__(
        self,
        folded: FoldResult,
        key: NDArray[np.int64],
        times: NDArray[np.int64],
        *,
        cap: int,
        horizon: int,
        counterparties: bool = True,
    ) -> None:
        """counterparties: whether COUNTERPARTIES are read."""
        self._cap = cap
        merged = folded.merged
        latest, late = _latest_so_far(folded, key, times)
        self._late = bool(late.any())
        entries = dict(merged.entries)
        if not counterparties:
            entries.pop(columns.COUNTERPARTIES)
        self._merged = History(merged.offsets, {**entries, _ARRIVAL: folded.arrival_index} if self._late else entries)
        self._ends = merged.positions(key, latest)
        # An entry that arrived later than a payment but lies before the latest time so far is one of the late ones.
        spare = 1 + late[key]
        self._starts = np.maximum(merged.positions(key, latest - horizon), self._ends - cap - spare)

    def rows(self, payments: NDArray[np.int64]) -> History:
        """Returns the history before each of `payments` (positions in the fold); it may hold the payment itself."""
        states = self._merged.slices(self._starts[payments], self._ends[payments])
        if not self._late:
            return states
        before = states.filter(states.entries[_ARRIVAL] < payments[states.row_of_entry])
        ends = before.offsets[1:]
        return before.slices(np.maximum(before.offsets[:-1], ends - self._cap), ends)


def _latest_so_far(
    folded: FoldResult, key: NDArray[np.int64], times: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the latest time of each payment's key up to its arrival, shape [payments], and how many payments of each
    key were no later than an earlier arrival, shape [keys]."""
    keys = len(folded.merged)
    stored = History(folded.merged.offsets, {columns.TIMES: folded.merged.times}).filter(folded.arrival_index < 0)
    last = np.where(stored.lengths > 0, stored.last_times, times.min() - 1)
    # Key and time form one number, so that the latest time of a key is the running maximum.
    low = min(last.min(), times.min() - 1)
    span = max(last.max(), times.max()) - low + 1
    order = np.argsort(np.concatenate((np.arange(keys), key)), kind="stable")
    ranks = (np.concatenate((np.arange(keys), key)) * span + np.concatenate((last, times)) - low)[order]
    highest = np.maximum.accumulate(ranks)
    after = order[1:] >= keys
    late = (ranks[1:] <= highest[:-1]) & after
    counts: NDArray[np.int64] = np.bincount(key[order[1:][late] - keys], minlength=keys)
    latest = np.empty(keys + len(key), dtype=np.int64)
    latest[order] = highest
    return latest[keys:] - key * span + low, counts


def arrival_order(partition: NDArray[Any], offset: NDArray[Any], stamp: NDArray[Any]) -> NDArray[np.int64]:
    """Returns the order in which records of one topic arrived, shape [records]: by offset within a partition, and
    between partitions by the time of their append (`stamp`), made non-decreasing within each partition."""
    order = np.lexsort((offset, partition))
    partition, stamp = partition[order], stamp[order].copy()
    starts = np.flatnonzero(np.diff(partition, prepend=-1))
    for start, end in itertools.pairwise([*starts, len(stamp)]):
        np.maximum.accumulate(stamp[start:end], out=stamp[start:end])
    arrival: NDArray[np.int64] = order[np.argsort(stamp, kind="stable")]
    return arrival

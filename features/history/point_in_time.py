"""What was known of each payment's card or terminal when it arrived: all that came before it, however late in time.

The scorer and the stream job cut the past here and nowhere else, so that both see the same. What counts is the latest
`cap` entries within the horizon, by time and then by hash, of all that had arrived: that cut gives the same whether it
is taken at once, or again and again of what was kept of the last. Knows nothing of stores.
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
    """The payments that a fold added, each with what was known of its key (card or terminal) just before.

    key, times: shape [payments], as they were folded, in the order in which they arrived.
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
        # What came after a payment and yet lies before the latest so far is one of the late.
        spare = 1 + late[key]
        self._starts = np.maximum(merged.positions(key, latest - horizon), self._ends - cap - spare)

    def rows(self, payments: NDArray[np.int64]) -> History:
        """The state that each of `payments` (places in the fold) met: what arrived before it, and perhaps itself."""
        states = self._merged.slices(self._starts[payments], self._ends[payments])
        if not self._late:
            return states
        before = states.filter(states.entries[_ARRIVAL] < payments[states.row_of_entry])
        ends = before.offsets[1:]
        return before.slices(np.maximum(before.offsets[:-1], ends - self._cap), ends)


def _latest_so_far(
    folded: FoldResult, key: NDArray[np.int64], times: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each payment the latest time that its key had met with it, shape [payments]; and how many of each key's
    payments were no later than one that was there before them, shape [keys]."""
    keys = len(folded.merged)
    known = History(folded.merged.offsets, {columns.TIMES: folded.merged.times}).filter(folded.arrival_index < 0)
    last = np.where(known.lengths > 0, known.last_times, times.min() - 1)
    # Keys and times as one number: the latest of a key then is the highest so far.
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
    """The order in which records of one topic came, shape [records]: by offset within a partition, and between
    partitions by the time of their append (`stamp`), as far as that agrees with the offsets."""
    order = np.lexsort((offset, partition))
    partition, stamp = partition[order], stamp[order].copy()
    starts = np.flatnonzero(np.diff(partition, prepend=-1))
    for start, end in itertools.pairwise([*starts, len(stamp)]):
        np.maximum.accumulate(stamp[start:end], out=stamp[start:end])
    found: NDArray[np.int64] = order[np.argsort(stamp, kind="stable")]
    return found

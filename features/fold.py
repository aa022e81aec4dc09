"""Folding new events into histories: pure arithmetic over arrays, whole micro-batches at a time.

Folding is idempotent (an event met twice, in one batch or in two, counts once) and independent of order (a late
event takes its place by event time, and every row from there on is restated). Knows no Spark and no store.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features import columns
from features.history import Array, History


@dataclass(frozen=True, slots=True)
class Folded:
    """Histories of K keys after a fold, and the rows that it changed."""

    merged: History
    """Shape K: all entries that are known, old and new."""
    key_of_row: NDArray[np.int64]
    """For each changed row, the key it belongs to, ascending; rows of one key ascend in time."""
    row_times: NDArray[np.int64]
    """For each changed row, the event time from which it holds."""
    rows: History
    """The changed rows, each cut to `cap` entries and `horizon` milliseconds."""

    @property
    def last_rows(self) -> NDArray[np.int64]:
        """The newest changed row of every key that changed: indices into `rows`."""
        return np.flatnonzero(np.diff(self.key_of_row, append=-1))


def fold(
    known: History,
    key_of_entry: NDArray[np.int64],
    entries: dict[str, Array],
    *,
    cap: int,
    horizon: int,
    hash_column: str = columns.EVENT_HASHES,
) -> Folded:
    """Add `entries` to the histories of K keys.

    known: K rows; key_of_entry: shape [new entries], the row in `known` that each belongs to; entries: the same
    columns as `known`; cap: most entries a row keeps; horizon: milliseconds before a row's time that it reaches back.
    """
    key = np.concatenate((known.row_of_entry, key_of_entry))
    new = np.concatenate((np.zeros(len(known.times), dtype=bool), np.ones(len(key_of_entry), dtype=bool)))
    merged = {name: np.concatenate((column, entries[name])) for name, column in known.entries.items()}

    # One entry per event: of several with one hash, the one that was there first.
    by_hash = np.lexsort((np.arange(len(key)), merged[hash_column], key))
    first = np.ones(len(key), dtype=bool)
    first[1:] = (key[by_hash][1:] != key[by_hash][:-1]) | (
        merged[hash_column][by_hash][1:] != merged[hash_column][by_hash][:-1]
    )
    kept = by_hash[first]
    order = kept[np.lexsort((merged[hash_column][kept], merged[columns.TIMES][kept], key[kept]))]
    key, new = key[order], new[order]
    merged = {name: column[order] for name, column in merged.items()}
    offsets = np.searchsorted(key, np.arange(len(known) + 1)).astype(np.int64)
    history = History(offsets, merged)

    ends = _changed_ends(key, history.times, new, keys=len(known))
    key_of_row = key[ends - 1]
    row_times = history.times[ends - 1]
    starts = np.maximum(
        np.maximum(offsets[key_of_row], ends - cap), _first_after(history, key_of_row, row_times - horizon)
    )
    return Folded(history, key_of_row, row_times, history.slices(starts, ends))


def _changed_ends(
    key: NDArray[np.int64], times: NDArray[np.int64], new: NDArray[np.bool_], *, keys: int
) -> NDArray[np.int64]:
    """End index of every row to write: one per (key, time) from the key's earliest new entry on."""
    if not len(key):
        return np.empty(0, dtype=np.int64)
    earliest = np.full(keys, np.iinfo(np.int64).max)
    np.minimum.at(earliest, key[new], times[new])
    last_of_time = np.append((key[1:] != key[:-1]) | (times[1:] != times[:-1]), True)
    return np.flatnonzero(last_of_time & (times >= earliest[key])) + 1


def _first_after(history: History, keys: NDArray[np.int64], after: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each (key, time), the index of the key's first entry later than that time."""
    low, high = history.offsets[keys].copy(), history.offsets[keys + 1].copy()
    while np.any(low < high):
        middle = (low + high) // 2
        later = history.times[np.minimum(middle, len(history.times) - 1)] > after
        open_ = low < high
        high = np.where(open_ & later, middle, high)
        low = np.where(open_ & ~later, middle + 1, low)
    return low

"""Folding new events into histories: pure arithmetic over arrays, whole micro-batches at a time.

Folding is idempotent (an event met twice, in one batch or in two, counts once) and independent of order (a late event
takes its place by event time). Knows no Spark and no store.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.contract import columns
from features.history.arrays import Array, History


@dataclass(frozen=True, slots=True)
class FoldResult:
    """Histories of K keys after a fold."""

    merged: History
    """Shape K: all entries that are known, old and new."""
    arrival_index: NDArray[np.int64]
    """Shape [entries]: for each entry of `merged`, its first place among the new ones; -1 if it is not among them."""
    changed_rows: NDArray[np.int64]
    """The rows that got an entry that was not known, ascending."""


def fold(
    known: History,
    key_of_entry: NDArray[np.int64],
    entries: dict[str, Array],
    *,
    hash_column: str = columns.EVENT_HASHES,
) -> FoldResult:
    """Add `entries` to the histories of K keys.

    known: K rows; key_of_entry: shape [new entries], the row in `known` that each belongs to; entries: the same
    columns as `known`, in the order in which they arrived: of several with one hash the first is kept.
    """
    merged = {name: np.concatenate((column, entries[name])) for name, column in known.entries.items()}
    key = np.concatenate((known.row_of_entry, key_of_entry))
    arrival = np.concatenate((np.full(len(known.times), -1), np.arange(len(key_of_entry))))

    # One entry per event: of several with one hash, the one that was there first.
    by_hash = np.lexsort((merged[hash_column], key))  # stable
    first = np.ones(len(key), dtype=bool)
    first[1:] = (key[by_hash][1:] != key[by_hash][:-1]) | (
        merged[hash_column][by_hash][1:] != merged[hash_column][by_hash][:-1]
    )
    kept = by_hash[first]  # by key, and by hash within: what is left is to sort by time, stably
    changed = np.unique(key[kept[arrival[kept] >= 0]])
    repeats = np.flatnonzero(~first)
    of_known = repeats[arrival[by_hash[repeats - 1]] < 0]
    arrival[by_hash[of_known - 1]] = arrival[by_hash[of_known]]
    order = kept[np.lexsort((merged[columns.TIMES][kept], key[kept]))]
    offsets = np.searchsorted(key[order], np.arange(len(known) + 1)).astype(np.int64)
    merged_rows = History(offsets, {name: column[order] for name, column in merged.items()})
    return FoldResult(merged_rows, arrival[order], changed)

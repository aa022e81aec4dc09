"""Folds new events into histories: pure arithmetic over arrays, whole micro-batches at a time.

Folding is idempotent (an event that arrives twice, in one batch or in two, counts once) and independent of order (a
late event is sorted in by its event time). Knows neither Spark nor stores.
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
    """K rows: all entries, stored and new."""
    arrival_index: NDArray[np.int64]
    """Shape [entries]: the position of each entry of `merged` among the new ones, the first if it is repeated; -1 if it
    is not among them."""
    changed_rows: NDArray[np.int64]
    """The rows that gained an entry, ascending."""


def fold(
    stored: History,
    key_of_entry: NDArray[np.int64],
    entries: dict[str, Array],
    *,
    hash_column: str = columns.EVENT_HASHES,
) -> FoldResult:
    """Adds `entries` to the stored histories of K keys.

    stored: K rows; key_of_entry: shape [new entries], the row that each belongs to; entries: the columns of `stored`,
    in the order of arrival: of several with the same hash the first is kept.
    """
    merged = {name: np.concatenate((column, entries[name])) for name, column in stored.entries.items()}
    key = np.concatenate((stored.row_of_entry, key_of_entry))
    arrival = np.concatenate((np.full(len(stored.times), -1), np.arange(len(key_of_entry))))

    # One entry per event: of several with the same hash, the first.
    by_hash = np.lexsort((merged[hash_column], key))  # stable
    first = np.ones(len(key), dtype=bool)
    first[1:] = (key[by_hash][1:] != key[by_hash][:-1]) | (
        merged[hash_column][by_hash][1:] != merged[hash_column][by_hash][:-1]
    )
    kept = by_hash[first]  # sorted by key and hash; a stable sort by time follows
    changed = np.unique(key[kept[arrival[kept] >= 0]])
    repeats = np.flatnonzero(~first)
    repeats_of_stored = repeats[arrival[by_hash[repeats - 1]] < 0]
    arrival[by_hash[repeats_of_stored - 1]] = arrival[by_hash[repeats_of_stored]]
    order = kept[np.lexsort((merged[columns.TIMES][kept], key[kept]))]
    offsets = np.searchsorted(key[order], np.arange(len(stored) + 1)).astype(np.int64)
    merged_rows = History(offsets, {name: column[order] for name, column in merged.items()})
    return FoldResult(merged_rows, arrival[order], changed)

"""Holds the latest events of many users, cards or terminals at once, as ragged arrays.

Row i of a history owns the entries `offsets[i]:offsets[i + 1]` of every column, oldest first. Serving (one row, now),
the Spark job (every row of a micro-batch) and training (every example) all use it, so that they compute features with
the same code. Does not know where the rows are stored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from features.contract import columns
from features.contract.timestamps import DAY

Array = NDArray[Any]

USER_COLUMNS: dict[str, Any] = {
    columns.TIMES: np.int64,
    columns.ITEMS: object,
    columns.EVENT_TYPES: np.int64,
    columns.PRICES: np.float64,
    columns.QUANTITIES: np.float64,
    columns.EVENT_HASHES: np.int64,
}
ITEM_COLUMNS: dict[str, Any] = {
    columns.TIMES: np.int64,
    columns.ORDERS: np.float64,
    columns.UNITS: np.float64,
    columns.REVENUE: np.float64,
    columns.RETURNS: np.float64,
}
CARD_COLUMNS: dict[str, Any] = {
    columns.TIMES: np.int64,
    columns.AMOUNTS: np.float64,
    columns.COUNTERPARTIES: object,
    columns.EVENT_HASHES: np.int64,
}
TERMINAL_COLUMNS: dict[str, Any] = CARD_COLUMNS
FRAUD_COLUMNS: dict[str, Any] = {
    columns.TIMES: np.int64,
    columns.FRAUD_KNOWN_TIMES: np.int64,
    columns.FRAUD_HASHES: np.int64,
}
"""Known frauds of a terminal: TIMES is when the fraud happened (stored as FRAUD_TIMES)."""

USER_CAP, USER_HORIZON = 512, 400 * DAY
CARD_CAP, CARD_HORIZON = 256, 37 * DAY
TERMINAL_CAP, TERMINAL_HORIZON = 512, 37 * DAY
ITEM_CAP, ITEM_HORIZON = 37, 37 * DAY
"""Most entries that a stored history keeps, and the milliseconds it reaches back; no window may be longer."""

FRAUD_NAMES = {columns.TIMES: columns.FRAUD_TIMES}
"""The columns of FRAUD_COLUMNS that are stored under another name."""


@dataclass(frozen=True, slots=True)
class History:
    """The histories of several keys, a row each."""

    offsets: NDArray[np.int64]
    """Shape [rows + 1], from 0 to the number of entries."""
    entries: dict[str, Array]
    """Column name to array of shape [entries]; TIMES is always among them, ascending within a row."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def times(self) -> NDArray[np.int64]:
        return self.entries[columns.TIMES]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    @property
    def row_of_entry(self) -> NDArray[np.int64]:
        """The row that each entry belongs to, shape [entries]."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @property
    def last_times(self) -> NDArray[np.int64]:
        """The time of each row's last entry, shape [rows]; 0 for an empty row."""
        if not len(self.times):
            return np.zeros(len(self), dtype=np.int64)
        return np.where(self.lengths > 0, self.times[self.offsets[1:] - 1], 0)

    def row(self, index: int) -> "History":
        """Returns the history of one row."""
        return self.slices(self.offsets[index : index + 1], self.offsets[index + 1 : index + 2])

    def filter(self, mask: NDArray[np.bool_]) -> "History":
        """Returns the same rows with only the entries where `mask` (shape [entries]) holds."""
        kept = np.concatenate(([0], np.cumsum(mask)))
        return History(
            kept[self.offsets].astype(np.int64), {name: column[mask] for name, column in self.entries.items()}
        )

    def slices(self, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> "History":
        """Returns new rows: row i owns the entries starts[i]:ends[i] of this history."""
        lengths = ends - starts
        offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
        picked = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
        return History(offsets, {name: column[picked] for name, column in self.entries.items()})

    def take(self, rows: NDArray[np.int64]) -> "History":
        """Returns the histories of `rows`, in that order; a row may be repeated."""
        return self.slices(self.offsets[rows], self.offsets[rows + 1])

    def positions(self, rows: NDArray[np.int64], moments: NDArray[np.int64]) -> NDArray[np.int64]:
        """Finds the index of the first entry of each row that is later than its moment (ms)."""
        if not len(self.times):
            return self.offsets[rows]
        # Row and time form one ascending number: rows x span of times must stay below 2^63 ms.
        first = self.times.min() - 1
        span = self.times.max() - first + 1
        flat = self.row_of_entry * span + (self.times - first)
        ends: NDArray[np.int64] = np.searchsorted(flat, rows * span + np.clip(moments - first, 0, span - 1), "right")
        return ends

    def latest(self, rows: NDArray[np.int64], *, cap: int, horizon: int) -> "History":
        """Returns what is stored of each of `rows`: its latest `cap` entries within `horizon` ms before the last."""
        return self._cut(rows, self.offsets[rows + 1], cap=cap, horizon=horizon)

    def at(self, rows: NDArray[np.int64], moments: NDArray[np.int64], *, cap: int, horizon: int) -> "History":
        """Returns what was stored of each of `rows` at its moment (ms), for a history that holds all entries."""
        return self._cut(rows, self.positions(rows, moments), cap=cap, horizon=horizon)

    def _cut(self, rows: NDArray[np.int64], ends: NDArray[np.int64], *, cap: int, horizon: int) -> "History":
        starts = np.maximum(self.offsets[rows], ends - cap)
        filled = np.flatnonzero(ends > starts)
        last = self.times[ends[filled] - 1]
        starts[filled] = np.maximum(starts[filled], self.positions(rows[filled], last - horizon))
        return self.slices(starts, ends)


def hash_ids(ids: Sequence[str]) -> NDArray[np.int64]:
    """Returns a 64-bit hash of each id (SipHash of pandas.util.hash_array), the same in every process and version.

    >>> bool(hash_ids(["a", "b", "a"])[0] == hash_ids(["a"])[0])
    True
    """
    return pd.util.hash_array(np.asarray(ids, dtype=object), categorize=False).view(np.int64)


def from_lists(
    rows: Sequence[Mapping[str, Sequence[Any] | None]],
    dtypes: Mapping[str, Any],
    *,
    names: Mapping[str, str] | None = None,
) -> History:
    """Builds a history from rows that hold one list a column, as Feast's online store answers; None is an empty list.

    `dtypes` names the columns to read; `names` maps a column to the name that it has in the rows.
    """
    stored = {name: (names or {}).get(name, name) for name in dtypes}
    lengths = [len(row.get(stored[columns.TIMES]) or ()) for row in rows]
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    entries = {
        name: np.array([value for row in rows for value in (row.get(stored[name]) or ())], dtype=dtype)
        for name, dtype in dtypes.items()
    }
    return History(offsets, entries)


def from_arrow(table: pa.Table, dtypes: Mapping[str, Any], *, names: Mapping[str, str] | None = None) -> History:
    """Builds a history from the list columns of an Arrow table; a null list is an empty one."""
    stored = {name: (names or {}).get(name, name) for name in dtypes}
    entries: dict[str, Array] = {}
    offsets = np.zeros(table.num_rows + 1, dtype=np.int64)
    for name, dtype in dtypes.items():
        lists = table[stored[name]].combine_chunks()
        if isinstance(lists, pa.ChunkedArray):
            lists = pa.concat_arrays(lists.chunks) if lists.num_chunks else pa.array([], type=lists.type)
        lengths = pc.fill_null(pc.list_value_length(lists), 0)
        offsets = np.concatenate(([0], np.cumsum(lengths.to_numpy(zero_copy_only=False)))).astype(np.int64)
        entries[name] = np.asarray(lists.flatten().to_numpy(zero_copy_only=False), dtype=dtype)
    return History(offsets, entries)


def to_arrow(
    history: History,
    *,
    names: Mapping[str, str] | None = None,
    vocabularies: Mapping[str, pa.Array] | None = None,
    null_if_empty: bool = False,
) -> dict[str, pa.Array]:
    """Returns the history's columns as Arrow list arrays, by stored name. A column that has a vocabulary holds
    positions in it and becomes strings (an Arrow dictionary)."""
    types = {np.dtype(np.int64): pa.int64(), np.dtype(np.float64): pa.float64(), np.dtype(object): pa.string()}
    mask = pa.array(history.lengths == 0) if null_if_empty else None
    offsets = pa.array(history.offsets, type=pa.int32())
    lists = {}
    for name, column in history.entries.items():
        vocabulary = (vocabularies or {}).get(name)
        if vocabulary is None:
            values = pa.array(column, type=types[column.dtype])
        else:
            values = pa.DictionaryArray.from_arrays(pa.array(column.astype(np.int32)), vocabulary)
        lists[(names or {}).get(name, name)] = pa.ListArray.from_arrays(offsets, values, mask=mask)
    return lists


def feature_rows(
    key: str, ids: pa.Array, times: NDArray[np.int64], lists: dict[str, pa.Array], *, created: datetime
) -> pa.Table:
    """Returns rows of a feature view: `ids` (strings) and `times` (ms) of shape [rows], `lists` by stored column
    name."""
    stamp = pa.timestamp("us", tz="UTC")
    return pa.table(
        {
            key: ids,
            **lists,
            columns.EVENT_TIMESTAMP: pa.array(times * 1000, pa.int64()).cast(stamp),
            columns.CREATED_TIMESTAMP: pa.repeat(pa.scalar(created, stamp), len(ids)),
        }
    )


def history_rows(
    key: str,
    ids: pa.Array,
    times: NDArray[np.int64],
    rows: History,
    *,
    created: datetime,
    vocabularies: Mapping[str, pa.Array] | None = None,
) -> pa.Table:
    """Returns rows of a history view; `vocabularies` as in to_arrow."""
    return feature_rows(key, ids, times, to_arrow(rows, vocabularies=vocabularies), created=created)

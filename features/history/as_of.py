"""Gathers histories from the tables of events: as of any moments, or the newest of every key.

The offline store keeps events and no histories. What a history held at a moment is cut from all events of its key, with
the arithmetic of the stream. Knows neither Spark nor Feast nor online stores.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from features.contract import columns
from features.history.arrays import Array, History, to_arrow
from features.history.entries import Entries, concat_strings, encode_strings, hash_column
from features.history.fold import fold

ROWS_AT_ONCE = 131_072
BYTES_AT_ONCE = 128 << 20
"""Bytes of the tables from which the newest histories are made at a time: some millions of events, in memory."""


@dataclass(frozen=True, slots=True)
class HistorySource:
    """Says where columns of a history come from, and how far they reach back."""

    table: str
    """Folder of the offline store."""
    fields: tuple[str, ...]
    """Columns of the table that `read_entries` reads."""
    read_entries: Callable[[pa.Table], Entries]
    cap: int
    horizon: int
    dtypes: Mapping[str, Any]
    names: Mapping[str, str] = field(default_factory=dict)
    """The columns that are stored under another name."""
    hash_column: str = columns.EVENT_HASHES


@dataclass(frozen=True, slots=True)
class _Gathered:
    source: HistorySource
    ids: pa.Array
    merged: History
    """All entries of `ids`, and one empty row after them."""
    vocabularies: dict[str, pa.Array]

    def lists(self, rows: History, *, null_if_empty: bool) -> dict[str, pa.Array]:
        return to_arrow(rows, names=self.source.names, vocabularies=self.vocabularies, null_if_empty=null_if_empty)

    def positions(self, ids: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
        """Finds the row of each id; the empty row for an id without entries."""
        rows: NDArray[np.int64] = pc.fill_null(pc.index_in(ids, self.ids), len(self.ids)).to_numpy().astype(np.int64)
        return rows


def as_of(
    sources: Sequence[HistorySource], offline: Path, ids: pa.ChunkedArray, moments: NDArray[np.int64]
) -> dict[str, pa.Array]:
    """Returns what each id's history held at its moment (ms), as list columns by stored name; null for no entries."""
    requested = pc.unique(ids)
    lists: dict[str, pa.Array] = {}
    for source in sources:
        gathered = _gather(source, offline, lambda keys: np.asarray(pc.is_in(keys, requested)))
        rows = gathered.merged.at(gathered.positions(ids), moments, cap=source.cap, horizon=source.horizon)
        lists |= gathered.lists(rows, null_if_empty=True)
    return lists


def newest(
    sources: Sequence[HistorySource], offline: Path
) -> Iterator[tuple[pa.Array, NDArray[np.int64], dict[str, pa.Array]]]:
    """Yields the newest row of every key, in parts: ids, times of their last events (ms), list columns by stored
    name."""
    size = sum(path.stat().st_size for source in sources for path in (offline / source.table).glob("*.parquet"))
    parts = 1 + size // BYTES_AT_ONCE
    for part in range(parts):

        def in_part(keys: pa.ChunkedArray, part: int = part) -> Array:
            return np.asarray(hash_column(keys).view(np.uint64) % parts == part)

        histories = [_gather(source, offline, in_part) for source in sources]
        ids = pc.unique(concat_strings([gathered.ids for gathered in histories]))
        times = np.zeros(len(ids), dtype=np.int64)
        lists: dict[str, pa.Array] = {}
        for source, gathered in zip(sources, histories, strict=True):
            rows = gathered.merged.latest(gathered.positions(ids), cap=source.cap, horizon=source.horizon)
            times = np.maximum(times, rows.last_times)
            lists |= gathered.lists(rows, null_if_empty=False)
        if len(ids):
            yield ids, times, lists


def _gather(source: HistorySource, offline: Path, select: Callable[[pa.ChunkedArray], Array]) -> _Gathered:
    """Gathers all histories of the keys that `select` (keys to a mask) selects."""
    read = []
    for events in _blocks(_events(source, offline).to_batches(columns=list(source.fields))):
        entries = source.read_entries(events)
        read.append(entries.filter(select(entries.keys)))
    ids, keys = encode_strings(*(entries.keys for entries in read))
    key = np.concatenate((np.empty(0, np.int64), *keys))
    vocabularies, new = {}, {}
    for name, dtype in source.dtypes.items():
        if dtype is object:
            vocabularies[name], parts = encode_strings(*(entries.strings[name] for entries in read))
        else:
            parts = [entries.numeric[name] for entries in read]
        new[name] = np.concatenate((np.empty(0, np.int64 if dtype is object else dtype), *parts))
    empty = History(np.zeros(len(ids) + 2, dtype=np.int64), {name: column[:0] for name, column in new.items()})
    return _Gathered(source, ids, fold(empty, key, new, hash_column=source.hash_column).merged, vocabularies)


def _blocks(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Joins batches into larger tables: a live table has many small files."""
    waiting, rows = [], 0
    for batch in batches:
        waiting.append(batch)
        rows += batch.num_rows
        if rows >= ROWS_AT_ONCE:
            yield pa.Table.from_batches(waiting)
            waiting, rows = [], 0
    if waiting:
        yield pa.Table.from_batches(waiting)


def _events(source: HistorySource, offline: Path) -> ds.Dataset:
    folder = offline / source.table
    if not any(folder.glob("*.parquet")):
        return ds.dataset(pa.table({name: pa.nulls(0) for name in source.fields}))
    return ds.dataset(folder, format="parquet")

"""Histories gathered from the tables of events: as of any moments, or the newest of everyone.

The offline store keeps events and no histories: what a history held at a moment is cut out of all events of its key,
with the stream's own arithmetic. Knows nothing of Spark, of Feast, nor of online stores.
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
"""The newest histories are made of so much of the tables at a time: some millions of events, held in memory."""


@dataclass(frozen=True, slots=True)
class HistorySource:
    """Where columns of a history come from, and how far they reach."""

    table: str
    """Folder of the offline store."""
    fields: tuple[str, ...]
    """Columns of the table that `reads` looks at."""
    read_entries: Callable[[pa.Table], Entries]
    cap: int
    horizon: int
    dtypes: Mapping[str, Any]
    names: Mapping[str, str] = field(default_factory=dict)
    """Where the columns are stored under another name."""
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
        """Each id's row; the empty one for whom nothing is known of."""
        found: NDArray[np.int64] = pc.fill_null(pc.index_in(ids, self.ids), len(self.ids)).to_numpy().astype(np.int64)
        return found


def as_of(
    sources: Sequence[HistorySource], offline: Path, ids: pa.ChunkedArray, moments: NDArray[np.int64]
) -> dict[str, pa.Array]:
    """List columns by stored name: what each id's history held at its moment (ms); null where it held nothing."""
    wanted = pc.unique(ids)
    lists: dict[str, pa.Array] = {}
    for source in sources:
        found = _gather(source, offline, lambda keys: np.asarray(pc.is_in(keys, wanted)))
        rows = found.merged.at(found.positions(ids), moments, cap=source.cap, horizon=source.horizon)
        lists |= found.lists(rows, null_if_empty=True)
    return lists


def newest(
    sources: Sequence[HistorySource], offline: Path
) -> Iterator[tuple[pa.Array, NDArray[np.int64], dict[str, pa.Array]]]:
    """Everyone's newest row, in parts: ids, the time of each one's last event (ms), list columns by stored name."""
    size = sum(path.stat().st_size for source in sources for path in (offline / source.table).glob("*.parquet"))
    parts = 1 + size // BYTES_AT_ONCE
    for part in range(parts):

        def wanted(keys: pa.ChunkedArray, part: int = part) -> Array:
            return np.asarray(hash_column(keys).view(np.uint64) % parts == part)

        found = [_gather(source, offline, wanted) for source in sources]
        ids = pc.unique(concat_strings([one.ids for one in found]))
        times = np.zeros(len(ids), dtype=np.int64)
        lists: dict[str, pa.Array] = {}
        for one in found:
            rows = one.merged.latest(one.positions(ids), cap=one.source.cap, horizon=one.source.horizon)
            times = np.maximum(times, rows.last_times)
            lists |= one.lists(rows, null_if_empty=False)
        if len(ids):
            yield ids, times, lists


def _gather(source: HistorySource, offline: Path, wanted: Callable[[pa.ChunkedArray], Array]) -> _Gathered:
    """All histories of the keys that `wanted` (keys to a mask) lets through."""
    read = []
    for events in _blocks(_events(source, offline).to_batches(columns=list(source.fields))):
        entries = source.read_entries(events)
        read.append(entries.filter(wanted(entries.keys)))
    ids, keys = encode_strings(*(one.keys for one in read))
    key = np.concatenate((np.empty(0, np.int64), *keys))
    vocabularies, new = {}, {}
    for name, dtype in source.dtypes.items():
        if dtype is object:
            vocabularies[name], parts = encode_strings(*(one.strings[name] for one in read))
        else:
            parts = [one.numeric[name] for one in read]
        new[name] = np.concatenate((np.empty(0, np.int64 if dtype is object else dtype), *parts))
    empty = History(np.zeros(len(ids) + 2, dtype=np.int64), {name: column[:0] for name, column in new.items()})
    return _Gathered(source, ids, fold(empty, key, new, hash_column=source.hash_column).merged, vocabularies)


def _blocks(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The same rows in fewer parts: a live table has many small files."""
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

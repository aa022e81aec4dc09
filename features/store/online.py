"""The online store: rows of list features, written and read in Feast's own format, without Feast in between.

One view's rows go in as an Arrow table and come out as one ragged column a feature. Which database holds them is the
adapter's business (redis_rows.py, sqlite_rows.py). An older row never replaces a newer one.
Knows nothing of what the features mean, nor of Feast's registry.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.contract import columns
from features.store.codec import Lists, decode_lists, decode_row, encode_lists

FAILURES_BEFORE_PAUSE = 3
PAUSE_SECONDS = 0.7


class OnlineStoreError(Exception):
    """The online store did not answer, in time or at all; says where it should be and what to do."""


@dataclass(frozen=True, slots=True)
class OnlineView:
    """A feature view as the adapters see it."""

    name: str
    join_key: str
    dtypes: Mapping[str, Any]
    """Feature to np.int64, np.float64 or object (strings): every feature is a list."""


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """Rows as they are stored."""

    ids: Sequence[str]
    values: Sequence[Sequence[bytes]]
    """One sequence a feature, in the order of the view's dtypes."""
    event_us: NDArray[np.int64]
    created_us: NDArray[np.int64]


class OnlineRows(Protocol):
    """What an adapter does. Each method raises OnlineStoreError when the database does not answer."""

    def read(self, view: OnlineView, ids: Sequence[str], *, patient: bool) -> list[Sequence[bytes | None]]:
        """Each feature's stored values of the ids, in the order of view.dtypes. `patient` calls may take seconds."""
        ...

    def write(self, view: OnlineView, rows: EncodedRows) -> None:
        """Store rows, each whole or not at all, unless a newer one is there."""
        ...

    def epoch(self) -> str:
        """Changes when a server that holds rows starts anew, and may have lost the last it was given."""
        ...

    def marks(self) -> set[str]:
        """What `mark` left in each part of the store that can lose rows by itself; "" where it left nothing."""
        ...

    def mark(self, value: str, *, after: str | None) -> bool:
        """Leave a mark behind all that was written, in every part; False where `after`, if it is given, is not the
        mark before it."""
        ...


class OnlineStore:
    """Reads and writes the rows of views. `clock` gives seconds that only grow."""

    def __init__(
        self, rows: OnlineRows, views: Sequence[OnlineView], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.rows = rows
        self._views = {view.name: view for view in views}
        self._clock = clock
        self._failures = 0
        self._paused_until = 0.0
        self._lock = threading.Lock()

    def read(self, view: str, ids: Sequence[str], *, patient: bool = False) -> dict[str, Lists]:
        """Each feature of `ids`, in their order. Raises OnlineStoreError: at once while the store is taken for dead,
        unless the call is `patient`, as jobs are."""
        wanted = self._views[view]
        values = self._values(wanted, ids, patient=patient)
        return {
            name: decode_lists(column, dtype)
            for (name, dtype), column in zip(wanted.dtypes.items(), values, strict=True)
        }

    def read_row(self, view: str, one: str) -> dict[str, NDArray[Any]]:
        """Each feature of one id, empty where nothing is stored: the way of a request. Raises OnlineStoreError."""
        wanted = self._views[view]
        values = [column[0] for column in self._values(wanted, [one], patient=False)]
        return dict(zip(wanted.dtypes, decode_row(values, list(wanted.dtypes.values())), strict=True))

    def _values(self, view: OnlineView, ids: Sequence[str], *, patient: bool) -> list[Sequence[bytes | None]]:
        if patient:
            return self.rows.read(view, ids, patient=True)
        with self._unless_dead():
            return self.rows.read(view, ids, patient=False)

    def write(self, view: str, rows: pa.Table) -> None:
        """Write `rows`: the join key, list columns, EVENT_TIMESTAMP and CREATED_TIMESTAMP (microseconds, UTC)."""
        if not rows.num_rows:
            return
        wanted = self._views[view]
        encoded = EncodedRows(
            rows[wanted.join_key].to_pylist(),
            [encode_lists(_whole(rows[name])) for name in wanted.dtypes],
            _microseconds(rows[columns.EVENT_TIMESTAMP]),
            _microseconds(rows[columns.CREATED_TIMESTAMP]),
        )
        self.rows.write(wanted, encoded)

    @contextmanager
    def _unless_dead(self) -> Iterator[None]:
        """After some failures in a row, only one caller each PAUSE_SECONDS finds out whether the store is back."""
        with self._lock:
            if self._failures >= FAILURES_BEFORE_PAUSE:
                if self._clock() < self._paused_until:
                    raise OnlineStoreError("the online store did not answer just now; not asked again for a moment")
                self._paused_until = self._clock() + PAUSE_SECONDS
        try:
            yield
        except OnlineStoreError:
            with self._lock:
                self._failures += 1
                self._paused_until = self._clock() + PAUSE_SECONDS
            raise
        self._failures = 0


def _whole(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks()
    return pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole


def _microseconds(column: pa.ChunkedArray) -> NDArray[np.int64]:
    stamps: NDArray[np.int64] = column.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy()
    return stamps

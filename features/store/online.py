"""Reads and writes rows of list features in the online store, in Feast's own format but without Feast.

Rows of a view are written from an Arrow table and read as a ragged column per feature. Adapters hide the database
(redis_rows.py, sqlite_rows.py). An older row never replaces a newer one. Knows neither what the features mean nor
Feast's registry.
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
    """Raised when the online store does not answer, or not in time; says where it should be and what to do."""


@dataclass(frozen=True, slots=True)
class OnlineView:
    """A feature view as the adapters see it."""

    name: str
    join_key: str
    dtypes: Mapping[str, Any]
    """Feature to the dtype of its list: np.int64, np.float64 or object (strings)."""


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """Rows as they are stored."""

    ids: Sequence[str]
    values: Sequence[Sequence[bytes]]
    """A sequence per feature, in the order of the view's dtypes."""
    event_us: NDArray[np.int64]
    created_us: NDArray[np.int64]


class OnlineRows(Protocol):
    """Stores rows in a database. Each method raises OnlineStoreError when the database does not answer."""

    def read(self, view: OnlineView, ids: Sequence[str], *, patient: bool) -> list[Sequence[bytes | None]]:
        """Returns the stored values of the ids by feature, in the order of view.dtypes. `patient` calls may take
        seconds."""
        ...

    def write(self, view: OnlineView, rows: EncodedRows) -> None:
        """Stores rows, each whole or not at all, unless a newer one is stored."""
        ...

    def epoch(self) -> str:
        """Returns a text that changes when a server with rows restarts and may have lost its last writes."""
        ...

    def marks(self) -> set[str]:
        """Returns what `mark` left in each part of the store that can lose rows by itself; "" where it left nothing."""
        ...

    def mark(self, value: str, *, after: str | None) -> bool:
        """Leaves a mark after everything that was written, in every part. Returns False, and leaves none, where the
        previous mark is not `after`, if that is given."""
        ...


class OnlineStore:
    """Reads and writes the rows of views. `clock`: monotonic seconds."""

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
        """Returns the lists of `ids`, in their order, by feature. Raises OnlineStoreError, without asking while the
        store is considered down, unless the call is `patient`, as those of jobs are."""
        online_view = self._views[view]
        values = self._values(online_view, ids, patient=patient)
        return {
            name: decode_lists(column, dtype)
            for (name, dtype), column in zip(online_view.dtypes.items(), values, strict=True)
        }

    def read_row(self, view: str, entity: str) -> dict[str, NDArray[Any]]:
        """Returns the lists of one id by feature, empty where nothing is stored, as requests read. Raises
        OnlineStoreError."""
        online_view = self._views[view]
        values = [column[0] for column in self._values(online_view, [entity], patient=False)]
        return dict(zip(online_view.dtypes, decode_row(values, list(online_view.dtypes.values())), strict=True))

    def _values(self, view: OnlineView, ids: Sequence[str], *, patient: bool) -> list[Sequence[bytes | None]]:
        if patient:
            return self.rows.read(view, ids, patient=True)
        with self._circuit_breaker():
            return self.rows.read(view, ids, patient=False)

    def write(self, view: str, rows: pa.Table) -> None:
        """Writes `rows`: the join key, list columns, EVENT_TIMESTAMP and CREATED_TIMESTAMP (microseconds, UTC)."""
        if not rows.num_rows:
            return
        online_view = self._views[view]
        encoded = EncodedRows(
            rows[online_view.join_key].to_pylist(),
            [encode_lists(_whole(rows[name])) for name in online_view.dtypes],
            _microseconds(rows[columns.EVENT_TIMESTAMP]),
            _microseconds(rows[columns.CREATED_TIMESTAMP]),
        )
        self.rows.write(online_view, encoded)

    @contextmanager
    def _circuit_breaker(self) -> Iterator[None]:
        """After FAILURES_BEFORE_PAUSE failures in a row, lets one caller per PAUSE_SECONDS try whether the store is
        back."""
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

"""Stores rows of the online store in SQLite as Feast's SQLite store does: a table per view, a line per feature."""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from features.store.codec import decode_lists, encode_lists, entity_keys
from features.store.online import EncodedRows, OnlineStoreError, OnlineView

ORDER = "_order"
"""An extra feature of every row: its event and created time in microseconds. Feast's own columns have whole seconds."""
KEYS_AT_ONCE = 500
BUSY_SECONDS = {False: 2.0, True: 30.0}


class SqliteRows:
    """Implements features.store.online.OnlineRows. An object serves all threads; each has its own connection."""

    def __init__(self, path: Path, *, project: str) -> None:
        self._path = path
        self._project = project
        self._local = threading.local()

    def read(self, view: OnlineView, ids: Sequence[str], *, patient: bool) -> list[Sequence[bytes | None]]:
        keys = entity_keys(view.join_key, ids)
        features = list(view.dtypes)
        stored: dict[tuple[bytes, str], bytes] = {}
        with self._connection(patient=patient) as connection:
            for start in range(0, len(keys), KEYS_AT_ONCE):
                part = keys[start : start + KEYS_AT_ONCE]
                query = f"SELECT entity_key, feature_name, value FROM {self._table(view)} WHERE entity_key IN ({_marks(part)})"  # noqa: S608, E501
                for key, name, value in connection.execute(query, part):
                    stored[key, name] = value
        return [[stored.get((key, name)) for key in keys] for name in features]

    def write(self, view: OnlineView, rows: EncodedRows) -> None:
        keys, features = entity_keys(view.join_key, rows.ids), [*view.dtypes, ORDER]
        stamps = np.stack((rows.event_us, rows.created_us), 1)
        moments = list(map(tuple, stamps.tolist()))
        pairs = pa.ListArray.from_arrays(np.arange(len(keys) + 1) * 2, stamps.ravel())
        columns = [*rows.values, encode_lists(pairs)]
        with self._connection(patient=True) as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                stored = self._moments(connection, view, keys)
                lines = []
                for row, (key, moment) in enumerate(zip(keys, moments, strict=True)):
                    if moment >= stored.get(key, moment):
                        stored[key] = moment
                        seconds = moment[0] // 1_000_000, moment[1] // 1_000_000
                        lines += [
                            (key, name, column[row], *seconds) for name, column in zip(features, columns, strict=True)
                        ]
                connection.executemany(
                    f"INSERT INTO {self._table(view)} (entity_key, feature_name, value, event_ts, created_ts) "  # noqa: S608
                    "VALUES (?, ?, ?, ?, ?) ON CONFLICT (entity_key, feature_name) DO UPDATE SET "
                    "value = excluded.value, event_ts = excluded.event_ts, created_ts = excluded.created_ts",
                    lines,
                )
                connection.execute("COMMIT")
            except BaseException:
                connection.execute("ROLLBACK")
                raise

    def _moments(
        self, connection: sqlite3.Connection, view: OnlineView, keys: Sequence[bytes]
    ) -> dict[bytes, tuple[int, int]]:
        """Returns the event and created time of the stored rows."""
        moments: dict[bytes, tuple[int, int]] = {}
        for start in range(0, len(keys), KEYS_AT_ONCE):
            part = keys[start : start + KEYS_AT_ONCE]
            query = f"SELECT entity_key, value FROM {self._table(view)} WHERE feature_name = '{ORDER}' AND entity_key IN ({_marks(part)})"  # noqa: S608, E501
            lines = connection.execute(query, part).fetchall()
            numbers = decode_lists([value for _, value in lines], np.int64).values.tolist()
            moments |= {key: (numbers[2 * row], numbers[2 * row + 1]) for row, (key, _) in enumerate(lines)}
        return moments

    def epoch(self) -> str:
        return "sqlite"  # a commit is on the disk

    def marks(self) -> set[str]:
        with self._connection(patient=True) as connection:
            return {self._mark(connection)}

    def mark(self, value: str, *, after: str | None) -> bool:
        with self._connection(patient=True) as connection:
            connection.execute("BEGIN IMMEDIATE")
            matches = self._mark(connection) == after or after is None
            if matches:
                connection.execute("INSERT OR REPLACE INTO headrace_mark VALUES (1, ?)", (value,))
            connection.execute("COMMIT")
            return matches

    @staticmethod
    def _mark(connection: sqlite3.Connection) -> str:
        connection.execute("CREATE TABLE IF NOT EXISTS headrace_mark (id INTEGER PRIMARY KEY, value TEXT)")
        row = connection.execute("SELECT value FROM headrace_mark").fetchone()
        return str(row[0]) if row else ""

    def _table(self, view: OnlineView) -> str:
        return f"{self._project}_{view.name}"

    @contextmanager
    def _connection(self, *, patient: bool) -> Iterator[sqlite3.Connection]:
        try:
            connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
            if not self._path.exists():
                self._local.connection = None
                raise OnlineStoreError(f"the online store {self._path} does not exist; `headrace features` fills it")
            if connection is None:
                connection = sqlite3.connect(self._path, isolation_level=None)
                self._local.connection, self._local.patient = connection, None
            if self._local.patient is not patient:
                connection.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS[patient] * 1000)}")
                self._local.patient = patient
            yield connection
        except sqlite3.Error as error:
            self._local.connection = None
            raise OnlineStoreError(
                f"the online store {self._path} does not answer ({error}); `headrace features` fills it"
            ) from error


def _marks(keys: Sequence[bytes]) -> str:
    return ",".join("?" * len(keys))

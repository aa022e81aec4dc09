"""Opens the feature store, writes rows, and reads them now or as of a moment: what the rest of Headrace uses.

Wraps Feast: offline in Parquet (features/store/offline.py), online in SQLite or, where settings.redis_url names one, in
Redis (features/store/online.py). Does not know how features are computed.
"""

import contextlib
import fcntl
import hashlib
import re
import sqlite3
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from features.contract import columns
from features.history.arrays import History
from features.store import views
from features.store.codec import Lists
from features.store.feast_import import (
    FeatureStore,
    FeatureView,
    RedisOnlineStoreConfig,
    RegistryConfig,
    RepoConfig,
    SqliteOnlineStoreConfig,
)
from features.store.offline import AsofOfflineStoreConfig
from features.store.online import OnlineRows, OnlineStore, OnlineStoreError, OnlineView
from features.store.redis_rows import RedisAddress, RedisRows
from features.store.sqlite_rows import SqliteRows
from infra.settings import Settings

REGISTRY_SECONDS = 3600
"""The registry changes only with a new version of Headrace, so no request should have to read it."""


class Store(FeatureStore):  # type: ignore[misc]
    """Feast's store, with a fast path to the same online rows."""

    online: OnlineStore


def open_store(settings: Settings) -> Store:
    """Opens the feature store of settings.feast_dir, creating it on first use. Opening it needs no Redis.

    Raises OnlineStoreError when settings.redis_url cannot be understood.
    """
    folder = settings.feast_dir.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    objects = views.feast_objects(settings.offline_dir)
    online, rows = _online(settings)
    # The name contains a hash of the definitions, so that the first process to open the store registers changed ones.
    # Feast puts timestamps into its objects: they are no change.
    definitions = re.sub(r'"\w+Timestamp": "[^"]*"', "", "".join(map(str, objects)))
    digest = hashlib.sha256(definitions.encode()).hexdigest()[:16]
    registry = folder / f"registry-{digest}.db"
    config = RepoConfig(
        project=views.PROJECT,
        provider="local",
        registry=RegistryConfig(path=str(registry), cache_ttl_seconds=REGISTRY_SECONDS),
        offline_store=AsofOfflineStoreConfig(),
        online_store=online,
        entity_key_serialization_version=3,
    )
    # SQLite needs tables, so it has a marker of its own for whether the views were registered with it.
    applied = registry.with_suffix(f".{online.type}.applied")
    with (folder / "lock").open("w") as lock:
        # The API and the Spark job may start together: the second waits until the first has registered everything.
        fcntl.flock(lock, fcntl.LOCK_EX)
        store = Store(config=config)
        if not applied.exists() or (isinstance(rows, SqliteRows) and not (folder / ONLINE_FILE).exists()):
            store.apply(objects)
            if isinstance(rows, SqliteRows):
                with contextlib.closing(sqlite3.connect(folder / ONLINE_FILE)) as connection:
                    # Readers are not blocked while the Spark job writes.
                    connection.execute("PRAGMA journal_mode = WAL")
            applied.touch()
    store.online = OnlineStore(rows, [_online_view(view) for view in objects if isinstance(view, FeatureView)])
    return store


ONLINE_FILE = "online.db"


def _online(settings: Settings) -> tuple[Any, OnlineRows]:
    """Returns Feast's configuration of the online store, and our adapter for the same store."""
    if not settings.redis_url:
        path = settings.feast_dir.absolute() / ONLINE_FILE
        return SqliteOnlineStoreConfig(path=str(path)), SqliteRows(path, project=views.PROJECT)
    try:
        address = RedisAddress.parse(settings.redis_url)
    except ValueError as error:
        raise OnlineStoreError(str(error)) from error
    timeout = settings.redis_timeout_milliseconds / 1000
    config = RedisOnlineStoreConfig(
        redis_type="redis_cluster" if address.cluster else "redis",
        connection_string=address.feast_string(timeout_seconds=timeout),
    )
    return config, RedisRows(address, project=views.PROJECT, timeout_seconds=timeout)


_DTYPES = {feast_type: dtype for dtype, feast_type in views.LIST_TYPES.items()}


def _online_view(view: FeatureView) -> OnlineView:
    dtypes = {field.name: _DTYPES[field.dtype] for field in view.schema if field.dtype in _DTYPES}
    return OnlineView(view.name, view.entities[0], dtypes)


def write_online(store: Store, view: str, rows: pa.Table) -> None:
    """Writes `rows` (join key, features, event and created timestamps) to the online store, except those that are older
    than the stored ones. Raises OnlineStoreError."""
    store.online.write(view, rows)


def online_rows(store: Store, view: str, ids: Sequence[str]) -> list[dict[str, Any]]:
    """Returns a dict per id, feature name to list; None where nothing is stored. Raises OnlineStoreError."""
    rows: list[dict[str, Any]] = [{} for _ in ids]
    if ids:
        for name, lists in store.online.read(view, ids).items():
            values = lists.values.to_pylist() if isinstance(lists.values, pa.Array) else lists.values.tolist()
            offsets = lists.offsets.tolist()
            for row, known, start, end in zip(rows, lists.known.tolist(), offsets[:-1], offsets[1:], strict=True):
                row[name] = values[start:end] if known else None
    return rows


def online_history(store: Store, view: str, ids: Sequence[str], dtypes: Mapping[str, Any]) -> History:
    """Returns the histories of ids, a row each, empty where nothing is stored. Raises OnlineStoreError.

    dtypes: features of the view, all of one length in a row, TIMES among them.
    """
    return as_history(store.online.read(view, ids), dtypes)


def online_row(store: Store, view: str, entity: str, dtypes: Mapping[str, Any]) -> History:
    """Returns online_history of one id, in a fraction of the time."""
    lists = store.online.read_row(view, entity)
    entries = {name: lists[name] for name in dtypes}
    return History(np.array([0, len(entries[columns.TIMES])]), entries)


def online_lists(store: Store, view: str, ids: Sequence[str]) -> dict[str, Lists]:
    """Returns the lists of ids, by feature, for jobs: they wait longer for the store than a request may."""
    return store.online.read(view, ids, patient=True)


def as_history(
    lists: Mapping[str, Lists],
    dtypes: Mapping[str, Any],
    *,
    names: Mapping[str, str] | None = None,
    codes: Mapping[str, NDArray[np.int64]] | None = None,
) -> History:
    """Builds a history of list columns of a view. `names` maps a column to the name that it is stored under; `codes`
    gives numbers that replace the strings of a column."""
    stored = {name: lists[(names or {}).get(name, name)] for name in dtypes}
    entries = {}
    for name, column in stored.items():
        if codes and name in codes:
            entries[name] = codes[name]
        elif isinstance(column.values, pa.Array):
            entries[name] = np.asarray(column.values.to_numpy(zero_copy_only=False), dtype=object)
        else:
            entries[name] = column.values
    return History(stored[columns.TIMES].offsets, entries)


def historical(store: Store, service: str, examples: pd.DataFrame, *, before: bool) -> pa.Table:
    """Returns the features of a service as of each example's moment, in columns named `<view>__<feature>`.

    examples: the service's join keys and EVENT_TIMESTAMP (UTC). With `before`, only what happened strictly before
    that moment counts, as a request at that moment would have seen it.
    """
    moments = examples.copy()
    if before:
        moments[columns.EVENT_TIMESTAMP] -= timedelta(milliseconds=1)
    job = store.get_historical_features(
        entity_df=moments, features=store.get_feature_service(service), full_feature_names=True
    )
    return job.to_arrow()

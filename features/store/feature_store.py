"""The feature store as the rest of Headrace sees it: open it, write rows, read them now or as of a moment.

Wraps Feast: offline in Parquet (features/store/offline.py), online in SQLite or, where settings.redis_url names one, in
Redis (features/store/online.py). Knows nothing of how features are computed.
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
"""The registry changes only with a new version of Headrace: no request should pay for reading it."""


class Store(FeatureStore):  # type: ignore[misc]
    """Feast's store, and the quick way to the same rows."""

    online: OnlineStore


def open_store(settings: Settings) -> Store:
    """The feature store of settings.feast_dir, created and registered on first use; needs no Redis to be opened.

    Raises OnlineStoreError when settings.redis_url cannot be understood.
    """
    folder = settings.feast_dir.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    objects = views.feast_objects(settings.offline_dir)
    online, rows = _online(settings)
    # Named after what it holds, so that a changed definition is registered anew by whoever opens the store first.
    # Feast stamps its objects with the moment they were made: that is no change.
    told = re.sub(r'"\w+Timestamp": "[^"]*"', "", "".join(str(one) for one in objects))
    digest = hashlib.sha256(told.encode()).hexdigest()[:16]
    registry = folder / f"registry-{digest}.db"
    config = RepoConfig(
        project=views.PROJECT,
        provider="local",
        registry=RegistryConfig(path=str(registry), cache_ttl_seconds=REGISTRY_SECONDS),
        offline_store=AsofOfflineStoreConfig(),
        online_store=online,
        entity_key_serialization_version=3,
    )
    # SQLite has tables to be made, so it counts by itself whether the views were registered with it.
    applied = registry.with_suffix(f".{online.type}.applied")
    with (folder / "lock").open("w") as lock:
        # The API and the Spark job may start at once: the second waits until the first has registered everything.
        fcntl.flock(lock, fcntl.LOCK_EX)
        store = Store(config=config)
        if not applied.exists() or (isinstance(rows, SqliteRows) and not (folder / ONLINE_FILE).exists()):
            store.apply(objects)
            if isinstance(rows, SqliteRows):
                with contextlib.closing(sqlite3.connect(folder / ONLINE_FILE)) as connection:
                    # Readers go on while the Spark job writes.
                    connection.execute("PRAGMA journal_mode = WAL")
            applied.touch()
    store.online = OnlineStore(rows, [_online_view(one) for one in objects if isinstance(one, FeatureView)])
    return store


ONLINE_FILE = "online.db"


def _online(settings: Settings) -> tuple[Any, OnlineRows]:
    """Feast's configuration of the online store, and ours of the same."""
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
    """Make `rows` (join key, features, event and created timestamps) what online readers see, but for those that are
    older than what they see. Raises OnlineStoreError."""
    store.online.write(view, rows)


def online_rows(store: Store, view: str, ids: Sequence[str]) -> list[dict[str, Any]]:
    """One dict per id, feature name to list; None for what the store does not know. Raises OnlineStoreError."""
    rows: list[dict[str, Any]] = [{} for _ in ids]
    if ids:
        for name, lists in store.online.read(view, ids).items():
            values = lists.values.to_pylist() if isinstance(lists.values, pa.Array) else lists.values.tolist()
            offsets = lists.offsets.tolist()
            for row, known, start, end in zip(rows, lists.known.tolist(), offsets[:-1], offsets[1:], strict=True):
                row[name] = values[start:end] if known else None
    return rows


def online_history(store: Store, view: str, ids: Sequence[str], dtypes: Mapping[str, Any]) -> History:
    """The histories of ids, one row each, empty for an id that the store does not know. Raises OnlineStoreError.

    dtypes: features of the view, all of one length in a row, TIMES among them.
    """
    return as_history(store.online.read(view, ids), dtypes)


def online_row(store: Store, view: str, one: str, dtypes: Mapping[str, Any]) -> History:
    """online_history of one id, in a fraction of the time."""
    lists = store.online.read_row(view, one)
    entries = {name: lists[name] for name in dtypes}
    return History(np.array([0, len(entries[columns.TIMES])]), entries)


def online_lists(store: Store, view: str, ids: Sequence[str]) -> dict[str, Lists]:
    """The same for jobs, which wait longer for the store than a request may, a column a feature."""
    return store.online.read(view, ids, patient=True)


def as_history(
    lists: Mapping[str, Lists],
    dtypes: Mapping[str, Any],
    *,
    names: Mapping[str, str] | None = None,
    codes: Mapping[str, NDArray[np.int64]] | None = None,
) -> History:
    """List columns of one view as a history. `names` maps a wanted column to the name it is stored under; `codes`
    gives numbers that stand for the strings of a column."""
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
    """The features of a service that held at each example's moment, columns named `<view>__<feature>`.

    examples: the service's join keys and EVENT_TIMESTAMP (UTC). With `before`, only what happened strictly before
    that moment counts: the state a request would have met.
    """
    moments = examples.copy()
    if before:
        moments[columns.EVENT_TIMESTAMP] -= timedelta(milliseconds=1)
    job = store.get_historical_features(
        entity_df=moments, features=store.get_feature_service(service), full_feature_names=True
    )
    return job.to_arrow()

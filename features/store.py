"""The feature store as the rest of Headrace sees it: open it, write rows, read them now or as of a moment.

Wraps Feast: offline in Parquet (features/offline.py), online in SQLite. Knows nothing of how features are computed.
"""

import contextlib
import fcntl
import hashlib
import re
import sqlite3
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pandas as pd
import pyarrow as pa

from features import columns, views
from features.feast_import import FeatureStore, RegistryConfig, RepoConfig, SqliteOnlineStoreConfig
from features.offline import AsofOfflineStoreConfig
from infra.settings import Settings

REGISTRY_SECONDS = 3600
"""The registry changes only with a new version of Headrace: no request should pay for reading it."""


def open_store(settings: Settings) -> FeatureStore:
    """The feature store of settings.feast_dir, created and registered on first use."""
    folder = settings.feast_dir.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    online = folder / "online.db"
    objects = views.feast_objects(settings.offline_dir)
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
        online_store=SqliteOnlineStoreConfig(path=str(online)),
        entity_key_serialization_version=3,
    )
    applied = registry.with_suffix(".applied")
    with (folder / "lock").open("w") as lock:
        # The API and the Spark job may start at once: the second waits until the first has registered everything.
        fcntl.flock(lock, fcntl.LOCK_EX)
        store = FeatureStore(config=config)
        if not applied.exists():
            store.apply(objects)
            with contextlib.closing(sqlite3.connect(online)) as connection:
                # Readers go on while the Spark job writes.
                connection.execute("PRAGMA journal_mode = WAL")
            applied.touch()
    return store


def write_online(store: FeatureStore, view: str, rows: pa.Table) -> None:
    """Make `rows` (join key, features, event and created timestamps) what online readers see."""
    if rows.num_rows:
        store.write_to_online_store(view, df=rows.to_pandas())


def online_rows(store: FeatureStore, view: str, ids: Sequence[str]) -> list[dict[str, Any]]:
    """One dict per id, feature name to value; None values for an id that the store does not know."""
    if not ids:
        return []
    feature_view = store.get_feature_view(view)
    names = [field.name for field in feature_view.features]
    found = store.get_online_features(
        features=[f"{view}:{name}" for name in names],
        entity_rows=[{feature_view.join_keys[0]: name} for name in ids],
    ).to_dict()
    return [{name: found[name][index] for name in names} for index in range(len(ids))]


def historical(store: FeatureStore, service: str, examples: pd.DataFrame, *, before: bool) -> pa.Table:
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

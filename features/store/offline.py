"""Implements Feast's offline store on DuckDB, with an as-of join and with histories cut from the tables of events.

Feast 0.67 joins every feature row of an entity to every example of it and then keeps the newest: quadratic, and
hopeless with histories as payload. DuckDB's ASOF JOIN finds the row that held at each example's moment. Rows of
histories are not stored at all (features/history/as_of.py). Everything else is Feast's own DuckDB store.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa

from features.contract import columns
from features.history import arrays, as_of
from features.store import views
from features.store.feast_import import (
    DuckDBOfflineStore,
    DuckDBOfflineStoreConfig,
    FeatureView,
    OnDemandFeatureView,
    RepoConfig,
    RetrievalJob,
    RetrievalMetadata,
)

ROW = "__row"


class AsofOfflineStoreConfig(DuckDBOfflineStoreConfig):
    """Has Feast use AsofOfflineStore."""

    type: str = "features.store.offline.AsofOfflineStore"


class AsofRetrievalJob(RetrievalJob):
    """Retrieves the features of the examples, in their order."""

    def __init__(self, examples: pa.Table, views: list[tuple[FeatureView, list[str]]], *, full_names: bool) -> None:
        self._examples = examples
        self._views = views
        self._full_names = full_names

    @property
    def full_feature_names(self) -> bool:
        return self._full_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        return []

    @property
    def metadata(self) -> RetrievalMetadata | None:
        return None

    def persist(self, storage: Any, allow_overwrite: bool | None = False, timeout: int | None = None) -> None:
        raise NotImplementedError("write the result of to_arrow() to a file of your own")

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        frame: pd.DataFrame = self._to_arrow_internal().to_pandas()
        return frame

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        result = self._examples
        for view, names in self._views:
            read = _history_as_of if view.name in views.HISTORY_SOURCES else _asof_join
            features = read(self._examples, view, names)
            for name in names:
                column = f"{view.name}__{name}" if self._full_names else name
                result = result.append_column(column, features[name])
        return result


def _history_as_of(examples: pa.Table, view: FeatureView, names: list[str]) -> pa.Table:
    (key,) = view.join_keys
    stamps = examples[columns.EVENT_TIMESTAMP].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy()
    offline = Path(view.batch_source.path).parent
    lists = as_of.as_of(views.HISTORY_SOURCES[view.name], offline, examples[key].cast(pa.string()), stamps // 1000)
    return pa.table({name: lists[name] for name in names})


def _asof_join(examples: pa.Table, view: FeatureView, names: list[str]) -> pa.Table:
    (key,) = view.join_keys
    moments = pa.table(
        {
            key: examples[key],
            columns.EVENT_TIMESTAMP: examples[columns.EVENT_TIMESTAMP].cast(pa.timestamp("us", tz="UTC")),
            ROW: pa.array(range(examples.num_rows), pa.int64()),
        }
    )
    selected = ", ".join(f'f."{name}"' for name in names)
    stamp, created = columns.EVENT_TIMESTAMP, columns.CREATED_TIMESTAMP
    # Identifiers come from features/store/views.py, the path from settings: nothing here comes from a caller.
    query = f"""
        WITH rows_of_view AS (
            SELECT * FROM read_parquet(?, union_by_name = true)
            QUALIFY row_number() OVER (PARTITION BY "{key}", {stamp} ORDER BY {created} DESC) = 1
        )
        SELECT {selected}
        FROM moments e ASOF LEFT JOIN rows_of_view f ON e."{key}" = f."{key}" AND e.{stamp} >= f.{stamp}
        ORDER BY e.{ROW}
    """  # noqa: S608
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("moments", moments)
        return connection.sql(query, params=[f"{view.batch_source.path}/*.parquet"]).to_arrow_table()


def newest_rows(view: FeatureView, *, rows_at_once: int = 20_000) -> Iterator[pa.Table]:
    """Yields the newest row of each entity, in parts; nothing if there is no table yet."""
    (key,) = view.join_keys
    if view.name in views.HISTORY_SOURCES:
        for ids, times, lists in as_of.newest(views.HISTORY_SOURCES[view.name], Path(view.batch_source.path).parent):
            yield arrays.feature_rows(key, ids, times, lists, created=datetime.now(UTC))
        return
    files = f"{view.batch_source.path}/*.parquet"
    if not any(Path(view.batch_source.path).glob("*.parquet")):
        return
    stamp, created = columns.EVENT_TIMESTAMP, columns.CREATED_TIMESTAMP
    # Short columns select the rows, and only these are read in full.
    query = f"""
        WITH newest AS (
            SELECT "{key}" AS entity, max(row({stamp}, {created})) AS moment
            FROM read_parquet(?, union_by_name = true) GROUP BY ALL
        )
        SELECT f.* FROM read_parquet(?, union_by_name = true) f
        JOIN newest n ON f."{key}" = n.entity AND row(f.{stamp}, f.{created}) = n.moment
    """  # noqa: S608
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for batch in connection.sql(query, params=[files, files]).to_arrow_reader(rows_at_once):
            yield pa.Table.from_batches([batch])


class AsofOfflineStore(DuckDBOfflineStore):
    """Feast's DuckDB store with another retrieval of historical features."""

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str,
        registry: Any,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
    ) -> RetrievalJob:
        """Returns the features as of each row's event_timestamp. `entity_df`: a frame with the join keys and it."""
        if not isinstance(entity_df, pd.DataFrame):
            raise TypeError("give the examples as a pandas DataFrame")
        views = []
        for view in feature_views:
            prefix = f"{view.projection.name_to_use()}:"
            views.append((view, [ref.removeprefix(prefix) for ref in feature_refs if ref.startswith(prefix)]))
        examples = pa.Table.from_pandas(entity_df, preserve_index=False)
        return AsofRetrievalJob(examples, views, full_names=full_feature_names)

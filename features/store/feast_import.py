"""Imports the names that Headrace uses of Feast, without the parts that it does not use.

Feast 0.67 puts run-time type checks on its classes (typeguard rewrites their source at every start) and loads torch
when it is installed: 6 of the 9 seconds that its import takes on two cores, in each of our processes.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import typeguard


def _unchecked(target: Any = None, **options: Any) -> Any:
    return target if target is not None else lambda target: target


@contextlib.contextmanager
def _light() -> Iterator[None]:
    checked: Callable[..., Any] = typeguard.typechecked
    blocks_torch = "torch" not in sys.modules
    typeguard.typechecked = _unchecked
    if blocks_torch:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        typeguard.typechecked = checked
        if blocks_torch:
            del sys.modules["torch"]


with _light():
    from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.data_format import ParquetFormat
    from feast.infra.offline_stores.duckdb import DuckDBOfflineStore, DuckDBOfflineStoreConfig
    from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
    from feast.infra.online_stores.redis import RedisOnlineStoreConfig
    from feast.infra.online_stores.sqlite import SqliteOnlineStoreConfig
    from feast.on_demand_feature_view import OnDemandFeatureView
    from feast.protos.feast.types.Value_pb2 import Int64List, StringList, Value
    from feast.protos.feast.types.Value_pb2 import ValueType as WireType
    from feast.repo_config import RegistryConfig
    from feast.types import Array, FeastType, Float64, Int64, String

__all__ = [
    "Array",
    "DuckDBOfflineStore",
    "DuckDBOfflineStoreConfig",
    "Entity",
    "FeastType",
    "FeatureService",
    "FeatureStore",
    "FeatureView",
    "Field",
    "FileSource",
    "Float64",
    "Int64",
    "Int64List",
    "OnDemandFeatureView",
    "ParquetFormat",
    "RedisOnlineStoreConfig",
    "RegistryConfig",
    "RepoConfig",
    "RetrievalJob",
    "RetrievalMetadata",
    "SqliteOnlineStoreConfig",
    "String",
    "StringList",
    "Value",
    "ValueType",
    "WireType",
]

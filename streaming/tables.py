"""Where the jobs write: Parquet tables of the offline store, each file whole or absent, and dead letters.

A file is named after the micro-batch that wrote it, so that a micro-batch that runs twice writes it once.
"""

import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features import columns, events
from features.history import History, to_arrow
from infra import topics
from infra.log.client import EventLog

ROW_GROUP = 50_000
"""Rows that a reader can skip together: histories are written in order of time, and most readers want the end."""

ORIGIN = ("topic", "partition", "offset")
SHOP_EVENTS = "shop_events"
IMPRESSIONS = "impressions"
LABELS = "labels"

_STRINGS = ("user_id", "session_id", "order_id", "request_id")
SHOWN_ITEM = pa.struct(
    [
        ("item_id", pa.string()),
        ("position", pa.int32()),
        ("score", pa.float64()),
        ("source", pa.string()),
        ("propensity", pa.float64()),
    ]
)
SCHEMAS = {
    SHOP_EVENTS: columns.SHOP_EVENTS_SCHEMA,
    IMPRESSIONS: pa.schema(
        [
            ("event_id", pa.string()), ("event_time", pa.int64()), ("user_id", pa.string()),
            ("session_id", pa.string()), ("surface", pa.string()), ("model", pa.string()),
            ("experiment", pa.string()), ("variation", pa.string()), ("bucket", pa.int32()),
            ("degraded", pa.bool_()), ("items", pa.list_(SHOWN_ITEM)),
        ]
    ),
    LABELS: pa.schema(
        [
            ("event_id", pa.string()), ("transaction_id", pa.string()), ("event_time", pa.int64()),
            ("fraud", pa.bool_()),
        ]
    ),
}  # fmt: skip


def write_table(folder: Path, name: str, table: pa.Table) -> None:
    """Write `folder`/`name`.parquet, replacing it; a reader sees the old file or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    hidden = folder / f".{name}.new"
    pq.write_table(table, hidden, compression="zstd", compression_level=1, row_group_size=ROW_GROUP)
    os.replace(hidden, folder / f"{name}.parquet")


def as_schema(table: pa.Table, name: str) -> pa.Table:
    """The columns of a known table, in its types."""
    schema = SCHEMAS[name]
    return table.select(schema.names).cast(schema)


def feature_rows(
    key: str, ids: pa.Array, times: NDArray[np.int64], lists: dict[str, pa.Array], *, created: datetime
) -> pa.Table:
    """Rows of a history view: `ids` (strings) and `times` (ms) of shape [rows], `lists` by stored column name."""
    stamp = pa.timestamp("us", tz="UTC")
    return pa.table(
        {
            key: ids,
            **lists,
            columns.EVENT_TIMESTAMP: pa.array(times * 1000, pa.int64()).cast(stamp),
            columns.CREATED_TIMESTAMP: pa.repeat(pa.scalar(created, stamp), len(ids)),
        }
    )


def history_rows(
    key: str,
    ids: pa.Array,
    times: NDArray[np.int64],
    rows: History,
    *,
    created: datetime,
    vocabularies: Mapping[str, pa.Array] | None = None,
) -> pa.Table:
    """Rows of a history view; `vocabularies` as in features.history.to_arrow."""
    return feature_rows(key, ids, times, to_arrow(rows, vocabularies=vocabularies), created=created)


def dead_letter(log: EventLog, rejected: pa.Table) -> None:
    """Keep records that cannot be used (topic, partition, offset, value, reason), each under its origin."""
    rows = rejected.select([*ORIGIN, "value", "reason"]).to_pylist()
    letters = [
        events.dead_letter(*(row[name] for name in ORIGIN), value=row["value"], reason=row["reason"]) for row in rows
    ]
    log.append(topics.DEAD_LETTERS, letters)

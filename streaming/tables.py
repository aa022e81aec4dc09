"""Writes what the jobs produce: Parquet tables of the offline store, dead letters and status files.

A file is named after the micro-batch that wrote it, so that a micro-batch that runs twice writes it once.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from features.contract import columns, events
from features.contract.columns import IMPRESSIONS, LABELS, SHOP_EVENTS
from infra import topics
from infra.atomic_files import replacing
from infra.log.client import EventLog
from streaming.parsing import SHOWN_ITEM

ROW_GROUP = 50_000
"""Rows that a reader can skip together: tables are written in order of time, and most readers need only the end."""

ORIGIN = ("topic", "partition", "offset")

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
            ("fraud", pa.bool_()), ("terminal_id", pa.string()), ("transaction_time", pa.int64()),
        ]
    ),
}  # fmt: skip


def write_table(folder: Path, name: str, table: pa.Table) -> None:
    """Writes `folder`/`name`.parquet durably, replacing it; a reader sees the old file or the new one."""
    with replacing(folder / f"{name}.parquet") as hidden:
        pq.write_table(table, hidden, compression="zstd", compression_level=1, row_group_size=ROW_GROUP)


def write_status(path: Path, status: Mapping[str, object]) -> None:
    """Writes a status and its time to a JSON file."""
    with replacing(path) as hidden:
        hidden.write_text(json.dumps({"updated": datetime.now(UTC).isoformat(), **status}))


def as_schema(table: pa.Table, name: str) -> pa.Table:
    """Returns the columns of a table of SCHEMAS, in its types."""
    schema = SCHEMAS[name]
    return table.select(schema.names).cast(schema)


def dead_letter(log: EventLog, rejected: pa.Table) -> None:
    """Appends records that cannot be used (topic, partition, offset, value, reason) to the dead letters, each named
    after its origin."""
    rows = rejected.select([*ORIGIN, "value", "reason"]).to_pylist()
    letters = [
        events.dead_letter(*(row[name] for name in ORIGIN), value=row["value"], reason=row["reason"]) for row in rows
    ]
    log.append(topics.DEAD_LETTERS, letters)

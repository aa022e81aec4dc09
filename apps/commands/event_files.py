"""Reads your own CSV, Parquet or JSONL file as events, with a mapping from its columns to the fields of an event.

Every row is checked as POST /v1/events checks it; a row that is not an event comes back with the field and the reason.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from pydantic import ValidationError

from apps.commands.online_retail import DataError, Imported
from features.contract.columns import SHOP_EVENTS_SCHEMA
from features.contract.events import ACCEPTED, Transaction
from features.contract.timestamps import milliseconds

READERS = {
    ".csv": pyarrow.csv.read_csv,
    ".parquet": pyarrow.parquet.read_table,
    ".jsonl": pyarrow.json.read_json,
    ".ndjson": pyarrow.json.read_json,
}
TEXT_FIELDS = ("event_id", "user_id", "session_id", "item_id", "order_id", "title", "category")


def read(path: Path, *, mapping: dict[str, str], event_type: str | None) -> Imported:
    """Returns the events of a file. mapping: event field to column; event_type: of every row, where no column has it.

    Without an event_id column the file's name and the row's number make one, so that importing a file twice counts
    once. Times without an offset are taken as UTC. Raises DataError when the file or the mapping cannot be used.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path} is not a .csv, .parquet, .jsonl or .ndjson file")
    try:
        table = reader(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if unknown := [field for field in mapping if field not in (*SHOP_EVENTS_SCHEMA.names, "type")]:
        raise DataError(
            f"--map {unknown[0]}=…: events have no such field; they have {', '.join(SHOP_EVENTS_SCHEMA.names)}"
        )
    if absent := [column for column in mapping.values() if column not in table.column_names]:
        raise DataError(f"{path} has no column {absent[0]!r}; it has {', '.join(table.column_names)}")
    columns = {**{name: name for name in SHOP_EVENTS_SCHEMA.names if name in table.column_names}, **mapping}
    rows: list[dict[str, Any]] = []
    rejected: list[tuple[str, dict[str, Any]]] = []
    for number, line in enumerate(_lines(table)):
        raw = _event(line, columns, event_type=event_type, fallback_id=f"{path.name}:{number}")
        try:
            event = ACCEPTED.validate_python(raw)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"][1:]) or "type"
            rejected.append((f"{field}: {first['msg']}", line))
            continue
        if isinstance(event, Transaction):
            rejected.append(("type: send transactions to POST /v1/events", line))
            continue
        rows.append({**event.model_dump(), "event_time": milliseconds(event.event_time)})
    rows.sort(key=lambda row: row["event_time"])
    events = pa.Table.from_pylist(
        [{name: row.get(name) for name in SHOP_EVENTS_SCHEMA.names} for row in rows], SHOP_EVENTS_SCHEMA
    )
    total = max(1, len(rows) + len(rejected))
    return Imported(events, rejected, timedelta(0), {"accuracy": len(rows) / total})


def _lines(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=10_000):
        yield from batch.to_pylist()


def _event(
    line: dict[str, Any], columns: dict[str, str], *, event_type: str | None, fallback_id: str
) -> dict[str, Any]:
    event = {field: line[column] for field, column in columns.items() if line[column] is not None}
    event.setdefault("event_id", fallback_id)
    if event_type is not None:
        event.setdefault("type", event_type)
    for name in TEXT_FIELDS:
        if name in event:
            event[name] = str(event[name])
    moment = event.get("event_time")
    if isinstance(moment, datetime) and moment.tzinfo is None:
        event["event_time"] = moment.replace(tzinfo=UTC)
    elif isinstance(moment, str) and not moment.endswith("Z") and "+" not in moment[10:] and "-" not in moment[10:]:
        event["event_time"] = moment + "Z"
    return event

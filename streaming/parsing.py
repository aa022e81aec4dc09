"""Parses records of the log into columns of events, with the reason where a record is not an event. Does not know
Spark.

A block of records forms a JSON text with a line each, which Arrow reads at a few microseconds an event. If Arrow cannot
read a line, the lines around it are repaired one by one: a field of another type counts as missing, and what is no
object has no fields. Both are then rejected by the same rules as an event that lacks these fields.
"""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from features.history.point_in_time import arrival_order

LINES_AT_ONCE = 1_000
"""So many lines are repaired if one of them needs it."""
BLOCK_LINES = 65_536
BLOCK_BYTES = 4 << 20

_STAMP = pa.timestamp("us", tz="UTC")
SHOWN_ITEM = pa.struct(
    [
        ("item_id", pa.string()),
        ("position", pa.int32()),
        ("score", pa.float64()),
        ("source", pa.string()),
        ("propensity", pa.float64()),
    ]
)
EVENT_SCHEMA = pa.schema(
    [
        ("type", pa.string()), ("event_id", pa.string()), ("event_time", _STAMP), ("user_id", pa.string()),
        ("session_id", pa.string()), ("item_id", pa.string()), ("quantity", pa.float64()), ("price", pa.float64()),
        ("order_id", pa.string()), ("request_id", pa.string()), ("title", pa.string()), ("category", pa.string()),
        ("card_id", pa.string()), ("terminal_id", pa.string()), ("amount", pa.float64()), ("channel", pa.string()),
        ("transaction_id", pa.string()), ("fraud", pa.bool_()), ("transaction_time", _STAMP),
        ("surface", pa.string()), ("model", pa.string()), ("experiment", pa.string()), ("variation", pa.string()),
        ("bucket", pa.int32()), ("degraded", pa.bool_()), ("items", pa.list_(SHOWN_ITEM)),
    ]
)  # fmt: skip
"""Union of the fields of the events that the jobs read (features/contract/events.py; a test compares the two)."""

NEEDED = (
    (("item", "view", "cart", "purchase", "return"), ("item_id",)),
    (("transaction",), ("card_id", "terminal_id", "amount")),
    (("label",), ("transaction_id", "fraud")),
    (("impression",), ("surface", "items")),
)
"""Event types that the jobs read, and the fields without which they cannot be used."""
KNOWN = pa.array([name for event_types, _ in NEEDED for name in event_types])


def parse(records: pa.Table) -> pa.Table:
    """Parses records (topic, partition, offset, value, timestamp; other columns are ignored) into these columns, the
    fields of EVENT_SCHEMA with times in int64 ms, and `reason`: why a record is not an event of its topic, or null.

    `value` is kept only where there is a reason.
    """
    values = records["value"].combine_chunks()
    events = _read(values)
    reason = _reasons(events)
    for name in ("event_time", "transaction_time"):
        milliseconds = pc.divide(events[name].cast(pa.int64()), 1_000)
        events = events.set_column(events.column_names.index(name), name, milliseconds)
    kept = pc.if_else(pc.is_valid(reason), values, pa.scalar(None, values.type))
    origin = {name: records[name] for name in ("topic", "partition", "offset", "timestamp")}
    return pa.table({**origin, "value": kept, **{name: events[name] for name in events.column_names}, "reason": reason})


def in_order_of_arrival(records: pa.Table) -> pa.Table:
    """Sorts records of one topic (partition, offset, timestamp...) by their arrival."""
    keys = (records[name].to_numpy() for name in ("partition", "offset", "timestamp"))
    return records.take(pa.array(arrival_order(*keys)))


def _reasons(events: pa.Table) -> pa.Array:
    """Returns the first reason why each event cannot be used, null where it can."""
    event_type = events["type"]
    reasons = np.full(events.num_rows, None, dtype=object)

    def refuse(mask: pa.ChunkedArray, reason: str) -> None:
        reasons[pc.fill_null(mask, False).to_numpy().astype(bool) & (reasons == None)] = reason  # noqa: E711 - an array

    refuse(pc.invert(pc.is_in(event_type, KNOWN)), "unknown type")
    refuse(pc.or_(pc.is_null(events["event_id"]), pc.is_null(events["event_time"])), "no event_id or event_time")
    for event_types, fields in NEEDED:
        concerned = pc.is_in(event_type, pa.array(event_types))
        for field in fields:
            refuse(pc.and_(concerned, pc.is_null(events[field])), f"no {field}")
    return pa.array(reasons, pa.string())


def _read(values: pa.Array) -> pa.Table:
    """Parses each value into a row of EVENT_SCHEMA."""
    parts = [EVENT_SCHEMA.empty_table()]
    for block in _parts(values, BLOCK_LINES):
        whole = _lines(block)
        parts += [whole] if whole is not None else [_read_or_repair(part) for part in _parts(block, LINES_AT_ONCE)]
    return pa.concat_tables(parts)


def _parts(values: pa.Array, size: int) -> list[pa.Array]:
    return [values.slice(start, size) for start in range(0, len(values), size)]


def _read_or_repair(values: pa.Array) -> pa.Table:
    table = _lines(values)
    if table is not None:
        return table
    texts = values.cast(pa.binary()).to_pylist()
    repaired = _lines(pa.array([_repaired(text) for text in texts], pa.string()))
    assert repaired is not None
    return repaired


def _lines(values: pa.Array) -> pa.Table | None:
    """Parses the values as lines of a text; None if one of them is not the text of exactly one object.

    Lines that begin with { and end with } cannot merge unnoticed: the number of objects would differ.
    """
    alone = pc.and_(pc.starts_with(values, "{"), pc.ends_with(values, "}"))
    if values.null_count or not pc.all(alone).as_py() or pc.any(pc.match_substring(values, "\n")).as_py():
        return None
    joined = pc.binary_join(pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values), "\n")[0]
    try:
        table = pj.read_json(
            pa.BufferReader(joined.as_buffer()),
            read_options=pj.ReadOptions(block_size=max(BLOCK_BYTES, 2 * pc.max(pc.binary_length(values)).as_py())),
            parse_options=pj.ParseOptions(explicit_schema=EVENT_SCHEMA, unexpected_field_behavior="ignore"),
        )
    except pa.ArrowInvalid:
        return None
    finite = all(pc.all(pc.is_finite(table[name])).as_py() is not False for name in ("quantity", "price", "amount"))
    return table if finite and table.num_rows == len(values) else None


def _repaired(value: bytes | None) -> str:
    """Returns a JSON object of the usable fields of a value."""
    try:
        payload = orjson.loads((value or b"").decode("utf-8", "replace"))
    except orjson.JSONDecodeError:
        return "{}"
    return orjson.dumps(_fields(payload, EVENT_SCHEMA)).decode()


def _fields(payload: Any, fields: Any) -> dict[str, Any]:
    if not isinstance(payload, dict):
        return {}
    return {field.name: _fitting(payload.get(field.name), field.type) for field in fields}


def _fitting(value: Any, dtype: pa.DataType) -> Any:
    """Returns the value if it has the type of its field, else None."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if pa.types.is_string(dtype):
        return orjson.dumps(value).decode() if number else value if isinstance(value, str) else None
    if pa.types.is_floating(dtype):
        return value if number else None
    if pa.types.is_integer(dtype):
        return value if number and isinstance(value, int) and -(2**31) <= value < 2**31 else None
    if pa.types.is_boolean(dtype):
        return value if isinstance(value, bool) else None
    if pa.types.is_timestamp(dtype):
        return _moment(value)
    if not isinstance(value, list):
        return None
    return [_fields(element, dtype.value_type) for element in value]


def _moment(value: Any) -> str | None:
    try:
        moment = datetime.fromisoformat(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC).isoformat()
    except (TypeError, ValueError, OverflowError):
        return None

"""Records of the log into columns of events, and why a record cannot be one. Arrow alone: knows nothing of Spark.

A block of records is one JSON text of a line each, which Arrow reads at a few microseconds an event. Where it finds a
line that it cannot read, the lines around it are mended one by one: a field of another type counts as missing, what is
no object at all has no fields, and both are then told by the same rules as an event that lacks them.
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
"""So many lines are mended for one that needs it."""
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
KNOWN = pa.array([kind for kinds, _ in NEEDED for kind in kinds])


def parse(records: pa.Table) -> pa.Table:
    """Records (topic, partition, offset, value, timestamp; more is passed over) to those columns, the fields of
    EVENT_SCHEMA with times in int64 ms, and `reason`: why a record cannot be an event of its topic, or null.

    `value` is kept only where there is a reason.
    """
    values = records["value"].combine_chunks()
    events = _read(values)
    reason = _reasons(events)
    for name in ("event_time", "transaction_time"):
        milliseconds = pc.divide(events[name].cast(pa.int64()), 1_000)
        events = events.set_column(events.column_names.index(name), name, milliseconds)
    kept = pc.if_else(pc.is_valid(reason), values, pa.scalar(None, values.type))
    places = {name: records[name] for name in ("topic", "partition", "offset", "timestamp")}
    return pa.table({**places, "value": kept, **{name: events[name] for name in events.column_names}, "reason": reason})


def in_order_of_arrival(records: pa.Table) -> pa.Table:
    """Records of one topic (partition, offset, timestamp...) as they came."""
    places = (records[name].to_numpy() for name in ("partition", "offset", "timestamp"))
    return records.take(pa.array(arrival_order(*places)))


def _reasons(events: pa.Table) -> pa.Array:
    """Why each event cannot be used, null where it can; the first reason that applies."""
    kind = events["type"]
    reasons = np.full(events.num_rows, None, dtype=object)

    def refuse(mask: pa.ChunkedArray, reason: str) -> None:
        reasons[pc.fill_null(mask, False).to_numpy().astype(bool) & (reasons == None)] = reason  # noqa: E711 - an array

    refuse(pc.invert(pc.is_in(kind, KNOWN)), "unknown type")
    refuse(pc.or_(pc.is_null(events["event_id"]), pc.is_null(events["event_time"])), "no event_id or event_time")
    for kinds, fields in NEEDED:
        these = pc.is_in(kind, pa.array(kinds))
        for field in fields:
            refuse(pc.and_(these, pc.is_null(events[field])), f"no {field}")
    return pa.array(reasons, pa.string())


def _read(values: pa.Array) -> pa.Table:
    """One row of EVENT_SCHEMA a value."""
    parts = [EVENT_SCHEMA.empty_table()]
    for block in _parts(values, BLOCK_LINES):
        whole = _lines(block)
        parts += [whole] if whole is not None else [_read_or_mend(part) for part in _parts(block, LINES_AT_ONCE)]
    return pa.concat_tables(parts)


def _parts(values: pa.Array, size: int) -> list[pa.Array]:
    return [values.slice(start, size) for start in range(0, len(values), size)]


def _read_or_mend(values: pa.Array) -> pa.Table:
    found = _lines(values)
    if found is not None:
        return found
    texts = values.cast(pa.binary()).to_pylist()
    mended = _lines(pa.array([_mended(text) for text in texts], pa.string()))
    assert mended is not None
    return mended


def _lines(values: pa.Array) -> pa.Table | None:
    """The values as lines of one text; None where one of them is not the text of exactly one object.

    Objects that begin with { and end with } in their own line cannot run into one another: their number tells.
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


def _mended(value: bytes | None) -> str:
    """A JSON object of what can be used of a value."""
    try:
        told = orjson.loads((value or b"").decode("utf-8", "replace"))
    except orjson.JSONDecodeError:
        return "{}"
    return orjson.dumps(_fields(told, EVENT_SCHEMA)).decode()


def _fields(told: Any, fields: Any) -> dict[str, Any]:
    if not isinstance(told, dict):
        return {}
    return {field.name: _fitting(told.get(field.name), field.type) for field in fields}


def _fitting(value: Any, kind: pa.DataType) -> Any:
    """The value, if it is one of its field; else None."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if pa.types.is_string(kind):
        return orjson.dumps(value).decode() if number else value if isinstance(value, str) else None
    if pa.types.is_floating(kind):
        return value if number else None
    if pa.types.is_integer(kind):
        return value if number and isinstance(value, int) and -(2**31) <= value < 2**31 else None
    if pa.types.is_boolean(kind):
        return value if isinstance(value, bool) else None
    if pa.types.is_timestamp(kind):
        return _moment(value)
    if not isinstance(value, list):
        return None
    return [_fields(one, kind.value_type) for one in value]


def _moment(value: Any) -> str | None:
    try:
        moment = datetime.fromisoformat(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC).isoformat()
    except (TypeError, ValueError, OverflowError):
        return None

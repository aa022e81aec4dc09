"""Records become events, or are refused with the reason, whatever stands beside them."""

import json
from datetime import datetime
from typing import Any, Literal, get_args, get_origin

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AwareDatetime, BaseModel

from features.contract import events
from features.contract.timestamps import milliseconds
from streaming import parsing
from streaming.parsing import EVENT_SCHEMA, NEEDED, in_order_of_arrival, parse
from streaming.source import READ_TOPICS

READ = (
    events.ItemListed, events.ItemViewed, events.ItemAddedToCart, events.ItemPurchased, events.ItemReturned,
    events.Transaction, events.Label, events.Impression,
)  # fmt: skip
ARROW_TYPES: dict[object, pa.DataType] = {
    str: pa.string(), float: pa.float64(), int: pa.int32(), bool: pa.bool_(),
    AwareDatetime: pa.timestamp("us", tz="UTC"),
}  # fmt: skip
TIME = "2026-11-22T10:15:00.120Z"
COMMON = {"event_id": "e", "event_time": TIME}


def arrow_type(annotation: object) -> pa.DataType:
    """What a field of an event is in Arrow."""
    kind, held = get_origin(annotation), [part for part in get_args(annotation) if part is not type(None)]
    if kind is tuple:
        return pa.list_(arrow_type(held[0]))
    if kind is Literal:
        return ARROW_TYPES[type(held[0])]
    if kind is not None:  # Annotated, or a field that may be absent
        return arrow_type(held[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return pa.struct([(name, arrow_type(field.annotation)) for name, field in annotation.model_fields.items()])
    return ARROW_TYPES[annotation]


def test_the_schema_is_the_union_of_the_events_that_are_read() -> None:
    theirs = {name: arrow_type(field.annotation) for model in READ for name, field in model.model_fields.items()}
    assert theirs.pop("schema_version") == pa.int32()  # there is one version so far
    assert theirs.pop("scored") == pa.bool_()  # the stream folds a payment whoever scored it
    assert theirs.pop("http_request_id") == pa.string()  # whose call it was is for the alert desk
    assert {field.name: field.type for field in EVENT_SCHEMA} == theirs


def test_every_event_of_the_topics_that_are_read_is_known_with_fields_that_exist() -> None:
    kinds = {kind for kinds, _ in NEEDED for kind in kinds}
    assert kinds == {kind for kind, topic in events.TOPIC_OF.items() if topic in READ_TOPICS}
    by_kind = {get_args(model.model_fields["type"].annotation)[0]: model for model in READ}
    for kinds_of, fields in NEEDED:
        assert all(by_kind[kind].model_fields[field].is_required() for kind in kinds_of for field in fields)


VIEW = {**COMMON, "type": "view", "item_id": "i"}
RECORDS: dict[str, tuple[Any, str | None]] = {
    "good": ({"type": "view", "item_id": "i"}, None),
    "half": ('{"type": "view", "event_id"', "unknown type"),
    "no object": ("[1, 2]", "unknown type"),
    "nothing": ("", "unknown type"),
    "null": (None, "unknown type"),
    "other type": ({"type": "refund"}, "unknown type"),
    "not read": ({"type": "decision"}, "unknown type"),
    "no id": ({"type": "view", "item_id": "i", "event_id": None}, "no event_id or event_time"),
    "no time": ({"type": "view", "item_id": "i", "event_time": "yesterday"}, "no event_id or event_time"),
    "a number for a time": ({"type": "view", "item_id": "i", "event_time": 5}, "no event_id or event_time"),
    "no item": ({"type": "purchase"}, "no item_id"),
    "no card": ({"type": "transaction", "terminal_id": "t", "amount": 1}, "no card_id"),
    "no amount": ({"type": "transaction", "terminal_id": "t", "card_id": "c"}, "no amount"),
    "text for an amount": ({"type": "transaction", "terminal_id": "t", "card_id": "c", "amount": "1"}, "no amount"),
    "no number": ({"type": "transaction", "terminal_id": "t", "card_id": "c", "amount": float("nan")}, "unknown type"),
    "no fraud": ({"type": "label", "transaction_id": "x"}, "no fraud"),
    "no items": ({"type": "impression", "surface": "home"}, "no items"),
    "offset of time": ({"type": "view", "item_id": "i", "event_time": "2026-11-22T11:15:00.120+01:00"}, None),
    "nanoseconds": ({"type": "view", "item_id": "i", "event_time": "2026-11-22T10:15:00.120000000Z"}, None),
    "more": ({"type": "view", "item_id": "i", "more": {"deep": [{}]}}, None),
    "spread out": (json.dumps(VIEW, indent=2), None),
    "two": (json.dumps(VIEW) * 2, "unknown type"),
    "a field twice": ('{"type": "cart", ' + json.dumps(VIEW)[1:], None),
    "half a sign": (json.dumps(VIEW).replace('"i"', '"\\ud800"'), "unknown type"),
}


def text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps({**COMMON, **value})


def records(values: list[str | None]) -> pa.Table:
    count = len(values)
    return pa.table(
        {
            "topic": ["t"] * count, "partition": [0] * count, "offset": list(range(count)),
            "key": ["k"] * count, "value": pa.array(values, pa.string()), "timestamp": [0] * count,
        }
    )  # fmt: skip


def test_records_are_told_from_events_with_a_reason() -> None:
    values = [text(value) for value, _ in RECORDS.values()]
    parsed = parse(records(values)).to_pylist()
    assert {name: row["reason"] for name, row in zip(RECORDS, parsed, strict=True)} == {
        name: reason for name, (_, reason) in RECORDS.items()
    }
    assert [row["value"] for row in parsed] == [
        None if row["reason"] is None else value for row, value in zip(parsed, values, strict=True)
    ]
    good = [row for row in parsed if row["reason"] is None]
    assert {row["event_time"] for row in good} == {milliseconds(datetime.fromisoformat(TIME))}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(list(RECORDS)), max_size=12), st.integers(1, 5))
def test_what_stands_beside_a_record_makes_no_difference(names: list[str], at_once: int) -> None:
    alone = {name: parse(records([text(RECORDS[name][0])])).to_pylist()[0] for name in set(names)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parsing, "LINES_AT_ONCE", at_once)
        patch.setattr(parsing, "BLOCK_LINES", 2 * at_once + 1)
        together = parse(records([text(RECORDS[name][0]) for name in names])).to_pylist()
    assert [{**row, "offset": 0} for row in together] == [alone[name] for name in names]


def test_a_number_may_stand_for_a_name_and_nothing_else_may() -> None:
    odd = {**VIEW, "user_id": 17850, "quantity": "2", "price": 3, "session_id": ["s"], "bucket": 2**40}
    shown = {**COMMON, "type": "impression", "surface": "home", "degraded": "no", "items": [{"item_id": 5}, 7]}
    first, second = parse(records([json.dumps(odd), json.dumps(shown)])).to_pylist()
    assert (first["user_id"], first["quantity"], first["price"]) == ("17850", None, 3.0)
    assert (first["session_id"], first["bucket"]) == (None, None)
    assert second["degraded"] is None
    assert [item["item_id"] for item in second["items"]] == ["5", None]


def test_nothing_becomes_nothing() -> None:
    parsed = parse(records([]))
    assert parsed.num_rows == 0
    assert set(EVENT_SCHEMA.names) < set(parsed.column_names)


def test_records_of_several_partitions_are_put_in_the_order_of_their_arrival() -> None:
    # Partition 1 has a clock that went back: its own order stays.
    rows = [(1, 7, 50), (0, 3, 20), (1, 8, 30), (0, 2, 10), (1, 9, 60), (2, 0, 55), (0, 4, 70)]
    table = pa.table(dict(zip(("partition", "offset", "timestamp"), map(list, zip(*rows, strict=True)), strict=True)))
    ordered = in_order_of_arrival(table)
    assert list(zip(ordered["partition"].to_pylist(), ordered["offset"].to_pylist(), strict=True)) == [
        (0, 2), (0, 3), (1, 7), (1, 8), (2, 0), (1, 9), (0, 4),
    ]  # fmt: skip
    assert in_order_of_arrival(table.slice(0, 0)).num_rows == 0

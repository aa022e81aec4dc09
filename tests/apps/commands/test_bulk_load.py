"""A history is appended in order, as the API would store it, with dead letters and a part held out."""

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from apps.commands import bulk_load
from apps.commands.bulk_load import append_dead_letters, append_events, split_at, write_holdout
from features.contract.columns import SHOP_EVENTS_SCHEMA
from features.contract.events import ACCEPTED
from features.contract.timestamps import milliseconds, rfc3339
from infra import topics
from infra.log.client import START
from infra.log.files import FileLog


def row(event_id: str, moment: int = 1_795_000_000_123, **more: Any) -> dict[str, Any]:
    usual = {"type": "purchase", "user_id": "u", "item_id": "i", "quantity": 2.0, "price": 1.5, "order_id": "o"}
    return dict.fromkeys(SHOP_EVENTS_SCHEMA.names) | usual | {"event_id": event_id, "event_time": moment} | more


def table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), SHOP_EVENTS_SCHEMA)


def test_events_are_appended_in_order_as_the_api_would_store_them(log: FileLog, monkeypatch: Any) -> None:
    monkeypatch.setattr(bulk_load, "CHUNK", 2)
    item = row("item:i", type="item", user_id=None, quantity=None, order_id=None, title="Ä")
    visit = row("v", type="view", user_id=None, session_id="s", order_id=None)
    progress: list[int] = []
    assert append_events(log, table(item, row("a"), row("b"), visit), on_progress=progress.append) == 4
    records = log.read(topics.SHOP, START)
    assert [record.key for record in records] == ["i", "u", "u", "s"]
    assert progress == [2, 2]
    events = [ACCEPTED.validate_json(record.value) for record in records]
    assert [event.event_id for event in events] == ["item:i", "a", "b", "v"]
    assert {milliseconds(event.event_time) for event in events} == {1_795_000_000_123}
    assert "session_id" not in orjson.loads(records[1].value)
    assert append_events(log, table()) == 0


def test_moments_are_written_in_utc() -> None:
    assert rfc3339(1_795_000_000_120) == "2026-11-18T11:06:40.120Z"
    assert rfc3339(0) == "1970-01-01T00:00:00.000Z"


def test_dead_letters_keep_the_line_the_reason_and_the_origin(log: FileLog, monkeypatch: Any) -> None:
    monkeypatch.setattr(bulk_load, "CHUNK", 2)
    line = {"CustomerID": float("nan"), "InvoiceDate": pd.Timestamp("2011-12-01 08:26"), "Quantity": np.int64(3).item()}
    letters = [("no customer", line), ("price", {"a": None}), ("price", {})]
    assert append_dead_letters(log, letters, origin="online-retail") == 3
    first, *rest = log.read(topics.DEAD_LETTERS, START)
    assert first.key == "no customer"
    assert orjson.loads(first.value) == {
        "reason": "no customer",
        "origin": {"import": "online-retail"},
        "value": {"CustomerID": None, "InvoiceDate": "2011-12-01 08:26:00", "Quantity": 3},
    }
    assert [record.key for record in rest] == ["price", "price"]


def test_the_held_out_part_begins_at_the_moment_and_the_catalogue_stays(tmp_path: Path) -> None:
    late = row("item:i", 30, type="item", user_id=None)
    early, later = split_at(table(late, row("a", 10), row("b", 20), row("c", 21)), 20)
    assert early["event_id"].to_pylist() == ["item:i", "a"]
    assert later["event_id"].to_pylist() == ["b", "c"]
    write_holdout(tmp_path / "new" / "holdout", later)
    assert pq.read_table(tmp_path / "new" / "holdout" / "shop_events.parquet").equals(later)

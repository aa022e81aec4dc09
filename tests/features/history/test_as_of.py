"""What a history held at a moment, read from tables of events, is what a plain reading of the events says."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.contract import columns
from features.contract.timestamps import DAY
from features.history import arrays, as_of
from features.history.arrays import hash_ids
from features.store import views

CAP, HORIZON = 3, 50
USERS = ["ann", "bob", "session:s"]
SHOP = pa.schema(
    [
        ("type", pa.string()), ("event_id", pa.string()), ("event_time", pa.int64()), ("user_id", pa.string()),
        ("session_id", pa.string()), ("item_id", pa.string()), ("quantity", pa.float64()), ("price", pa.float64()),
    ]
)  # fmt: skip
EVENTS = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.sampled_from([*columns.EVENT_TYPE_CODES, "item"]),
            "event_id": st.sampled_from([f"e{number}" for number in range(40)]),
            "event_time": st.integers(0, 120),
            "user_id": st.sampled_from(["ann", "bob", None]),
            "session_id": st.sampled_from(["s", None]),
            "item_id": st.sampled_from(["a", "b"]),
            "quantity": st.sampled_from([2.0, None]),
            "price": st.sampled_from([1.5, None]),
        }
    ),
    max_size=25,
)
Event = dict[str, Any]


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("offline")


def sources(view: str) -> list[as_of.HistorySource]:
    return [dataclasses.replace(source, cap=CAP, horizon=HORIZON) for source in views.HISTORY_SOURCES[view]]


def keep(offline: Path, *batches: list[Event]) -> None:
    folder = offline / columns.SHOP_EVENTS
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for number, rows in enumerate(batches):
        pq.write_table(pa.Table.from_pylist(rows, SHOP), folder / f"batch-{number:02d}.parquet")


def naive(events: list[Event], user: str, moment: int) -> list[tuple[int, str, float]]:
    """(time, event, quantity) of what the user's history held."""
    first: dict[str, Event] = {}
    for event in events:
        visitor = event["user_id"] or (event["session_id"] and f"session:{event['session_id']}")
        if visitor == user and event["type"] in columns.EVENT_TYPE_CODES:
            first.setdefault(event["event_id"], event)
    order = {name: int(hash_ids([name])[0]) for name in first}
    seen = sorted(
        (event["event_time"], order[name], name) for name, event in first.items() if event["event_time"] <= moment
    )
    kept = [entry for entry in seen if entry[0] > seen[-1][0] - HORIZON][-CAP:]
    return [(time, name, first[name]["quantity"] or 1.0) for time, _, name in kept]


def history_of(lists: dict[str, pa.Array], row: int) -> list[tuple[int, int, float]] | None:
    values = [lists[name][row].as_py() for name in (columns.TIMES, columns.EVENT_HASHES, columns.QUANTITIES)]
    return None if values[0] is None else list(zip(*values, strict=True))


@settings(max_examples=60, deadline=None)
@given(EVENTS, EVENTS, st.lists(st.tuples(st.sampled_from([*USERS, "nobody"]), st.integers(-1, 130)), min_size=1))
def test_a_history_is_what_it_was(
    offline: Path, first: list[Event], second: list[Event], asked: list[tuple[str, int]]
) -> None:
    keep(offline, first, second)
    users, moments = zip(*asked, strict=True)
    lists = as_of.as_of(
        sources(views.USER_HISTORY), offline, pa.chunked_array([list(users)]), np.array(moments, dtype=np.int64)
    )
    for row, (user, moment) in enumerate(asked):
        expected = [(t, int(hash_ids([e])[0]), q) for t, e, q in naive(first + second, user, moment)]
        assert (history_of(lists, row) or []) == expected
        assert (history_of(lists, row) is None) == (not expected)


@settings(max_examples=30, deadline=None)
@given(EVENTS, st.sampled_from([700, 2_000, 10**9]))
def test_the_newest_rows_are_everyones_in_parts_of_any_size(offline: Path, events: list[Event], at_once: int) -> None:
    keep(offline, events)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(as_of, "BYTES_AT_ONCE", at_once)
        rows = {
            user: (int(times[row]), history_of(lists, row))
            for ids, times, lists in as_of.newest(sources(views.USER_HISTORY), offline)
            for row, user in enumerate(ids.to_pylist())
        }
    expected = {user: naive(events, user, 10**6) for user in USERS}
    assert rows == {
        user: (entries[-1][0], [(t, int(hash_ids([e])[0]), q) for t, e, q in entries])
        for user, entries in expected.items()
        if entries
    }


def test_a_terminal_has_its_payments_and_its_frauds(offline: Path) -> None:
    payments = [(f"p{number}", number * DAY) for number in range(4)]
    payments = {
        columns.TRANSACTION: [name for name, _ in payments],
        columns.EVENT_TIMESTAMP: pa.array([time * 1000 for _, time in payments], pa.timestamp("us", tz="UTC")),
        columns.CARD: ["c", "c", "d", "c"], columns.TERMINAL: ["t"] * 4, "amount": [1.0, 2.0, 3.0, 4.0],
    }  # fmt: skip
    labels = {
        columns.TRANSACTION: ["p1", "p2", "x"], "event_time": [9 * DAY, 9 * DAY, 9 * DAY],
        columns.TERMINAL: ["t", "t", "u"], "fraud": [True, False, True], "transaction_time": [DAY, 2 * DAY, None],
    }  # fmt: skip
    for table, rows in ((views.TRANSACTION_FEATURES, payments), (columns.LABELS, labels)):
        (offline / table).mkdir()
        pq.write_table(pa.table(rows), offline / table / "batch-0.parquet")
    ((ids, times, lists),) = as_of.newest(views.HISTORY_SOURCES[views.TERMINAL_HISTORY], offline)
    rows = {
        name: (time, {column: lists[column][row].as_py() for column in lists})
        for row, (name, time) in enumerate(zip(ids.to_pylist(), times.tolist(), strict=True))
    }
    assert set(rows["t"][1]) == {*arrays.TERMINAL_COLUMNS, *views.FRAUD_LISTS}
    assert rows["t"][0] == 3 * DAY
    assert rows["t"][1][columns.COUNTERPARTIES] == ["c", "c", "d", "c"]
    assert (rows["t"][1][columns.FRAUD_TIMES], rows["t"][1][columns.FRAUD_KNOWN_TIMES]) == ([DAY], [9 * DAY])
    assert (rows["u"][0], rows["u"][1][columns.TIMES], rows["u"][1][columns.FRAUD_TIMES]) == (9 * DAY, [], [9 * DAY])
    ((cards, _, _),) = as_of.newest(views.HISTORY_SOURCES[views.CARD_HISTORY], offline)
    assert sorted(cards.to_pylist()) == ["c", "d"]

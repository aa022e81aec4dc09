"""Micro-batches folded into histories on a real feature store: once each, in any order, and never from the future."""

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from features.contract import columns
from features.contract.timestamps import DAY, HOUR
from features.fraud import velocity
from features.history import arrays
from features.store import feature_store, views
from infra.settings import Settings
from streaming import tables
from streaming.histories import HistoryWriter

START = 20_000 * DAY
SHOP = {"type": pa.string(), "event_id": pa.string(), "event_time": pa.int64(), "user_id": pa.string(),
        "session_id": pa.string(), "item_id": pa.string(), "quantity": pa.float64(), "price": pa.float64()}  # fmt: skip
PAYMENT = {"event_id": pa.string(), "event_time": pa.int64(), "card_id": pa.string(), "terminal_id": pa.string(),
           "amount": pa.float64(), "channel": pa.string()}  # fmt: skip
LABEL = {"transaction_id": pa.string(), "event_time": pa.int64(), "terminal_id": pa.string(), "fraud": pa.bool_(),
         "transaction_time": pa.int64()}  # fmt: skip


def table(columns_of: dict[str, pa.DataType], *rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), pa.schema(columns_of))


def bought(event_id: str, hours: float, *, user: str | None = "ann", item: str = "", **more: Any) -> dict[str, Any]:
    event = {"type": "purchase", "event_id": event_id, "event_time": START + int(hours * HOUR), "user_id": user}
    return {**event, "item_id": item or event_id, "quantity": 2.0, "price": 1.5} | more


def paid(event_id: str, hours: float, *, card: str = "c", terminal: str = "t", amount: float = 10.0) -> dict[str, Any]:
    event = {"event_id": event_id, "event_time": START + int(hours * HOUR), "card_id": card, "channel": "chip"}
    return {**event, "terminal_id": terminal, "amount": amount}


def keep(settings: Settings, name: str, rows: pa.Table, *, batch: str) -> None:
    """Events in their table, as the job keeps them before it folds them."""
    if rows.num_rows:
        tables.write_table(settings.offline_dir / name, batch, whole(name, rows))


def whole(name: str, rows: pa.Table) -> pa.Table:
    """Rows with all columns of their table."""
    for field in tables.SCHEMAS[name]:
        if field.name not in rows.column_names:
            rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))
    return tables.as_schema(rows, name)


class Job:
    """Histories on a store of its own, batch after batch."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(data_dir=folder)
        self.feast = feature_store.open_store(self.settings)
        self.histories = HistoryWriter(self.feast, self.settings)
        self.batches = 0

    def _next(self, batch: int | None) -> dict[str, Any]:
        self.batches += 1
        return {
            "batch": f"batch-{self.batches if batch is None else batch}",
            "created": datetime.fromtimestamp(2e9 + self.batches, tz=UTC),
        }

    def shop(self, *events: dict[str, Any], batch: int | None = None) -> None:
        named, rows = self._next(batch), table(SHOP, *events)
        keep(self.settings, "shop_events", rows, batch=named["batch"])
        self.histories.fold_users(rows, created=named["created"])

    def pay(self, *payments: dict[str, Any], labels: tuple[dict[str, Any], ...] = (), batch: int | None = None) -> None:
        named, known = self._next(batch), table(LABEL, *labels)
        keep(self.settings, "labels", known, batch=named["batch"])
        self.histories.fold_payments(table(PAYMENT, *payments), known, **named)

    def now(self, view: str, key: str) -> dict[str, Any]:
        return feature_store.online_rows(self.feast, view, [key])[0]

    def items(self, user: str = "ann") -> list[str] | None:
        items: list[str] | None = self.now(views.USER_HISTORY, user)[columns.ITEMS]
        return items

    def items_at(self, *hours: float, user: str = "ann", before: bool = False) -> list[list[str] | None]:
        moments = pd.to_datetime([START + int(hour * HOUR) for hour in hours], unit="ms", utc=True)
        frame = pd.DataFrame({columns.USER: [user] * len(hours), columns.EVENT_TIMESTAMP: moments})
        rows = feature_store.historical(self.feast, views.USER_SERVICE, frame, before=before)
        items: list[list[str] | None] = rows[f"{views.USER_HISTORY}__{columns.ITEMS}"].to_pylist()
        return items

    def features(self) -> dict[str, dict[str, float]]:
        """Transaction to its features, the newest row of each."""
        rows = ds.dataset(self.settings.offline_dir / views.TRANSACTION_FEATURES).to_table().to_pandas()
        newest = rows.sort_values(columns.CREATED_TIMESTAMP).drop_duplicates(columns.TRANSACTION, keep="last")
        kept: dict[str, dict[str, float]] = newest.set_index(columns.TRANSACTION)[list(velocity.FEATURES)].T.to_dict()
        return kept


def shorten(monkeypatch: pytest.MonkeyPatch, cap: int) -> None:
    """Have user histories hold no more than `cap` entries."""
    monkeypatch.setattr(arrays, "USER_CAP", cap)
    (source,) = views.HISTORY_SOURCES[views.USER_HISTORY]
    monkeypatch.setitem(views.HISTORY_SOURCES, views.USER_HISTORY, (dataclasses.replace(source, cap=cap),))


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_a_user_and_an_anonymous_session_have_histories(job: Job) -> None:
    job.shop(
        bought("a", 0, price=None, quantity=None), bought("b", 1, type="return"),
        bought("v", 2, user=None, session_id="s", type="view"), bought("lost", 3, user=None),
        bought("listed", 3, type="item"),
    )  # fmt: skip
    ann = job.now(views.USER_HISTORY, "ann")
    assert ann[columns.ITEMS] == ["a", "b"]
    assert (ann[columns.PRICES], ann[columns.QUANTITIES], ann[columns.EVENT_TYPES]) == ([0.0, 1.5], [1.0, 2.0], [2, 3])
    assert ann[columns.TIMES] == [START, START + HOUR]
    assert (job.items("session:s"), job.items("s")) == (["v"], None)
    assert job.items_at(0, 1, 99) == [["a"], ["a", "b"], ["a", "b"]]


def test_batches_add_up_and_a_planted_future_event_does_not_leak(job: Job) -> None:
    job.shop(bought("a", 0), bought("b", 1))
    job.shop(bought("c", 2))
    moments = (0.0, 1.0, 1.5, 2.0, 47.0)
    without = job.items_at(*moments, before=True)
    assert without == [None, ["a"], ["a", "b"], ["a", "b"], ["a", "b", "c"]]
    job.shop(bought("future", 48))
    assert job.items_at(*moments, before=True) == without
    assert job.items_at(48, before=True) == [["a", "b", "c"]]
    assert job.items() == ["a", "b", "c", "future"]


def test_a_late_event_restates_what_comes_after_it(job: Job) -> None:
    job.shop(bought("a", 0), bought("c", 2), bought("d", 3))
    job.shop(bought("late", 1))
    assert job.items() == ["a", "late", "c", "d"]
    assert job.items_at(0.5, 1, 2, 3) == [["a"], ["a", "late"], ["a", "late", "c"], ["a", "late", "c", "d"]]


def test_a_batch_that_runs_again_changes_nothing(job: Job) -> None:
    job.shop(bought("a", 0))
    events = [bought("b", 1), bought("b", 1), bought("c", 2), bought("x", 1, user="bob")]
    for _ in range(3):
        job.shop(*events, batch=7)
        assert (job.items(), job.items("bob")) == (["a", "b", "c"], ["x"])
        assert job.items_at(0, 1, 2) == [["a"], ["a", "b"], ["a", "b", "c"]]
    job.shop(*events, batch=8)  # the same events once more, as new records
    assert job.items_at(0, 1, 2) == [["a"], ["a", "b"], ["a", "b", "c"]]


@pytest.mark.parametrize("crash", ["before online", "after online"])
def test_a_batch_that_was_cut_off_is_made_whole(job: Job, monkeypatch: pytest.MonkeyPatch, crash: str) -> None:
    write: Callable[..., None] = feature_store.write_online

    def cut_off(*arguments: Any) -> None:
        if crash == "after online":
            write(*arguments)
        raise KeyboardInterrupt

    job.shop(bought("a", 0))
    with monkeypatch.context() as patch:
        patch.setattr("streaming.histories.write_online", cut_off)
        with pytest.raises(KeyboardInterrupt):
            job.shop(bought("b", 1), batch=5)
    job.shop(bought("b", 1), batch=5)
    assert (job.items(), job.items_at(0, 1)) == (["a", "b"], [["a"], ["a", "b"]])


def test_what_a_full_history_has_forgotten_may_come_again_without_harm(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten(monkeypatch, 4)
    events = [bought(f"e{number}", number // 2) for number in range(12)]  # two events an hour
    job.shop(*events)
    hours = range(6)
    expected = job.items_at(*hours)
    assert [sorted(state or ()) for state in expected[:3]] == [
        ["e0", "e1"],
        ["e0", "e1", "e2", "e3"],
        ["e2", "e3", "e4", "e5"],
    ]
    for part in (events[:3], events[3:8], events):
        job.shop(*part)
        assert job.items_at(*hours) == expected
    job.shop(bought("new", 5))
    assert len(job.items() or ()) == 4


def test_more_events_at_one_moment_than_a_history_holds_do_not_block_it(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten(monkeypatch, 4)
    job.shop(*(bought(f"a{number}", 0) for number in range(6)))
    job.shop(*(bought(f"b{number}", 0) for number in range(6)))
    order = {f"{letter}{number}" for letter in "ab" for number in range(6)}
    kept = sorted(order, key=lambda name: arrays.hash_ids([name])[0])[-4:]
    assert sorted(job.items() or ()) == sorted(kept)


def test_payments_get_features_from_what_was_there_then(job: Job) -> None:
    job.pay(paid("p1", 0, amount=10), paid("p2", 1, amount=30), paid("q", 1, card="d"))
    job.pay(paid("p3", 2, amount=5, terminal="u"))
    features = job.features()
    assert {name: features[name]["card_count_24h"] for name in features} == {"p1": 1, "p2": 2, "p3": 3, "q": 1}
    assert {name: features[name]["card_sum_24h"] for name in features} == {"p1": 10, "p2": 40, "p3": 45, "q": 10}
    assert {name: features[name]["terminal_count_24h"] for name in features} == {"p1": 1, "p2": 2, "p3": 1, "q": 3}
    assert {name: features[name]["terminal_new"] for name in features} == {"p1": 1, "p2": 0, "p3": 1, "q": 1}
    assert job.now(views.CARD_HISTORY, "c")[columns.COUNTERPARTIES] == ["t", "t", "u"]
    assert sorted(job.now(views.TERMINAL_HISTORY, "t")[columns.COUNTERPARTIES]) == ["c", "c", "d"]


def test_payments_and_labels_that_come_again_change_nothing(job: Job) -> None:
    label = {"transaction_id": "p1", "event_time": START + 3 * HOUR, "terminal_id": "t", "fraud": True}
    good = {"transaction_id": "p2", "event_time": START + 3 * HOUR, "terminal_id": "t", "fraud": False}
    payments = (paid("p1", 0), paid("p2", 1), paid("p2", 1))

    def state() -> tuple[Any, ...]:
        return job.now(views.CARD_HISTORY, "c"), job.now(views.TERMINAL_HISTORY, "t"), job.features()

    job.pay(*payments, labels=(label, good), batch=3)
    first = state()
    assert first[1][columns.FRAUD_TIMES] == [START + 3 * HOUR]  # without a transaction time the label's own stands in
    assert first[2]["p2"]["card_count_24h"] == 2
    for batch in (3, 4):
        job.pay(*payments, labels=(label, good), batch=batch)
        assert state() == first


@pytest.mark.parametrize("view", [views.TERMINAL_HISTORY, views.CARD_HISTORY])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_payments_that_were_cut_off_are_made_whole(
    job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, view: str, moment: str
) -> None:
    payments = (paid("p2", 1), paid("p3", 2, terminal="u"), paid("q", 2, card="d"))
    whole = Job(tmp_path / "whole")
    for each in (whole, job):
        each.pay(paid("p1", 0), paid("p0", 0, card="d", terminal="u"))
    whole.pay(*payments, batch=5)

    def cut_off(feast: Any, name: str, rows: pa.Table) -> None:
        if name != view or moment == "after":
            feature_store.write_online(feast, name, rows)
        if name == view:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("streaming.histories.write_online", cut_off)
        with pytest.raises(KeyboardInterrupt):
            job.pay(*payments, batch=5)
    job.pay(*payments, batch=5)
    assert job.features() == whole.features()
    for name, key in ((views.CARD_HISTORY, "c"), (views.CARD_HISTORY, "d"), (views.TERMINAL_HISTORY, "u")):
        assert job.now(name, key) == whole.now(name, key)


def test_payments_that_a_card_has_forgotten_may_come_again_without_harm(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "CARD_CAP", 3)
    days = (0, 1, 2, 3, 4, 60)
    payments = [paid(f"p{day}", 24 * day) for day in days]
    job.pay(*payments)
    expected, card = job.features(), job.now(views.CARD_HISTORY, "c")
    assert [expected[f"p{day}"]["card_count_30d"] for day in days] == [
        1,
        2,
        3,
        4,
        4,
        1,
    ]  # itself, and what its card remembers
    for part in (payments[:2], payments[1:5], payments):
        job.pay(*part)
        assert job.features() == expected
        assert job.now(views.CARD_HISTORY, "c") == card


def test_a_forgotten_payment_that_comes_again_still_counts_at_its_terminal(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "CARD_CAP", 3)
    forgotten = paid("p0", 0)
    job.pay(forgotten, *(paid(f"p{hour}", hour, terminal="u") for hour in (1, 2, 3)))
    job.pay(paid("q", 4, card="d"), forgotten)
    assert job.features()["q"]["terminal_count_24h"] == 2


def test_a_payment_twice_in_a_batch_counts_once_whatever_its_second_time(job: Job) -> None:
    job.pay(paid("other", 0, card="a"), paid("p1", 5), paid("p1", 3))
    assert job.features()["p1"]["card_count_24h"] == 1
    assert job.now(views.CARD_HISTORY, "c")[columns.TIMES] == [START + 5 * HOUR]


def test_a_fraud_counts_from_when_it_was_known(job: Job) -> None:
    known = START + 48 * HOUR
    label = {"transaction_id": "bad", "event_time": known, "terminal_id": "t", "fraud": True, "transaction_time": START}
    job.pay(paid("bad", 0))
    job.pay(paid("early", 47), paid("late", 49), labels=(label,))
    features = job.features()
    assert {name: features[name]["terminal_frauds_7d"] for name in features} == {"bad": 0, "early": 0, "late": 1}
    terminal = job.now(views.TERMINAL_HISTORY, "t")
    assert (terminal[columns.FRAUD_TIMES], terminal[columns.FRAUD_KNOWN_TIMES]) == ([START], [known])


def test_nothing_to_fold_writes_nothing(job: Job) -> None:
    job.shop()
    job.histories.fold_users(table(SHOP, bought("listed", 0, type="item")), created=datetime.now(UTC))
    job.pay()
    nowhere = {"transaction_id": "x", "event_time": START, "terminal_id": None, "fraud": True}
    job.histories.fold_payments(table(PAYMENT), table(LABEL, nowhere), batch="batch-9", created=datetime.now(UTC))
    assert not job.settings.offline_dir.exists() or not list(job.settings.offline_dir.iterdir())
    assert np.all([job.items() is None, job.now(views.CARD_HISTORY, "c")[columns.TIMES] is None])

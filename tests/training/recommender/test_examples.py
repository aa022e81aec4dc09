"""Tests the recommenders' examples: histories at each visit, from Feast or with held-back events folded in."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.contract import columns
from features.contract.timestamps import DAY
from features.history import arrays
from features.history.arrays import History
from features.history.timeline import Timeline, holdout_file
from features.recommender.catalogue import Catalogue
from features.store import feature_store, views
from infra.settings import Settings
from streaming.histories import HistoryWriter
from streaming.items import item_rows
from streaming.tables import SCHEMAS, write_table
from training.recommender.examples import (
    ItemWindowsByDay,
    build_catalogue,
    histories_after_split,
    histories_from_feast,
    read_events,
    retrieval_examples,
)
from training.recommender.visits import visits_from_events

START = 20_000 * DAY
SPLIT = START + 60 * DAY
CREATED = datetime(2026, 11, 22, tzinfo=UTC)
SHOP = SCHEMAS["shop_events"]


def random_events(*, seed: int = 3, orders: int = 150) -> list[dict[str, Any]]:
    """Returns a catalogue, and purchases, returns and views of 90 days; some users come only after the split."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = [
        {"event_id": f"item:i{n}", "type": "item", "event_time": START, "item_id": f"i{n}", "title": f"Item {n}"}
        for n in range(8)
    ]
    for order in range(orders):
        moment = START + int(rng.integers(0, 90 * DAY))
        user = f"u{rng.integers(0, 9 if moment < SPLIT else 12)}"
        for line, item in enumerate(rng.choice(8, rng.integers(1, 4), replace=False)):
            event_type = str(rng.choice(["purchase", "purchase", "purchase", "return", "view"]))
            rows.append(
                {
                    "event_id": f"{order}:{line}", "type": event_type, "event_time": moment, "user_id": user,
                    "item_id": f"i{item}", "order_id": f"o{order}", "quantity": float(rng.integers(1, 5)), "price": 2.5,
                }
            )  # fmt: skip
    return sorted(rows, key=lambda row: row["event_time"])


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([{name: row.get(name) for name in SHOP.names} for row in rows], SHOP)


def totals(rows: list[dict[str, Any]]) -> pa.Table:
    """Computes daily totals of items, the slow way."""
    days: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        if row["type"] in ("purchase", "return"):
            days.setdefault((row["item_id"], row["event_time"] // DAY * DAY), []).append(row)
    return pa.Table.from_pylist(
        [
            {
                columns.ITEM: item, "day": day,
                columns.ORDERS: float(len({row["order_id"] for row in on_day if row["type"] == "purchase"})),
                columns.UNITS: sum(row["quantity"] for row in on_day if row["type"] == "purchase"),
                columns.REVENUE: sum(row["quantity"] * 2.5 for row in on_day if row["type"] == "purchase"),
                columns.RETURNS: float(sum(row["type"] == "return" for row in on_day)),
            }
            for (item, day), on_day in days.items()
        ],
        pa.schema([(columns.ITEM, pa.string()), ("day", pa.int64()), *((name, pa.float64()) for name in
                  (columns.ORDERS, columns.UNITS, columns.REVENUE, columns.RETURNS))]),
    )  # fmt: skip


def neighbours(moment: int) -> pa.Table:
    stamp = pa.timestamp("us", tz="UTC")
    return pa.table(
        {
            columns.ITEM: ["i0", "i1"],
            columns.NEIGHBOURS: [["i1", "gone", "i2"], ["i0"]],
            columns.SIMILARITIES: [[0.9, 0.8, 0.7], [0.9]],
            columns.EVENT_TIMESTAMP: pa.array([moment * 1000] * 2, pa.int64()).cast(stamp),
            columns.CREATED_TIMESTAMP: pa.array([CREATED] * 2, stamp),
        }
    )


class Shop:
    """A feature store that knows all events, or those before the split with the rest held back."""

    def __init__(self, folder: Path, rows: list[dict[str, Any]], *, hold_back: bool) -> None:
        self.settings = Settings(data_dir=folder)
        self.feast = feature_store.open_store(self.settings)
        known = [row for row in rows if not hold_back or row["event_time"] < SPLIT]
        write_table(self.settings.offline_dir / "shop_events", "batch-0", table(known))
        write_table(self.settings.offline_dir / "shop_events", "batch-1", table(known[:20]))  # some arrived twice
        HistoryWriter(self.feast, self.settings).fold_users(table(known), created=CREATED)
        write_table(
            self.settings.offline_dir / views.ITEM_HISTORY, "all",
            item_rows(totals(known), every_day=True, created=CREATED),
        )  # fmt: skip
        write_table(self.settings.offline_dir / views.ITEM_NEIGHBOURS, "as-of", neighbours(SPLIT))
        if hold_back:
            holdout_file(self.settings).parent.mkdir()
            pq.write_table(table([row for row in rows if row["event_time"] >= SPLIT]), holdout_file(self.settings))
        self.early, self.later = read_events(self.settings, split=SPLIT)
        self.catalogue = build_catalogue(self.feast, self.early, neighbours_as_of=SPLIT)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("whole"), random_events(), hold_back=False)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("split"), random_events(), hold_back=True)


def as_sets(histories: History) -> list[set[tuple[Any, ...]]]:
    names = [
        columns.TIMES,
        columns.EVENT_HASHES,
        columns.ITEMS,
        columns.EVENT_TYPES,
        columns.PRICES,
        columns.QUANTITIES,
    ]
    return [
        set(zip(*(row.entries[name].tolist() for name in names), strict=True))
        for row in (histories.row(number) for number in range(len(histories)))
    ]


def test_events_are_read_once_each_in_order_and_divided_at_the_split(whole: Shop, split: Shop) -> None:
    rows = random_events()
    for shop in (whole, split):
        assert len(shop.early) + len(shop.later) == len(rows)
        assert set(shop.early["event_id"]) | set(shop.later["event_id"]) == {row["event_id"] for row in rows}
        assert shop.early["event_time"].max() < SPLIT <= shop.later["event_time"].min()
        assert shop.early["event_time"].is_monotonic_increasing


def test_histories_hold_what_happened_strictly_before_the_visit(whole: Shop) -> None:
    visits = visits_from_events(pd.concat([whole.early, whole.later]))
    rows = [row for row in random_events() if row["type"] in columns.EVENT_TYPE_CODES]
    histories = histories_from_feast(whole.feast, visits)
    for visit, history in enumerate(as_sets(histories)):
        before = [
            row for row in rows if row["user_id"] == visits.users[visit] and row["event_time"] < visits.times[visit]
        ]
        assert {hash_ for _, hash_, *_ in history} == set(arrays.hash_ids([row["event_id"] for row in before]).tolist())


def test_folded_histories_are_those_that_the_job_would_have_made(whole: Shop, split: Shop) -> None:
    visits = visits_from_events(split.later)
    held_back = histories_after_split(split.feast, visits, split.later, split=SPLIT)
    assert as_sets(held_back) == as_sets(histories_from_feast(whole.feast, visits))
    assert max(held_back.lengths) > 3


def test_a_planted_future_event_does_not_leak_into_folded_histories(split: Shop) -> None:
    visits = visits_from_events(split.later)
    future = {"event_id": "future", "type": "purchase", "event_time": START + 400 * DAY, "user_id": visits.users[0]}
    planted = pd.concat([split.later, table([{**future, "item_id": "i0"}]).to_pandas()])
    without_future, with_future = (
        as_sets(histories_after_split(split.feast, visits, rows, split=SPLIT)) for rows in (split.later, planted)
    )
    assert with_future == without_future


def test_item_windows_after_the_split_are_those_that_feast_would_give(whole: Shop, split: Shop) -> None:
    timeline = Timeline(START, START + 30 * DAY, SPLIT, START + 90 * DAY)
    moments = np.array([START + 10 * DAY, SPLIT - 1, SPLIT, SPLIT + DAY, SPLIT + 20 * DAY + 5, START + 89 * DAY])
    # With nothing held out, Feast knows every day: a split at the end asks it for all of them.
    at_the_end = Timeline(START, START + 30 * DAY, START + 120 * DAY, START + 120 * DAY)
    from_feast = ItemWindowsByDay(whole.feast, split.catalogue, split.later[:0], at_the_end)
    held_back = ItemWindowsByDay(split.feast, split.catalogue, split.later, timeline)
    for days in (from_feast, held_back):
        days.prepare(moments)
        days.prepare(moments[:2])
    for moment in moments:
        assert np.allclose(held_back.at(int(moment)), from_feast.at(int(moment)))
    assert from_feast.at(START + 89 * DAY).any()


def test_the_catalogue_holds_bought_items_with_known_neighbours(split: Shop) -> None:
    catalogue: Catalogue = split.catalogue
    assert catalogue.ids == tuple(f"i{n}" for n in range(8))
    assert catalogue.titles[3] == "Item 3"
    assert catalogue.prices.tolist() == [2.5] * 8
    assert catalogue.neighbours[:2].tolist() == [[1, -1, 2], [0, -1, -1]]
    assert catalogue.similarities[:2].tolist() == pytest.approx(np.array([[0.9, 0, 0.7], [0.9, 0, 0]]))
    assert not catalogue.similarities[2:].any()
    earlier = build_catalogue(split.feast, split.early, neighbours_as_of=SPLIT - 1)
    assert (earlier.neighbours == -1).all()


def test_queries_name_known_items_once(split: Shop) -> None:
    visits = visits_from_events(split.early)
    histories = histories_from_feast(split.feast, visits)
    queries = retrieval_examples(visits, histories, split.catalogue)
    assert [query.visitor.at for query in queries] == visits.times.tolist()
    assert [set(query.targets) for query in queries] == [
        {split.catalogue.index[item] for item in items} for items in visits.items["purchase"]
    ]
    for event_type in ("view", "return"):
        assert [{split.catalogue.ids[index] for index in query.auxiliary_targets[event_type]} for query in queries] == [
            set(items) for items in visits.items[event_type]
        ]
    few = build_catalogue(split.feast, split.early[split.early["item_id"] == "i0"], neighbours_as_of=SPLIT)
    assert all(set(query.targets) <= {0} for query in retrieval_examples(visits, histories, few))

"""Visits: gaps of half an hour end them, an order alone is one, and what comes back is told with what bought it."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.contract.timestamps import DAY
from features.recommender.recency import VISIT_GAP_MS
from training.recommender.visits import EVENT_TYPES, RETURN_WINDOW, VISIT_EVENT_TYPES, visits_from_events

MINUTE = 60_000


def events(*rows: tuple[str, str | None, str, int]) -> pd.DataFrame:
    """(kind, user, item, moment) in order of time, as the feature store keeps them."""
    made = pd.DataFrame(rows, columns=["type", "user_id", "item_id", "event_time"]).astype({"event_time": "int64"})
    return made.sort_values("event_time", kind="stable").reset_index(drop=True)


def as_lists(found: Any) -> list[tuple[str, int, dict[str, list[str]]]]:
    return [
        (found.users[row], int(found.times[row]), {kind: found.items[kind][row].tolist() for kind in EVENT_TYPES})
        for row in range(len(found))
    ]


ROWS = st.lists(
    st.tuples(
        st.sampled_from([*VISIT_EVENT_TYPES, "return", "item"]), st.sampled_from(["ann", "bob", None]),
        st.sampled_from("xyz"),
        st.integers(0, 12).map(lambda step: step * VISIT_GAP_MS // 2 + 5),
    ),
    max_size=40,
)  # fmt: skip


@given(ROWS)
def test_a_visit_is_what_one_user_did_without_a_longer_gap(rows: list[tuple[str, str | None, str, int]]) -> None:
    log = events(*rows)
    found = visits_from_events(log)
    assert [tuple(pair) for pair in zip(found.times, found.users, strict=True)] == sorted(
        zip(found.times, found.users, strict=True)
    )
    expected = []
    for user in ("ann", "bob"):
        mine = log[(log["user_id"] == user) & log["type"].isin(VISIT_EVENT_TYPES)]
        visit: dict[str, list[str]] = {}
        last = None
        for row in mine.itertuples():
            if last is None or row.event_time - last > VISIT_GAP_MS:
                visit = {kind: [] for kind in VISIT_EVENT_TYPES}
                expected.append((row.event_time, user, visit))
            last = row.event_time
            if row.item_id not in visit[row.type]:
                visit[row.type].append(row.item_id)
    expected.sort(key=lambda one: one[:2])
    told = [(at, user, {kind: did[kind] for kind in VISIT_EVENT_TYPES}) for user, at, did in as_lists(found)]
    assert told == expected
    assert found.buying.tolist() == [bool(did["purchase"]) for _, _, did in expected]


@given(
    st.lists(
        st.tuples(st.sampled_from(["ann", "bob"]), st.integers(0, 9), st.sampled_from("wxyz")), max_size=30, unique=True
    )
)
def test_in_a_log_of_orders_a_visit_is_an_order(lines: list[tuple[str, int, str]]) -> None:
    log = events(*(("purchase", user, item, day * DAY) for user, day, item in lines))
    orders: dict[tuple[int, str], set[str]] = {}
    for user, day, item in lines:
        orders.setdefault((day * DAY, user), set()).add(item)
    found = as_lists(visits_from_events(log))
    assert [((at, user), set(did["purchase"])) for user, at, did in found] == sorted(orders.items())


def returned(*rows: tuple[str, str | None, str, int]) -> list[list[str]]:
    return [did["return"] for _, _, did in as_lists(visits_from_events(events(*rows)))]


@pytest.mark.parametrize(
    ("back", "at", "expected"),
    [
        (("ann", "x"), DAY, ["x"]),
        (("ann", "x"), RETURN_WINDOW, ["x"]),
        (("ann", "x"), RETURN_WINDOW + 1, []),
        (("ann", "x"), 0, []),
        (("ann", "y"), DAY, []),
        (("bob", "x"), DAY, []),
        ((None, "x"), DAY, []),
    ],
)
def test_what_comes_back_within_thirty_days_is_told(back: tuple[Any, str], at: int, expected: list[str]) -> None:
    assert returned(("purchase", "ann", "x", 0), ("return", *back, at)) == [expected]


def test_a_return_is_of_the_last_purchase_before_it() -> None:
    bought = [("purchase", "ann", "x", day * DAY) for day in (1, 5, 12)]
    assert returned(*bought, ("return", "ann", "x", 9 * DAY)) == [[], ["x"], []]


def test_the_latest_are_orders_and_as_many_visits_without_one_since() -> None:
    views = [("view", "ann", "x", day * DAY) for day in range(40)]
    log = events(*views, *(("purchase", "bob", "y", day * DAY) for day in (5, 20, 30)))
    found = visits_from_events(log).latest(2)
    assert found.times[found.buying].tolist() == [20 * DAY, 30 * DAY]
    others = found.times[~found.buying]
    assert len(others) == 2
    assert others.min() >= 20 * DAY - 1
    assert (np.diff(found.times) >= 0).all()
    assert len(visits_from_events(log).latest(0)) == 0
    assert visits_from_events(log).latest(10**6).buying.sum() == 3
    assert len(visits_from_events(log).spread_evenly(4)) == 4
    assert visits_from_events(log).spread_evenly(4).times[[0, -1]].tolist() == [0, 39 * DAY]


@given(ROWS, st.integers(0, 20))
def test_thinned_keeps_every_purchase_and_at_most_so_many_of_the_others(
    rows: list[tuple[str, str | None, str, int]], others: int
) -> None:
    whole = visits_from_events(events(*rows))
    found = whole.thinned(others)
    assert found.buying.sum() == whole.buying.sum()
    assert (~found.buying).sum() == min(others, (~whole.buying).sum())
    assert [one for one in as_lists(whole) if one in as_lists(found)] == as_lists(found), "in the order they were"

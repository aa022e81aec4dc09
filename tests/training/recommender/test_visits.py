"""Tests visits: gaps of half an hour end them, an order alone is a visit, and returns count with their purchase."""

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
    """Returns events (type, user, item, time) in order of time, as the feature store keeps them."""
    table = pd.DataFrame(rows, columns=["type", "user_id", "item_id", "event_time"]).astype({"event_time": "int64"})
    return table.sort_values("event_time", kind="stable").reset_index(drop=True)


def as_lists(visits: Any) -> list[tuple[str, int, dict[str, list[str]]]]:
    return [
        (
            visits.users[row],
            int(visits.times[row]),
            {event_type: visits.items[event_type][row].tolist() for event_type in EVENT_TYPES},
        )
        for row in range(len(visits))
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
    visits = visits_from_events(log)
    assert [tuple(pair) for pair in zip(visits.times, visits.users, strict=True)] == sorted(
        zip(visits.times, visits.users, strict=True)
    )
    expected = []
    for user in ("ann", "bob"):
        user_events = log[(log["user_id"] == user) & log["type"].isin(VISIT_EVENT_TYPES)]
        visit: dict[str, list[str]] = {}
        last = None
        for row in user_events.itertuples():
            if last is None or row.event_time - last > VISIT_GAP_MS:
                visit = {event_type: [] for event_type in VISIT_EVENT_TYPES}
                expected.append((row.event_time, user, visit))
            last = row.event_time
            if row.item_id not in visit[row.type]:
                visit[row.type].append(row.item_id)
    expected.sort(key=lambda visit: visit[:2])
    grouped = [
        (at, user, {event_type: did[event_type] for event_type in VISIT_EVENT_TYPES})
        for user, at, did in as_lists(visits)
    ]
    assert grouped == expected
    assert visits.buying.tolist() == [bool(did["purchase"]) for _, _, did in expected]


@given(
    st.lists(
        st.tuples(st.sampled_from(["ann", "bob"]), st.integers(0, 9), st.sampled_from("wxyz")), max_size=30, unique=True
    )
)
def test_in_a_log_of_purchases_a_visit_is_an_order(lines: list[tuple[str, int, str]]) -> None:
    log = events(*(("purchase", user, item, day * DAY) for user, day, item in lines))
    orders: dict[tuple[int, str], set[str]] = {}
    for user, day, item in lines:
        orders.setdefault((day * DAY, user), set()).add(item)
    visits = as_lists(visits_from_events(log))
    assert [((at, user), set(did["purchase"])) for user, at, did in visits] == sorted(orders.items())


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
def test_a_return_counts_within_thirty_days(back: tuple[Any, str], at: int, expected: list[str]) -> None:
    assert returned(("purchase", "ann", "x", 0), ("return", *back, at)) == [expected]


def test_a_return_belongs_to_the_last_purchase_before_it() -> None:
    bought = [("purchase", "ann", "x", day * DAY) for day in (1, 5, 12)]
    assert returned(*bought, ("return", "ann", "x", 9 * DAY)) == [[], ["x"], []]


def test_the_latest_are_visits_that_bought_and_as_many_others_since() -> None:
    views = [("view", "ann", "x", day * DAY) for day in range(40)]
    log = events(*views, *(("purchase", "bob", "y", day * DAY) for day in (5, 20, 30)))
    visits = visits_from_events(log).latest(2)
    assert visits.times[visits.buying].tolist() == [20 * DAY, 30 * DAY]
    others = visits.times[~visits.buying]
    assert len(others) == 2
    assert others.min() >= 20 * DAY - 1
    assert (np.diff(visits.times) >= 0).all()
    assert len(visits_from_events(log).latest(0)) == 0
    assert visits_from_events(log).latest(10**6).buying.sum() == 3
    assert len(visits_from_events(log).spread_evenly(4)) == 4
    assert visits_from_events(log).spread_evenly(4).times[[0, -1]].tolist() == [0, 39 * DAY]


@given(ROWS, st.integers(0, 20))
def test_thinned_keeps_every_purchase_and_at_most_so_many_other_visits(
    rows: list[tuple[str, str | None, str, int]], others: int
) -> None:
    whole = visits_from_events(events(*rows))
    visits = whole.thinned(others)
    assert visits.buying.sum() == whole.buying.sum()
    assert (~visits.buying).sum() == min(others, (~whole.buying).sum())
    assert [visit for visit in as_lists(whole) if visit in as_lists(visits)] == as_lists(visits), "in the same order"

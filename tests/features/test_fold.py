"""Folding events into histories, held against a fold written the slow and obvious way."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from features import columns
from features.fold import Folded, fold
from features.history import History, from_lists

CAP, HORIZON = 4, 50
DTYPES = {columns.TIMES: np.int64, columns.EVENT_HASHES: np.int64}
EVENTS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 120), st.integers(0, 30)), max_size=25)


def empty(keys: int = 3) -> History:
    return from_lists([{} for _ in range(keys)], DTYPES)


def run(known: History, events: list[tuple[int, int, int]], *, cap: int = CAP) -> Folded:
    key, time, event = (
        np.array(part, dtype=np.int64) for part in (zip(*events, strict=True) if events else ([], [], []))
    )
    return fold(known, key, {columns.TIMES: time, columns.EVENT_HASHES: event}, cap=cap, horizon=HORIZON)


def as_lists(history: History) -> list[list[tuple[int, int]]]:
    return [
        list(zip(row.times.tolist(), row.entries[columns.EVENT_HASHES].tolist(), strict=True))
        for row in (history.row(index) for index in range(len(history)))
    ]


def naive(events: list[tuple[int, int, int]]) -> dict[int, list[tuple[int, int]]]:
    """key -> (time, event) of the first arrival of each event, in order of time."""
    first: dict[tuple[int, int], int] = {}
    for key, time, event in events:
        first.setdefault((key, event), time)
    return {wanted: sorted((t, e) for (k, e), t in first.items() if k == wanted) for wanted in range(3)}


@given(EVENTS)
def test_rows_hold_the_latest_events_up_to_their_time(events: list[tuple[int, int, int]]) -> None:
    folded = run(empty(), events)
    expected = naive(events)
    assert as_lists(folded.merged) == [expected[key] for key in range(3)]
    rows = as_lists(folded.rows)
    seen = list(zip(folded.key_of_row.tolist(), folded.row_times.tolist(), strict=True))
    assert seen == sorted({(key, time) for key, entries in expected.items() for time, _ in entries})
    for (key, time), row in zip(seen, rows, strict=True):
        assert row == [(t, e) for t, e in expected[key] if time - HORIZON < t <= time][-CAP:]


@given(EVENTS, EVENTS)
def test_two_batches_give_what_one_gives(first: list[tuple[int, int, int]], second: list[tuple[int, int, int]]) -> None:
    together = run(empty(), first + second)
    apart = run(run(empty(), first).merged, second)
    assert as_lists(apart.merged) == as_lists(together.merged)


@given(EVENTS)
def test_a_batch_that_arrives_again_changes_nothing(events: list[tuple[int, int, int]]) -> None:
    once = run(empty(), events)
    again = run(once.merged, events)
    assert as_lists(again.merged) == as_lists(once.merged)
    assert len(again.rows) == 0


def test_a_late_event_restates_the_rows_after_it() -> None:
    once = run(empty(1), [(0, 10, 1), (0, 30, 3)])
    late = run(once.merged, [(0, 20, 2)])
    assert late.row_times.tolist() == [20, 30]
    assert as_lists(late.rows) == [[(10, 1), (20, 2)], [(10, 1), (20, 2), (30, 3)]]


def test_the_last_row_of_each_key_is_found() -> None:
    folded = run(empty(), [(0, 10, 1), (0, 20, 2), (2, 5, 3)])
    assert folded.last_rows.tolist() == [1, 2]
    assert run(empty(), []).last_rows.tolist() == []

"""Folding events into histories, held against a fold written the slow and obvious way."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from features.contract import columns
from features.history.arrays import History, from_lists
from features.history.fold import FoldResult, fold

CAP, HORIZON = 4, 50
DTYPES = {columns.TIMES: np.int64, columns.EVENT_HASHES: np.int64}
EVENTS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 120), st.integers(0, 30)), max_size=25)


def empty(keys: int = 3) -> History:
    return from_lists([{} for _ in range(keys)], DTYPES)


def run(known: History, events: list[tuple[int, int, int]]) -> FoldResult:
    key, time, event = (
        np.array(part, dtype=np.int64) for part in (zip(*events, strict=True) if events else ([], [], []))
    )
    return fold(known, key, {columns.TIMES: time, columns.EVENT_HASHES: event})


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
    return {key: sorted((t, e) for (k, e), t in first.items() if k == key) for key in range(3)}


@given(EVENTS, st.lists(st.tuples(st.integers(0, 2), st.integers(-5, 130)), max_size=10))
def test_rows_hold_the_latest_events_up_to_a_moment(
    events: list[tuple[int, int, int]], moments: list[tuple[int, int]]
) -> None:
    folded = run(empty(), events)
    expected = naive(events)
    assert as_lists(folded.merged) == [expected[key] for key in range(3)]
    assert folded.changed_rows.tolist() == sorted({key for key, _, _ in events})

    def cut(entries: list[tuple[int, int]]) -> list[tuple[int, int]]:
        return [(t, e) for t, e in entries if t > entries[-1][0] - HORIZON][-CAP:]

    keys, times = (np.array([moment[column] for moment in moments], dtype=np.int64) for column in (0, 1))
    then = folded.merged.at(keys, times, cap=CAP, horizon=HORIZON)
    assert as_lists(then) == [cut([(t, e) for t, e in expected[key] if t <= moment]) for key, moment in moments]
    latest = folded.merged.latest(np.arange(3), cap=CAP, horizon=HORIZON)
    assert as_lists(latest) == [cut(expected[key]) for key in range(3)]
    assert latest.last_times.tolist() == [max((t for t, _ in expected[key]), default=0) for key in range(3)]


@given(EVENTS, EVENTS)
def test_an_entry_tells_when_it_arrived(first: list[tuple[int, int, int]], second: list[tuple[int, int, int]]) -> None:
    before = run(empty(), first)
    after = run(before.merged, second)
    positions: dict[tuple[int, int], int] = {}
    for number, (key, _, event) in enumerate(second):
        positions.setdefault((key, event), number)
    rows, hashes = after.merged.row_of_entry.tolist(), after.merged.entries[columns.EVENT_HASHES].tolist()
    assert after.arrival_index.tolist() == [positions.get(entry, -1) for entry in zip(rows, hashes, strict=True)]
    known = {(key, event) for key, _, event in first}
    assert after.changed_rows.tolist() == sorted({key for key, _, event in second if (key, event) not in known})


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
    assert again.changed_rows.tolist() == []

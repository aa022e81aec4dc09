"""Sliding windows held against a loop over plain lists."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from features.contract import columns
from features.history import windows
from features.history.arrays import History, from_lists

ROWS = st.lists(st.lists(st.integers(0, 30), max_size=8).map(sorted), min_size=1, max_size=5)


def ragged(rows: list[list[int]]) -> History:
    return from_lists([{columns.TIMES: row} for row in rows], {columns.TIMES: np.int64})


@given(ROWS, st.data(), st.integers(1, 40))
def test_a_window_holds_what_is_younger_than_its_width_and_not_later(
    rows: list[list[int]], data: st.DataObject, width: int
) -> None:
    at = data.draw(st.lists(st.integers(0, 40), min_size=len(rows), max_size=len(rows)))
    history = ragged(rows)
    inside = windows.in_window(history, np.array(at), width)
    expected = [[moment - width < time <= moment for time in row] for row, moment in zip(rows, at, strict=True)]
    assert inside.tolist() == [is_in for row in expected for is_in in row]
    assert windows.row_sums(history, inside).tolist() == [sum(row) for row in expected]


@given(ROWS)
def test_sums_and_maxima_of_rows(rows: list[list[int]]) -> None:
    history = ragged(rows)
    values = history.times * 0.5
    assert windows.row_sums(history, values).tolist() == [sum(row) * 0.5 for row in rows]
    maxima = windows.row_maxima(history, values, empty=-1.0)
    assert maxima.tolist() == [max(row, default=-2) * 0.5 for row in rows]


def test_no_rows_and_no_entries() -> None:
    nothing = ragged([])
    assert windows.in_window(nothing, np.empty(0, dtype=np.int64), 5).shape == (0,)
    assert windows.row_sums(nothing, np.empty(0)).shape == (0,)
    assert windows.row_sums(ragged([[], []]), np.empty(0)).tolist() == [0.0, 0.0]

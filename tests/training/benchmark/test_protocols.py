"""Tests the protocols: inputs and targets of each case, and that no target is learnt from."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.contract.timestamps import DAY
from training.benchmark.interactions import DataError, Interactions, Sequences
from training.benchmark.protocols import leave_one_out, new_only, time_split


def interactions(rows: list[list[int]], times: list[list[int]] | None = None) -> Interactions:
    offsets = np.concatenate(([0], np.cumsum([len(row) for row in rows]))).astype(np.int64)
    flat = np.array([item for row in rows for item in row], dtype=np.int64)
    moments = [time for row in times for time in row] if times else list(range(len(flat)))
    names = np.arange(flat.max(initial=0) + 1).astype(object)
    users = np.arange(len(rows)).astype(object)
    return Interactions(Sequences(offsets, flat, np.array(moments, dtype=np.int64)), users, names, bool(times))


def rows_of(sequences: Sequences) -> list[list[int]]:
    return [sequences.row(row).tolist() for row in range(len(sequences))]


@given(st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=9), min_size=1, max_size=6))
def test_leave_one_out_tests_each_user_of_three_items_on_the_last(rows: list[list[int]]) -> None:
    long = [row for row in rows if len(row) >= 3]
    if not long:
        with pytest.raises(DataError, match="3 items or more"):
            leave_one_out(interactions(rows))
        return
    split = leave_one_out(interactions(rows))
    assert rows_of(split.test.inputs) == [row[:-1] for row in long]
    assert rows_of(split.test.targets) == [row[-1:] for row in long]
    assert rows_of(split.validation.inputs) == [row[:-2] for row in long]
    assert rows_of(split.validation.targets) == [[row[-2]] for row in long]
    assert rows_of(split.learn) == [row[:-2] if len(row) >= 3 else row for row in rows]
    assert split.mask_history
    assert not split.refits


def test_time_split_tests_users_who_return_on_everything_they_take_from_then_on() -> None:
    data = interactions(
        [[0, 1, 2, 1, 1], [0, 3], [4]],
        [[0, 50 * DAY, 101 * DAY, 103 * DAY, 110 * DAY], [60 * DAY, 95 * DAY], [105 * DAY]],
    )
    split = time_split(data, split_at=100 * DAY)
    assert rows_of(split.final) == [[0, 1], [0, 3], []]
    assert rows_of(split.test.inputs) == [[0, 1]]
    assert rows_of(split.test.targets) == [[2, 1]]
    # The test part is 10 days long, so validation is 10 days before the split.
    assert rows_of(split.learn) == [[0, 1], [0], []]
    assert rows_of(split.validation.inputs) == [[0]]
    assert rows_of(split.validation.targets) == [[3]]
    assert not split.mask_history
    rows, fresh = new_only(split.test)
    assert rows.tolist() == [0]
    assert rows_of(fresh.targets) == [[2]]


@pytest.mark.parametrize(
    ("split_at", "timed", "message"),
    [(5, False, "needs times"), (10**15, True, "must be within the data"), (1, True, "comes back")],
)
def test_time_split_says_what_is_wrong(split_at: int, timed: bool, message: str) -> None:
    data = interactions([[0, 1]], [[0, 10]] if timed else None)
    with pytest.raises(DataError, match=message):
        time_split(data, split_at=split_at)

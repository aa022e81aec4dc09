"""Ragged arrays held against plain lists of lists."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from features.contract import columns
from features.history.arrays import (
    FRAUD_COLUMNS,
    FRAUD_NAMES,
    ITEM_COLUMNS,
    USER_COLUMNS,
    History,
    from_arrow,
    from_lists,
    hash_ids,
    history_rows,
    to_arrow,
)

CREATED = datetime(2026, 11, 22, 12, tzinfo=UTC)
DTYPES = {columns.TIMES: np.int64, columns.ITEMS: object}
ROWS = st.lists(st.lists(st.tuples(st.integers(0, 99), st.text(max_size=3)), max_size=5).map(sorted), max_size=6)
Rows = list[list[tuple[int, str]]]


def ragged(rows: Rows) -> History:
    return from_lists(
        [{columns.TIMES: [t for t, _ in row], columns.ITEMS: [i for _, i in row]} for row in rows], DTYPES
    )


def plain(history: History) -> Rows:
    entries = list(zip(history.times.tolist(), history.entries[columns.ITEMS].tolist(), strict=True))
    return [entries[start:end] for start, end in zip(history.offsets, history.offsets[1:], strict=False)]


@given(ROWS)
def test_lists_come_back_as_they_were(rows: Rows) -> None:
    history = ragged(rows)
    assert plain(history) == rows
    assert len(history) == len(rows)
    assert history.lengths.tolist() == [len(row) for row in rows]
    assert history.row_of_entry.tolist() == [row_index for row_index, row in enumerate(rows) for _ in row]
    assert [plain(history.row(row_index))[0] for row_index in range(len(rows))] == rows


@given(ROWS, st.data())
def test_rows_are_taken_in_any_order_and_more_than_once(rows: Rows, data: st.DataObject) -> None:
    taken = data.draw(st.lists(st.sampled_from(range(len(rows))), max_size=8)) if rows else []
    assert plain(ragged(rows).take(np.array(taken, dtype=np.int64))) == [rows[index] for index in taken]


@given(ROWS, st.integers(0, 99))
def test_only_kept_entries_stay_and_no_row_is_lost(rows: Rows, after: int) -> None:
    history = ragged(rows)
    kept = history.filter(history.times > after)
    assert plain(kept) == [[(time, item) for time, item in row if time > after] for row in rows]


@given(ROWS, st.data())
def test_slices_cut_new_rows_out_of_all_entries(rows: Rows, data: st.DataObject) -> None:
    entries = [entry for row in rows for entry in row]
    cut = st.tuples(*[st.integers(0, len(entries))] * 2).map(sorted)
    cuts = data.draw(st.lists(cut, max_size=5))
    starts, ends = (np.array([pair[side] for pair in cuts], dtype=np.int64) for side in (0, 1))
    assert plain(ragged(rows).slices(starts, ends)) == [entries[start:end] for start, end in cuts]


@given(ROWS)
def test_arrow_keeps_everything(rows: Rows) -> None:
    table = pa.table(to_arrow(ragged(rows)))
    assert plain(from_arrow(table, DTYPES)) == rows
    # Several chunks and a slice of a table, as a dataset hands them out.
    double = pa.concat_tables([table, table])
    assert plain(from_arrow(double, DTYPES)) == rows + rows
    assert (
        plain(from_arrow(double.slice(len(rows) // 2, len(rows)), DTYPES))
        == (rows + rows)[len(rows) // 2 :][: len(rows)]
    )


def test_a_null_list_and_an_absent_one_are_empty() -> None:
    times = pa.array([[1], None, []], pa.list_(pa.int64()))
    table = pa.table({columns.TIMES: times, columns.ITEMS: pa.array([["a"], None, []], pa.list_(pa.string()))})
    assert plain(from_arrow(table, DTYPES)) == [[(1, "a")], [], []]
    assert plain(from_lists([{columns.TIMES: None, columns.ITEMS: None}, {}], DTYPES)) == [[], []]
    empty = from_lists([], USER_COLUMNS)
    assert (len(empty), len(empty.times)) == (0, 0)
    assert {name: column.dtype for name, column in empty.entries.items()} == {
        name: np.dtype(dtype) for name, dtype in USER_COLUMNS.items()
    }


def test_columns_may_be_stored_under_another_name() -> None:
    row = {columns.FRAUD_TIMES: [1], columns.FRAUD_KNOWN_TIMES: [5], columns.FRAUD_HASHES: [9], columns.TIMES: [7, 8]}
    frauds = from_lists([row], FRAUD_COLUMNS, names=FRAUD_NAMES)
    assert frauds.times.tolist() == [1]
    stored = to_arrow(frauds, names=FRAUD_NAMES)
    assert set(stored) == {columns.FRAUD_TIMES, columns.FRAUD_KNOWN_TIMES, columns.FRAUD_HASHES}
    assert from_arrow(pa.table(stored), FRAUD_COLUMNS, names=FRAUD_NAMES).times.tolist() == [1]


def test_a_hash_is_the_same_in_every_process_and_version() -> None:
    assert hash_ids(["order-1:1", "käse"]).tolist() == [4038353298303094884, 6615373531926677468]
    assert hash_ids([]).shape == (0,)
    assert len(set(hash_ids([f"e-{number}" for number in range(10_000)]).tolist())) == 10_000


def test_rows_of_a_history_bear_both_times() -> None:
    lists = {name: [0.5] for name in ITEM_COLUMNS} | {columns.TIMES: [1]}
    rows = from_lists([lists], ITEM_COLUMNS)
    table = history_rows(
        columns.ITEM,
        np.array(["i"], dtype=object),
        np.array([1_500]),
        rows,
        created=datetime(2026, 11, 22, 12, tzinfo=UTC),
    )
    (row,) = table.to_pylist()
    assert row[columns.EVENT_TIMESTAMP] == datetime(1970, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC)
    assert row[columns.CREATED_TIMESTAMP] == CREATED
    assert (row[columns.ITEM], row[columns.TIMES], row[columns.UNITS]) == ("i", [1], [0.5])

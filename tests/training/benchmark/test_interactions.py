"""Tests reading interactions from files: what is read, what is left out, and the errors."""

from pathlib import Path

import pandas as pd
import pytest

from training.benchmark.interactions import DataError, read_interactions


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_text_file_has_one_user_a_line_oldest_first(tmp_path: Path) -> None:
    data = read_interactions(write(tmp_path / "shop.txt", "ann 7 9 7\nbob 9\n"))
    assert list(data.users) == ["ann", "bob"]
    assert [list(data.items[data.sequences.row(row)]) for row in range(2)] == [["7", "9", "7"], ["9"]]
    assert not data.timed


def test_a_table_is_sorted_by_time_and_counts_an_item_once_a_moment(tmp_path: Path) -> None:
    rows = pd.DataFrame(
        {
            "Who": ["a", "a", "a", "b", None, "a"],
            "What": ["x", "y", "y", "x", "x", "z"],
            "When": pd.to_datetime(
                ["2024-01-03", "2024-01-01", "2024-01-01", "2024-01-02", "2024-01-02", "2024-01-04"]
            ),
            "Quantity": [1, 2, 2, 1, 1, -1],
        }
    )
    rows.to_parquet(tmp_path / "t.parquet")
    mapping = {"user": "Who", "item": "What", "time": "When"}
    data = read_interactions(tmp_path / "t.parquet", mapping=mapping, positive=("Quantity",))
    row = list(data.users).index("a")
    assert list(data.items[data.sequences.row(row)]) == ["y", "x"]
    assert data.timed
    assert len(data.sequences.items) == 3


def test_a_csv_without_a_header_has_numbered_columns_and_times_in_seconds(tmp_path: Path) -> None:
    path = write(tmp_path / "r.csv", "1,6,2.0,980730861\n1,7,3.0,980730800\n")
    data = read_interactions(path, mapping={"user": "1", "item": "2", "time": "4"}, header=False)
    assert list(data.items[data.sequences.row(0)]) == ["7", "6"]
    assert data.sequences.times.tolist() == [980730800000, 980730861000]


@pytest.mark.parametrize(
    ("name", "text", "options", "message"),
    [
        ("a.txt", "", {}, "is empty"),
        ("a.txt", "ann 1\nbob\n", {}, "line 2"),
        ("a.txt", "ann 1\nann 2\n", {}, "has two lines"),
        ("a.txt", "ann 1\n", {"mapping": {"user": "x"}}, "--map and --positive are for tables"),
        ("a.csv", "u,i,t\n1,2,3\n", {}, "--map user=COLUMN"),
        ("a.csv", "user,item,time\n1,2,3\n", {"mapping": {"user": "who"}}, "no column 'who'"),
        ("a.csv", "user,item,time\n1,2,3\n", {"mapping": {"colour": "user"}}, "the fields are"),
        ("a.csv", "user,item,time\n1,2,soon\n", {}, "holds no times"),
        ("a.csv", "user,item,time\n1,2,3\n", {"positive": ("item2",)}, "no such column of numbers"),
        ("a.csv", "user,item,time,q\n1,2,3,-1\n", {"positive": ("q",)}, "no row has user, item and time"),
        ("a.xlsx", "", {}, "must be .txt"),
        ("a.parquet", "not parquet", {}, "cannot be read as a table"),
    ],
)
def test_a_file_that_cannot_be_read_says_what_to_change(
    tmp_path: Path, name: str, text: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_interactions(write(tmp_path / name, text), **options)  # type: ignore[arg-type]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a file"):
        read_interactions(tmp_path / "none.txt")

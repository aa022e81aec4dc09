"""Reads interactions of users with items from a file: text with one user a line, or a CSV or Parquet table.

Knows nothing of protocols or models; users and items become numbers in the order in which they first appear.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

SEQUENCE_FILES = (".txt", ".seq")
TABLE_FILES = (".csv", ".tsv", ".parquet")
FIELDS = ("user", "item", "time")
KNOWN_COLUMN_NAMES = {
    "user": ("user", "user_id", "userid", "customer_id", "customerid"),
    "item": ("item", "item_id", "itemid", "movieid", "product_id", "stockcode"),
    "time": ("time", "timestamp", "event_time", "date", "datetime", "invoicedate"),
}
"""Column names that are recognised without a mapping, in lower case."""


class DataError(Exception):
    """Raised where a file cannot be read as interactions; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Sequences:
    """Holds ragged rows of items, oldest first: row r is items[offsets[r]:offsets[r + 1]]."""

    offsets: NDArray[np.int64]
    items: NDArray[np.int64]
    times: NDArray[np.int64]
    """ms since 1970, or the position in the row where the file has no times; same shape as items."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Returns the number of entries of each row."""
        return np.diff(self.offsets)

    @property
    def row_of_entry(self) -> NDArray[np.int64]:
        """Returns the row of each entry."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def row(self, row: int) -> NDArray[np.int64]:
        """Returns the items of one row."""
        return self.items[self.offsets[row] : self.offsets[row + 1]]

    def keep(self, kept: NDArray[np.bool_]) -> "Sequences":
        """Returns the entries where `kept` (bool [entries]) is true; rows stay, perhaps empty."""
        lengths = np.bincount(self.row_of_entry[kept], minlength=len(self))
        return Sequences(np.concatenate(([0], np.cumsum(lengths))), self.items[kept], self.times[kept])

    def rows(self, rows: NDArray[np.int64]) -> "Sequences":
        """Returns these rows, in this order."""
        lengths = self.lengths[rows]
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        entries = np.repeat(self.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Sequences(offsets, self.items[entries], self.times[entries])

    def distance_from_end(self) -> NDArray[np.int64]:
        """Returns how many entries of its row come after each entry: 0 for the last."""
        return np.repeat(self.offsets[1:], self.lengths) - 1 - np.arange(len(self.items))

    def tail(self, count: int) -> "Sequences":
        """Returns the last `count` entries of each row."""
        return self.keep(self.distance_from_end() < count)


@dataclass(frozen=True, slots=True)
class Interactions:
    """Holds the interactions of a file, with users and items as numbers."""

    sequences: Sequences
    """One row for each user, in order of time; ties keep the order of the file."""
    users: NDArray[np.object_]
    items: NDArray[np.object_]
    """Ids in the file, by number."""
    timed: bool
    """Whether `sequences.times` are times, not positions."""


def read_interactions(
    path: Path, *, mapping: dict[str, str] | None = None, positive: tuple[str, ...] = (), header: bool = True
) -> Interactions:
    """Reads a file; raises DataError with what to change.

    mapping: which column holds user, item and time (tables only; common names are recognised without it). positive:
    columns that must be above 0 for a row to count, for example a quantity where returns are negative. header: whether
    the first line of a CSV file names the columns; without, they are called 1, 2, 3. Rows without user, item or time
    are left out; an item that a user took several times at one moment counts once.
    """
    if not path.is_file():
        raise DataError(f"{path} is not a file: --data names a text, CSV or Parquet file")
    if path.suffix.lower() in TABLE_FILES:
        return _from_table(_read_table(path, header), path, mapping or {}, positive)
    if path.suffix.lower() in SEQUENCE_FILES:
        if mapping or positive:
            raise DataError(
                f"{path.name} is a text file of `user item item ...` lines: --map and --positive are for tables"
            )
        return _from_lines(path)
    raise DataError(f"{path.name}: must be {', '.join(SEQUENCE_FILES)} (one user a line) or {', '.join(TABLE_FILES)}")


def _from_lines(path: Path) -> Interactions:
    """Reads a text file of `user item item ...` lines."""
    users, rows = [], []
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            words = line.split()
            if len(words) == 1:
                raise DataError(f"{path.name}, line {number}: the user has no items; write `user item item ...`")
            if words:
                users.append(words[0])
                rows.append(words[1:])
    if not rows:
        raise DataError(f"{path.name} is empty: write one line `user item item ...` for each user, oldest item first")
    if len(set(users)) < len(users):
        raise DataError(f"{path.name}: a user has two lines; write one line for each user")
    codes, names = pd.factorize(np.array([item for row in rows for item in row], dtype=object))
    offsets = np.concatenate(([0], np.cumsum([len(row) for row in rows])))
    positions = np.arange(len(codes)) - np.repeat(offsets[:-1], np.diff(offsets))
    sequences = Sequences(offsets, codes.astype(np.int64), positions)
    return Interactions(sequences, np.array(users, dtype=object), names, timed=False)


def _read_table(path: Path, header: bool) -> pd.DataFrame:
    """Reads a table; columns without names are called 1, 2, 3."""
    try:
        if path.suffix.lower() == ".parquet":
            return pd.read_parquet(path)
        separator = "\t" if path.suffix.lower() == ".tsv" else ","
        table = pd.read_csv(path, sep=separator, low_memory=False, header=0 if header else None)
        return table if header else table.set_axis([str(number + 1) for number in range(table.shape[1])], axis=1)
    except (OSError, ValueError) as error:
        raise DataError(f"{path.name} cannot be read as a table: {error}") from error


def _column(table: pd.DataFrame, field: str, path: Path, mapping: dict[str, str]) -> str:
    """Returns the name of the column that holds the field."""
    if field in mapping:
        if mapping[field] in table.columns:
            return mapping[field]
        raise DataError(f"{path.name} has no column {mapping[field]!r}; it has {', '.join(map(str, table.columns))}")
    for name in table.columns:
        if str(name).lower() in KNOWN_COLUMN_NAMES[field]:
            return str(name)
    raise DataError(
        f"{path.name}: which column is the {field}? Add --map {field}=COLUMN (and --no-header where the first line is"
        f" data); it has {', '.join(map(str, table.columns))}"
    )


def _moments(column: pd.Series, path: Path) -> pd.Series:
    """Converts dates to ms since 1970, and numbers too: seconds below 1e11, else ms."""
    if pd.api.types.is_numeric_dtype(column):
        numbers = column.astype("float64")
        return numbers.where(numbers.abs() >= 1e11, numbers * 1000).astype("int64")
    try:
        return pd.to_datetime(column, utc=True).astype("datetime64[ms, UTC]").astype("int64")
    except (ValueError, TypeError) as error:
        raise DataError(f"{path.name}: column {column.name!r} holds no times: {error}") from error


def _from_table(table: pd.DataFrame, path: Path, mapping: dict[str, str], positive: tuple[str, ...]) -> Interactions:
    """Converts a table to interactions."""
    unknown = set(mapping) - set(FIELDS)
    if unknown:
        raise DataError(f"--map {', '.join(sorted(unknown))}: the fields are {', '.join(FIELDS)}")
    names = {field: _column(table, field, path, mapping) for field in FIELDS}
    for column in positive:
        if column not in table.columns or not pd.api.types.is_numeric_dtype(table[column]):
            raise DataError(f"--positive {column}: {path.name} has no such column of numbers")
        table = table[table[column] > 0]
    table = table[list(names.values())].dropna()
    if not len(table):
        raise DataError(f"{path.name}: no row has user, item and time" + (" and passes --positive" if positive else ""))
    rows = pd.DataFrame({field: table[name] for field, name in names.items()})
    rows["time"] = _moments(rows["time"], path)
    rows = rows.drop_duplicates().sort_values("time", kind="stable")
    user_codes, users = pd.factorize(rows["user"])
    item_codes, items = pd.factorize(rows["item"].astype(str))
    order = np.argsort(user_codes, kind="stable")
    offsets = np.concatenate(([0], np.cumsum(np.bincount(user_codes))))
    sequences = Sequences(offsets, item_codes[order].astype(np.int64), rows["time"].to_numpy(np.int64)[order])
    return Interactions(sequences, np.asarray(users, dtype=object), np.asarray(items, dtype=object), timed=True)

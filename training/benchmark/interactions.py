"""Who took what, oldest first, read from any file: a text file with one user a line, or a CSV or Parquet table.

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
OTHER_NAMES = {
    "user": ("user", "user_id", "userid", "customer_id", "customerid"),
    "item": ("item", "item_id", "itemid", "movieid", "product_id", "stockcode"),
    "time": ("time", "timestamp", "event_time", "date", "datetime", "invoicedate"),
}
"""Column names that are understood without a mapping, in lower case."""


class DataError(Exception):
    """The file cannot be read as interactions; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Sequences:
    """Ragged rows of items, oldest first: row r is entries[offsets[r]:offsets[r + 1]]."""

    offsets: NDArray[np.int64]
    items: NDArray[np.int64]
    times: NDArray[np.int64]
    """ms since 1970, or the place in the row where the file has no times; same shape as items."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    @property
    def row_of_entry(self) -> NDArray[np.int64]:
        return np.repeat(np.arange(len(self)), self.lengths)

    def row(self, row: int) -> NDArray[np.int64]:
        return self.items[self.offsets[row] : self.offsets[row + 1]]

    def keep(self, wanted: NDArray[np.bool_]) -> "Sequences":
        """The entries that are wanted (bool [entries]); rows stay, perhaps empty."""
        kept = np.bincount(self.row_of_entry[wanted], minlength=len(self))
        return Sequences(np.concatenate(([0], np.cumsum(kept))), self.items[wanted], self.times[wanted])

    def rows(self, rows: NDArray[np.int64]) -> "Sequences":
        """These rows, in this order."""
        lengths = self.lengths[rows]
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        place = np.repeat(self.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Sequences(offsets, self.items[place], self.times[place])

    def from_end(self) -> NDArray[np.int64]:
        """How far each entry is from its row's last one: 0 for the last."""
        return np.repeat(self.offsets[1:], self.lengths) - 1 - np.arange(len(self.items))

    def tail(self, count: int) -> "Sequences":
        """The last `count` entries of each row."""
        return self.keep(self.from_end() < count)


@dataclass(frozen=True, slots=True)
class Interactions:
    sequences: Sequences
    """One row a user, in order of time; ties keep the order of the file."""
    users: NDArray[np.object_]
    items: NDArray[np.object_]
    """Names by number."""
    timed: bool
    """Whether `sequences.times` are moments."""


def read_interactions(
    path: Path, *, mapping: dict[str, str] | None = None, positive: tuple[str, ...] = (), header: bool = True
) -> Interactions:
    """Read a file; raises DataError with what to change.

    mapping: which column holds user, item and time (tables only; usual names are found without it). positive: columns
    that must be above 0 for a row to count, for example a quantity where returns are negative. header: whether a CSV
    file's first line names the columns; without, they are called 1, 2, 3. Rows without user or item are left out; a
    user's item at one moment counts once.
    """
    if not path.is_file():
        raise DataError(f"{path} is not there, or is no file: --data names a text, CSV or Parquet file")
    if path.suffix.lower() in TABLE_FILES:
        return _from_table(_read_table(path, header), path, mapping or {}, positive)
    if path.suffix.lower() in SEQUENCE_FILES:
        if mapping or positive:
            raise DataError(
                f"{path.name} is a text file of `user item item ...` lines: --map and --positive are for tables"
            )
        return _from_lines(path)
    raise DataError(f"{path.name}: write {', '.join(SEQUENCE_FILES)} (one user a line) or {', '.join(TABLE_FILES)}")


def _from_lines(path: Path) -> Interactions:
    users, rows = [], []
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            words = line.split()
            if len(words) == 1:
                raise DataError(f"{path.name}, line {number}: a user without items; write `user item item ...`")
            if words:
                users.append(words[0])
                rows.append(words[1:])
    if not rows:
        raise DataError(f"{path.name} is empty: write one `user item item ...` line a user, oldest item first")
    if len(set(users)) < len(users):
        raise DataError(f"{path.name}: a user is on two lines; write one line a user")
    codes, names = pd.factorize(np.array([item for row in rows for item in row], dtype=object))
    offsets = np.concatenate(([0], np.cumsum([len(row) for row in rows])))
    places = np.arange(len(codes)) - np.repeat(offsets[:-1], np.diff(offsets))
    sequences = Sequences(offsets, codes.astype(np.int64), places)
    return Interactions(sequences, np.array(users, dtype=object), names, timed=False)


def _read_table(path: Path, header: bool) -> pd.DataFrame:
    try:
        if path.suffix.lower() == ".parquet":
            return pd.read_parquet(path)
        separator = "\t" if path.suffix.lower() == ".tsv" else ","
        table = pd.read_csv(path, sep=separator, low_memory=False, header=0 if header else None)
        return table if header else table.set_axis([str(place + 1) for place in range(table.shape[1])], axis=1)
    except (OSError, ValueError) as error:
        raise DataError(f"{path.name} cannot be read as a table: {error}") from error


def _column(table: pd.DataFrame, field: str, path: Path, mapping: dict[str, str]) -> str:
    if field in mapping:
        if mapping[field] in table.columns:
            return mapping[field]
        raise DataError(f"{path.name} has no column {mapping[field]!r}; it has {', '.join(map(str, table.columns))}")
    for name in table.columns:
        if str(name).lower() in OTHER_NAMES[field]:
            return str(name)
    raise DataError(
        f"{path.name}: which column is the {field}? Add --map {field}=COLUMN (and --no-header where the first line is"
        f" data); it has {', '.join(map(str, table.columns))}"
    )


def _moments(column: pd.Series, path: Path) -> pd.Series:
    """ms since 1970 of dates, or of numbers: seconds below 1e11, else ms."""
    if pd.api.types.is_numeric_dtype(column):
        numbers = column.astype("float64")
        return numbers.where(numbers.abs() >= 1e11, numbers * 1000).astype("int64")
    try:
        return pd.to_datetime(column, utc=True).astype("datetime64[ms, UTC]").astype("int64")
    except (ValueError, TypeError) as error:
        raise DataError(f"{path.name}: column {column.name!r} holds no times: {error}") from error


def _from_table(table: pd.DataFrame, path: Path, mapping: dict[str, str], positive: tuple[str, ...]) -> Interactions:
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

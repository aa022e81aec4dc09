"""Defines what a history keeps of an event, and whose history that is, for the stream and for reading the past.

Does not know where events are stored.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from features.contract import columns
from features.history.arrays import Array, hash_ids

_EVENT_TYPES = pa.array(list(columns.EVENT_TYPE_CODES))
_EVENT_TYPE_CODES = np.array(list(columns.EVENT_TYPE_CODES.values()), dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Entries:
    """Entries of histories, in the order of their events."""

    keys: pa.ChunkedArray
    """Shape [entries], strings: whose history each belongs to."""
    numeric: dict[str, Array]
    """Column name to int64 or float64 of shape [entries]."""
    strings: dict[str, pa.ChunkedArray]
    """Column name to strings of shape [entries]."""

    def filter(self, mask: NDArray[np.bool_]) -> "Entries":
        chosen = pa.array(mask)
        return Entries(
            self.keys.filter(chosen),
            {name: column[mask] for name, column in self.numeric.items()},
            {name: column.filter(chosen) for name, column in self.strings.items()},
        )


def user_entries(events: pa.Table) -> Entries:
    """Reads shop events (type, event_id, event_time, user_id, session_id, item_id, quantity, price) of users and of
    anonymous sessions, as columns of arrays.USER_COLUMNS; events of the catalogue and those without a visitor are left
    out."""
    session = events["session_id"].cast(pa.string())  # a table without any has them as nulls of no type
    visitor = pc.coalesce(events["user_id"], pc.binary_join_element_wise("session", session, ":"))
    counts = pc.and_(pc.is_in(events["type"], _EVENT_TYPES), pc.is_valid(visitor))
    events, visitor = events.filter(counts), visitor.filter(counts)
    numbers = {
        columns.TIMES: events["event_time"].to_numpy(),
        columns.EVENT_TYPES: _EVENT_TYPE_CODES[pc.index_in(events["type"], _EVENT_TYPES).to_numpy()],
        columns.PRICES: fill_nulls(events["price"], default=0.0),
        columns.QUANTITIES: fill_nulls(events["quantity"], default=1.0),
        columns.EVENT_HASHES: hash_column(events["event_id"]),
    }
    return Entries(visitor, numbers, {columns.ITEMS: events["item_id"]})


def card_entries(payments: pa.Table) -> Entries:
    """Reads payments (event_id, event_time, card_id, terminal_id, amount) as columns of arrays.CARD_COLUMNS."""
    return _payment_entries(payments, key=columns.CARD, counterparty=columns.TERMINAL)


def terminal_entries(payments: pa.Table) -> Entries:
    """Reads the same payments for their terminals: columns of arrays.TERMINAL_COLUMNS."""
    return _payment_entries(payments, key=columns.TERMINAL, counterparty=columns.CARD)


def _payment_entries(payments: pa.Table, *, key: str, counterparty: str) -> Entries:
    numbers = {
        columns.TIMES: payments["event_time"].to_numpy(),
        columns.AMOUNTS: fill_nulls(payments["amount"], default=0.0),
        columns.EVENT_HASHES: hash_column(payments["event_id"]),
    }
    return Entries(payments[key], numbers, {columns.COUNTERPARTIES: payments[counterparty]})


def from_transaction_features(read: Callable[[pa.Table], Entries]) -> Callable[[pa.Table], Entries]:
    """Adapts card_entries or terminal_entries to rows of the view of transaction features."""

    def entries(rows: pa.Table) -> Entries:
        milliseconds = rows[columns.EVENT_TIMESTAMP].cast(pa.timestamp("ms", tz="UTC")).cast(pa.int64())
        payments = rows.append_column("event_id", rows[columns.TRANSACTION])
        return read(payments.append_column("event_time", milliseconds))

    return entries


def fraud_entries(labels: pa.Table) -> Entries:
    """Reads labels (transaction_id, event_time, terminal_id, fraud, transaction_time) of frauds whose terminal is
    known, as columns of arrays.FRAUD_COLUMNS. The label's own time replaces a missing transaction time."""
    labels = labels.filter(pc.and_kleene(labels["fraud"], pc.is_valid(labels[columns.TERMINAL])))
    numbers = {
        columns.TIMES: pc.coalesce(labels["transaction_time"], labels["event_time"]).to_numpy(),
        columns.FRAUD_KNOWN_TIMES: labels["event_time"].to_numpy(),
        columns.FRAUD_HASHES: hash_column(labels[columns.TRANSACTION]),
    }
    return Entries(labels[columns.TERMINAL], numbers, {})


def fill_nulls(column: pa.ChunkedArray, *, default: float) -> NDArray[np.float64]:
    """Returns a column of numbers with nulls replaced by `default`."""
    return np.asarray(pc.fill_null(column, default).to_numpy(), dtype=np.float64)


def hash_column(ids: pa.ChunkedArray) -> NDArray[np.int64]:
    """Returns hash_ids of a column."""
    return hash_ids(ids.to_numpy())


def encode_strings(*parts: pa.Array | pa.ChunkedArray) -> tuple[pa.Array, list[NDArray[np.int64]]]:
    """Returns one vocabulary of several columns of strings, and each column as positions in it."""
    words = concat_strings(parts).combine_chunks().dictionary_encode()
    codes = words.indices.to_numpy().astype(np.int64)
    return words.dictionary, np.split(codes, np.cumsum([len(part) for part in parts])[:-1])


def concat_strings(parts: Sequence[pa.Array | pa.ChunkedArray]) -> pa.ChunkedArray:
    """Concatenates columns of strings."""
    chunks = [chunk for part in parts for chunk in (part.chunks if isinstance(part, pa.ChunkedArray) else [part])]
    return pa.chunked_array(chunks, pa.string())

"""Folds a micro-batch of events into the histories of the users, cards and terminals that it touches.

Stored histories are read from the online store, which this job alone writes. The job keeps no state of its own, so it
can stop anywhere and resume. While ids and items are folded they are numbers: positions in a vocabulary of the
micro-batch. The offline store holds the events themselves and the features of each payment. Takes Arrow tables and
does not know Spark.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features.contract import columns
from features.fraud import velocity
from features.history import arrays
from features.history.arrays import Array, History, feature_rows, history_rows
from features.history.entries import card_entries, encode_strings, fraud_entries, user_entries
from features.history.fold import FoldResult, fold
from features.history.point_in_time import PointInTimeHistory
from features.store import views
from features.store.codec import Lists
from features.store.feature_store import Store, as_history, online_lists, write_online
from infra.settings import Settings
from streaming.tables import write_table


class HistoryWriter:
    """Folds micro-batches one after the other and writes the histories that changed.

    before_writing: called after the stored histories are read and before anything is written; raises if they are not to
    be trusted.
    """

    def __init__(self, store: Store, settings: Settings, *, before_writing: Callable[[], None] = lambda: None) -> None:
        self._store = store
        self._offline = settings.offline_dir
        self._before_writing = before_writing

    def fold_users(self, events: pa.Table, *, created: datetime) -> None:
        """Folds shop events (type, event_id, event_time, user or session, item...) into user histories."""
        new = user_entries(events)
        ids, (key,) = encode_strings(new.keys)
        if not len(ids):
            return
        lists = self._read(views.USER_HISTORY, ids)
        items, (stored_items, new_items) = encode_strings(lists[columns.ITEMS].values, new.strings[columns.ITEMS])
        stored = as_history(lists, arrays.USER_COLUMNS, codes={columns.ITEMS: stored_items})
        folded = fold(stored, key, {**new.numeric, columns.ITEMS: new_items})
        changed = folded.changed_rows
        latest = folded.merged.latest(changed, cap=arrays.USER_CAP, horizon=arrays.USER_HORIZON)
        users, vocabularies = ids.take(pa.array(changed)), {columns.ITEMS: items}
        rows = history_rows(columns.USER, users, latest.last_times, latest, created=created, vocabularies=vocabularies)
        write_online(self._store, views.USER_HISTORY, rows)

    def fold_payments(self, payments: pa.Table, labels: pa.Table, *, batch: str, created: datetime) -> None:
        """Folds transactions and late labels into card and terminal histories, and writes the features of each
        transaction as of its arrival.

        payments: in the order of their arrival; batch: names the file that their features are written to. A card's
        history is written last: a transaction that it holds is complete, and is skipped from then on.
        """
        frauds = fraud_entries(labels)
        cards, (card_key,) = encode_strings(payments[columns.CARD])
        terminals, (terminal_key, fraud_key) = encode_strings(payments[columns.TERMINAL], frauds.keys)
        card_lists = self._read(views.CARD_HISTORY, cards)
        terminal_lists = self._read(views.TERMINAL_HISTORY, terminals)
        new = _select_new(payments, card_key, terminal_key, card_lists, terminal_lists)
        if not new.rows.num_rows and not len(frauds.keys):
            return
        self._before_writing()
        card = _fold(card_lists, new.card_key, new.numeric, new.rows[columns.TERMINAL])
        terminal = _fold(terminal_lists, new.terminal_key, new.numeric, new.rows[columns.CARD])
        fraud = _fold_frauds(terminal_lists, fraud_key, frauds.numeric)
        if new.has_past.any():
            features = _encode(new, card, terminal, fraud)
            self._write_features(batch, _transaction_rows(new, features, created=created))
        write_online(self._store, views.TERMINAL_HISTORY, _terminal_rows(terminals, terminal, fraud, created=created))
        write_online(self._store, views.CARD_HISTORY, _card_rows(cards, card, created=created))

    def _read(self, view: str, ids: pa.Array) -> dict[str, Lists]:
        return online_lists(self._store, view, ids.to_pylist())

    def _write_features(self, batch: str, rows: pa.Table) -> None:
        """Writes the rows that the micro-batch has not written yet.

        A micro-batch that was cut off has written its features before any history, and they stand: by the time that it
        runs again, terminals may hold payments that came later.
        """
        folder, name, attempt = self._offline / views.TRANSACTION_FEATURES, batch, 0
        while rows.num_rows and (path := folder / f"{name}.parquet").exists():
            written = pq.read_table(path, columns=[columns.TRANSACTION])[columns.TRANSACTION]
            rows = rows.filter(pc.invert(pc.is_in(rows[columns.TRANSACTION], written)))
            attempt += 1
            name = f"{batch}-again-{attempt}"
        if rows.num_rows:
            write_table(folder, name, rows)


@dataclass(frozen=True, slots=True)
class _NewPayments:
    """Payments that no card holds yet, in the order of their arrival."""

    rows: pa.Table
    numeric: dict[str, Array]
    """The numeric columns of arrays.CARD_COLUMNS, shape [payments]."""
    card_key: NDArray[np.int64]
    """Shape [payments]: the row of each one's card among the stored histories."""
    terminal_key: NDArray[np.int64]
    has_past: NDArray[np.bool_]
    """Shape [payments]: whether the card still remembers what came before, so that features can be computed."""


@dataclass(frozen=True, slots=True)
class _Folded:
    """Payments folded into the histories of their cards, or of their terminals."""

    result: FoldResult
    """COUNTERPARTIES are positions in `vocabulary`."""
    vocabulary: pa.Array
    counterparties: NDArray[np.int64]
    """Shape [payments]: the position of each new payment's counterparty."""


def _select_new(
    payments: pa.Table,
    card_key: NDArray[np.int64],
    terminal_key: NDArray[np.int64],
    card_lists: dict[str, Lists],
    terminal_lists: dict[str, Lists],
) -> _NewPayments:
    """Selects the first arrival of each payment that its card's history lacks.

    A payment from where the card has forgotten is either late or one of the forgotten, sent again. It is the latter if
    its terminal still holds it; then nothing is new.
    """
    numeric = card_entries(payments).numeric
    hashes = numeric[columns.EVENT_HASHES]
    stored = as_history(card_lists, _IDENTITY)
    has_past = _has_past(numeric[columns.TIMES], hashes, card_key, stored)
    new = np.zeros(len(hashes), dtype=bool)
    new[np.unique(hashes, return_index=True)[1]] = True
    new &= ~np.isin(hashes, stored.entries[columns.EVENT_HASHES])
    forgotten = np.flatnonzero(~has_past)
    new[forgotten] &= ~np.isin(hashes[forgotten], terminal_lists[columns.EVENT_HASHES].values)
    return _NewPayments(
        payments.filter(pa.array(new)),
        {name: column[new] for name, column in numeric.items()},
        card_key[new],
        terminal_key[new],
        has_past[new],
    )


_IDENTITY = {columns.TIMES: np.int64, columns.EVENT_HASHES: np.int64}


def _has_past(
    times: NDArray[np.int64], hashes: NDArray[np.int64], key: NDArray[np.int64], stored: History
) -> NDArray[np.bool_]:
    """Returns which payments come later, by time and then hash, than all that their cards have forgotten; shape
    [payments]."""
    filled = np.flatnonzero(stored.lengths)
    reach = np.full(len(stored), np.iinfo(np.int64).min)
    reach[filled] = stored.last_times[filled] - arrays.CARD_HORIZON
    full = np.flatnonzero(stored.lengths >= arrays.CARD_CAP)
    oldest, oldest_hash = reach.copy(), reach.copy()
    oldest[full] = stored.times[stored.offsets[full]]
    oldest_hash[full] = stored.entries[columns.EVENT_HASHES][stored.offsets[full]]
    forgotten = times <= reach[key]
    forgotten |= (times < oldest[key]) | ((times == oldest[key]) & (hashes < oldest_hash[key]))
    return ~forgotten


def _fold(
    lists: dict[str, Lists], key: NDArray[np.int64], numeric: dict[str, Array], counterparties: pa.ChunkedArray
) -> _Folded:
    """Folds payments into the stored histories of their cards, or of their terminals."""
    vocabulary, (stored_codes, codes) = encode_strings(lists[columns.COUNTERPARTIES].values, counterparties)
    stored = as_history(lists, arrays.CARD_COLUMNS, codes={columns.COUNTERPARTIES: stored_codes})
    return _Folded(fold(stored, key, {**numeric, columns.COUNTERPARTIES: codes}), vocabulary, codes)


def _fold_frauds(lists: dict[str, Lists], key: NDArray[np.int64], numeric: dict[str, Array]) -> FoldResult:
    """Folds known frauds into the stored histories of their terminals."""
    stored = as_history(lists, arrays.FRAUD_COLUMNS, names=arrays.FRAUD_NAMES)
    return fold(stored, key, numeric, hash_column=columns.FRAUD_HASHES)


def _encode(new: _NewPayments, card: _Folded, terminal: _Folded, frauds: FoldResult) -> NDArray[np.float32]:
    """Computes the features, as of their arrival, of the payments that have a past; shape [those, FEATURES]."""
    times = new.numeric[columns.TIMES]
    card_past = PointInTimeHistory(card.result, new.card_key, times, cap=arrays.CARD_CAP, horizon=arrays.CARD_HORIZON)
    terminal_past = PointInTimeHistory(
        terminal.result,
        new.terminal_key,
        times,
        cap=arrays.TERMINAL_CAP,
        horizon=arrays.TERMINAL_HORIZON,
        counterparties=False,
    )
    payments = velocity.Payments(
        times=times,
        amounts=new.numeric[columns.AMOUNTS],
        channels=_channel_codes(new.rows["channel"]),
        cards=terminal.counterparties,
        terminals=card.counterparties,
        event_hashes=new.numeric[columns.EVENT_HASHES],
    )
    features = []
    with_past = np.flatnonzero(new.has_past)
    for start in range(0, len(with_past), velocity.ROWS_AT_ONCE):
        part = with_past[start : start + velocity.ROWS_AT_ONCE]
        known = frauds.merged.latest(new.terminal_key[part], cap=arrays.TERMINAL_CAP, horizon=arrays.TERMINAL_HORIZON)
        features.append(velocity.encode(card_past.rows(part), terminal_past.rows(part), known, payments.take(part)))
    return np.concatenate(features)


def _channel_codes(channels: pa.ChunkedArray) -> NDArray[np.int64]:
    """Codes of velocity.CHANNEL_CODES; 0 for a channel without one."""
    words = channels.combine_chunks().dictionary_encode()
    codes = [velocity.CHANNEL_CODES.get(name, 0) for name in words.dictionary.to_pylist()]
    per_payment: NDArray[np.int64] = np.array([*codes, 0], dtype=np.int64)[words.indices.fill_null(-1).to_numpy()]
    return per_payment


def _transaction_rows(new: _NewPayments, features: NDArray[np.float32], *, created: datetime) -> pa.Table:
    """Returns rows of the transaction features: the payments that have a past, with `features` in the same order."""
    payments, times = new.rows.filter(pa.array(new.has_past)), new.numeric[columns.TIMES][new.has_past]
    values = {
        **{name: payments[name] for name in (columns.CARD, columns.TERMINAL, "amount", "channel")},
        **{name: features[:, index].astype(np.float64) for index, name in enumerate(velocity.FEATURES)},
    }
    return feature_rows(columns.TRANSACTION, payments["event_id"], times, values, created=created)


def _terminal_rows(terminals: pa.Array, folded: _Folded, frauds: FoldResult, *, created: datetime) -> pa.Table:
    """Returns the newest row of each changed terminal: its payments and its known frauds, side by side."""
    changed = np.union1d(folded.result.changed_rows, frauds.changed_rows)
    latest = folded.result.merged.latest(changed, cap=arrays.TERMINAL_CAP, horizon=arrays.TERMINAL_HORIZON)
    known = frauds.merged.latest(changed, cap=arrays.TERMINAL_CAP, horizon=arrays.TERMINAL_HORIZON)
    lists = {
        **arrays.to_arrow(known, names=arrays.FRAUD_NAMES),
        **arrays.to_arrow(latest, vocabularies={columns.COUNTERPARTIES: folded.vocabulary}),
    }
    times = np.maximum(latest.last_times, known.last_times)
    return feature_rows(columns.TERMINAL, terminals.take(pa.array(changed)), times, lists, created=created)


def _card_rows(cards: pa.Array, folded: _Folded, *, created: datetime) -> pa.Table:
    """Returns the newest row of each changed card."""
    changed = folded.result.changed_rows
    latest = folded.result.merged.latest(changed, cap=arrays.CARD_CAP, horizon=arrays.CARD_HORIZON)
    vocabularies = {columns.COUNTERPARTIES: folded.vocabulary}
    names = cards.take(pa.array(changed))
    return history_rows(columns.CARD, names, latest.last_times, latest, created=created, vocabularies=vocabularies)

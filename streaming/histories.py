"""A micro-batch of events, folded into the histories of the users, cards and terminals that it touches.

What is known of them is read from the online store, which this job alone writes: it keeps no state of its own, so
that it can stop anywhere and go on. Ids and items are numbers while they are folded: places in a vocabulary of the
micro-batch. Offline stand the events themselves and the features of each payment. Knows nothing of Spark: it is handed
Arrow tables.
"""

from collections.abc import Callable
from datetime import datetime

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.contract import columns
from features.fraud import velocity
from features.history import arrays
from features.history.arrays import History, feature_rows, history_rows
from features.history.entries import card_entries, encode_strings, fraud_entries, user_entries
from features.history.fold import FoldResult, fold
from features.history.point_in_time import PointInTimeHistory
from features.store import views
from features.store.codec import Lists
from features.store.feature_store import Store, as_history, online_lists, write_online
from infra.settings import Settings
from streaming.tables import write_table


class HistoryWriter:
    """Applies micro-batches, one after the other; `batch` names the file that a payment's features are written to.

    before_writing: called when what is known was read and nothing was written yet; raises if it is not to be trusted.
    """

    def __init__(self, store: Store, settings: Settings, *, before_writing: Callable[[], None] = lambda: None) -> None:
        self._store = store
        self._offline = settings.offline_dir
        self._before_writing = before_writing

    def fold_users(self, events: pa.Table, *, created: datetime) -> None:
        """Shop events (type, event_id, event_time, user or session, item...) into user histories."""
        new = user_entries(events)
        ids, (key,) = encode_strings(new.keys)
        if not len(ids):
            return
        lists = self._known(views.USER_HISTORY, ids)
        items, (known_items, new_items) = encode_strings(lists[columns.ITEMS].values, new.strings[columns.ITEMS])
        known = as_history(lists, arrays.USER_COLUMNS, codes={columns.ITEMS: known_items})
        folded = fold(known, key, {**new.numeric, columns.ITEMS: new_items})
        changed = folded.changed_rows
        rows = folded.merged.latest(changed, cap=arrays.USER_CAP, horizon=arrays.USER_HORIZON)
        users, words = ids.take(pa.array(changed)), {columns.ITEMS: items}
        newest = history_rows(columns.USER, users, rows.last_times, rows, created=created, vocabularies=words)
        write_online(self._store, views.USER_HISTORY, newest)

    def fold_payments(self, payments: pa.Table, labels: pa.Table, *, batch: str, created: datetime) -> None:
        """Transactions, in the order in which they arrived, and late labels into card and terminal histories, and the
        features of each transaction: what could be known of it when it arrived.

        The card's history is written last: a transaction that it holds was dealt with, and is passed over from then on.
        """
        cards, (card_key,) = encode_strings(payments[columns.CARD])
        card_lists = self._known(views.CARD_HISTORY, cards)
        of_cards = card_entries(payments)
        hashes, times = of_cards.numeric[columns.EVENT_HASHES], of_cards.numeric[columns.TIMES]
        fresh, told = _new_payments(hashes, times, card_key, as_history(card_lists, _SEEN))
        payments, of_cards, card_key, told = (
            payments.filter(pa.array(fresh)), of_cards.filter(fresh), card_key[fresh], told[fresh]
        )  # fmt: skip
        of_frauds = fraud_entries(labels)
        if not payments.num_rows and not len(of_frauds.keys):
            return
        places, (known_places, paid_at) = encode_strings(
            card_lists[columns.COUNTERPARTIES].values, payments[columns.TERMINAL]
        )
        card = fold(
            as_history(card_lists, arrays.CARD_COLUMNS, codes={columns.COUNTERPARTIES: known_places}),
            card_key,
            {**of_cards.numeric, columns.COUNTERPARTIES: paid_at},
        )
        terminals, (terminal_key, fraud_key) = encode_strings(payments[columns.TERMINAL], of_frauds.keys)
        terminal_lists = self._known(views.TERMINAL_HISTORY, terminals)
        self._before_writing()
        payers, (known_payers, paid_by) = encode_strings(
            terminal_lists[columns.COUNTERPARTIES].values, payments[columns.CARD]
        )
        terminal = fold(
            as_history(terminal_lists, arrays.TERMINAL_COLUMNS, codes={columns.COUNTERPARTIES: known_payers}),
            terminal_key,
            {**of_cards.numeric, columns.COUNTERPARTIES: paid_by},
        )
        frauds = fold(
            as_history(terminal_lists, arrays.FRAUD_COLUMNS, names=arrays.FRAUD_NAMES),
            fraud_key,
            of_frauds.numeric,
            hash_column=columns.FRAUD_HASHES,
        )
        if told.any():
            arrived = velocity.Payments(
                times=of_cards.numeric[columns.TIMES],
                amounts=of_cards.numeric[columns.AMOUNTS],
                channels=_channels(payments),
                cards=paid_by,
                terminals=paid_at,
                event_hashes=of_cards.numeric[columns.EVENT_HASHES],
            )
            features = _features(arrived, card, card_key, terminal, terminal_key, frauds, np.flatnonzero(told))
            payments, times = payments.filter(pa.array(told)), arrived.times[told]
            columns_of = {
                **{name: payments[name] for name in (columns.CARD, columns.TERMINAL, "amount", "channel")},
                **{name: features[:, index].astype(np.float64) for index, name in enumerate(velocity.FEATURES)},
            }
            rows = feature_rows(columns.TRANSACTION, payments["event_id"], times, columns_of, created=created)
            self._keep(views.TRANSACTION_FEATURES, batch, rows)
        changed = np.union1d(terminal.changed_rows, frauds.changed_rows)
        newest = _terminal_rows(terminals, changed, terminal, frauds, payers=payers, created=created)
        write_online(self._store, views.TERMINAL_HISTORY, newest)
        changed = card.changed_rows
        latest = card.merged.latest(changed, cap=arrays.CARD_CAP, horizon=arrays.CARD_HORIZON)
        names, words = cards.take(pa.array(changed)), {columns.COUNTERPARTIES: places}
        newest = history_rows(columns.CARD, names, latest.last_times, latest, created=created, vocabularies=words)
        write_online(self._store, views.CARD_HISTORY, newest)

    def _keep(self, view: str, batch: str, rows: pa.Table) -> None:
        """Write offline rows. A micro-batch that was cut off and is done again finds some of its rows known and makes
        only the others: then what it wrote the first time stays beside them."""
        folder, name, again = self._offline / view, batch, 0
        while (folder / f"{name}.parquet").exists():
            again += 1
            name = f"{batch}-again-{again}"
        write_table(folder, name, rows)

    def _known(self, view: str, ids: pa.Array) -> dict[str, Lists]:
        return online_lists(self._store, view, ids.to_pylist())


_SEEN = {columns.TIMES: np.int64, columns.EVENT_HASHES: np.int64}


def _new_payments(
    hashes: NDArray[np.int64], times: NDArray[np.int64], key: NDArray[np.int64], known: History
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which payments their cards have not met yet; and which of them do not lie where their cards have forgotten: one
    from there may be one of the forgotten, sent again, and what was known then cannot be told any more."""
    fresh = ~np.isin(hashes, known.entries[columns.EVENT_HASHES])
    first = np.zeros(len(hashes), dtype=bool)
    first[np.unique(hashes, return_index=True)[1]] = True
    filled = np.flatnonzero(known.lengths)
    reach = np.full(len(known), np.iinfo(np.int64).min)
    reach[filled] = known.last_times[filled] - arrays.CARD_HORIZON
    forgotten = times <= reach[key]
    full = np.flatnonzero(known.lengths >= arrays.CARD_CAP)
    oldest, oldest_hash = reach.copy(), reach.copy()
    oldest[full] = known.times[known.offsets[full]]
    oldest_hash[full] = known.entries[columns.EVENT_HASHES][known.offsets[full]]
    forgotten |= (times < oldest[key]) | ((times == oldest[key]) & (hashes < oldest_hash[key]))
    return fresh & first, ~forgotten


def _features(
    arrived: velocity.Payments,
    card: FoldResult,
    card_key: NDArray[np.int64],
    terminal: FoldResult,
    terminal_key: NDArray[np.int64],
    frauds: FoldResult,
    wanted: NDArray[np.int64],
) -> NDArray[np.float32]:
    """What could be known of the `wanted` ones (places) of the payments that were folded, in the order they came in."""
    times = arrived.times
    card_then = PointInTimeHistory(card, card_key, times, cap=arrays.CARD_CAP, horizon=arrays.CARD_HORIZON)
    terminal_then = PointInTimeHistory(
        terminal, terminal_key, times, cap=arrays.TERMINAL_CAP, horizon=arrays.TERMINAL_HORIZON, partners=False
    )
    found = []
    for start in range(0, len(wanted), velocity.ROWS_AT_ONCE):
        part = wanted[start : start + velocity.ROWS_AT_ONCE]
        known = frauds.merged.latest(terminal_key[part], cap=arrays.TERMINAL_CAP, horizon=arrays.TERMINAL_HORIZON)
        found.append(velocity.encode(card_then.rows(part), terminal_then.rows(part), known, arrived.take(part)))
    return np.concatenate(found)


def _channels(payments: pa.Table) -> NDArray[np.int64]:
    """Codes of velocity.CHANNEL_CODES; 0 for a channel without one."""
    words = payments["channel"].combine_chunks().dictionary_encode()
    codes = [velocity.CHANNEL_CODES.get(name, 0) for name in words.dictionary.to_pylist()]
    found: NDArray[np.int64] = np.array([*codes, 0], dtype=np.int64)[words.indices.fill_null(-1).to_numpy()]
    return found


def _terminal_rows(
    terminals: pa.Array,
    changed: NDArray[np.int64],
    payments: FoldResult,
    frauds: FoldResult,
    *,
    payers: pa.Array,
    created: datetime,
) -> pa.Table:
    """The newest row of each changed terminal: its payments and its known frauds, side by side."""
    latest = payments.merged.latest(changed, cap=arrays.TERMINAL_CAP, horizon=arrays.TERMINAL_HORIZON)
    known = frauds.merged.latest(changed, cap=arrays.TERMINAL_CAP, horizon=arrays.TERMINAL_HORIZON)
    lists = {
        **arrays.to_arrow(known, names=arrays.FRAUD_NAMES),
        **arrays.to_arrow(latest, vocabularies={columns.COUNTERPARTIES: payers}),
    }
    times = np.maximum(latest.last_times, known.last_times)
    return feature_rows(columns.TERMINAL, terminals.take(pa.array(changed)), times, lists, created=created)

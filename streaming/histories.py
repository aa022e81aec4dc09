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

from features import columns, history, velocity, views
from features.entries import card_entries, coded, fraud_entries, user_entries
from features.fold import Folded, fold
from features.history import History, feature_rows, history_rows
from features.online_codec import Lists
from features.store import Store, as_history, online_lists, write_online
from infra.settings import Settings
from streaming.tables import write_table


class Histories:
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
        ids, (key,) = coded(new.keys)
        if not len(ids):
            return
        lists = self._known(views.USER_HISTORY, ids)
        items, (known_items, new_items) = coded(lists[columns.ITEMS].values, new.words[columns.ITEMS])
        known = as_history(lists, history.USER_COLUMNS, codes={columns.ITEMS: known_items})
        folded = fold(known, key, {**new.numbers, columns.ITEMS: new_items})
        changed = folded.changed
        rows = folded.merged.latest(changed, cap=history.USER_CAP, horizon=history.USER_HORIZON)
        users, words = ids.take(pa.array(changed)), {columns.ITEMS: items}
        newest = history_rows(columns.USER, users, rows.last_times, rows, created=created, vocabularies=words)
        write_online(self._store, views.USER_HISTORY, newest)

    def fold_payments(self, payments: pa.Table, labels: pa.Table, *, batch: str, created: datetime) -> None:
        """Transactions, in the order in which they arrived, and late labels into card and terminal histories, and the
        features of each transaction: what could be known of it when it arrived.

        The card's history is written last: a transaction that it holds was dealt with, and is passed over from then on.
        """
        cards, (card_key,) = coded(payments[columns.CARD])
        card_lists = self._known(views.CARD_HISTORY, cards)
        of_cards = card_entries(payments)
        hashes, times = of_cards.numbers[columns.EVENT_HASHES], of_cards.numbers[columns.TIMES]
        fresh = _unseen_payments(hashes, times, card_key, as_history(card_lists, _SEEN))
        payments, of_cards, card_key = payments.filter(pa.array(fresh)), of_cards.keep(fresh), card_key[fresh]
        of_frauds = fraud_entries(labels)
        if not payments.num_rows and not len(of_frauds.keys):
            return
        places, (known_places, paid_at) = coded(card_lists[columns.PARTNERS].values, payments[columns.TERMINAL])
        card = fold(
            as_history(card_lists, history.CARD_COLUMNS, codes={columns.PARTNERS: known_places}),
            card_key,
            {**of_cards.numbers, columns.PARTNERS: paid_at},
        )
        terminals, (terminal_key, fraud_key) = coded(payments[columns.TERMINAL], of_frauds.keys)
        terminal_lists = self._known(views.TERMINAL_HISTORY, terminals)
        self._before_writing()
        payers, (known_payers, paid_by) = coded(terminal_lists[columns.PARTNERS].values, payments[columns.CARD])
        terminal = fold(
            as_history(terminal_lists, history.TERMINAL_COLUMNS, codes={columns.PARTNERS: known_payers}),
            terminal_key,
            {**of_cards.numbers, columns.PARTNERS: paid_by},
        )
        frauds = fold(
            as_history(terminal_lists, history.FRAUD_COLUMNS, names=history.FRAUD_NAMES),
            fraud_key,
            of_frauds.numbers,
            hash_column=columns.FRAUD_HASHES,
        )
        if payments.num_rows:
            arrived = velocity.Payments(
                times=of_cards.numbers[columns.TIMES],
                amounts=of_cards.numbers[columns.AMOUNTS],
                channels=_channels(payments),
                cards=paid_by,
                terminals=paid_at,
                event_hashes=of_cards.numbers[columns.EVENT_HASHES],
            )
            card_then = _Then(card, card_key, arrived.times, cap=history.CARD_CAP)
            terminal_then = _Then(terminal, terminal_key, arrived.times, cap=history.TERMINAL_CAP, partners=False)
            features = np.concatenate(
                [
                    velocity.encode(
                        card_then.rows(start, start + velocity.ROWS_AT_ONCE),
                        terminal_then.rows(start, start + velocity.ROWS_AT_ONCE),
                        frauds.merged.take(terminal_key[start : start + velocity.ROWS_AT_ONCE]),
                        arrived.rows(start, start + velocity.ROWS_AT_ONCE),
                    )
                    for start in range(0, len(arrived), velocity.ROWS_AT_ONCE)
                ]
            )
            columns_of = {
                **{name: payments[name] for name in (columns.CARD, columns.TERMINAL, "amount", "channel")},
                **{name: features[:, index].astype(np.float64) for index, name in enumerate(velocity.FEATURES)},
            }
            rows = feature_rows(columns.TRANSACTION, payments["event_id"], arrived.times, columns_of, created=created)
            self._keep(views.TRANSACTION_FEATURES, batch, rows)
        changed = np.union1d(terminal.changed, frauds.changed)
        newest = _terminal_rows(terminals, changed, terminal, frauds, payers=payers, created=created)
        write_online(self._store, views.TERMINAL_HISTORY, newest)
        changed = card.changed
        latest = card.merged.latest(changed, cap=history.CARD_CAP, horizon=history.CARD_HORIZON)
        names, words = cards.take(pa.array(changed)), {columns.PARTNERS: places}
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


def _unseen_payments(
    hashes: NDArray[np.int64], times: NDArray[np.int64], key: NDArray[np.int64], known: History
) -> NDArray[np.bool_]:
    """Which payments their cards have not met yet, and do not reach back to where their cards have forgotten: one from
    there may be one of the forgotten, sent again, and what was known then cannot be told any more."""
    full = known.lengths >= history.CARD_CAP
    oldest, last = known.times[known.offsets[:-1][full]], known.last_times
    reach = np.where(known.lengths > 0, last - history.CARD_HORIZON + 1, np.iinfo(np.int64).min)
    reach[full] = np.maximum(reach[full], oldest + (last[full] > oldest))
    unseen = ~np.isin(hashes, known.entries[columns.EVENT_HASHES]) & (times >= reach[key])
    first = np.zeros(len(hashes), dtype=bool)
    first[np.unique(hashes, return_index=True)[1]] = True
    wanted: NDArray[np.bool_] = unseen & first
    return wanted


def _channels(payments: pa.Table) -> NDArray[np.int64]:
    """Codes of velocity.CHANNEL_CODES; 0 for a channel without one."""
    words = payments["channel"].combine_chunks().dictionary_encode()
    codes = [velocity.CHANNEL_CODES.get(name, 0) for name in words.dictionary.to_pylist()]
    found: NDArray[np.int64] = np.array([*codes, 0], dtype=np.int64)[words.indices.fill_null(-1).to_numpy()]
    return found


class _Then:
    """What was known of each payment's card (or terminal) when it arrived: of those before it in the fold, the ones up
    to its own time; the latest `cap` of them, itself, and a few more at most.

    key, times: of the payments, in the order in which they arrived and were folded.
    """

    def __init__(
        self, folded: Folded, key: NDArray[np.int64], times: NDArray[np.int64], *, cap: int, partners: bool = True
    ) -> None:
        """partners: whether anybody looks at PARTNERS."""
        late = _late(key, times, keys=len(folded.merged))
        self._late = bool(late.any())
        entries = dict(folded.merged.entries)
        if not partners:
            entries.pop(columns.PARTNERS)
        self._merged = History(folded.merged.offsets, {**entries, _ARRIVAL: folded.arrival} if self._late else entries)
        self._ends = folded.merged.places(key, times)
        # What came after a payment and yet lies before it in time is one of the late.
        spare = 1 + late[key]
        self._starts = np.maximum(folded.merged.places(key, times - velocity.HORIZON), self._ends - cap - spare)

    def rows(self, start: int, end: int) -> History:
        """The payments from `start` to `end`."""
        states = self._merged.slices(self._starts[start:end], self._ends[start:end])
        if not self._late:
            return states
        return states.keep(states.entries[_ARRIVAL] <= states.row_of_entry + start)


_ARRIVAL = "arrival"


def _late(key: NDArray[np.int64], times: NDArray[np.int64], *, keys: int) -> NDArray[np.int64]:
    """Shape [keys]: how many of each key's payments are no later than one that arrived before them."""
    by_key = np.argsort(key, kind="stable")
    own, when = key[by_key], times[by_key]
    rank = own * (np.ptp(times) + 1) + (when - times.min())
    late = rank[1:] <= np.maximum.accumulate(rank)[:-1]
    counts: NDArray[np.int64] = np.bincount(own[1:][late], minlength=keys)
    return counts


def _terminal_rows(
    terminals: pa.Array,
    changed: NDArray[np.int64],
    payments: Folded,
    frauds: Folded,
    *,
    payers: pa.Array,
    created: datetime,
) -> pa.Table:
    """The newest row of each changed terminal: its payments and its known frauds, side by side."""
    latest = payments.merged.latest(changed, cap=history.TERMINAL_CAP, horizon=history.TERMINAL_HORIZON)
    known = frauds.merged.latest(changed, cap=history.TERMINAL_CAP, horizon=history.TERMINAL_HORIZON)
    lists = {
        **history.to_arrow(known, names=history.FRAUD_NAMES),
        **history.to_arrow(latest, vocabularies={columns.PARTNERS: payers}),
    }
    times = np.maximum(latest.last_times, known.last_times)
    return feature_rows(columns.TERMINAL, terminals.take(pa.array(changed)), times, lists, created=created)

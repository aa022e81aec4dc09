"""A micro-batch of events, folded into the histories of the users, cards and terminals that it touches.

What is known of them is read from the online store, which this job alone writes: it keeps no state of its own, so
that it can stop anywhere and go on. Ids and items are numbers while they are folded: places in a vocabulary of the
micro-batch. Knows nothing of Spark: it is handed Arrow tables.
"""

from collections.abc import Callable
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from features import columns, history, velocity, views
from features.fold import Folded, fold
from features.history import Array, History, hash_ids
from features.online_codec import Lists
from features.store import Store, as_history, online_lists, write_online
from infra.settings import Settings
from streaming.tables import feature_rows, history_rows, write_table

KINDS = pa.array(list(columns.KIND_CODES))
KIND_CODES = np.array(list(columns.KIND_CODES.values()), dtype=np.int64)


def numbers(column: pa.ChunkedArray, *, default: float) -> NDArray[np.float64]:
    return np.asarray(pc.fill_null(column, default).to_numpy(), dtype=np.float64)


def hashes_of(ids: pa.ChunkedArray) -> NDArray[np.int64]:
    return hash_ids(ids.to_numpy())


def coded(*parts: pa.Array | pa.ChunkedArray) -> tuple[pa.Array, list[NDArray[np.int64]]]:
    """One vocabulary of several columns of strings, and each column as places in it."""
    chunks = [chunk for part in parts for chunk in (part.chunks if isinstance(part, pa.ChunkedArray) else [part])]
    words = pa.concat_arrays([pa.array([], pa.string()), *chunks]).dictionary_encode()
    codes = words.indices.to_numpy().astype(np.int64)
    return words.dictionary, np.split(codes, np.cumsum([len(part) for part in parts])[:-1])


class Histories:
    """Applies micro-batches, one after the other; `batch` names the files they are written to.

    before_writing: called when what is known was read and nothing was written yet; raises if it is not to be trusted.
    """

    def __init__(self, store: Store, settings: Settings, *, before_writing: Callable[[], None] = lambda: None) -> None:
        self._store = store
        self._offline = settings.offline_dir
        self._before_writing = before_writing

    def fold_users(self, events: pa.Table, *, batch: str, created: datetime) -> None:
        """Shop events (type, event_id, event_time, user or session, item...) into user histories."""
        visitor = pc.coalesce(events["user_id"], pc.binary_join_element_wise("session", events["session_id"], ":"))
        events = events.append_column("visitor", visitor)
        events = events.filter(pc.and_(pc.is_in(events["type"], KINDS), pc.is_valid(events["visitor"])))
        if not events.num_rows:
            return
        ids, (key,) = coded(events["visitor"])
        known_lists = self._known(views.USER_HISTORY, ids)
        self._before_writing()
        items, (known_items, new_items) = coded(known_lists[columns.ITEMS].values, events["item_id"])
        known = as_history(known_lists, history.USER_COLUMNS, codes={columns.ITEMS: known_items})
        entries = {
            columns.TIMES: events["event_time"].to_numpy(),
            columns.ITEMS: new_items,
            columns.KINDS: KIND_CODES[pc.index_in(events["type"], KINDS).to_numpy()],
            columns.PRICES: numbers(events["price"], default=0.0),
            columns.QUANTITIES: numbers(events["quantity"], default=1.0),
            columns.EVENT_HASHES: hashes_of(events["event_id"]),
        }
        within = entries[columns.TIMES] >= _reach(known, cap=history.USER_CAP)[key]
        entries = {name: column[within] for name, column in entries.items()}
        folded = fold(known, key[within], entries, cap=history.USER_CAP, horizon=history.USER_HORIZON)
        rows = history_rows(
            columns.USER,
            ids.take(pa.array(folded.key_of_row)),
            folded.row_times,
            folded.rows,
            created=created,
            vocabularies={columns.ITEMS: items},
        )
        if rows.num_rows:
            self._keep(views.USER_HISTORY, batch, rows)
            write_online(self._store, views.USER_HISTORY, rows.take(folded.last_rows))

    def fold_payments(self, payments: pa.Table, labels: pa.Table, *, batch: str, created: datetime) -> None:
        """Transactions and late labels into card and terminal histories, and the features of each transaction.

        The card's history is written last: a transaction that it holds was dealt with, and is passed over from then on.
        """
        labels = labels.filter(pc.and_kleene(labels["fraud"], pc.is_valid(labels["terminal_id"])))
        cards, (card_key,) = coded(payments["card_id"])
        card_lists = self._known(views.CARD_HISTORY, cards)
        fresh = _unseen_payments(payments, card_key, as_history(card_lists, _SEEN))
        payments, card_key = payments.filter(pa.array(fresh)), card_key[fresh]
        if not payments.num_rows and not labels.num_rows:
            return
        times, hashes = payments["event_time"].to_numpy(), hashes_of(payments["event_id"])
        amounts = numbers(payments["amount"], default=0.0)
        entries = {columns.TIMES: times, columns.AMOUNTS: amounts, columns.EVENT_HASHES: hashes}
        places, (known_places, paid_at) = coded(card_lists[columns.PARTNERS].values, payments["terminal_id"])
        card = fold(
            as_history(card_lists, history.CARD_COLUMNS, codes={columns.PARTNERS: known_places}),
            card_key,
            {**entries, columns.PARTNERS: paid_at},
            cap=history.CARD_CAP,
            horizon=history.CARD_HORIZON,
        )
        terminals, (terminal_key, label_key) = coded(payments["terminal_id"], labels["terminal_id"])
        terminal_lists = self._known(views.TERMINAL_HISTORY, terminals)
        self._before_writing()
        payers, (known_payers, paid_by) = coded(terminal_lists[columns.PARTNERS].values, payments["card_id"])
        terminal = fold(
            as_history(terminal_lists, history.TERMINAL_COLUMNS, codes={columns.PARTNERS: known_payers}),
            terminal_key,
            {**entries, columns.PARTNERS: paid_by},
            cap=history.TERMINAL_CAP,
            horizon=history.TERMINAL_HORIZON,
        )
        frauds = fold(
            as_history(terminal_lists, history.FRAUD_COLUMNS, names=history.FRAUD_NAMES),
            label_key,
            _frauds(labels),
            cap=history.TERMINAL_CAP,
            horizon=history.TERMINAL_HORIZON,
            hash_column=columns.FRAUD_HASHES,
        )

        if payments.num_rows:
            features = velocity.encode(
                _states_at(card.merged, card_key, times, cap=history.CARD_CAP, horizon=history.CARD_HORIZON),
                _states_at(
                    terminal.merged, terminal_key, times, cap=history.TERMINAL_CAP, horizon=history.TERMINAL_HORIZON
                ),
                frauds.merged.take(terminal_key),
                velocity.Payments(
                    times=times,
                    amounts=amounts,
                    channels=np.array(
                        [velocity.CHANNEL_CODES.get(name, 0) for name in payments["channel"].to_pylist()],
                        dtype=np.int64,
                    ),
                    cards=paid_by,
                    terminals=paid_at,
                    event_hashes=hashes,
                ),
            )
            columns_of = {
                **{name: payments[name] for name in (columns.CARD, columns.TERMINAL, "amount", "channel")},
                **{name: features[:, index].astype(np.float64) for index, name in enumerate(velocity.FEATURES)},
            }
            table = feature_rows(columns.TRANSACTION, payments["event_id"], times, columns_of, created=created)
            self._keep(views.TRANSACTION_FEATURES, batch, table)
        changed = np.unique(np.concatenate((terminal.key_of_row, frauds.key_of_row)))
        if len(changed):
            newest = _terminal_rows(terminals, changed, terminal, frauds, payers=payers, created=created)
            self._keep(views.TERMINAL_HISTORY, batch, newest)
            write_online(self._store, views.TERMINAL_HISTORY, newest)
        if len(card.last_rows):
            last = card.last_rows
            newest = history_rows(
                columns.CARD,
                cards.take(pa.array(card.key_of_row[last])),
                card.row_times[last],
                card.rows.take(last),
                created=created,
                vocabularies={columns.PARTNERS: places},
            )
            self._keep(views.CARD_HISTORY, batch, newest)
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


def _reach(known: History, *, cap: int) -> NDArray[np.int64]:
    """For each row, the earliest event time that can still be folded in; shape [rows].

    A full row has forgotten what lay before it. An event from there may be one of the forgotten, sent again, and to
    restate the rows after it would empty them of the others.
    """
    reach = np.full(len(known), np.iinfo(np.int64).min)
    full = known.lengths >= cap
    oldest, last = known.times[known.offsets[:-1][full]], known.times[known.offsets[1:][full] - 1]
    reach[full] = oldest + (last > oldest)
    return reach


def _unseen_payments(payments: pa.Table, key: NDArray[np.int64], known: History) -> NDArray[np.bool_]:
    """Which payments their cards have not met yet, and do not reach back to where their cards have forgotten."""
    hashes, times = hashes_of(payments["event_id"]), payments["event_time"].to_numpy()
    reach = np.maximum(_reach(known, cap=history.CARD_CAP), _last_times(known) - history.CARD_HORIZON + 1)
    unseen = ~np.isin(hashes, known.entries[columns.EVENT_HASHES]) & (times >= reach[key])
    first = np.zeros(len(hashes), dtype=bool)
    first[np.unique(hashes, return_index=True)[1]] = True
    wanted: NDArray[np.bool_] = unseen & first
    return wanted


def _frauds(labels: pa.Table) -> dict[str, Array]:
    """Columns of FRAUD_COLUMNS from labels; without a transaction time the label's own stands in."""
    happened = pc.coalesce(labels["transaction_time"], labels["event_time"])
    return {
        columns.TIMES: happened.to_numpy(),
        columns.FRAUD_KNOWN_TIMES: labels["event_time"].to_numpy(),
        columns.FRAUD_HASHES: hashes_of(labels["transaction_id"]),
    }


def _states_at(merged: History, key: NDArray[np.int64], times: NDArray[np.int64], *, cap: int, horizon: int) -> History:
    """For each (key, time), what was stored of the key then: all new or all known before, it makes no difference."""
    scale = np.int64(2**42)
    flat = merged.row_of_entry * scale + merged.times
    ends = np.searchsorted(flat, key * scale + times, side="right")
    starts = np.searchsorted(flat, key * scale + np.maximum(times - horizon, 0), side="right")
    return merged.slices(np.maximum(starts, ends - cap), ends)


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
    latest = _newest(payments.merged, changed, cap=history.TERMINAL_CAP, horizon=history.TERMINAL_HORIZON)
    known = _newest(frauds.merged, changed, cap=history.TERMINAL_CAP, horizon=history.TERMINAL_HORIZON)
    lists = {
        **history.to_arrow(known, names=history.FRAUD_NAMES),
        **history.to_arrow(latest, vocabularies={columns.PARTNERS: payers}),
    }
    times = np.maximum(_last_times(latest), _last_times(known))
    return feature_rows(columns.TERMINAL, terminals.take(pa.array(changed)), times, lists, created=created)


def _newest(merged: History, keys: NDArray[np.int64], *, cap: int, horizon: int) -> History:
    """The stored row of each key: its latest entries."""
    kept = merged.take(keys)
    starts = np.maximum(kept.offsets[:-1], kept.offsets[1:] - cap)
    kept = kept.slices(starts, kept.offsets[1:])
    return kept.keep(kept.times > np.repeat(_last_times(kept) - horizon, kept.lengths))


def _last_times(rows: History) -> NDArray[np.int64]:
    """Time of each row's last entry; 0 for an empty row."""
    if not len(rows.times):
        return np.zeros(len(rows), dtype=np.int64)
    return np.where(rows.lengths > 0, rows.times[rows.offsets[1:] - 1], 0)

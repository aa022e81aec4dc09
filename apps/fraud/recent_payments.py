"""Holds the payments of the last minutes, for stored histories that lack them.

The feature job needs a moment to update a history; a burst of payments does not wait for it. Knows nothing of scores.
"""

import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from apps.lru_map import LruMap
from features.contract.events import Decision, Transaction
from features.contract.timestamps import milliseconds
from features.history import arrays
from features.history.arrays import Array, hash_ids

RECENT_SECONDS = 600.0
"""How long a payment is remembered that the stored histories may lack."""
ARRIVED_IDS_KEPT = 100_000


class _Entry(NamedTuple):
    """One payment in the history of its card or terminal; the fields begin with the columns of arrays.CARD_COLUMNS."""

    time: int
    amount: float
    counterparty: str
    event_hash: int
    arrived: bool
    """False where only its decision is known, so that it may yet arrive."""


class RecentHistory(NamedTuple):
    """Payments of K cards (or terminals): those of one key in the order of their arrival, none twice."""

    key: NDArray[np.int64]
    """Shape [payments], ascending: row of the card or terminal."""
    entries: dict[str, Array]
    """Columns of arrays.CARD_COLUMNS, shape [payments]."""


class RecentPayments:
    """Keeps each payment for `seconds`, and at most `most` payments. Safe to use from many threads."""

    def __init__(self, *, clock: Callable[[], float], seconds: float = RECENT_SECONDS, most: int = 200_000) -> None:
        """clock: seconds since the epoch."""
        self._clock = clock
        self._seconds = seconds
        self._most = most
        self._observed: deque[tuple[float, str, str]] = deque()
        self._cards: dict[str, deque[_Entry]] = {}
        self._terminals: dict[str, deque[_Entry]] = {}
        self._arrived_ids: LruMap[str, None] = LruMap(ARRIVED_IDS_KEPT)
        self._lock = threading.Lock()

    def observe_decided(self, decisions: Sequence[Decision]) -> None:
        """Adds the payments that other processes decided lately: they count in this one's windows too."""
        with self._lock:
            since = self._clock() - self._seconds
            elsewhere = [
                decision
                for decision in decisions
                if decision.decided_time.timestamp() >= since and decision.event_id not in self._arrived_ids
            ]
            self._add(elsewhere, hash_ids([decision.event_id for decision in elsewhere]).tolist(), arrived=False)
            self._forget()

    def observe_arrived(
        self, payments: Sequence[Transaction], hashes: Sequence[int], *, cards: Sequence[str], terminals: Sequence[str]
    ) -> tuple[RecentHistory, RecentHistory]:
        """Adds payments that arrive now, in this order, and returns the recent histories of `cards` and `terminals`.

        hashes: of the event ids, by hash_ids. A payment known by its decision alone counts from its arrival.
        """
        with self._lock:
            self._arrived_ids.update((payment.event_id, None) for payment in payments)
            self._add(payments, hashes, arrived=True)
            arriving = frozenset(hashes)
            histories = (
                _recent_history(self._cards, cards, arriving),
                _recent_history(self._terminals, terminals, arriving),
            )
            self._forget()
        return histories

    def _add(self, payments: Sequence[Transaction | Decision], hashes: Sequence[int], *, arrived: bool) -> None:
        now = self._clock()
        for payment, event_hash in zip(payments, hashes, strict=True):
            time, card, terminal = milliseconds(payment.event_time), payment.card_id, payment.terminal_id
            entry = _Entry(time, payment.amount, terminal, event_hash, arrived)
            self._cards.setdefault(card, deque()).append(entry)
            self._terminals.setdefault(terminal, deque()).append(entry._replace(counterparty=card))
            self._observed.append((now, card, terminal))

    def _forget(self) -> None:
        """Drops entries that are too old or too many: those of one key leave in the order in which they came."""
        oldest = self._clock() - self._seconds
        while self._observed and (self._observed[0][0] < oldest or len(self._observed) > self._most):
            _, card, terminal = self._observed.popleft()
            for entries, key in ((self._cards, card), (self._terminals, terminal)):
                entries[key].popleft()
                if not entries[key]:
                    del entries[key]


def _recent_history(entries: dict[str, deque[_Entry]], keys: Sequence[str], arriving: Collection[int]) -> RecentHistory:
    """arriving: hashes of the payments that arrive now, whose position in the order is that of their arrival."""
    rows: list[int] = []
    listed: list[_Entry] = []
    for row, key in enumerate(keys):
        first: dict[int, _Entry] = {}
        for entry in entries.get(key, ()):
            if entry.arrived or entry.event_hash not in arriving:
                first.setdefault(entry.event_hash, entry)
        rows += [row] * len(first)
        listed += first.values()
    return RecentHistory(
        np.array(rows, dtype=np.int64),
        {
            name: np.array([entry[field] for entry in listed], dtype=dtype)
            for field, (name, dtype) in enumerate(arrays.CARD_COLUMNS.items())
        },
    )

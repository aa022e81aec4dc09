"""Payments of the last minutes that this process has met, for histories that do not hold them yet.

The stream job needs a moment to restate a history; a burst does not wait for it. Knows nothing of scores.
"""

import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.contract.events import Transaction
from features.contract.timestamps import milliseconds
from features.history import arrays
from features.history.arrays import Array


class _Entry(NamedTuple):
    time: int
    amount: float
    counterparty: str
    event_hash: int
    arrived: bool
    """False where only its decision is known, so that it may yet arrive."""


class RecentHistory(NamedTuple):
    """Payments of K cards (or terminals): of each its own in the order in which they arrived, none twice."""

    key: NDArray[np.int64]
    """Shape [payments], ascending: whose."""
    entries: dict[str, Array]
    """Columns of arrays.CARD_COLUMNS, shape [payments]."""


class RecentPayments:
    """clock: seconds since the epoch; a payment stays `seconds`, and at most `most` payments do."""

    def __init__(self, *, clock: Callable[[], float], seconds: float = 600.0, most: int = 200_000) -> None:
        self._clock = clock
        self._seconds = seconds
        self._most = most
        self._met: deque[tuple[float, str, str]] = deque()
        self._cards: dict[str, deque[_Entry]] = {}
        self._terminals: dict[str, deque[_Entry]] = {}
        self._lock = threading.Lock()

    def observe(self, payments: Sequence[Transaction], hashes: Sequence[int]) -> None:
        """Remember payments that were decided elsewhere; `hashes` as hash_ids gives them."""
        with self._lock:
            self._add(payments, hashes, arrived=False)
            self._forget()

    def observe_arrived(
        self, payments: Sequence[Transaction], hashes: Sequence[int], *, cards: Sequence[str], terminals: Sequence[str]
    ) -> tuple[RecentHistory, RecentHistory]:
        """Remember payments that arrive now, in this order; what `cards` and `terminals`, which are theirs, met lately
        with them. A payment that was only told of counts from its arrival."""
        with self._lock:
            self._add(payments, hashes, arrived=True)
            now = frozenset(hashes)
            met = _recent_history(self._cards, cards, now), _recent_history(self._terminals, terminals, now)
            self._forget()
        return met

    def _add(self, payments: Sequence[Transaction], hashes: Sequence[int], *, arrived: bool) -> None:
        now = self._clock()
        for payment, event_hash in zip(payments, hashes, strict=True):
            time, card, terminal = milliseconds(payment.event_time), payment.card_id, payment.terminal_id
            of_card = _Entry(time, payment.amount, terminal, event_hash, arrived)
            self._cards.setdefault(card, deque()).append(of_card)
            self._terminals.setdefault(terminal, deque()).append(of_card._replace(counterparty=card))
            self._met.append((now, card, terminal))

    def _forget(self) -> None:
        """Let go what is old or too much: entries of one name leave in the order in which they came."""
        oldest = self._clock() - self._seconds
        while self._met and (self._met[0][0] < oldest or len(self._met) > self._most):
            _, card, terminal = self._met.popleft()
            for entries, name in ((self._cards, card), (self._terminals, terminal)):
                entries[name].popleft()
                if not entries[name]:
                    del entries[name]


def _recent_history(entries: dict[str, deque[_Entry]], names: Sequence[str], now: Collection[int]) -> RecentHistory:
    key: list[int] = []
    found: list[_Entry] = []
    for row, name in enumerate(names):
        first: dict[int, _Entry] = {}
        for entry in entries.get(name, ()):
            if entry.arrived or entry.event_hash not in now:
                first.setdefault(entry.event_hash, entry)
        key += [row] * len(first)
        found += first.values()
    columns_of = enumerate(arrays.CARD_COLUMNS.items())
    return RecentHistory(
        np.array(key, dtype=np.int64),
        {name: np.array([entry[place] for entry in found], dtype=dtype) for place, (name, dtype) in columns_of},
    )

"""Payments of the last minutes that this process has met, laid over histories that do not hold them yet.

The stream job needs a moment to restate a history; a burst does not wait for it. Knows nothing of scores.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from features import columns
from features.events import Transaction, milliseconds

Row = dict[str, Any]


class _Entry(NamedTuple):
    time: int
    amount: float
    partner: str
    event_hash: int


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

    def add(self, transactions: Sequence[Transaction], hashes: Sequence[int]) -> None:
        """Remember payments; `hashes` as hash_ids gives them. One met twice counts once, by its hash."""
        now = self._clock()
        with self._lock:
            for payment, event_hash in zip(transactions, hashes, strict=True):
                time, card, terminal = milliseconds(payment.event_time), payment.card_id, payment.terminal_id
                of_card = _Entry(time, payment.amount, terminal, event_hash)
                self._cards.setdefault(card, deque()).append(of_card)
                self._terminals.setdefault(terminal, deque()).append(of_card._replace(partner=card))
                self._met.append((now, card, terminal))
            while self._met and (self._met[0][0] < now - self._seconds or len(self._met) > self._most):
                _, card, terminal = self._met.popleft()
                _forget(self._cards, card)
                _forget(self._terminals, terminal)

    def over_cards(self, ids: Sequence[str], stored: Sequence[Row]) -> list[Row]:
        """The stored card histories with the recent payments they lack, in time order."""
        return self._over(self._cards, ids, stored)

    def over_terminals(self, ids: Sequence[str], stored: Sequence[Row]) -> list[Row]:
        """The stored terminal histories with the recent payments they lack, in time order."""
        return self._over(self._terminals, ids, stored)

    def _over(self, entries: dict[str, deque[_Entry]], ids: Sequence[str], stored: Sequence[Row]) -> list[Row]:
        with self._lock:
            recent = [tuple(entries.get(name, ())) for name in ids]
        return [_merged(row, news) if news else row for row, news in zip(stored, recent, strict=True)]


def _forget(entries: dict[str, deque[_Entry]], name: str) -> None:
    """Drop the oldest entry of `name`: entries of one name leave in the order in which they came."""
    entries[name].popleft()
    if not entries[name]:
        del entries[name]


def _merged(row: Row, news: Sequence[_Entry]) -> Row:
    known = set(row.get(columns.EVENT_HASHES) or ())
    missing = {entry.event_hash: entry for entry in news if entry.event_hash not in known}
    if not missing:
        return row
    names = (columns.TIMES, columns.AMOUNTS, columns.PARTNERS, columns.EVENT_HASHES)
    entries = [_Entry(*values) for values in zip(*(row.get(name) or () for name in names), strict=True)]
    entries += missing.values()
    entries.sort(key=lambda entry: entry.time)
    merged = dict(zip(names, (list(column) for column in zip(*entries, strict=True)), strict=True))
    return {**row, **merged}

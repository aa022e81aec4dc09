"""Gathers what was known of a payment's card and terminal when it arrived. Knows nothing of models and decisions.

Stored histories lag behind by a batch of the feature job, so the payments that this process has seen lately are folded
into them.
"""

import logging
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from apps.fraud.recent_payments import RecentHistory, RecentPayments
from features.contract import columns
from features.contract.events import Transaction
from features.contract.timestamps import milliseconds
from features.fraud import velocity
from features.history import arrays
from features.history.arrays import History, from_lists, hash_ids
from features.history.fold import fold
from features.history.point_in_time import PointInTimeHistory

logger = logging.getLogger(__name__)


class CardReader(Protocol):
    """Reads the stored histories as they are now: one row per id, empty where nothing is stored."""

    def card_histories(self, ids: Sequence[str]) -> History:
        """Columns of arrays.CARD_COLUMNS."""
        ...

    def terminal_histories(self, ids: Sequence[str]) -> tuple[History, History]:
        """Columns of arrays.TERMINAL_COLUMNS, and of arrays.FRAUD_COLUMNS."""
        ...


class PaymentContext(NamedTuple):
    """N payments and the histories of their cards and terminals on arrival: one row per payment."""

    payments: velocity.Payments
    cards: History
    terminals: History
    frauds: History
    """Known frauds of the terminals."""
    degraded: bool
    """The stored histories could not be read."""

    def features(self) -> NDArray[np.float32]:
        """Shape [N, len(velocity.FEATURES)]."""
        return velocity.encode(self.cards, self.terminals, self.frauds, self.payments)


def gather(
    arrived: Sequence[Transaction], rows: Sequence[int], *, recent: RecentPayments, reader: CardReader
) -> PaymentContext:
    """Adds `arrived` to the recent payments and returns the context of those of them at `rows`."""
    cards = list(dict.fromkeys(payment.card_id for payment in arrived))
    terminals = list(dict.fromkeys(payment.terminal_id for payment in arrived))
    hashes = hash_ids([payment.event_id for payment in arrived])
    recent_cards, recent_terminals = recent.observe_arrived(arrived, hashes.tolist(), cards=cards, terminals=terminals)
    stored_cards, stored_terminals, frauds, degraded = _read(reader, cards, terminals)
    payments = _as_arrays([arrived[row] for row in rows], hashes[np.array(rows, dtype=np.int64)])
    terminal_rows = {terminal: row for row, terminal in enumerate(terminals)}
    return PaymentContext(
        payments,
        _on_arrival(
            stored_cards, recent_cards, payments.event_hashes, cap=arrays.CARD_CAP, horizon=arrays.CARD_HORIZON
        ),
        _on_arrival(
            stored_terminals,
            recent_terminals,
            payments.event_hashes,
            cap=arrays.TERMINAL_CAP,
            horizon=arrays.TERMINAL_HORIZON,
        ),
        frauds.take(np.array([terminal_rows[terminal] for terminal in payments.terminals], dtype=np.int64)),
        degraded,
    )


def _read(reader: CardReader, cards: Sequence[str], terminals: Sequence[str]) -> tuple[History, History, History, bool]:
    """Returns the stored histories of cards, of terminals and of terminals' frauds; all empty, and True, when the store
    does not answer."""
    try:
        return reader.card_histories(cards), *reader.terminal_histories(terminals), False
    except Exception:
        logger.warning("the feature store did not answer; scoring with recent payments alone", exc_info=True)
        return (
            from_lists([{} for _ in cards], arrays.CARD_COLUMNS),
            from_lists([{} for _ in terminals], arrays.TERMINAL_COLUMNS),
            from_lists([{} for _ in terminals], arrays.FRAUD_COLUMNS),
            True,
        )


def _on_arrival(
    stored: History, recent: RecentHistory, event_hashes: NDArray[np.int64], *, cap: int, horizon: int
) -> History:
    """Returns the history of each payment's card or terminal as of the payment's arrival, shape as event_hashes."""
    folded = fold(stored, recent.key, recent.entries)
    history = PointInTimeHistory(folded, recent.key, recent.entries[columns.TIMES], cap=cap, horizon=horizon)
    order = np.argsort(recent.entries[columns.EVENT_HASHES])
    return history.rows(order[np.searchsorted(recent.entries[columns.EVENT_HASHES][order], event_hashes)])


def _as_arrays(payments: Sequence[Transaction], event_hashes: NDArray[np.int64]) -> velocity.Payments:
    return velocity.Payments(
        times=np.array([milliseconds(payment.event_time) for payment in payments], dtype=np.int64),
        amounts=np.array([payment.amount for payment in payments], dtype=np.float64),
        channels=np.array([velocity.CHANNEL_CODES[payment.channel] for payment in payments], dtype=np.int64),
        cards=np.array([payment.card_id for payment in payments], dtype=object),
        terminals=np.array([payment.terminal_id for payment in payments], dtype=object),
        event_hashes=event_hashes,
    )

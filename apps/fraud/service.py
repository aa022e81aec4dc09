"""Scores card payments: features now, model, thresholds, reasons, decision. The API and the log scorer share it.

It always answers. Without stored histories it looks at what it has met itself, without a model at two plain rules;
either way the decision says `degraded`. Knows nothing of HTTP, Feast or releases.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from apps import metrics
from apps.fraud.alerts import DecisionBook
from apps.fraud.labels import Labels
from apps.fraud.model import FraudModel, explain
from apps.fraud.recent import RecentPayments, Row
from features import history, velocity
from features.events import Decision, Reason, Transaction, key_of, milliseconds, to_json
from features.history import History, from_lists, hash_ids
from infra import topics
from infra.log.client import EventLog
from infra.observability.logs import pseudonym
from infra.observability.traces import span

logger = logging.getLogger(__name__)

Outcome = Literal["approve", "review", "decline"]

RULES = "rules"
RULE_AMOUNT_RATIO, RULE_AMOUNT = 10.0, 100.0
"""Without a model: review a payment of this many times the card's usual, if it is at least of this amount."""
RULE_BURST = 5
"""Without a model: review this many payments of a card in one hour, and more."""
EXPLAINED_FROM = 0.5
"""Share of the review threshold from which an approved payment gets reasons too."""
LOCKS = 64
STORED_KEPT = 100_000
RECENT_SECONDS = 600.0
"""How long a payment is remembered that the stored histories may lack."""

_AMOUNT, _AMOUNT_RATIO, _BURST = (velocity.FEATURES.index(name) for name in ("amount", "amount_ratio", "card_count_1h"))


class CardReader(Protocol):
    """Stored histories now, one row an id: column name to list or None, as features.store.online_rows answers."""

    def card_histories(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """Columns of history.CARD_COLUMNS."""
        ...

    def terminal_histories(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """Columns of history.TERMINAL_COLUMNS, FRAUD_TIMES, FRAUD_KNOWN_TIMES and FRAUD_HASHES."""
        ...


class FraudService:
    def __init__(
        self,
        model: Callable[[], FraudModel | None],
        *,
        reader: CardReader,
        log: EventLog,
        decisions: DecisionBook,
        clock: Callable[[], float] = time.time,
        watch: Callable[[NDArray[np.float32]], None] = lambda matrix: None,
    ) -> None:
        """model: what to score with now, so that a new release is picked up; clock: seconds since the epoch; watch:
        sees the features of every call, float32 [N, len(FEATURES)]."""
        self._model = model
        self._reader = reader
        self._log = log
        self._decisions = decisions
        self._clock = clock
        self._watch = watch
        self._recent = RecentPayments(clock=clock, seconds=RECENT_SECONDS)
        decisions.on_decisions = self._met_elsewhere
        self.labels = Labels(log, decisions=decisions)
        self._locks = [threading.Lock() for _ in range(LOCKS)]
        self._stored: OrderedDict[str, None] = OrderedDict()
        self._met_here: OrderedDict[str, None] = OrderedDict()

    def score(self, payment: Transaction) -> Decision:
        """Score and record one payment; a transaction that was decided before gets that decision back.

        The decision is in the log before the payment is, and both are before this returns. Raises LogFullError when
        the log has no room: then asking again is safe.
        """
        with self._locks[hash(payment.event_id) % LOCKS]:
            decision = self._decisions.get(payment.event_id)
            if decision is None:
                (decision,) = self.score_many([payment])
                with span("log append", topic=topics.DECISIONS):
                    self._log.append(topics.DECISIONS, [(key_of(decision), to_json(decision))])
                # Another process may have been faster: the log's order says whose decision holds.
                self._decisions.refresh()
                decision = self._decisions.get(payment.event_id) or decision
            self._store(payment)
        return decision

    def _store(self, payment: Transaction) -> None:
        """Record the payment, unless this process did: a crash between the two appends is mended by the repeat."""
        if payment.event_id in self._stored:
            return
        marked = payment.model_copy(update={"scored": True})
        self._log.append(topics.TRANSACTIONS, [(key_of(marked), to_json(marked))])
        self._stored[payment.event_id] = None
        if len(self._stored) > STORED_KEPT:
            self._stored.popitem(last=False)

    def observe(self, payments: Sequence[Transaction]) -> None:
        """Count payments that were decided elsewhere in the windows of those to come."""
        self._recent.add(payments, hash_ids([payment.event_id for payment in payments]).tolist())

    def _met_elsewhere(self, decisions: Sequence[Decision]) -> None:
        """Payments that other processes decided count in this one's windows too."""
        since = self._clock() - RECENT_SECONDS
        self.observe(
            [
                Transaction(
                    type="transaction",
                    event_id=decision.event_id,
                    event_time=decision.event_time,
                    card_id=decision.card_id,
                    terminal_id=decision.terminal_id,
                    amount=decision.amount,
                )
                for decision in decisions
                if decision.decided_time.timestamp() >= since and decision.event_id not in self._met_here
            ]
        )

    @metrics.FRAUD_SECONDS.time()
    def score_many(self, payments: Sequence[Transaction]) -> list[Decision]:
        """Decisions on payments, in their order; records nothing. Each sees the others of its past."""
        if not payments:
            return []
        with span("read features", payments=len(payments)):
            matrix, degraded = self._features(payments)
        self._watch(matrix)
        decided = datetime.fromtimestamp(self._clock(), tz=UTC)
        with span("score", payments=len(payments)):
            name, scores, outcomes, reasons, ruled = self._judge(matrix)
        decisions = [
            Decision(
                type="decision",
                event_id=payment.event_id,
                event_time=payment.event_time,
                card_id=payment.card_id,
                terminal_id=payment.terminal_id,
                amount=payment.amount,
                score=scores[row],
                outcome=outcomes[row],
                reasons=reasons[row],
                model=name,
                degraded=degraded or ruled,
                decided_time=decided,
                http_request_id=payment.http_request_id,
            )
            for row, payment in enumerate(payments)
        ]
        for decision in decisions:
            metrics.DECISIONS.labels(decision.outcome, str(decision.degraded).lower()).inc()
            if decision.outcome != "approve":
                _tell(decision)
        return decisions

    def _features(self, payments: Sequence[Transaction]) -> tuple[NDArray[np.float32], bool]:
        """The payments' features, and whether stored histories were missing."""
        hashes = hash_ids([payment.event_id for payment in payments])
        self._recent.add(payments, hashes.tolist())
        self._met_here.update((payment.event_id, None) for payment in payments)
        while len(self._met_here) > STORED_KEPT:
            self._met_here.popitem(last=False)
        cards = list(dict.fromkeys(payment.card_id for payment in payments))
        terminals = list(dict.fromkeys(payment.terminal_id for payment in payments))
        degraded = False
        try:
            card_rows, terminal_rows = self._reader.card_histories(cards), self._reader.terminal_histories(terminals)
        except Exception:
            logger.warning("the feature store did not answer; scoring with recent payments alone", exc_info=True)
            card_rows, terminal_rows = [Row() for _ in cards], [Row() for _ in terminals]
            degraded = True
        card_rows = self._recent.over_cards(cards, card_rows)
        terminal_rows = self._recent.over_terminals(terminals, terminal_rows)
        card = from_lists(card_rows, history.CARD_COLUMNS)
        terminal = from_lists(terminal_rows, history.TERMINAL_COLUMNS)
        frauds = from_lists(terminal_rows, history.FRAUD_COLUMNS, names=history.FRAUD_NAMES)
        if len(payments) > 1:
            card = _spread(card, cards, [payment.card_id for payment in payments])
            terminal_ids = [payment.terminal_id for payment in payments]
            terminal, frauds = _spread(terminal, terminals, terminal_ids), _spread(frauds, terminals, terminal_ids)
        return velocity.encode(card, terminal, frauds, _as_arrays(payments, hashes)), degraded

    def _judge(
        self, matrix: NDArray[np.float32]
    ) -> tuple[str, list[float], list[Outcome], list[tuple[Reason, ...]], bool]:
        """(model, scores, outcomes, reasons, whether the rules had to stand in)."""
        model = self._model()
        if model is not None:
            try:
                if model.card.features != velocity.FEATURES:
                    raise ValueError("it was trained on other features than this version computes; train again")
                scores = model.score(matrix)
                review, decline = model.card.review_threshold, model.card.decline_threshold
                reasons: list[tuple[Reason, ...]] = [() for _ in scores]
                told = np.flatnonzero(scores >= EXPLAINED_FROM * review)
                for row, found in zip(told.tolist(), explain(model, matrix[told]), strict=True):
                    reasons[row] = found
            except Exception:
                logger.exception("the fraud model of release %s failed; the rules stand in", model.version)
            else:
                outcomes = [_outcome(score, review=review, decline=decline) for score in scores.tolist()]
                return model.version[:64], scores.tolist(), outcomes, reasons, False
        reasons = [_rules(row) for row in matrix]
        by_rule: list[Outcome] = ["review" if found else "approve" for found in reasons]
        return RULES, [0.5 if found else 0.0 for found in reasons], by_rule, reasons, True


def _tell(decision: Decision) -> None:
    told = {
        "transaction": pseudonym(decision.event_id), "card": pseudonym(decision.card_id), "outcome": decision.outcome,
        "score": round(decision.score, 4), "reasons": [reason.code for reason in decision.reasons],
    }  # fmt: skip
    if decision.http_request_id is not None:
        told["request_id"] = decision.http_request_id
    logger.info("alert", extra=told)


def _outcome(score: float, *, review: float, decline: float) -> Outcome:
    """Decline is looked at first, but never below review; a decline threshold of 1 declines nothing."""
    if score >= decline and decline < 1:
        return "decline"
    return "review" if score >= review else "approve"


def _rules(values: NDArray[np.float32]) -> tuple[Reason, ...]:
    found = []
    if values[_AMOUNT_RATIO] >= RULE_AMOUNT_RATIO and values[_AMOUNT] >= RULE_AMOUNT:
        found.append(_AMOUNT_RATIO)
    if values[_BURST] >= RULE_BURST:
        found.append(_BURST)
    return tuple(
        Reason(code=reason.code, weight=1.0, text=reason.text.format(value=float(values[feature]), usual=1.0))
        for feature in found
        for reason in [velocity.REASONS[velocity.FEATURES[feature]]]
    )


def _spread(rows: History, names: list[str], wanted: list[str]) -> History:
    place = {name: row for row, name in enumerate(names)}
    return rows.take(np.array([place[name] for name in wanted], dtype=np.int64))


def _as_arrays(payments: Sequence[Transaction], hashes: NDArray[np.int64]) -> velocity.Payments:
    return velocity.Payments(
        times=np.array([milliseconds(payment.event_time) for payment in payments], dtype=np.int64),
        amounts=np.array([payment.amount for payment in payments], dtype=np.float64),
        channels=np.array([velocity.CHANNEL_CODES[payment.channel] for payment in payments], dtype=np.int64),
        cards=np.array([payment.card_id for payment in payments], dtype=object),
        terminals=np.array([payment.terminal_id for payment in payments], dtype=object),
        event_hashes=hashes,
    )

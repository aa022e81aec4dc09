"""Scores card payments: features now, model, thresholds, reasons, decision. The API and the log scorer share it.

It always answers. Without stored histories it looks at what it has met itself, without a model at two plain rules;
either way the decision says `degraded`. Knows nothing of HTTP, Feast or releases.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from apps import metrics
from apps.fraud.decisions import DecisionStore
from apps.fraud.detector import FraudModel, explain
from apps.fraud.labels import LabelService
from apps.fraud.recent_payments import RecentHistory, RecentPayments
from features.contract import columns
from features.contract.events import Decision, Reason, Transaction, key_of, to_json
from features.contract.timestamps import milliseconds
from features.fraud import velocity
from features.history import arrays
from features.history.arrays import History, from_lists, hash_ids
from features.history.fold import fold
from features.history.point_in_time import PointInTimeHistory
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
    """Stored histories now, one row an id, empty where nothing is stored."""

    def card_histories(self, ids: Sequence[str]) -> History:
        """Columns of arrays.CARD_COLUMNS."""
        ...

    def terminal_histories(self, ids: Sequence[str]) -> tuple[History, History]:
        """Columns of arrays.TERMINAL_COLUMNS, and of arrays.FRAUD_COLUMNS."""
        ...


class FraudService:
    def __init__(
        self,
        model: Callable[[], FraudModel | None],
        *,
        reader: CardReader,
        log: EventLog,
        decisions: DecisionStore,
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
        self.labels = LabelService(log, decisions=decisions)
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

    def _met_elsewhere(self, decisions: Sequence[Decision]) -> None:
        """Payments that other processes decided count in this one's windows too."""
        since = self._clock() - RECENT_SECONDS
        payments = [
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
        self._recent.observe(payments, hash_ids([payment.event_id for payment in payments]).tolist())

    @metrics.FRAUD_SECONDS.time()
    def score_many(self, arrived: Sequence[Transaction], *, decided: Collection[str] = ()) -> list[Decision]:
        """Decisions on payments, in their order, which is that of their arrival; records nothing.

        Each sees of its past what arrived before it, of `arrived` too, where no event_id is twice. Those whose ids are
        in `decided` count for the others and get no decision.
        """
        if not arrived:
            return []
        wanted = [row for row, payment in enumerate(arrived) if payment.event_id not in decided]
        payments = [arrived[row] for row in wanted]
        with span("read features", payments=len(payments)):
            matrix, degraded = self._features(arrived, np.array(wanted, dtype=np.int64))
        if not payments:
            return []
        self._watch(matrix)
        now = datetime.fromtimestamp(self._clock(), tz=UTC)
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
                decided_time=now,
                http_request_id=payment.http_request_id,
            )
            for row, payment in enumerate(payments)
        ]
        for decision in decisions:
            metrics.DECISIONS.labels(decision.outcome, str(decision.degraded).lower()).inc()
            if decision.outcome != "approve":
                _tell(decision)
        return decisions

    def _features(self, arrived: Sequence[Transaction], wanted: NDArray[np.int64]) -> tuple[NDArray[np.float32], bool]:
        """The features of those payments that are `wanted`, and whether stored histories were missing."""
        hashes = hash_ids([payment.event_id for payment in arrived])
        self._met_here.update((payment.event_id, None) for payment in arrived)
        while len(self._met_here) > STORED_KEPT:
            self._met_here.popitem(last=False)
        cards = list(dict.fromkeys(payment.card_id for payment in arrived))
        terminals = list(dict.fromkeys(payment.terminal_id for payment in arrived))
        of_cards, of_terminals = self._recent.observe_arrived(
            arrived, hashes.tolist(), cards=cards, terminals=terminals
        )
        degraded = False
        try:
            card_rows = self._reader.card_histories(cards)
            terminal_rows, frauds = self._reader.terminal_histories(terminals)
        except Exception:
            logger.warning("the feature store did not answer; scoring with recent payments alone", exc_info=True)
            card_rows = from_lists([{} for _ in cards], arrays.CARD_COLUMNS)
            terminal_rows = from_lists([{} for _ in terminals], arrays.TERMINAL_COLUMNS)
            frauds = from_lists([{} for _ in terminals], arrays.FRAUD_COLUMNS)
            degraded = True
        own = hashes[wanted]
        card = _known_then(card_rows, of_cards, own, cap=arrays.CARD_CAP, horizon=arrays.CARD_HORIZON)
        terminal = _known_then(
            terminal_rows, of_terminals, own, cap=arrays.TERMINAL_CAP, horizon=arrays.TERMINAL_HORIZON
        )
        payments = [arrived[row] for row in wanted]
        place = {name: row for row, name in enumerate(terminals)}
        known = frauds.take(np.array([place[payment.terminal_id] for payment in payments], dtype=np.int64))
        return velocity.encode(card, terminal, known, _as_arrays(payments, own)), degraded

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


def _known_then(stored: History, lately: RecentHistory, own: NDArray[np.int64], *, cap: int, horizon: int) -> History:
    """What was known of the card or terminal of each payment, told by its hash, when it arrived. Shape: as own."""
    folded = fold(stored, lately.key, lately.entries)
    then = PointInTimeHistory(folded, lately.key, lately.entries[columns.TIMES], cap=cap, horizon=horizon)
    order = np.argsort(lately.entries[columns.EVENT_HASHES])
    return then.rows(order[np.searchsorted(lately.entries[columns.EVENT_HASHES][order], own)])


def _as_arrays(payments: Sequence[Transaction], hashes: NDArray[np.int64]) -> velocity.Payments:
    return velocity.Payments(
        times=np.array([milliseconds(payment.event_time) for payment in payments], dtype=np.int64),
        amounts=np.array([payment.amount for payment in payments], dtype=np.float64),
        channels=np.array([velocity.CHANNEL_CODES[payment.channel] for payment in payments], dtype=np.int64),
        cards=np.array([payment.card_id for payment in payments], dtype=object),
        terminals=np.array([payment.terminal_id for payment in payments], dtype=object),
        event_hashes=hashes,
    )

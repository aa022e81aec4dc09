"""Scores card payments for the API and for the log scorer: gather histories, encode features, judge, record.

It always answers. Without stored histories it uses the payments it has seen itself, and without a model two plain
rules; either way the decision says `degraded`. Knows nothing of HTTP, Feast or releases.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from apps import metrics
from apps.fraud.decisions import APPROVE, DecisionStore
from apps.fraud.detector import FraudModel
from apps.fraud.gathering import CardReader, gather
from apps.fraud.judgement import RULES, Judgement, judge
from apps.fraud.labels import LabelService
from apps.fraud.recent_payments import RecentPayments
from apps.lru_map import LruMap
from features.contract.events import Decision, Transaction, key_of, to_json
from infra import topics
from infra.log.client import EventLog
from infra.observability.logs import pseudonym
from infra.observability.traces import span

logger = logging.getLogger(__name__)

LOCKS = 64
LOGGED_IDS_KEPT = 100_000


class FraudService:
    """Decides on payments, once per transaction id whichever process is asked. Safe to use from many threads."""

    def __init__(
        self,
        model: Callable[[], FraudModel | None],
        *,
        reader: CardReader,
        log: EventLog,
        decisions: DecisionStore,
        recent: RecentPayments,
        clock: Callable[[], float] = time.time,
        watch: Callable[[NDArray[np.float32]], None] = lambda features: None,
    ) -> None:
        """model: returns the model to score with now, so that a new release is picked up; recent: should also observe
        what `decisions` reads; clock: seconds since the epoch; watch: receives the features of every call, shape
        [N, len(velocity.FEATURES)]."""
        self._model = model
        self._reader = reader
        self._log = log
        self._decisions = decisions
        self._recent = recent
        self._clock = clock
        self._watch = watch
        self.labels = LabelService(log, decisions=decisions)
        self._locks = [threading.Lock() for _ in range(LOCKS)]
        self._logged_ids: LruMap[str, None] = LruMap(LOGGED_IDS_KEPT)

    def score(self, payment: Transaction) -> Decision:
        """Scores and records one payment; a transaction that was decided before gets that decision back.

        The decision is in the log before the payment is, and both are before this returns. Raises LogFullError when
        the log has no room: then asking again is safe.
        """
        with self._locks[hash(payment.event_id) % LOCKS]:
            decision = self._decisions.get(payment.event_id) or self._decide(payment)
            self._log_payment(payment)
        return decision

    def _decide(self, payment: Transaction) -> Decision:
        (decision,) = self.score_many([payment])
        with span("log append", topic=topics.DECISIONS):
            self._log.append(topics.DECISIONS, [(key_of(decision), to_json(decision))])
        # Another process may have been faster: the log's order says whose decision holds.
        self._decisions.refresh()
        return self._decisions.get(payment.event_id) or decision

    def _log_payment(self, payment: Transaction) -> None:
        """Appends the payment unless this process did: a repeat mends a crash between the two appends."""
        if payment.event_id in self._logged_ids:
            return
        marked = payment.model_copy(update={"scored": True})
        self._log.append(topics.TRANSACTIONS, [(key_of(marked), to_json(marked))])
        self._logged_ids.put(payment.event_id, None)

    @metrics.FRAUD_SECONDS.time()
    def score_many(self, arrived: Sequence[Transaction], *, decided: Collection[str] = ()) -> list[Decision]:
        """Returns decisions on payments, in the order of their arrival, and appends nothing to the log.

        Each payment sees of its past what arrived before it, in `arrived` too, where no event_id occurs twice. Those
        whose ids are in `decided` count for the others and get no decision.
        """
        if not arrived:
            return []
        rows = [row for row, payment in enumerate(arrived) if payment.event_id not in decided]
        with span("read features", payments=len(rows)):
            context = gather(arrived, rows, recent=self._recent, reader=self._reader)
            features = context.features()
        if not rows:
            return []
        self._watch(features)
        now = datetime.fromtimestamp(self._clock(), tz=UTC)
        with span("score", payments=len(rows)):
            judgement = judge(features, self._model())
        decisions = _decisions([arrived[row] for row in rows], judgement, degraded=context.degraded, now=now)
        _count_and_log(decisions)
        return decisions


def _decisions(
    payments: Sequence[Transaction], judgement: Judgement, *, degraded: bool, now: datetime
) -> list[Decision]:
    return [
        Decision(
            type="decision",
            event_id=payment.event_id,
            event_time=payment.event_time,
            card_id=payment.card_id,
            terminal_id=payment.terminal_id,
            amount=payment.amount,
            score=score,
            outcome=outcome,
            reasons=reasons,
            model=judgement.model,
            degraded=degraded or judgement.model == RULES,
            decided_time=now,
            http_request_id=payment.http_request_id,
        )
        for payment, score, outcome, reasons in zip(
            payments, judgement.scores, judgement.outcomes, judgement.reasons, strict=True
        )
    ]


def _count_and_log(decisions: Sequence[Decision]) -> None:
    """Counts decisions in the metrics and writes a log line for each alert."""
    for decision in decisions:
        metrics.DECISIONS.labels(decision.outcome, str(decision.degraded).lower()).inc()
        if decision.outcome == APPROVE:
            continue
        fields = {
            "transaction": pseudonym(decision.event_id), "card": pseudonym(decision.card_id),
            "outcome": decision.outcome, "score": round(decision.score, 4),
            "reasons": [reason.code for reason in decision.reasons],
        }  # fmt: skip
        if decision.http_request_id is not None:
            fields["request_id"] = decision.http_request_id
        logger.info("alert", extra=fields)

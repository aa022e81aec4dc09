"""Scores payments that arrive in the log: as one consumer, at least once, never stuck on a bad record.

Decisions are written before the position is committed, so a crash scores a few payments again; readers keep the first
decision. A payment that reaches the log long after it was made is history: it counts in the features of others and gets
no decision (decision 0027). Knows nothing of how a score comes about.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial

import numpy as np
from pydantic import ValidationError

from apps import metrics
from apps.fraud.decisions import DecisionStore
from apps.fraud.service import FraudService
from features.contract.events import Decision, Transaction, dead_letter, key_of, to_json
from features.contract.timestamps import milliseconds
from features.history.point_in_time import arrival_order
from infra import topics
from infra.log.client import (
    ALL_PARTITIONS,
    EventLog,
    LogError,
    LogFullError,
    LogUnreachableError,
    PartitionShare,
    Record,
    follow,
)
from infra.observability.traces import span

logger = logging.getLogger(__name__)

GROUP = "scorer"
BATCH = 500
RETRY_SECONDS = 1.0
BEHIND_SECONDS = 5.0
MOST_COUNTED = 10_000

Pairs = list[tuple[str, bytes]]


def skip_history(log: EventLog) -> None:
    """Makes the scorer start after everything that is in TRANSACTIONS now: imported history needs no decisions."""
    log.commit(GROUP, topics.TRANSACTIONS, log.end(topics.TRANSACTIONS))


def run(
    log: EventLog,
    *,
    service: FraudService,
    decisions: DecisionStore,
    stop: threading.Event,
    share: PartitionShare = ALL_PARTITIONS,
    history_after: timedelta | None = None,
) -> None:
    """Scores what is in the log and what arrives, from the last committed position, until `stop` is set.

    While the log cannot be read it tries again from the committed position. Several scorers divide the topic by
    `share`: a card's payments lie in one partition, so one scorer sees them all.
    """
    threading.Thread(target=_count_behind, args=(log, share, stop), name="behind", daemon=True).start()
    while not stop.is_set():
        try:
            _work(log, service=service, decisions=decisions, stop=stop, share=share, history_after=history_after)
        except LogError as error:
            logger.error("payments wait: %s", error)
            stop.wait(RETRY_SECONDS)


def _work(
    log: EventLog,
    *,
    service: FraudService,
    decisions: DecisionStore,
    stop: threading.Event,
    share: PartitionShare,
    history_after: timedelta | None,
) -> None:
    position = log.committed(GROUP, topics.TRANSACTIONS).of(share)
    for records in follow(log, topics.TRANSACTIONS, position, stop=stop, max_records=BATCH, share=share):
        position = position.after(records)
        if not _retry(decisions.refresh, stop=stop):
            return
        with span("score batch", records=len(records)):
            decided, refused = score_records(records, service=service, decisions=decisions, history_after=history_after)
        for reason, _ in refused:
            metrics.SCORER_REFUSED.labels(reason).inc()
        pairs = [(key_of(decision), to_json(decision)) for decision in decided]
        for step in (
            partial(log.append, topics.DEAD_LETTERS, refused),
            partial(log.append, topics.DECISIONS, pairs),
            partial(log.commit, GROUP, topics.TRANSACTIONS, position),
        ):
            if not _retry(step, stop=stop):
                return
        now = time.time() * 1000
        for record in records:
            metrics.DECISION_LAG_SECONDS.observe(max(0.0, now - record.timestamp_ms) / 1000)


def _retry(step: Callable[[], None], *, stop: threading.Event) -> bool:
    """Repeats a step until the log accepts it; returns False when `stop` was set first."""
    while not stop.is_set():
        try:
            step()
        except (LogFullError, LogUnreachableError) as error:
            logger.error("decisions wait: %s", error)
            stop.wait(RETRY_SECONDS)
        else:
            return True
    return False


def _count_behind(log: EventLog, share: PartitionShare, stop: threading.Event) -> None:
    """Sets the metric of waiting payments. It reads and counts them: only the log knows what its offsets mean."""
    while not stop.is_set():
        try:
            position = log.committed(GROUP, topics.TRANSACTIONS)
            waiting = log.read(topics.TRANSACTIONS, position, max_records=MOST_COUNTED, share=share)
            metrics.SCORER_BEHIND.set(len(waiting))
        except Exception as error:  # whatever the log's client raises
            logger.warning("cannot count the payments that wait: %s", error)
        stop.wait(BEHIND_SECONDS)


def score_records(
    records: Sequence[Record],
    *,
    service: FraudService,
    decisions: DecisionStore,
    history_after: timedelta | None = None,
) -> tuple[list[Decision], Pairs]:
    """Returns decisions on the payments that need one, and dead letters of the records that are not payments.

    Payments of several partitions are taken in the order in which they were appended. Those that were appended
    `history_after` their own time, or later, get no decision; how long they then wait for the scorer does not matter.
    """
    arrived: dict[str, tuple[Record, Transaction]] = {}
    decided: set[str] = set()
    refused: Pairs = []
    for record in _in_arrival_order(records):
        try:
            payment = Transaction.model_validate_json(record.value)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "record"
            refused.append(_refuse(record, reason="malformed", detail=f"{field}: {first['msg']}"))
            continue
        if decisions.get(payment.event_id) is not None and not payment.scored:
            continue  # decided before
        late = timedelta(milliseconds=record.timestamp_ms - milliseconds(payment.event_time))
        history = history_after is not None and late >= history_after
        if history:
            metrics.SCORER_HISTORY.inc()
        if history or payment.scored:
            decided.add(payment.event_id)
        arrived.setdefault(payment.event_id, (record, payment))
    try:
        return service.score_many([payment for _, payment in arrived.values()], decided=decided), refused
    except Exception:
        logger.exception("a batch could not be scored as one; trying each payment alone")
    scored: list[Decision] = []
    for record, payment in arrived.values():
        try:
            scored += service.score_many([payment], decided=decided)
        except Exception as error:
            refused.append(_refuse(record, reason="unscorable", detail=str(error)))
    return scored, refused


def _in_arrival_order(records: Sequence[Record]) -> list[Record]:
    positions = [
        np.array([getattr(record, name) for record in records]) for name in ("partition", "offset", "timestamp_ms")
    ]
    return [records[row] for row in arrival_order(*positions)]


def _refuse(record: Record, *, reason: str, detail: str) -> tuple[str, bytes]:
    value = record.value.decode(errors="replace")
    return dead_letter(record.topic, record.partition, record.offset, value=value, reason=reason, detail=detail)

"""Holds the decisions of the log for lookup: by transaction, as alerts, and as a stream that can be resumed.

Of several decisions on one transaction the first in the log holds, wherever and however often it was scored: that is
what makes scoring idempotent. Knows nothing of models.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from apps.lru_map import LruMap
from apps.topic_projection import Entry, TopicProjection
from features.contract.events import Decision
from infra import topics
from infra.log.client import START, EventLog, Position

APPROVE = "approve"


@dataclass(frozen=True, slots=True)
class Alert:
    resume: Position
    """Where in DECISIONS a reader that has seen this alert resumes."""
    decision: Decision


class DecisionStore:
    """The latest `decisions_kept` decisions and `alerts_kept` alerts, as far as the log was read by `refresh`."""

    def __init__(
        self,
        log: EventLog,
        *,
        decisions_kept: int,
        alerts_kept: int,
        on_decisions: Callable[[Sequence[Decision]], None] = lambda decisions: None,
    ) -> None:
        """on_decisions: receives every first decision on a transaction once, whichever process made it."""
        self._topic = TopicProjection(log, topics.DECISIONS, parse=Decision.model_validate_json, apply=self._apply)
        self._first: LruMap[str, tuple[str, Decision]] = LruMap(decisions_kept)
        self._alerts: deque[Alert] = deque(maxlen=alerts_kept)
        self._on_decisions = on_decisions
        self.closing = threading.Event()
        """Set when the process ends: streams of alerts finish."""

    def refresh(self) -> None:
        """Reads what was appended to the log since the last call."""
        self._topic.catch_up()

    def _apply(self, entries: Sequence[Entry[Decision]]) -> None:
        self._on_decisions([entry.event for entry in entries if self._enter(entry)])

    def _enter(self, entry: Entry[Decision]) -> bool:
        """Keeps a decision; returns False where an earlier one on the transaction holds."""
        decision = entry.event
        if decision.event_id in self._first:
            return False
        self._first.put(decision.event_id, (entry.origin, decision))
        if decision.outcome != APPROVE:
            self._alerts.append(Alert(entry.resume, decision))
        return True

    def get(self, transaction_id: str) -> Decision | None:
        """Returns the first decision on a transaction; None when there is none yet, or it is no longer kept."""
        first = self._first.get(transaction_id)
        return first[1] if first else None

    def alerts(
        self,
        *,
        outcome: str | None = None,
        card_id: str | None = None,
        min_score: float = 0.0,
        since: datetime | None = None,
        limit: int = 100,
    ) -> list[Alert]:
        """Returns the newest alerts that pass every filter, newest first; `since` compares with the payment's time."""
        self.refresh()
        with self._topic.lock:
            alerts = list(self._alerts)
        passed: list[Alert] = []
        for alert in reversed(alerts):
            decision = alert.decision
            if (
                (outcome is None or decision.outcome == outcome)
                and (card_id is None or decision.card_id == card_id)
                and decision.score >= min_score
                and (since is None or decision.event_time >= since)
            ):
                passed.append(alert)
                if len(passed) == limit:
                    break
        return passed

    def end(self) -> Position:
        """Returns the end of the log, where a stream of new alerts alone starts."""
        return self._topic.end()

    def alerts_after(self, position: Position) -> tuple[list[Alert], Position]:
        """Returns the next alerts after a position, oldest first per card, and the position to resume from.

        Reads the log itself, so that an alert is never lost, however old it is and whichever process is asked. A
        position beyond the log's end (the log was replaced) starts again from its beginning.
        """
        self.refresh()
        if position == self._topic.position:  # nothing new: the many that wait cost one look at the log each, not three
            return [], position
        if not self.end().covers(position):
            position = START
        entries, position = self._topic.read(position)
        alerts = []
        for entry in entries:
            first = self._first.get(entry.event.event_id)
            if entry.event.outcome != APPROVE and (first is None or first[0] == entry.origin):
                alerts.append(Alert(entry.resume, entry.event))
        return alerts, position

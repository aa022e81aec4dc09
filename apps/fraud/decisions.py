"""The decisions that the log holds, as the API looks them up: by transaction, as alerts, and as a stream to resume.

Of several decisions on one transaction the first in the log holds, wherever and however often it was scored: that is
what makes scoring idempotent. Knows nothing of models.
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from apps.topic_projection import Entry, TopicProjection
from features.contract.events import Decision
from infra import topics
from infra.log.client import START, EventLog, Position

APPROVE = "approve"


@dataclass(frozen=True, slots=True)
class Alert:
    resume: Position
    """Where a reader that has seen this alert goes on in DECISIONS."""
    decision: Decision


class DecisionStore:
    """The latest `decisions_kept` decisions and `alerts_kept` alerts, as far as the log was read by `refresh`."""

    def __init__(self, log: EventLog, *, decisions_kept: int, alerts_kept: int) -> None:
        self._topic = TopicProjection(log, topics.DECISIONS, parse=Decision.model_validate_json, apply=self._apply)
        self._decisions_kept = decisions_kept
        self._first: OrderedDict[str, tuple[str, Decision]] = OrderedDict()
        self._alerts: deque[Alert] = deque(maxlen=alerts_kept)
        self.on_decisions: Callable[[Sequence[Decision]], None] = lambda decisions: None
        """Told of every first decision on a transaction, once, whichever process took it."""
        self.closing = threading.Event()
        """Set when the process ends: streams of alerts finish."""

    def refresh(self) -> None:
        """Read what the log got since the last call."""
        self._topic.catch_up()

    def _apply(self, entries: Sequence[Entry[Decision]]) -> None:
        self.on_decisions([entry.event for entry in entries if self._enter(entry)])

    def _enter(self, entry: Entry[Decision]) -> bool:
        """Keep a decision; False where an earlier one on the transaction holds."""
        decision = entry.event
        if decision.event_id in self._first:
            return False
        self._first[decision.event_id] = (entry.origin, decision)
        if len(self._first) > self._decisions_kept:
            self._first.popitem(last=False)
        if decision.outcome != APPROVE:
            self._alerts.append(Alert(entry.resume, decision))
        return True

    def get(self, transaction_id: str) -> Decision | None:
        """The first decision on a transaction; None when none is known any more, or yet."""
        found = self._first.get(transaction_id)
        return found[1] if found else None

    def alerts(
        self,
        *,
        outcome: str | None = None,
        card_id: str | None = None,
        min_score: float = 0.0,
        since: datetime | None = None,
        limit: int = 100,
    ) -> list[Alert]:
        """The newest alerts that pass every filter, newest first; `since` is of the payment's time."""
        self.refresh()
        with self._topic.lock:
            alerts = list(self._alerts)
        found: list[Alert] = []
        for alert in reversed(alerts):
            decision = alert.decision
            if (
                (outcome is None or decision.outcome == outcome)
                and (card_id is None or decision.card_id == card_id)
                and decision.score >= min_score
                and (since is None or decision.event_time >= since)
            ):
                found.append(alert)
                if len(found) == limit:
                    break
        return found

    def end(self) -> Position:
        """Where a stream starts that wants only what comes from now on."""
        return self._topic.end()

    def alerts_after(self, position: Position) -> tuple[list[Alert], Position]:
        """The next alerts behind a position, oldest first by card, and the position to go on from.

        Reads the log itself, so that an alert is never lost, however old, whichever process is asked. A position
        behind the log's end (the log was replaced) starts again from its beginning.
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

"""Takes late fraud labels into the log: completes them from the decisions and records each verdict once."""

import hashlib
import threading
from collections.abc import Sequence
from datetime import datetime

from apps.fraud.decisions import DecisionStore
from apps.fraud.schemas import LabelRequest
from apps.lru_map import LruMap
from features.contract.events import Label, key_of, to_json
from infra import topics
from infra.log.client import EventLog

REMEMBERED = 100_000


class LabelService:
    """Records labels. Safe to use from many threads."""

    def __init__(self, log: EventLog, *, decisions: DecisionStore) -> None:
        self._log = log
        self._decisions = decisions
        self._seen: LruMap[str, None] = LruMap(REMEMBERED)
        self._lock = threading.Lock()

    def add(self, requests: Sequence[LabelRequest], *, now: datetime) -> list[bool]:
        """Records labels; returns False for one that was recorded before. Raises LogFullError, having recorded none.

        The event's id follows from the verdict, so that readers of the log also count a repeat once, whichever
        process recorded it.
        """
        self._decisions.refresh()
        labels = [self._complete(request, now=now) for request in requests]
        with self._lock:
            new: dict[str, Label] = {}
            fresh = []
            for label in labels:
                fresh.append(label.event_id not in self._seen and label.event_id not in new)
                new.setdefault(label.event_id, label)
            unseen = [label for label in new.values() if label.event_id not in self._seen]
            self._log.append(topics.LABELS, [(key_of(label), to_json(label)) for label in unseen])
            self._seen.update((label.event_id, None) for label in unseen)
        return fresh

    def _complete(self, request: LabelRequest, *, now: datetime) -> Label:
        verdict = f"{request.transaction_id}|{request.fraud}|{request.known_time or ''}"
        decision = self._decisions.get(request.transaction_id)
        return Label(
            type="label",
            event_id=f"label_{hashlib.sha256(verdict.encode()).hexdigest()[:32]}",
            event_time=request.known_time or now,
            transaction_id=request.transaction_id,
            fraud=request.fraud,
            card_id=request.card_id or (decision.card_id if decision else None),
            terminal_id=request.terminal_id or (decision.terminal_id if decision else None),
            transaction_time=request.transaction_time or (decision.event_time if decision else None),
        )

"""Taking events in: each is checked on its own, recognised when it was sent before, and stored before it is accepted."""

import threading
from collections import OrderedDict
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import orjson
from pydantic import BaseModel, Field, ValidationError

from apps import metrics
from apps.ports import Clock
from features import events
from infra.log.client import EventLog


class EventResult(BaseModel):
    """What became of one event of a batch."""

    index: int
    event_id: str | None
    status: Literal["accepted", "duplicate", "refused"]
    field: str | None = Field(None, description="What is wrong, where refused.")
    reason: str | None = None


class IngestResponse(BaseModel):
    accepted: int
    duplicates: int
    refused: int
    results: list[EventResult]


class IngestService:
    """`recent` bounds the memory of event ids; what it forgets is recognised by every reader of the log instead."""

    def __init__(
        self,
        log: EventLog,
        clock: Clock,
        *,
        recent: int,
        max_event_bytes: int,
        max_future_seconds: int,
        max_age_days: int,
    ) -> None:
        self._log = log
        self._clock = clock
        self._recent = recent
        self._max_event_bytes = max_event_bytes
        self._max_future = timedelta(seconds=max_future_seconds)
        self._max_age = timedelta(days=max_age_days)
        self._ids: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def accept(self, batch: list[Any]) -> IngestResponse:
        """Check and store a batch. Raises LogFullError when it cannot be stored: then nothing of it was accepted."""
        now = datetime.fromtimestamp(self._clock(), tz=UTC)
        results: list[EventResult] = []
        by_topic: dict[str, list[tuple[str, bytes]]] = {}
        fresh: dict[str, EventResult] = {}
        for index, raw in enumerate(batch):
            result, event = self._check(index, raw, now)
            if event is not None:
                if event.event_id in fresh or self._known(event.event_id):
                    result = EventResult(index=index, event_id=event.event_id, status="duplicate")
                else:
                    fresh[event.event_id] = result
                    topic = events.TOPIC_OF[event.type]
                    by_topic.setdefault(topic, []).append((events.key_of(event), events.to_json(event)))
            results.append(result)
        for topic, records in by_topic.items():
            self._log.append(topic, records)
        self._remember(fresh)
        counts = {
            status: sum(result.status == status for result in results)
            for status in ("accepted", "duplicate", "refused")
        }
        for status, count in counts.items():
            metrics.EVENTS.labels(status).inc(count)
        return IngestResponse(
            accepted=counts["accepted"], duplicates=counts["duplicate"], refused=counts["refused"], results=results
        )

    def _check(
        self, index: int, raw: Any, now: datetime
    ) -> tuple[EventResult, events.ItemEvent | events.Transaction | None]:
        name = raw.get("event_id") if isinstance(raw, dict) else None
        event_id = name if isinstance(name, str) else None

        def refused(field: str, reason: str) -> tuple[EventResult, None]:
            return EventResult(index=index, event_id=event_id, status="refused", field=field, reason=reason), None

        if not isinstance(raw, dict):
            return refused("", "an event is a JSON object")
        if len(orjson.dumps(raw)) > self._max_event_bytes:
            return refused("", f"larger than {self._max_event_bytes} bytes")
        if raw.get("scored"):
            return refused("scored", "only Headrace sets this; leave it out")
        try:
            event = events.ACCEPTED.validate_python(raw)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = [str(part) for part in first["loc"] if part not in events.TOPIC_OF]
            return refused(".".join(place) or "type", first["msg"])
        if event.event_time > now + self._max_future:
            return refused("event_time", f"lies more than {self._max_future.seconds} s in the future; check the clock")
        if event.event_time < now - self._max_age:
            return refused(
                "event_time", f"older than {self._max_age.days} days; bring history in with `headrace import`"
            )
        return EventResult(index=index, event_id=event.event_id, status="accepted"), event

    def _known(self, event_id: str) -> bool:
        with self._lock:
            return event_id in self._ids

    def _remember(self, ids: dict[str, EventResult]) -> None:
        with self._lock:
            self._ids.update(dict.fromkeys(ids))
            while len(self._ids) > self._recent:
                self._ids.popitem(last=False)

"""Accepts events: checks each alone, recognises one that was sent before, and stores it before it answers."""

from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import orjson
from pydantic import BaseModel, Field, ValidationError

from apps import metrics
from apps.lru_map import LruMap
from apps.ports import Clock
from apps.wording import counted
from features.contract import events
from infra.log.client import EventLog
from infra.observability.logs import REQUEST_ID
from infra.observability.traces import span

FIELDS = frozenset(
    name for event in (events.ItemPurchased, events.ItemListed, events.Transaction) for name in event.model_fields
)


class EventResult(BaseModel):
    """Says what became of one event of a batch."""

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
    """Checks and stores events. Safe to use from many threads.

    It remembers the last `recent` event ids. An event that it forgot, or that another process accepted, is appended
    again: every reader of the log counts an event_id once, so this memory only saves work.
    """

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
        self._max_event_bytes = max_event_bytes
        self._max_future = timedelta(seconds=max_future_seconds)
        self._max_age = timedelta(days=max_age_days)
        self._ids: LruMap[str, None] = LruMap(recent)

    def accept(self, batch: list[Any]) -> IngestResponse:
        """Checks and stores a batch. Raises LogFullError when it cannot be stored: it can be sent again unchanged.

        Two calls with the same event at the same moment may both store it: readers of the log count it once.
        """
        now = datetime.fromtimestamp(self._clock(), tz=UTC)
        results: list[EventResult] = []
        by_topic: dict[str, list[events.ItemEvent | events.Transaction]] = {}
        fresh: set[str] = set()
        for index, raw in enumerate(batch):
            result, event = self._check(index, raw, now)
            if event is not None:
                if event.event_id in fresh or event.event_id in self._ids:
                    result = EventResult(index=index, event_id=event.event_id, status="duplicate")
                else:
                    fresh.add(event.event_id)
                    by_topic.setdefault(events.TOPIC_OF[event.type], []).append(event)
            results.append(result)
        for topic, new in by_topic.items():
            with span("log append", topic=topic, records=len(new)):
                self._log.append(topic, [(events.key_of(event), events.to_json(_marked(event))) for event in new])
            # At once: when there is no room for the next topic, the whole batch is sent again.
            self._ids.update((event.event_id, None) for event in new)
        counts = {
            status: sum(result.status == status for result in results)
            for status in ("accepted", "duplicate", "refused")
        }
        for status, count in counts.items():
            metrics.EVENTS.labels(status).inc(count)
        for result in results:
            if result.status == "refused":
                metrics.EVENTS_REFUSED.labels(_known_field(result.field)).inc()
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
        try:
            size = len(orjson.dumps(raw))
        except orjson.JSONEncodeError:
            return refused("", "nested too deep")
        if size > self._max_event_bytes:
            return refused("", f"larger than {self._max_event_bytes} bytes")
        for field in ("scored", "http_request_id"):
            if raw.get(field):
                return refused(field, "only Headrace sets this; leave it out")
        try:
            event = events.ACCEPTED.validate_python(raw)
        except ValidationError as error:
            return refused(*_first_error(error))
        if event.event_time > now + self._max_future:
            return refused(
                "event_time", f"lies more than {self._max_future.total_seconds():.0f} s in the future; check the clock"
            )
        if event.event_time < now - self._max_age:
            return refused(
                "event_time", f"older than {counted(self._max_age.days, 'day')}; append history with `headrace import`"
            )
        return EventResult(index=index, event_id=event.event_id, status="accepted"), event


def _marked(event: events.ItemEvent | events.Transaction) -> events.ItemEvent | events.Transaction:
    """Adds to a payment the id of the call that brought it: its decision and alert will name it."""
    request_id = REQUEST_ID.get()
    if request_id is None or not isinstance(event, events.Transaction):
        return event
    return event.model_copy(update={"http_request_id": request_id})


def _known_field(field: str | None) -> str:
    """Returns the field as a label of a metric: names that callers make up must not become labels without end."""
    return field if field in FIELDS else "other"


def _first_error(error: ValidationError) -> tuple[str, str]:
    """Returns the field and the reason of the first error in an event."""
    first = error.errors(include_url=False)[0]
    error_type = first["type"]
    field = ".".join(str(part) for part in first["loc"][1:])  # the first part is the event's type
    if error_type.startswith("union_tag"):
        return "type", first["msg"]
    if error_type == "string_pattern_mismatch":
        return field, "holds a control character"
    return field or "user_id", first["msg"].removeprefix("Value error, ")

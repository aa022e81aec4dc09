"""Follows one topic of the event log from its beginning, and hands over each event once.

Knows how far it has read and nothing of what the state that is built from the events contains.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import ValidationError

from infra.log.client import START, EventLog, Position, Record

logger = logging.getLogger(__name__)

Event = TypeVar("Event")


@dataclass(frozen=True, slots=True)
class Entry(Generic[Event]):
    """An event of the topic, and where its record lies."""

    event: Event
    origin: str
    resume: Position
    """Where a reader that has seen this entry, and all entries before it, continues."""


class TopicProjection(Generic[Event]):
    """Reads a topic in batches of bounded size, so memory is bounded by what `apply` keeps. Safe to use from threads.

    A record that `parse` refuses is skipped with a warning.
    """

    def __init__(
        self,
        log: EventLog,
        topic: str,
        *,
        parse: Callable[[bytes], Event],
        apply: Callable[[Sequence[Entry[Event]]], None],
    ) -> None:
        """parse: turns the value of a record into an event, or raises pydantic.ValidationError; apply: takes the next
        events into the state, in the order of the log, and is called under `lock`."""
        self._log = log
        self._topic = topic
        self._parse = parse
        self._apply = apply
        self.position = START
        self.lock = threading.RLock()
        """Held while events are applied. Whoever holds it sees a state that does not change."""

    def catch_up(self) -> None:
        """Applies what the topic got since the last call. Raises what the log's client raises; what was read before
        the error stays applied."""
        with self.lock:
            while records := self._log.read(self._topic, self.position):
                self._apply(list(self._entries(records, self.position)))
                self.position = self.position.after(records)

    def append(self, key: str, value: bytes) -> None:
        """Appends a record to the topic; on return it is applied here. Raises LogError or LogFullError."""
        self._log.append(self._topic, [(key, value)])
        self.catch_up()

    def end(self) -> Position:
        """Returns the position of a reader that has read all there is now."""
        return self._log.end(self._topic)

    def read(self, position: Position) -> tuple[list[Entry[Event]], Position]:
        """Returns the next events behind any position, and the position to continue from. Applies nothing."""
        records = self._log.read(self._topic, position)
        return list(self._entries(records, position)), position.after(records)

    def _entries(self, records: Sequence[Record], position: Position) -> Iterator[Entry[Event]]:
        for record in records:
            position = position.after([record])
            try:
                event = self._parse(record.value)
            except ValidationError as error:
                # Not the whole error: it quotes the record.
                first = error.errors()[0]
                reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
                logger.warning("skipped an unreadable %s record, %s: %s", self._topic, record.origin, reason)
                continue
            yield Entry(event, record.origin, position)

"""Reads the size of the event log, its last append and its latest keys, as the console shows them.

Reads no more of a topic than its latest records. Knows nothing of events, nor of which log holds them.
"""

from collections.abc import Iterator
from datetime import UTC, datetime

from apps.console.views import TopicReading
from infra.log.client import EventLog, Record

TAIL_RECORDS = 200


class LogSizeReader:
    """Reads one topic at a time. Safe to use from many threads."""

    def __init__(self, log: EventLog) -> None:
        self._log = log

    def read(self, topic: str) -> TopicReading:
        """Returns the present size of a topic; an unknown topic counts as empty."""
        size = self._log.size(topic)
        last = next(iter(self._log.latest(topic, 1)), None)
        return TopicReading(
            topic=topic,
            records=size.records,
            whole=size.whole,
            size_bytes=size.size_bytes,
            last_append=_appended(last) if last else None,
        )

    def recent_keys(self, topic: str, count: int) -> tuple[str, ...]:
        """Returns the keys of the topic's last records, each once, the latest first; at most `count`."""
        return tuple(dict.fromkeys(record.key for record in self._tail(topic)))[:count]

    def first_after(self, topic: str, moment: datetime) -> datetime | None:
        """Returns when the first record after `moment` was appended, of the last TAIL_RECORDS; None without one."""
        later = [record for record in self._tail(topic) if _appended(record) > moment]
        return _appended(later[-1]) if later else None

    def _tail(self, topic: str) -> Iterator[Record]:
        """Returns the last records, the latest first."""
        return reversed(self._log.latest(topic, TAIL_RECORDS))


def _appended(record: Record) -> datetime:
    return datetime.fromtimestamp(record.timestamp_ms / 1000, tz=UTC)

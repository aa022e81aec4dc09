"""How much the event log holds, the last append, and who was active last, as the console shows it.

Reads no more of a topic than its latest records. Knows nothing of events, nor of which log holds them.
"""

from collections.abc import Iterator
from datetime import UTC, datetime

from apps.console.views import TopicReading
from infra.log.client import EventLog, Record

TAIL_RECORDS = 200


class LogSizeReader:
    """Safe to use from many threads."""

    def __init__(self, log: EventLog) -> None:
        self._log = log

    def read(self, topic: str) -> TopicReading:
        """The topic as it stands now; an unknown topic is an empty one."""
        held = self._log.size(topic)
        last = next(iter(self._log.latest(topic, 1)), None)
        return TopicReading(
            topic=topic,
            records=held.records,
            whole=held.whole,
            size_bytes=held.size_bytes,
            last_append=_appended(last) if last else None,
        )

    def recent_keys(self, topic: str, count: int) -> tuple[str, ...]:
        """Keys of the topic's last records, each once, the latest first; at most `count`."""
        return tuple(dict.fromkeys(record.key for record in self._tail(topic)))[:count]

    def first_after(self, topic: str, moment: datetime) -> datetime | None:
        """When the first record behind `moment` was appended, as far as the tail reaches back; None without one."""
        later = [record for record in self._tail(topic) if _appended(record) > moment]
        return _appended(later[-1]) if later else None

    def _tail(self, topic: str) -> Iterator[Record]:
        """The last records, the latest first."""
        return reversed(self._log.latest(topic, TAIL_RECORDS))


def _appended(record: Record) -> datetime:
    return datetime.fromtimestamp(record.timestamp_ms / 1000, tz=UTC)

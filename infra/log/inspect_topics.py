"""Shows what is in the event log, for `headrace log`."""

from collections.abc import Callable
from datetime import UTC, datetime

from infra import topics
from infra.log.client import LogError
from infra.log.open import open_log
from infra.settings import Settings

Say = Callable[[str], None]


def show(settings: Settings, topic: str | None, *, last: int, say: Say) -> None:
    """Lists the topics with their sizes, or the latest records of one. Raises LogError for an unknown topic."""
    log = open_log(settings)
    if topic is None:
        for name in topics.ALL:
            say(f"{name:20} {log.size(name).records:,} records, ends at {log.end(name)}")
        return
    if topic not in topics.ALL:
        raise LogError(f"there is no topic {topic!r}; there are {', '.join(topics.ALL)}")
    for record in log.latest(topic, last):
        moment = datetime.fromtimestamp(record.timestamp_ms / 1000, tz=UTC).isoformat(timespec="milliseconds")
        say(f"{record.partition}:{record.offset} {moment} {record.key} {record.value.decode('utf-8', 'replace')}")

"""Converts moments to and from milliseconds since the epoch, which all tables and histories keep."""

from datetime import UTC, datetime, timedelta

HOUR = 3_600_000
DAY = 24 * HOUR
"""Milliseconds."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def milliseconds(moment: datetime) -> int:
    """Returns the whole milliseconds since the epoch of an aware datetime, rounded down as Spark does."""
    return (moment - EPOCH) // timedelta(milliseconds=1)


def from_milliseconds(moment: int) -> datetime:
    """Returns the datetime, in UTC, of milliseconds since the epoch."""
    return EPOCH + timedelta(milliseconds=moment)


def rfc3339(moment: int) -> str:
    """Formats milliseconds since the epoch as RFC 3339 in UTC.

    >>> rfc3339(1_795_348_800_000)
    '2026-11-22T12:00:00.000Z'
    """
    return from_milliseconds(moment).isoformat(timespec="milliseconds").replace("+00:00", "Z")

"""Is everything alive: each part of the flow, in the order in which an event passes it, and what it last did."""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta

from apps.console.log_size import LogMeter
from apps.console.pages import ago, duration, size
from apps.console.views import Station, TopicReading
from apps.fraud.scorer import GROUP
from apps.ports import Clock
from apps.wiring import Services
from infra import topics

STALE_SECONDS = 60.0
"""A part that has had something to do for this long, and did not do it, needs a look."""
FREE_BYTES_WANTED = 2 << 30
FEATURE_SOURCES = (topics.SHOP, topics.TRANSACTIONS, topics.LABELS, topics.IMPRESSIONS)


class Stations:
    """`feature_age_seconds`: since the feature job's last batch, None when it never ran."""

    def __init__(
        self, services: Services, meter: LogMeter, *, feature_age_seconds: Callable[[], float | None], clock: Clock
    ) -> None:
        self._services = services
        self._meter = meter
        self._feature_age_seconds = feature_age_seconds
        self._clock = clock
        self._started = clock()

    def read(self, readings: Mapping[str, TopicReading]) -> Iterator[Station]:
        """`readings` by topic, every topic among them."""
        now = datetime.fromtimestamp(self._clock(), tz=UTC)
        yield self._log(readings, now)
        yield self._feature_job(now)
        yield self._online_store()
        yield self._release()
        yield Station("API", "ok", "answers", f"up for {duration(self._clock() - self._started)}")
        yield self._scorer(readings[topics.TRANSACTIONS], now)

    def _log(self, readings: Mapping[str, TopicReading], now: datetime) -> Station:
        folder = self._services.settings.data_dir
        free = shutil.disk_usage(folder if folder.exists() else ".").free
        last = max((one.last_append for one in readings.values() if one.last_append), default=None)
        state = f"last record {ago(last, now)}" if last else "nothing in it yet"
        sizes = [one.size_bytes for one in readings.values() if one.size_bytes is not None]
        held = size(sum(sizes)) if sizes else f"{sum(one.records for one in readings.values()):,} records"
        return Station("Event log", "ok" if free > FREE_BYTES_WANTED else "warn", held, f"{state}; {size(free)} free")

    def _feature_job(self, now: datetime) -> Station:
        age = self._feature_age_seconds()
        if age is None:
            return Station("Feature job", "down", "never ran", "start headrace stream")
        # It writes only when there is something to do: a quiet job is well unless records wait for it.
        last_batch = now - timedelta(seconds=age)
        waits = [since for topic in FEATURE_SOURCES if (since := self._meter.first_after(topic, last_batch))]
        if waits and (now - min(waits)).total_seconds() > STALE_SECONDS:
            return Station(
                "Feature job",
                "warn",
                ago(last_batch, now),
                f"records wait for {duration((now - min(waits)).total_seconds())}",
            )
        return Station(
            "Feature job",
            "ok" if age < STALE_SECONDS else "idle",
            ago(last_batch, now),
            "its last batch; nothing waits",
        )

    def _online_store(self) -> Station:
        started = time.perf_counter()
        try:
            self._services.reader.user_histories(["readiness"])
        except Exception as error:  # whatever the store's client raises
            return Station("Online store", "down", "failing", f"{type(error).__name__}: answers are degraded")
        return Station("Online store", "ok", f"{(time.perf_counter() - started) * 1000:.1f} ms", "to read one user")

    def _release(self) -> Station:
        version = self._services.releases.version
        if version is None:
            return Station("Release", "down", "none yet", "run headrace train")
        return Station("Release", "ok", version, "is served")

    def _scorer(self, payments: TopicReading, now: datetime) -> Station:
        log = self._services.log
        if payments.last_append is None:
            return Station("Fraud scorer", "idle", "no payments", "none in the log yet")
        last = f"last payment {ago(payments.last_append, now)}"
        if log.committed(GROUP, topics.TRANSACTIONS).covers(log.end(topics.TRANSACTIONS)):
            return Station("Fraud scorer", "ok", "caught up", last)
        if (now - payments.last_append).total_seconds() < STALE_SECONDS:
            return Station("Fraud scorer", "ok", "scoring", last)
        return Station("Fraud scorer", "warn", "behind", f"{last}, and not all are scored")

"""Is everything alive: each part of the flow, in the order in which an event passes it, and what it last did."""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta

from apps.console.log_size import LogSizeReader
from apps.console.pages import ago, duration, size
from apps.console.views import Component, TopicReading
from apps.fraud.scorer import GROUP
from apps.ports import Clock
from apps.wiring import Services
from infra import topics

STALE_SECONDS = 60.0
"""A part that has had something to do for this long, and did not do it, needs a look."""
FREE_BYTES_WANTED = 2 << 30
FEATURE_SOURCES = (topics.SHOP, topics.TRANSACTIONS, topics.LABELS, topics.IMPRESSIONS)


class ComponentHealth:
    """`feature_age_seconds`: since the feature job's last batch, None when it never ran."""

    def __init__(
        self, services: Services, meter: LogSizeReader, *, feature_age_seconds: Callable[[], float | None], clock: Clock
    ) -> None:
        self._services = services
        self._meter = meter
        self._feature_age_seconds = feature_age_seconds
        self._clock = clock
        self._started = clock()

    def read(self, readings: Mapping[str, TopicReading]) -> Iterator[Component]:
        """`readings` by topic, every topic among them."""
        now = datetime.fromtimestamp(self._clock(), tz=UTC)
        yield self._log(readings, now)
        yield self._feature_job(now)
        yield self._online_store()
        yield self._release()
        yield Component("API", "ok", "answers", f"up for {duration(self._clock() - self._started)}")
        yield self._scorer(readings[topics.TRANSACTIONS], now)

    def _log(self, readings: Mapping[str, TopicReading], now: datetime) -> Component:
        folder = self._services.settings.data_dir
        free = shutil.disk_usage(folder if folder.exists() else ".").free
        last = max((one.last_append for one in readings.values() if one.last_append), default=None)
        state = f"last record {ago(last, now)}" if last else "nothing in it yet"
        sizes = [one.size_bytes for one in readings.values() if one.size_bytes is not None]
        held = size(sum(sizes)) if sizes else f"{sum(one.records for one in readings.values()):,} records"
        return Component("Event log", "ok" if free > FREE_BYTES_WANTED else "warn", held, f"{state}; {size(free)} free")

    def _feature_job(self, now: datetime) -> Component:
        age = self._feature_age_seconds()
        if age is None:
            return Component("Feature job", "down", "never ran", "start headrace stream")
        # It writes only when there is something to do: a quiet job is well unless records wait for it.
        last_batch = now - timedelta(seconds=age)
        waits = [since for topic in FEATURE_SOURCES if (since := self._meter.first_after(topic, last_batch))]
        if waits and (now - min(waits)).total_seconds() > STALE_SECONDS:
            return Component(
                "Feature job",
                "warn",
                ago(last_batch, now),
                f"records wait for {duration((now - min(waits)).total_seconds())}",
            )
        return Component(
            "Feature job",
            "ok" if age < STALE_SECONDS else "idle",
            ago(last_batch, now),
            "its last batch; nothing waits",
        )

    def _online_store(self) -> Component:
        started = time.perf_counter()
        try:
            self._services.reader.user_histories(["readiness"])
        except Exception as error:  # whatever the store's client raises
            return Component("Online store", "down", "failing", f"{type(error).__name__}: answers are degraded")
        return Component("Online store", "ok", f"{(time.perf_counter() - started) * 1000:.1f} ms", "to read one user")

    def _release(self) -> Component:
        version = self._services.releases.version
        if version is None:
            return Component("Release", "down", "none yet", "run headrace train")
        return Component("Release", "ok", version, "is served")

    def _scorer(self, payments: TopicReading, now: datetime) -> Component:
        log = self._services.log
        if payments.last_append is None:
            return Component("Fraud scorer", "idle", "no payments", "none in the log yet")
        last = f"last payment {ago(payments.last_append, now)}"
        if log.committed(GROUP, topics.TRANSACTIONS).covers(log.end(topics.TRANSACTIONS)):
            return Component("Fraud scorer", "ok", "caught up", last)
        if (now - payments.last_append).total_seconds() < STALE_SECONDS:
            return Component("Fraud scorer", "ok", "scoring", last)
        return Component("Fraud scorer", "warn", "behind", f"{last}, and not all are scored")

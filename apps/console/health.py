"""Checks whether each part of the system works, in the order in which an event passes them."""

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
from apps.wording import counted
from infra import topics

STALE_SECONDS = 60.0
"""A part that has left work undone for this long needs a look."""
LEAST_FREE_BYTES = 2 << 30
FEATURE_SOURCES = (topics.SHOP, topics.TRANSACTIONS, topics.LABELS, topics.IMPRESSIONS)


class ComponentHealth:
    """Reads the state of every part of the system."""

    def __init__(
        self,
        services: Services,
        log_size: LogSizeReader,
        *,
        feature_age_seconds: Callable[[], float | None],
        clock: Clock,
    ) -> None:
        """feature_age_seconds: seconds since the feature job's last batch; None when it never ran."""
        self._services = services
        self._log_size = log_size
        self._feature_age_seconds = feature_age_seconds
        self._clock = clock
        self._started = clock()

    def read(self, readings: Mapping[str, TopicReading]) -> Iterator[Component]:
        """Yields every part; readings: of every topic, by its name."""
        now = datetime.fromtimestamp(self._clock(), tz=UTC)
        yield self._log(readings, now)
        yield self._feature_job(now)
        yield self._online_store()
        yield self._release()
        yield Component("API", "ok", "running", f"up for {duration(self._clock() - self._started)}")
        yield self._scorer(readings[topics.TRANSACTIONS], now)

    def _log(self, readings: Mapping[str, TopicReading], now: datetime) -> Component:
        folder = self._services.settings.data_dir
        free = shutil.disk_usage(folder if folder.exists() else ".").free
        last = max((reading.last_append for reading in readings.values() if reading.last_append), default=None)
        state = f"last record {ago(last, now)}" if last else "empty so far"
        sizes = [reading.size_bytes for reading in readings.values() if reading.size_bytes is not None]
        held = size(sum(sizes)) if sizes else counted(sum(reading.records for reading in readings.values()), "record")
        return Component("Event log", "ok" if free > LEAST_FREE_BYTES else "warn", held, f"{state}; {size(free)} free")

    def _feature_job(self, now: datetime) -> Component:
        age = self._feature_age_seconds()
        if age is None:
            return Component("Feature job", "down", "never ran", "start it: headrace stream")
        # The job writes only when there is something to do: a quiet job is fine unless records wait for it.
        last_batch = now - timedelta(seconds=age)
        waits = [since for topic in FEATURE_SOURCES if (since := self._log_size.first_after(topic, last_batch))]
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
            "last batch; no records wait",
        )

    def _online_store(self) -> Component:
        started = time.perf_counter()
        try:
            self._services.reader.user_histories(["readiness"])
        except Exception as error:  # whatever the store's client raises
            return Component("Online store", "down", "failing", f"{type(error).__name__}; answers are degraded")
        return Component("Online store", "ok", f"{(time.perf_counter() - started) * 1000:.1f} ms", "to read one user")

    def _release(self) -> Component:
        version = self._services.releases.version
        if version is None:
            return Component("Release", "down", "none yet", "make one: headrace train")
        return Component("Release", "ok", version, "served now")

    def _scorer(self, payments: TopicReading, now: datetime) -> Component:
        log = self._services.log
        if payments.last_append is None:
            return Component("Fraud scorer", "idle", "no payments", "nothing to score yet")
        last = f"last payment {ago(payments.last_append, now)}"
        if log.committed(GROUP, topics.TRANSACTIONS).covers(log.end(topics.TRANSACTIONS)):
            return Component("Fraud scorer", "ok", "caught up", last)
        if (now - payments.last_append).total_seconds() < STALE_SECONDS:
            return Component("Fraud scorer", "ok", "scoring", last)
        return Component("Fraud scorer", "warn", "behind", f"{last}; some are not scored yet")

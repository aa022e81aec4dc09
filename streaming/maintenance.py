"""Refreshes tables beside the stream: those over all items, item windows and experiment outcomes; and compacts files.

Runs as a thread of the driver, with a Spark scheduler pool of its own. Knows of micro-batches only what they touched.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from pyspark.sql import SparkSession

from features.contract.columns import IMPRESSIONS, LABELS, SHOP_EVENTS
from features.history.timeline import NoDataError, read_timeline
from features.store import views
from features.store.feature_store import open_store
from infra.settings import Settings
from streaming import co_purchase, compaction, exposures, items, metrics
from streaming.tables import write_status

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
COMPACTION_SECONDS = 60.0
GROWING = (SHOP_EVENTS, IMPRESSIONS, LABELS, views.TRANSACTION_FEATURES)
"""The tables to which micro-batches add files."""


class PendingChanges(Protocol):
    """What the micro-batches leave to the maintenance."""

    items_touched: set[str]
    impressions_seen: bool
    latest: int
    """Time of the latest shop event, ms."""


class Maintenance(threading.Thread):
    """Refreshes the tables, item windows and experiment outcomes while the stream runs."""

    def __init__(
        self,
        spark: SparkSession,
        settings: Settings,
        job: PendingChanges,
        *,
        caught_up: Callable[[], bool],
        stop: threading.Event,
    ) -> None:
        super().__init__(name="renewal", daemon=True)
        self._spark = spark
        self._settings = settings
        self._job = job
        self._caught_up = caught_up
        self._halt = stop
        self._store = open_store(settings)
        self._tables_exist = False
        self._outcomes_joined = False
        self._next_items = self._next_exposures = self._next_compaction = 0.0

    def run(self) -> None:
        # A pool of its own, so that the tasks of a micro-batch do not queue behind those of a refresh.
        self._spark.sparkContext.setLocalProperty("spark.scheduler.pool", "renewal")
        while not self._halt.wait(LOOK_SECONDS):
            try:
                if self._job.items_touched and time.monotonic() >= self._next_items:
                    self._refresh_items()
                if self._job.impressions_seen and time.monotonic() >= self._next_exposures:
                    self._refresh_exposures()
                if time.monotonic() >= self._next_compaction:
                    self._compact()
            except Exception:
                if not self._halt.is_set():
                    metrics.RENEWALS_FAILED.inc()
                    logger.exception("a refresh beside the stream failed; trying again")

    def _refresh_items(self) -> None:
        self._tables_exist = self._tables_exist or _tables_exist(self._settings)
        if not self._tables_exist and not self._caught_up():
            return
        touched, self._job.items_touched = self._job.items_touched, set()

        def put_back() -> None:
            self._job.items_touched |= touched

        if not self._tables_exist:
            _timed("tables", lambda: rebuild_tables(self._spark, self._settings), or_else=put_back)
            return
        took = _timed(
            "item windows",
            lambda: items.refresh(self._spark, self._store, self._settings, touched, latest=self._job.latest),
            or_else=put_back,
        )
        self._next_items = _next(self._settings.population_refresh_seconds, took=took)

    def _refresh_exposures(self) -> None:
        self._job.impressions_seen = False
        if not any((self._settings.offline_dir / IMPRESSIONS).glob("*.parquet")):
            return  # nothing was shown yet: there is nothing to join a purchase to

        def put_back() -> None:
            self._job.impressions_seen = True

        took = _timed("experiment outcomes", lambda: exposures.run(self._spark, self._settings), or_else=put_back)
        # The first run is mostly Spark's code generation, which happens once, so its time does not count.
        first, self._outcomes_joined = not self._outcomes_joined, True
        self._next_exposures = _next(self._settings.exposures_refresh_seconds, took=0 if first else took)

    def _compact(self) -> None:
        folders = [self._settings.offline_dir / name for name in GROWING]
        took = _timed("files", lambda: [compaction.compact(folder) for folder in folders], or_else=lambda: None)
        self._next_compaction = _next(COMPACTION_SECONDS, took=took)


def rebuild_tables(spark: SparkSession, settings: Settings) -> str:
    """Rebuilds the tables over all items: item days, and neighbours as of the moments that training needs.

    Returns a line that says what was written, or what is missing.
    """
    try:
        timeline = read_timeline(settings)
    except NoDataError as error:
        return str(error)
    with ThreadPoolExecutor(max_workers=2) as pool:  # Spark plans a job in one thread: two jobs fill two cores
        days = pool.submit(items.rebuild, spark, open_store(settings), settings)
        related = pool.submit(co_purchase.run, spark, settings, moments=[timeline.ranker_start, timeline.split])
    summary = f"{days.result():,} item days, {related.result():,} items with others bought beside them"
    write_status(settings.tables_status, {"made": summary})
    return summary


def _tables_exist(settings: Settings) -> bool:
    tables = (settings.offline_dir / name for name in (views.ITEM_HISTORY, views.ITEM_NEIGHBOURS))
    return all(any(folder.glob("*.parquet")) for folder in tables)


def _timed(table: str, work: Callable[[], object], *, or_else: Callable[[], None]) -> float:
    """Runs `work` and returns the seconds it took. If it fails, calls `or_else` before raising the error."""
    started = time.monotonic()
    try:
        with metrics.RENEWAL_SECONDS.labels(table).time():
            work()
    except Exception:
        or_else()
        raise
    logger.info("refreshed %s in %.1f s", table, time.monotonic() - started)
    return time.monotonic() - started


def _next(seconds: float, *, took: float) -> float:
    """Returns when to refresh next: refreshing never takes more than half of the time."""
    return time.monotonic() + max(seconds, took)

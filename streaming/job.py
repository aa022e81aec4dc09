"""Runs the Spark job that turns the event log into features: `headrace features` (catch up, then stop) and
`headrace stream` (run until stopped).

In a micro-batch Spark reads the new records; they are parsed and checked; unusable ones become dead letters; the rest
is written to the tables and folded into the histories. A micro-batch may be repeated after a crash without counting
twice. Beside it, item windows and experiment outcomes are refreshed every few seconds, and the tables over all items
are built if they are missing; `headrace features`, once a day, rebuilds them.
"""

import contextlib
import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark.errors import StreamingQueryException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.streaming import StreamingQuery

from features.contract.columns import IMPRESSIONS, LABELS, SHOP_EVENTS
from features.store.feature_store import open_store
from features.store.online import OnlineStoreError
from features.store.recovery import OnlineStoreGuard, refill
from infra.log.client import START, EventLog, Position
from infra.log.open import open_log
from infra.progress import progress_bar
from infra.settings import Settings
from streaming import exposures, metrics
from streaming.histories import HistoryWriter
from streaming.maintenance import Maintenance, rebuild_tables
from streaming.parsing import in_order_of_arrival, parse
from streaming.session import JobError, open_session
from streaming.source import READ_TOPICS, reached, read_stream
from streaming.tables import as_schema, dead_letter, write_status, write_table

logger = logging.getLogger(__name__)

RECORD_FIELDS = ("topic", "partition", "offset", "value", "timestamp")
"""The fields of a record that Spark hands over."""
QUERY = "features"
ONLINE_PATIENCE_SECONDS = 300.0
"""How long a micro-batch waits for an online store that does not answer before the job gives up."""
ONLINE_RETRY_SECONDS = 0.5
LOST = (
    "\nKafka dropped records before the job had read them, or the topics were created again. Keep them longer "
    "(HEADRACE_KAFKA_RETENTION_DAYS); to rebuild the features from what is there, remove the folders checkpoints, "
    "offline and feast of HEADRACE_DATA_DIR and run `headrace features`"
)


class FeatureJob:
    """Processes micro-batches. `items_touched` and `impressions_seen` say what the maintenance has to refresh."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._log = open_log(settings)
        store = open_store(settings)
        self._guard = OnlineStoreGuard(store, settings)
        self._histories = HistoryWriter(store, settings, before_writing=self._guard.unchanged)
        self.items_touched: set[str] = set()
        self.impressions_seen = False
        self.latest = 0
        """Time of the latest shop event, ms."""
        self.records = 0
        self.rejected = 0
        self.batch_seconds = 0.0

    def process_records(self, records: DataFrame, batch_id: int) -> None:
        """Parses a micro-batch of records, writes dead letters, processes the events and counts both."""
        started = time.monotonic()
        events = parse(records.select(*RECORD_FIELDS).toArrow())
        name = f"batch-{batch_id:012d}"
        valid = events.filter(pc.is_null(events["reason"]))
        if valid.num_rows < events.num_rows:
            dead_letter(self._log, events.filter(pc.is_valid(events["reason"])))
            self.rejected += events.num_rows - valid.num_rows
        event_type = valid["type"]
        payments = valid.filter(pc.equal(event_type, "transaction"))
        labels = valid.filter(pc.equal(event_type, "label"))
        impressions = valid.filter(pc.equal(event_type, "impression"))
        shop = valid.filter(pc.is_in(event_type, pa.array(["item", "view", "cart", "purchase", "return"])))
        self.process(shop, in_order_of_arrival(payments), labels, impressions, batch=name)

        self.items_touched.update(pc.unique(shop["item_id"]).to_pylist())
        self.latest = max(self.latest, pc.max(shop["event_time"]).as_py() or 0)
        self.impressions_seen = self.impressions_seen or impressions.num_rows > 0 or shop.num_rows > 0
        self.records += events.num_rows
        self.batch_seconds = time.monotonic() - started
        metrics.record_batch(events, seconds=self.batch_seconds, now=time.time())

    def process(
        self, shop: pa.Table, payments: pa.Table, labels: pa.Table, impressions: pa.Table, *, batch: str
    ) -> None:
        """Writes the events of a micro-batch to the tables, then folds them, and retries until the online store has
        them: an outage of the store only delays the job. payments: in the order of their arrival."""
        for table, rows in ((SHOP_EVENTS, shop), (IMPRESSIONS, impressions), (LABELS, labels)):
            if rows.num_rows:
                write_table(self._settings.offline_dir / table, batch, as_schema(rows, table))
        given_up = time.monotonic() + ONLINE_PATIENCE_SECONDS
        while True:
            try:
                if self._guard.check():
                    self._touch_all_items()
                created = datetime.now(UTC)
                # They share nothing, and most of their time is spent outside Python's lock.
                with ThreadPoolExecutor(2) as pool:
                    users = pool.submit(self._histories.fold_users, shop, created=created)
                    cards = pool.submit(self._histories.fold_payments, payments, labels, batch=batch, created=created)
                users.result()
                cards.result()
                self._guard.confirm(batch)
                return
            except OnlineStoreError as error:
                if time.monotonic() > given_up:
                    raise
                logger.warning("%s: trying again (%s)", batch, error)
                time.sleep(ONLINE_RETRY_SECONDS)

    def _touch_all_items(self) -> None:
        """Marks every item for a refresh."""
        for path in (self._settings.offline_dir / SHOP_EVENTS).glob("*.parquet"):
            events = pq.read_table(path, columns=["item_id", "event_time"])
            self.items_touched.update(pc.unique(events["item_id"]).to_pylist())
            self.latest = max(self.latest, pc.max(events["event_time"]).as_py() or 0)

    def report_progress(self, reached: Mapping[str, Position]) -> None:
        """Writes the counts so far and the positions in the log to a file that `headrace` and its pages read."""
        status = {
            "records": self.records,
            "rejected": self.rejected,
            "batch_seconds": round(self.batch_seconds, 3),
            "reached": {topic: str(position) for topic, position in reached.items()},
        }
        write_status(self._settings.stream_status, status)


def run(settings: Settings, *, stop: threading.Event) -> FeatureJob:
    """Turns the log into features until `stop` is set; a restarted job resumes where it was.

    Raises JobError when Spark does not start, another job has this data directory, or a micro-batch fails for good.
    """
    os.nice(settings.stream_nice)  # Spark's own processes inherit it
    with (
        _sole_job(settings),
        metrics.served(settings.stream_metrics_port, host=settings.metrics_host),
        _session(settings, "headrace-stream") as spark,
    ):
        job = FeatureJob(settings)
        query = _start(spark, settings, job)
        reported = _reached(query, settings)
        job.report_progress(reported)  # says that the job is up, even if there is nothing to read yet
        log = open_log(settings)
        renewal = Maintenance(spark, settings, job, caught_up=lambda: _caught_up(query, log, settings), stop=stop)
        renewal.start()
        while query.isActive and not stop.wait(0.2):
            if (now := _reached(query, settings)) != reported:
                job.report_progress(reported := now)
        _finish(query)
        stop.set()
        renewal.join(timeout=10)
        return job


def catch_up(settings: Settings, *, say: Callable[[str], None]) -> None:
    """Turns everything that is in the log now into features, then rebuilds the tables over all items.

    If `headrace stream` is running, it folds the histories, and this waits until it has.
    """
    log = open_log(settings)
    with _session(settings, "headrace-features") as spark:
        try:
            with _sole_job(settings):
                total = sum(log.end(topic).total for topic in READ_TOPICS)
                with progress_bar(total=total, desc="features", unit="B", unit_scale=True) as bar:
                    job = FeatureJob(settings)
                    query = _start(spark, settings, job)
                    while query.isActive and not _caught_up(query, log, settings):
                        bar.n = min(total, sum(position.total for position in _reached(query, settings).values()))
                        bar.refresh()
                        time.sleep(0.2)
                    with contextlib.suppress(StreamingQueryException):  # _finish reports it
                        query.processAllAvailable()
                    _finish(query)
                say(f"features: {job.records:,} records folded into histories, {job.rejected:,} dead-lettered")
        except JobRunningError:
            say("features: `headrace stream` is running and makes the histories; waiting until it has read everything")
            _wait_for_running_job(settings, log)
        say(f"features: {rebuild_tables(spark, settings)}")


def _wait_for_running_job(settings: Settings, log: EventLog) -> None:
    """Waits until another process's job has read what is in the log now. Raises JobError when that job ends earlier."""
    ends = {topic: log.end(topic) for topic in READ_TOPICS}
    total = sum(end.total for end in ends.values())
    with progress_bar(total=total, desc="features", unit="B", unit_scale=True) as bar:
        while True:
            status = json.loads(settings.stream_status.read_text()) if settings.stream_status.exists() else {}
            reached = {topic: Position.parse(text) for topic, text in status.get("reached", {}).items()}
            if all(reached.get(topic, START).covers(end) for topic, end in ends.items()):
                return
            bar.n = min(total, sum(position.total for position in reached.values()))
            bar.refresh()
            with contextlib.suppress(JobRunningError), _sole_job(settings):
                raise JobError("the feature job that was running has ended; run this again to take its place")
            time.sleep(0.2)


def refill_online(settings: Settings, *, say: Callable[[str], None]) -> None:
    """Writes the newest row of every user, card, terminal and item from the offline tables into the online store.

    Raises JobRunningError if a feature job is running, which does this itself when necessary.
    """
    with _sole_job(settings):
        refill(open_store(settings), say=say)


def join_exposures(settings: Settings) -> int:
    """Joins impressions to outcomes once; returns the number of rows written."""
    with _session(settings, "headrace-exposures") as spark:
        return exposures.run(spark, settings)


class JobRunningError(JobError):
    """Raised when another feature job is working on this data directory."""


@contextlib.contextmanager
def _sole_job(settings: Settings) -> Iterator[None]:
    """Locks the data directory's checkpoint: two jobs on it would write the same histories."""
    settings.checkpoints_dir.mkdir(parents=True, exist_ok=True)
    with (settings.checkpoints_dir / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise JobRunningError(f"a feature job already works on {settings.data_dir}; one is enough") from error
        yield


@contextlib.contextmanager
def _session(settings: Settings, app: str) -> Iterator[SparkSession]:
    spark = open_session(settings, app=app)
    try:
        yield spark
    finally:
        spark.stop()


def _start(spark: SparkSession, settings: Settings, job: FeatureJob) -> StreamingQuery:
    return (
        read_stream(spark, settings)
        .writeStream.queryName(QUERY)
        .foreachBatch(job.process_records)
        .option("checkpointLocation", str((settings.checkpoints_dir / QUERY).absolute()))
        .trigger(processingTime=f"{settings.stream_trigger_milliseconds} milliseconds")
        .start()
    )


def _reached(query: StreamingQuery, settings: Settings) -> dict[str, Position]:
    """Returns how far the query has read each topic."""
    progress = query.lastProgress
    ends = [source["endOffset"] for source in progress["sources"] if source["endOffset"]] if progress else []
    return {
        topic: position for end in ends for topic, position in reached(end, prefix=settings.kafka_topic_prefix).items()
    }


def _caught_up(query: StreamingQuery, log: EventLog, settings: Settings) -> bool:
    positions = _reached(query, settings)
    return all(positions.get(topic, START).covers(log.end(topic)) for topic in READ_TOPICS)


def _finish(query: StreamingQuery) -> None:
    error = query.exception()
    query.stop()
    if error is not None:
        raise JobError(f"the feature job stopped: {error}{LOST if 'data loss' in str(error).lower() else ''}")

"""The Spark job that turns the event log into features: `headrace features` (catch up, then stop) and
`headrace stream` (go on for ever).

One micro-batch: Spark reads the new records, parses and checks them; what cannot be used is dead-lettered; the rest
goes to the tables and is folded into the histories. Everything a micro-batch does may be done again after a crash
without counting twice. Item windows and experiment outcomes are renewed beside it, every few seconds.
"""

import contextlib
import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.errors import StreamingQueryException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.streaming import StreamingQuery
from tqdm import tqdm

from features.store import open_store
from features.timeline import NoDataError, read_timeline
from infra.log.client import START, EventLog, Position, open_log
from infra.settings import Settings
from streaming import co_purchase, exposures, items
from streaming.histories import Histories
from streaming.session import JobError, open_session
from streaming.source import READ_TOPICS, parse, reached, read_stream
from streaming.tables import IMPRESSIONS, LABELS, SHOP_EVENTS, as_schema, dead_letter, write_table

logger = logging.getLogger(__name__)

STATUS_FILE = "stream.json"
QUERY = "features"
LOST = (
    "\nKafka dropped records before the job had read them, or the topics were made anew. Keep them longer "
    "(HEADRACE_KAFKA_RETENTION_DAYS); to build the features anew from what is there, remove the folders checkpoints, "
    "offline and feast of HEADRACE_DATA_DIR and run `headrace features`"
)


class FeatureJob:
    """Handles micro-batches. `items_touched` and `impressions_seen` tell the renewals what there is to do."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._log = open_log(settings)
        self._histories = Histories(open_store(settings), settings)
        self.items_touched: set[str] = set()
        self.impressions_seen = False
        self.latest = 0
        """Time of the latest shop event, ms."""
        self.records = 0
        self.rejected = 0

    def handle(self, records: DataFrame, batch_id: int) -> None:
        started = time.monotonic()
        events = parse(records).toArrow()
        name = f"batch-{batch_id:012d}"
        created = datetime.now(UTC)
        valid = events.filter(pc.is_null(events["reason"]))
        if valid.num_rows < events.num_rows:
            dead_letter(self._log, events.filter(pc.is_valid(events["reason"])))
            self.rejected += events.num_rows - valid.num_rows
        kind = valid["type"]
        payments = valid.filter(pc.equal(kind, "transaction"))
        labels = valid.filter(pc.equal(kind, "label"))
        impressions = valid.filter(pc.equal(kind, "impression"))
        shop = valid.filter(pc.is_in(kind, pa.array(["item", "view", "cart", "purchase", "return"])))

        for table, rows in ((SHOP_EVENTS, shop), (IMPRESSIONS, impressions), (LABELS, labels)):
            if rows.num_rows:
                write_table(self._settings.offline_dir / table, name, as_schema(rows, table))
        self._histories.fold_users(shop, batch=name, created=created)
        self._histories.fold_payments(payments, labels, batch=name, created=created)

        self.items_touched.update(pc.unique(shop["item_id"]).to_pylist())
        self.latest = max(self.latest, pc.max(shop["event_time"]).as_py() or 0)
        self.impressions_seen = self.impressions_seen or impressions.num_rows > 0 or shop.num_rows > 0
        self.records += events.num_rows
        self._write_status(time.monotonic() - started)

    def _write_status(self, seconds: float) -> None:
        folder = self._settings.data_dir / "status"
        folder.mkdir(parents=True, exist_ok=True)
        status = {
            "updated": datetime.now(UTC).isoformat(),
            "records": self.records,
            "rejected": self.rejected,
            "batch_seconds": round(seconds, 3),
        }
        hidden = folder / f".{STATUS_FILE}.new"
        hidden.write_text(json.dumps(status))
        os.replace(hidden, folder / STATUS_FILE)


class Renewal(threading.Thread):
    """Renews item windows and experiment outcomes while the stream goes on."""

    def __init__(self, spark: SparkSession, settings: Settings, job: FeatureJob, stop: threading.Event) -> None:
        super().__init__(name="renewal", daemon=True)
        self._spark = spark
        self._settings = settings
        self._job = job
        self._halt = stop

    def run(self) -> None:
        store = open_store(self._settings)
        next_items = next_exposures = 0.0
        while not self._halt.wait(0.5):
            try:
                if self._job.items_touched and time.monotonic() >= next_items:
                    touched, self._job.items_touched = self._job.items_touched, set()
                    items.refresh(self._spark, store, self._settings, touched, latest=self._job.latest)
                    next_items = time.monotonic() + self._settings.population_refresh_seconds
                if self._job.impressions_seen and time.monotonic() >= next_exposures:
                    self._job.impressions_seen = False
                    exposures.run(self._spark, self._settings)
                    next_exposures = time.monotonic() + self._settings.exposures_refresh_seconds
            except Exception:
                if not self._halt.is_set():
                    logger.exception("renewing item windows or experiment outcomes failed; trying again")


def run(settings: Settings, *, stop: threading.Event) -> FeatureJob:
    """Turn the log into features until `stop` is set; started again, it goes on where it was.

    Raises JobError when Spark does not start, another job has this data directory, or a micro-batch fails for good.
    """
    with _sole_job(settings), _session(settings, "headrace-stream") as spark:
        job = FeatureJob(settings)
        query = _start(spark, settings, job)
        renewal = Renewal(spark, settings, job, stop)
        renewal.start()
        while query.isActive and not stop.wait(0.2):
            pass
        _finish(query)
        stop.set()
        renewal.join(timeout=10)
        return job


def catch_up(settings: Settings, *, say: Callable[[str], None]) -> None:
    """Turn everything that is in the log now into features, then renew the tables over all items.

    Where `headrace stream` is running it keeps the histories itself, and only the tables are renewed.
    """
    log = open_log(settings)
    with _session(settings, "headrace-features") as spark:
        try:
            with _sole_job(settings):
                total = sum(log.end(topic).total for topic in READ_TOPICS)
                with tqdm(total=total, desc="features", unit="B", unit_scale=True, leave=False) as bar:
                    job = FeatureJob(settings)
                    query = _start(spark, settings, job)
                    while query.isActive and not _caught_up(query, log, settings):
                        bar.n = min(total, sum(position.total for position in _reached(query, settings).values()))
                        bar.refresh()
                        time.sleep(0.2)
                    with contextlib.suppress(StreamingQueryException):  # told by _finish
                        query.processAllAvailable()
                    _finish(query)
                say(f"features: {job.records:,} records folded into histories, {job.rejected:,} dead-lettered")
        except JobRunningError:
            say("features: `headrace stream` is running and keeps the histories; renewing the item tables only")
        try:
            timeline = read_timeline(settings)
        except NoDataError as error:
            say(f"features: {error}")
            return
        days = items.rebuild(spark, open_store(settings), settings)
        related = co_purchase.run(spark, settings, moments=[timeline.ranker_start, timeline.split])
        say(f"features: {days:,} item days, {related:,} items with others bought beside them")


def join_exposures(settings: Settings) -> int:
    """Join impressions to outcomes once; returns the number of rows written."""
    with _session(settings, "headrace-exposures") as spark:
        return exposures.run(spark, settings)


class JobRunningError(JobError):
    """Another feature job is working on this data directory."""


@contextlib.contextmanager
def _sole_job(settings: Settings) -> Iterator[None]:
    """Hold the data directory's checkpoint: two jobs on it would write the same histories."""
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
        .foreachBatch(job.handle)
        .option("checkpointLocation", str((settings.checkpoints_dir / QUERY).absolute()))
        .trigger(processingTime=f"{settings.stream_trigger_milliseconds} milliseconds")
        .start()
    )


def _reached(query: StreamingQuery, settings: Settings) -> dict[str, Position]:
    """How far the query has read each topic."""
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

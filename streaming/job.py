"""The Spark job that turns the event log into features: `headrace features` (catch up, then stop) and
`headrace stream` (go on for ever).

One micro-batch: Spark reads the new records, parses and checks them; what cannot be used is dead-lettered; the rest
goes to the tables and is folded into the histories. Everything a micro-batch does may be done again after a crash
without counting twice. Item windows and experiment outcomes are renewed beside it, every few seconds.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession

from features.store import open_store
from infra.log.client import open_log
from infra.settings import Settings
from streaming import exposures, items
from streaming.histories import Histories
from streaming.session import open_session
from streaming.source import parse, read_stream
from streaming.tables import IMPRESSIONS, LABELS, SHOP_EVENTS, as_schema, dead_letter, write_table

logger = logging.getLogger(__name__)

STATUS_FILE = "stream.json"
QUERY = "features"


class FeatureJob:
    """Handles micro-batches. `items_touched` and `impressions_seen` tell the renewals what there is to do."""

    def __init__(self, settings: Settings, on_progress: Callable[[int], None]) -> None:
        self._settings = settings
        self._log = open_log(settings)
        self._histories = Histories(open_store(settings), settings)
        self._on_progress = on_progress
        self.items_touched: set[str] = set()
        self.impressions_seen = False
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
        self.impressions_seen = self.impressions_seen or impressions.num_rows > 0 or shop.num_rows > 0
        self.records += events.num_rows
        self._write_status(time.monotonic() - started)
        self._on_progress(events.num_rows)

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
                    items.refresh(self._spark, store, self._settings, touched)
                    next_items = time.monotonic() + self._settings.population_refresh_seconds
                if self._job.impressions_seen and time.monotonic() >= next_exposures:
                    self._job.impressions_seen = False
                    exposures.run(self._spark, self._settings)
                    next_exposures = time.monotonic() + self._settings.exposures_refresh_seconds
            except Exception:
                if not self._halt.is_set():
                    logger.exception("renewing item windows or experiment outcomes failed; trying again")


def run(
    settings: Settings,
    *,
    once: bool,
    stop: threading.Event | None = None,
    on_progress: Callable[[int], None] = lambda records: None,
) -> FeatureJob:
    """Turn the log into features: up to its present end with `once`, else until `stop` is set.

    Raises RuntimeError when Spark does not start or a micro-batch fails for good; started again, it goes on where
    it was.
    """
    stop = stop or threading.Event()
    spark = open_session(settings, app="headrace-features")
    try:
        job = FeatureJob(settings, on_progress)
        query = (
            read_stream(spark, settings)
            .writeStream.queryName(QUERY)
            .foreachBatch(job.handle)
            .option("checkpointLocation", str((settings.checkpoints_dir / QUERY).absolute()))
            .trigger(processingTime=f"{settings.stream_trigger_milliseconds} milliseconds")
            .start()
        )
        if once:
            query.processAllAvailable()
        else:
            renewal = Renewal(spark, settings, job, stop)
            renewal.start()
            while query.isActive and not stop.wait(0.2):
                pass
        error = query.exception()
        query.stop()
        if error is not None:
            raise RuntimeError(f"the feature job stopped: {error}")
        if once:
            items.rebuild(spark, open_store(settings), settings)
        return job
    finally:
        spark.stop()

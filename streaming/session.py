"""The Spark session of every job: where it runs, in UTC, quiet, with this interpreter for its Python workers."""

import os
import sys
from pathlib import Path

from pyspark.sql import SparkSession

from infra.kafka.jars import SPARK, jars
from infra.settings import Settings


class JobError(Exception):
    """A Spark job cannot start or go on; says why and what to do."""


def open_session(settings: Settings, *, app: str) -> SparkSession:
    """A session named `app` on settings.spark_master. Raises JobError when Java is missing or too old."""
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    os.environ.setdefault("SPARK_CONF_DIR", str(Path(__file__).parent / "conf"))
    # Its source for Kafka is no part of pyspark.
    more = ",".join(str(path) for path in jars(settings, SPARK)) if settings.kafka_bootstrap is not None else ""
    try:
        session: SparkSession = (
            SparkSession.builder.appName(app)
            .master(settings.spark_master)
            .config("spark.driver.memory", settings.spark_driver_memory)
            .config("spark.jars", more)
            .config("spark.driver.host", "127.0.0.1")
            .config("spark.driver.bindAddress", "127.0.0.1")
            .config("spark.ui.enabled", "false")
            .config("spark.ui.showConsoleProgress", "false")
            .config("spark.log.level", "ERROR")
            # Renewing tables must not hold up the micro-batches.
            .config("spark.scheduler.mode", "FAIR")
            .config("spark.sql.session.timeZone", "UTC")
            .config("spark.sql.shuffle.partitions", "2")
            .config("spark.sql.adaptive.enabled", "false")
            .config("spark.sql.warehouse.dir", str(settings.data_dir / "warehouse"))
            .config("spark.sql.execution.arrow.pyspark.enabled", "true")
            .config("spark.sql.streaming.metricsEnabled", "false")
            .config("spark.sql.streaming.pollingDelay", "20ms")
            .config("spark.sql.streaming.minBatchesToRetain", "10")
            .getOrCreate()
        )
    except Exception as error:
        raise JobError(f"Spark did not start ({error}); `headrace doctor` says what is missing") from error
    return session

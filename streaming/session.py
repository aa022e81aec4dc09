"""Opens the Spark session of every job: in UTC, quiet, with this interpreter for its Python workers.

A new JVM spends most of its first half minute on reading and compiling classes. Two things shorten that: the options
of settings.spark_java_options, and the archive of classes that `make setup` writes (streaming/jvm_cds.py).
"""

import contextlib
import os
import sys
from pathlib import Path

import pyspark
from pyspark.sql import SparkSession

from infra.maven.jars import SPARK, jars
from infra.settings import Settings

CLASS_ARCHIVE = Path(sys.prefix) / "spark-classes.jsa"
HOME = Path(sys.prefix) / "spark"
"""SPARK_HOME of the session: only pyspark's programs and jars.

pyspark's own folder also holds its Python code as an archive without byte code, which every Python worker would compile
again (2 s each), and a folder of configuration, which on the class path keeps Java from using its archive of classes.
"""


class JobError(Exception):
    """Raised when a Spark job cannot start or continue; says why and what to do."""


def open_session(settings: Settings, *, app: str) -> SparkSession:
    """Opens a session named `app` on settings.spark_master. Raises JobError when Java is missing or too old."""
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    os.environ.setdefault("SPARK_HOME", str(_home()))
    # The Kafka source is not part of pyspark.
    kafka_jars = ",".join(str(path) for path in jars(settings, SPARK)) if settings.kafka_bootstrap is not None else ""
    try:
        builder = (
            SparkSession.builder.appName(app)
            .master(settings.spark_master)
            .config("spark.driver.memory", settings.spark_driver_memory)
            .config("spark.driver.extraJavaOptions", _java_options(settings))
            .config("spark.jars", kafka_jars)
            .config("spark.driver.host", "127.0.0.1")
            .config("spark.driver.bindAddress", "127.0.0.1")
            .config("spark.ui.enabled", "false")
            .config("spark.ui.showConsoleProgress", "false")
            .config("spark.log.level", "ERROR")
            # Refreshing tables must not delay the micro-batches.
            .config("spark.scheduler.mode", "FAIR")
            .config("spark.sql.session.timeZone", "UTC")
            .config("spark.sql.shuffle.partitions", "2")
            .config("spark.sql.adaptive.enabled", "false")
            .config("spark.sql.warehouse.dir", str(settings.data_dir / "warehouse"))
            .config("spark.sql.execution.arrow.pyspark.enabled", "true")
            .config("spark.sql.streaming.metricsEnabled", "false")
            .config("spark.sql.streaming.pollingDelay", "20ms")
            .config("spark.sql.streaming.minBatchesToRetain", "10")
        )
        session: SparkSession = builder.config(map=settings.spark_conf).getOrCreate()
    except Exception as error:
        raise JobError(f"Spark did not start ({error}); `headrace doctor` says what is missing") from error
    return session


def _home() -> Path:
    """Returns HOME, created if necessary."""
    HOME.mkdir(exist_ok=True)
    for part in ("bin", "jars"):
        with contextlib.suppress(FileExistsError):
            (HOME / part).symlink_to(Path(pyspark.__file__).parent / part)
    return HOME


def _java_options(settings: Settings) -> str:
    options = [settings.spark_java_options, f"-Dlog4j2.configurationFile={Path(__file__).parent / 'log4j2.properties'}"]
    if CLASS_ARCHIVE.exists():  # Java ignores the archive of another version
        options += [f"-XX:SharedArchiveFile={CLASS_ARCHIVE}", "-Xlog:cds=off"]
    return " ".join(options)

"""Writes the archive of the Java classes that the jobs load: `make setup` runs this, every session starts from it.

All jobs run once on a handful of events, and Java archives the classes that it loaded (a dynamic archive of JEP 350).
The archive fits only one version of Java and Spark; without it, or with another Java, the jobs only start slower.
"""

import json
import os
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pyspark import SparkContext

from infra import topics
from infra.log.open import open_log
from infra.settings import Settings
from streaming import job
from streaming.session import CLASS_ARCHIVE

USERS = 3


def _write_events(settings: Settings, *, now: datetime) -> None:
    """Writes a few events of each type, so that every job has something to do."""
    log = open_log(settings)

    def stamp(days: float) -> str:
        return (now - timedelta(days=days)).isoformat()

    for user in range(USERS):
        request = f"request-{user}"
        shown = [{"item_id": "a", "position": 1, "score": 1.0, "source": "trending", "propensity": 1.0}]
        impression = {
            "type": "impression", "event_id": request, "event_time": stamp(3), "user_id": f"u{user}", "surface": "home",
            "model": "popularity", "experiment": "e", "variation": "v", "bucket": 1, "degraded": False, "items": shown,
        }  # fmt: skip
        log.append(topics.IMPRESSIONS, [(f"u{user}", json.dumps(impression).encode())])
        for number, (item, days) in enumerate((("a", 100), ("b", 100), ("a", 50), ("b", 50), ("a", 2), ("c", 1))):
            bought = {
                "type": "purchase", "event_id": f"{user}-{number}", "event_time": stamp(days), "user_id": f"u{user}",
                "item_id": item, "quantity": 1, "price": 2.5, "order_id": f"{user}-{days}", "request_id": request,
            }  # fmt: skip
            log.append(topics.SHOP, [(f"u{user}", json.dumps(bought).encode())])
        paid = {
            "type": "transaction", "event_id": f"t{user}", "event_time": stamp(1), "card_id": "c", "terminal_id": "t",
            "amount": 3.5,
        }  # fmt: skip
        log.append(topics.TRANSACTIONS, [("c", json.dumps(paid).encode())])
    log.append(topics.SHOP, [("u", b'{"type": "purchase"}')])


def write(target: Path = CLASS_ARCHIVE) -> None:
    """Writes the archive. Raises JobError when Spark does not start."""
    unfinished = target.with_suffix(".new")
    unfinished.unlink(missing_ok=True)
    target.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder))
        archiving = f"{settings.spark_java_options} -XX:ArchiveClassesAtExit={unfinished} -Xlog:cds=off"
        settings = settings.model_copy(update={"spark_java_options": archiving})
        _write_events(settings, now=datetime.now(UTC))
        job.catch_up(settings, say=lambda line: None)
        job.join_exposures(settings)
        java = SparkContext._gateway.proc
        SparkContext._gateway.shutdown()
        java.stdin.close()  # has Spark's Java end and write the archive
        java.wait()
    os.replace(unfinished, target)


if __name__ == "__main__":
    write()

"""Events a second from the event log through real Spark into the online store, and where the time goes.

    python tests/bench/event_path.py --events 50000 [--redis redis://127.0.0.1:6379/0] [--scales 1 4 16] [--no-spark]

The events come from a load simulator (below): nobody's real behaviour, only its skew. Beside what the job reaches
stand its limits: what Spark alone reaches on the same log when it only reads, or reads and parses, and throws the
rows away; and with --no-spark what everything behind Spark reaches alone. CPU seconds are those of all processes, but
for Redis: on a machine that does other things too they tell more than the clock.
"""

import argparse
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psutil
import pyarrow as pa
import pyarrow.compute as pc

sys.path.insert(0, str(Path(__file__).parents[2]))

from features import store
from features.events import rfc3339
from features.windows import HOUR
from infra import topics
from infra.log.client import open_log
from infra.settings import Settings
from streaming import histories, job, source
from streaming.session import open_session

EVENTS_PER_USER = 20
PAYMENT_SHARE = 0.1
KINDS = np.array(["view", "cart", "purchase", "return"])
KIND_SHARES = (0.75, 0.12, 0.12, 0.01)
START = 1_790_000_000_000
WARM_EVENTS = 50_000
CHUNK = 20_000


def simulate(events: int, *, seed: int, prefix: str = "") -> pa.Table:
    """A load simulator: `events` events of one day, users and items as unequal as those of a shop (log-normal
    activity, items by Zipf), a tenth of them card payments, in order of time, as the jobs see them after parsing."""
    rng = np.random.default_rng(seed)
    users = max(1, events // EVENTS_PER_USER)
    activity = rng.lognormal(0, 1.2, users)
    user = rng.choice(users, events, p=activity / activity.sum())
    item = np.minimum(rng.zipf(1.3, events), 20_000)
    when = np.sort(rng.integers(0, 24 * HOUR, events)) + START
    pays = rng.random(events) < PAYMENT_SHARE
    price = np.round(rng.lognormal(1.5, 0.8, events), 2)

    def text(form: str, values: Any, mask: Any) -> pa.Array:
        return pa.array([form % value for value in values], pa.string(), mask=mask)

    return pa.table(
        {
            "type": pa.array(np.where(pays, "transaction", rng.choice(KINDS, events, p=KIND_SHARES))),
            "event_id": text(f"{prefix}e%d", np.arange(events), None),
            "event_time": when,
            "user_id": text("u%d", user, pays),
            "session_id": pa.nulls(events, pa.string()),
            "item_id": text("S%05d", item, pays),
            "quantity": pa.array(np.ones(events), mask=pays),
            "price": pa.array(price, mask=pays),
            "order_id": text("o%d", user, pays),
            "card_id": text("c%d", user, ~pays),
            "terminal_id": text("t%d", item % 2_000, ~pays),
            "amount": pa.array(price, mask=~pays),
            "channel": pa.array(np.full(events, "chip"), mask=~pays),
        }
    )


def append(settings: Settings, events: pa.Table) -> None:
    log = open_log(settings)
    for start in range(0, events.num_rows, CHUNK):
        batch: dict[str, list[tuple[str, bytes]]] = {topics.SHOP: [], topics.TRANSACTIONS: []}
        for row in events.slice(start, CHUNK).to_pylist():
            event = {name: value for name, value in row.items() if value is not None}
            event["event_time"] = rfc3339(event["event_time"])
            topic = topics.TRANSACTIONS if event["type"] == "transaction" else topics.SHOP
            batch[topic].append((event.get("user_id") or event["card_id"], orjson.dumps(event)))
        for topic, records in batch.items():
            log.append(topic, records)


def cpu_seconds() -> float:
    """Of this process and all that it started and that still live (Spark's JVM and its Python workers)."""
    own = psutil.Process()
    total = 0.0
    for process in (own, *own.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


class Stages:
    """Adds up the time that named functions take, each without what the others take inside it. Users and payments are
    folded in two threads, so that the sum may exceed the clock."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._of_thread = threading.local()
        self._undo: list[tuple[Any, str, Any]] = []

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            inside = self._of_thread.__dict__.setdefault("inside", [])
            started = time.perf_counter()
            inside.append(0.0)
            try:
                return function(*arguments, **options)
            finally:
                took = time.perf_counter() - started
                self.seconds[name] += took - inside.pop()
                if inside:
                    inside[-1] += took

        return call

    def watch(self, name: str, owner: Any, attribute: str) -> None:
        original = getattr(owner, attribute)
        self._undo.append((owner, attribute, original))
        setattr(owner, attribute, self.timed(name, original))

    def stop(self) -> None:
        for owner, attribute, original in reversed(self._undo):
            setattr(owner, attribute, original)


class _Parsed:
    """What parse() gave, whose toArrow() is timed: Spark reads and parses when the rows are asked for."""

    def __init__(self, frame: Any, stages: Stages) -> None:
        self.toArrow = stages.timed("read and parse (Spark)", frame.toArrow)


def watched(stages: Stages) -> None:
    for owner, name, stage in (
        (histories.Histories, "fold_users", "the rest of folding"),
        (histories.Histories, "fold_payments", "the rest of folding"),
        (histories, "online_lists", "known rows read"),
        (histories, "fold", "fold"),
        (histories, "history_rows", "rows as Arrow"),
        (histories, "feature_rows", "rows as Arrow"),
        (histories, "write_table", "Parquet write"),
        (histories, "write_online", "online write"),
        (histories.velocity, "encode", "payment features"),
        (job, "write_table", "Parquet write"),
        (job.OnlineGuard, "check", "guard"),
        (job.OnlineGuard, "confirm", "guard"),
    ):
        stages.watch(stage, owner, name)


def with_spark(settings: Settings, events: pa.Table, stages: Stages) -> tuple[float, float]:
    """The real job on the log; (seconds, CPU seconds) from the end of a small first load on: JVM and workers warm."""
    parse = job.parse
    job.parse = lambda records: _Parsed(parse(records), stages)  # type: ignore[attr-defined]
    try:
        with job._session(settings, "bench") as spark:
            append(settings, simulate(WARM_EVENTS, seed=1, prefix="w"))
            features = job.FeatureJob(settings)
            features.handle = stages.timed("waiting for folds, checks, status", features.handle)  # type: ignore[method-assign]
            query = job._start(spark, settings, features)
            query.processAllAvailable()
            query.stop()
            stages.seconds.clear()
            append(settings, events)
            started, cpu = time.perf_counter(), cpu_seconds()
            query = job._start(spark, settings, features)
            query.processAllAvailable()
            took, used = time.perf_counter() - started, cpu_seconds() - cpu
            job._finish(query)
            return took, used
    finally:
        job.parse = parse  # type: ignore[attr-defined]


def without_spark(settings: Settings, events: pa.Table, stages: Stages) -> tuple[float, float]:
    """Everything behind Spark, in micro-batches of the configured size."""
    features = job.FeatureJob(settings)
    fold = stages.timed("waiting for folds, checks, status", features._fold)
    no_labels = pa.table({name: pa.array([], kind) for name, kind in (
        ("transaction_id", pa.string()), ("event_time", pa.int64()), ("terminal_id", pa.string()),
        ("fraud", pa.bool_()), ("transaction_time", pa.int64()))})  # fmt: skip
    started, cpu = time.perf_counter(), cpu_seconds()
    size = settings.stream_batch_records
    for number, start in enumerate(range(0, events.num_rows, size)):
        part = events.slice(start, size)
        pays = pc.equal(part["type"], "transaction")
        fold(part.filter(pc.invert(pays)), part.filter(pays), no_labels, batch=f"batch-{number:012d}")
    return time.perf_counter() - started, cpu_seconds() - cpu


def limit(settings: Settings, *, parsed: bool) -> float:
    """Seconds that Spark alone needs to hand over the log's records, parsed or as they are; it is warm."""
    spark = open_session(settings, app="limit")
    seconds: list[float] = []

    def handle(records: Any, batch_id: int) -> None:
        started = time.perf_counter()
        (source.parse(records) if parsed else records).toArrow()
        seconds.append(time.perf_counter() - started)

    for _ in range(2):  # the first is to warm up
        seconds.clear()
        with tempfile.TemporaryDirectory() as checkpoint:
            stream = source.read_stream(spark, settings).writeStream.foreachBatch(handle)
            query = stream.option("checkpointLocation", checkpoint).start()
            query.processAllAvailable()
            query.stop()
    spark.stop()
    return sum(seconds)


def bench(
    count: int, *, redis: str, say: Callable[[str], None], spark: bool = True, batch: int = 250_000
) -> dict[str, object]:
    """Measure `count` events; `say` gets the time of each stage. Returns what the JSON line holds."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder), redis_url=redis, stream_batch_records=batch)
        if redis:
            store.open_store(settings).online.rows._address.connect(timeout_seconds=60).flushdb()  # type: ignore[attr-defined]
        events, stages = simulate(count, seed=7), Stages()
        watched(stages)
        took, used = (with_spark if spark else without_spark)(settings, events, stages)
        stages.stop()
        named = sum(stages.seconds.values())
        for name, seconds in sorted(stages.seconds.items(), key=lambda item: -item[1]):
            say(f"  {seconds:7.2f} s {seconds / took:5.0%}  {name}")
        say(f"  {named:7.2f} s {named / took:5.0%}  in all; what is missing is between micro-batches")
        found: dict[str, object] = {
            "bench": "stream",
            "store": "redis" if redis else "sqlite",
            "spark": spark,
            "events": count,
            "seconds": round(took, 1),
            "events_per_s": round(count / took),
            "events_per_cpu_s": round(count / used),
            "offline_bytes_per_event": round(
                sum(path.stat().st_size for path in Path(folder, "offline").rglob("*.parquet")) / count
            ),
        }
        if spark:
            found["limit_read_per_s"] = round(count / limit(settings, parsed=False))
            found["limit_read_and_parse_per_s"] = round(count / limit(settings, parsed=True))
        return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=50_000, help="events at 1x")
    parser.add_argument("--scales", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--redis", default="", help="URL of a Redis database that may be emptied; without it SQLite")
    parser.add_argument("--no-spark", action="store_true", help="only what comes behind Spark")
    parser.add_argument("--batch", type=int, default=250_000, help="records in a micro-batch, at most")
    arguments = parser.parse_args()
    for scale in arguments.scales:
        print(
            bench(
                arguments.events * scale,
                redis=arguments.redis,
                say=print,
                spark=not arguments.no_spark,
                batch=arguments.batch,
            )
        )

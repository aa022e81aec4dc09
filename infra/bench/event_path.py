"""Measures events a second from the event log through real Spark into the online store, and where the time goes.

    headrace bench stream [--real] [--scales 1,4,16] [--no-spark] [--no-limits]

Runs from files into SQLite, or from a real Kafka into a real Redis that are started for it. The events come from a load
simulator, which imitates only the skew of real behaviour. Limits stand beside the result: what Spark alone reaches on
the same log when it only reads, or reads and parses, and drops the rows; the same bytes through a bare pipeline of
HSET; and with --no-spark, what everything behind Spark reaches alone. CPU seconds are those of all processes except
Kafka and Redis: on a machine that also does other work they say more than the clock.
"""

import contextlib
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psutil
import pyarrow as pa
import pyarrow.compute as pc

from features.contract import columns
from features.contract.timestamps import HOUR, rfc3339
from features.fraud import velocity
from features.store.codec import entity_keys
from features.store.online import EncodedRows, OnlineStore, OnlineView
from features.store.recovery import OnlineStoreGuard
from features.store.redis_rows import RedisAddress, RedisRows
from features.store.sqlite_rows import SqliteRows
from infra import topics
from infra.local import kafka_broker, processes, redis_server
from infra.local.ports import free_port, free_ports
from infra.local.redis_server import RedisServer
from infra.log.open import open_log
from infra.settings import Settings
from streaming import histories, job, source
from streaming.parsing import parse
from streaming.session import open_session
from streaming.tables import SCHEMAS

EVENTS_PER_USER = 20
PAYMENT_SHARE = 0.1
EVENT_TYPES = np.array(["view", "cart", "purchase", "return"])
EVENT_TYPE_SHARES = (0.75, 0.12, 0.12, 0.01)
START = 1_790_000_000_000
WARM_EVENTS = 50_000
HSET_ROWS = 20_000
"""How many of the written rows are written again through a bare pipeline."""
CHUNK = 20_000


def simulate(events: int, *, seed: int, prefix: str = "") -> pa.Table:
    """Simulates the events of one day, as the jobs see them after parsing, in order of time.

    Activity of users is log-normal and items follow Zipf, as unequal as in a shop; PAYMENT_SHARE are card payments.
    """
    rng = np.random.default_rng(seed)
    users = max(1, events // EVENTS_PER_USER)
    activity = rng.lognormal(0, 1.2, users)
    user = rng.choice(users, events, p=activity / activity.sum())
    item = np.minimum(rng.zipf(1.3, events), 20_000)
    event_time = np.sort(rng.integers(0, 24 * HOUR, events)) + START
    pays = rng.random(events) < PAYMENT_SHARE
    price = np.round(rng.lognormal(1.5, 0.8, events), 2)

    def text(pattern: str, values: Any, mask: Any) -> pa.Array:
        return pa.array([pattern % value for value in values], pa.string(), mask=mask)

    return pa.table(
        {
            "type": pa.array(np.where(pays, "transaction", rng.choice(EVENT_TYPES, events, p=EVENT_TYPE_SHARES))),
            "event_id": text(f"{prefix}e%d", np.arange(events), None),
            "event_time": event_time,
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
    """Appends the events to their topics."""
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


def cpu_seconds(*, exclude: set[int]) -> float:
    """Returns the CPU seconds of this process and its living descendants (Spark's JVM and Python workers).

    exclude: process ids that do not count: those of servers.
    """
    own = psutil.Process()
    total = 0.0
    for process in (own, *own.children(recursive=True)):
        try:
            if process.pid in exclude:
                continue
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


class Stages:
    """Adds up the seconds in named functions, each without the time of named functions that it calls.

    Users and payments are folded in two threads, so the sum may exceed the clock.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._of_thread = threading.local()
        self._undo: list[tuple[Any, str, Any]] = []

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns `function` with its time added to stage `name`."""

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
        """Times a function or method where it is defined, until `stop`."""
        self.replace(owner, attribute, self.timed(name, getattr(owner, attribute)))

    def replace(self, owner: Any, attribute: str, replacement: Any) -> None:
        self._undo.append((owner, attribute, getattr(owner, attribute)))
        setattr(owner, attribute, replacement)

    def stop(self) -> None:
        for owner, attribute, original in reversed(self._undo):
            setattr(owner, attribute, original)


class _Records:
    """Wraps a micro-batch and times `toArrow`, which is when Spark reads."""

    def __init__(self, frame: Any, stages: Stages) -> None:
        self._frame = frame
        self.toArrow = stages.timed("read (Spark)", frame.toArrow)
        self._stages = stages

    def select(self, *names: str) -> "_Records":
        return _Records(self._frame.select(*names), self._stages)


def watch_stages(stages: Stages) -> None:
    """Times the stages of the feature job."""
    for owner, name, stage in (
        (histories.HistoryWriter, "fold_users", "the rest of folding"),
        (histories.HistoryWriter, "fold_payments", "the rest of folding"),
        (histories, "online_lists", "known rows decoded"),
        (histories, "fold", "fold"),
        (histories, "history_rows", "rows as Arrow"),
        (histories, "feature_rows", "rows as Arrow"),
        (histories, "write_table", "Parquet write"),
        (OnlineStore, "write", "rows encoded"),
        (RedisRows, "write", "online write"),
        (RedisRows, "read", "online read"),
        (SqliteRows, "write", "online write"),
        (SqliteRows, "read", "online read"),
        (velocity, "encode", "payment features"),
        (job, "parse", "parse"),
        (job, "write_table", "Parquet write"),
        (OnlineStoreGuard, "check", "guard"),
        (OnlineStoreGuard, "confirm", "guard"),
    ):
        stages.watch(stage, owner, name)


class WrittenRows:
    """Counts the rows that are written to an online store and keeps the first HSET_ROWS of them."""

    def __init__(self, stages: Stages) -> None:
        self.rows: list[tuple[OnlineView, EncodedRows]] = []
        self.count = 0
        for owner in (RedisRows, SqliteRows):
            stages.replace(owner, "write", self._recorded(owner.write))

    def _recorded(self, write: Callable[..., None]) -> Callable[..., None]:
        def call(adapter: Any, view: OnlineView, rows: EncodedRows) -> None:
            if sum(len(kept.ids) for _, kept in self.rows) < HSET_ROWS:
                self.rows.append((view, rows))
            self.count += len(rows.ids)
            write(adapter, view, rows)

        return call

    def hset(self, url: str) -> float:
        """Returns the rows a second of a bare pipeline of HSET into Redis, one field for each feature.

        It compares no timestamps and runs no script.
        """
        client = RedisAddress.parse(url).connect(timeout_seconds=60)
        count, started = 0, time.perf_counter()
        for view, rows in self.rows:
            pipe = client.pipeline(transaction=False)
            for key, *values in zip(entity_keys(view.join_key, rows.ids, project="hset"), *rows.values, strict=True):
                pipe.execute_command(
                    "HSET", key, *(word for pair in zip(view.dtypes, values, strict=True) for word in pair)
                )
            pipe.execute()
            count += len(rows.ids)
        return count / (time.perf_counter() - started)


def with_spark(settings: Settings, events: pa.Table, stages: Stages, *, servers: set[int]) -> tuple[float, float]:
    """Runs the real job on the log; returns (seconds, CPU seconds) after a small first load has warmed Spark up."""
    with job._session(settings, "bench") as spark:
        append(settings, simulate(WARM_EVENTS, seed=1, prefix="w"))
        features = job.FeatureJob(settings)
        handle = stages.timed("waiting for folds, checks, status", features.process_records)
        features.process_records = lambda records, batch_id: handle(_Records(records, stages), batch_id)  # type: ignore[method-assign]
        query = job._start(spark, settings, features)
        query.processAllAvailable()
        query.stop()
        stages.seconds.clear()
        append(settings, events)
        started, cpu = time.perf_counter(), cpu_seconds(exclude=servers)
        query = job._start(spark, settings, features)
        query.processAllAvailable()
        took, used = time.perf_counter() - started, cpu_seconds(exclude=servers) - cpu
        job._finish(query)
        return took, used


def without_spark(settings: Settings, events: pa.Table, stages: Stages, *, servers: set[int]) -> tuple[float, float]:
    """Runs everything behind Spark, in micro-batches of the configured size; returns (seconds, CPU seconds)."""
    features = job.FeatureJob(settings)
    process = stages.timed("waiting for folds, checks, status", features.process)
    for name in SCHEMAS[columns.SHOP_EVENTS].names:
        if name not in events.column_names:
            events = events.append_column(name, pa.nulls(events.num_rows, pa.string()))
    labels, impressions = (SCHEMAS[name].empty_table() for name in (columns.LABELS, columns.IMPRESSIONS))
    started, cpu = time.perf_counter(), cpu_seconds(exclude=servers)
    size = settings.stream_batch_records
    for number, start in enumerate(range(0, events.num_rows, size)):
        part = events.slice(start, size)
        pays = pc.equal(part["type"], "transaction")
        process(part.filter(pc.invert(pays)), part.filter(pays), labels, impressions, batch=f"batch-{number:012d}")
    return time.perf_counter() - started, cpu_seconds(exclude=servers) - cpu


def spark_limit(settings: Settings, *, parsed: bool) -> float:
    """Returns the seconds that Spark alone, warmed up, needs to hand over the log's records, parsed or as they are."""
    spark = open_session(settings, app="limit")
    seconds: list[float] = []

    def handle(records: Any, batch_id: int) -> None:
        started = time.perf_counter()
        table = records.select(*job.RECORD_FIELDS).toArrow()
        if parsed:
            parse(table)
        seconds.append(time.perf_counter() - started)

    for _ in range(2):  # the first warms up
        seconds.clear()
        with tempfile.TemporaryDirectory() as checkpoint:
            stream = source.read_stream(spark, settings).writeStream.foreachBatch(handle)
            query = stream.option("checkpointLocation", checkpoint).start()
            query.processAllAvailable()
            query.stop()
    spark.stop()
    return sum(seconds)


@contextlib.contextmanager
def _servers(settings: Settings, *, real: bool) -> Iterator[tuple[Settings, set[int]]]:
    """Yields the settings to measure with and the process ids of the servers that it started."""
    if not real:
        yield settings, set()
        return
    nodes = kafka_broker.plan(free_ports(2))
    more = {"kafka_bootstrap": kafka_broker.bootstrap(nodes), "kafka_partitions": 2, "redis_port": free_port(),
            "kafka_timeout_seconds": 30.0, "tools_dir": settings.tools_dir.absolute()}  # fmt: skip
    settings = settings.model_copy(update=more)
    settings = settings.model_copy(update={"redis_url": redis_server.url(settings)})
    try:
        kafka_broker.start(settings, nodes)
        with RedisServer(settings):
            children = psutil.Process().children(recursive=True)
            yield settings, {process.pid for process in (*children, *processes.alive(settings).values())}
    finally:
        processes.stop_all(settings)


def bench(
    count: int, *, real: bool, say: Callable[[str], None], spark: bool = True, limits: bool = True, batch: int = 250_000
) -> dict[str, object]:
    """Measures `count` events; `say` gets the time of each stage. Returns the result as plain data."""
    with (
        tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder,
        _servers(Settings(data_dir=Path(folder), stream_batch_records=batch), real=real) as (settings, servers),
    ):
        events, stages = simulate(count, seed=7), Stages()
        written = WrittenRows(stages)
        watch_stages(stages)
        try:
            took, used = (with_spark if spark else without_spark)(settings, events, stages, servers=servers)
        finally:
            stages.stop()
        named = sum(stages.seconds.values())
        for name, seconds in sorted(stages.seconds.items(), key=lambda item: -item[1]):
            say(f"  {seconds:7.2f} s {seconds / took * 100:4.0f} %  {name}")
        say(f"  {named:7.2f} s {named / took * 100:4.0f} %  in all; the rest is time between micro-batches")
        result: dict[str, object] = {
            "bench": "stream",
            "log": "kafka" if real and spark else "files" if spark else "none",
            "store": "redis" if real else "sqlite",
            "spark": spark,
            "events": count,
            "seconds": round(took, 1),
            "events_per_s": round(count / took),
            "cpu_seconds_per_million": round(used / count * 1e6, 1),
            "online_rows": written.count,
            "offline_bytes_per_event": round(
                sum(path.stat().st_size for path in Path(folder, "offline").rglob("*.parquet")) / count
            ),
        }
        if limits and spark:
            total = count + WARM_EVENTS
            result["limit_read_per_s"] = round(total / spark_limit(settings, parsed=False))
            result["limit_read_and_parse_per_s"] = round(total / spark_limit(settings, parsed=True))
        if limits and real:
            result["limit_hset_rows_per_s"] = round(written.hset(settings.redis_url))
        return result

"""Events a second from the event log through real Spark into the online store, and where the time goes.

    python tests/bench/event_path.py --events 50000 [--redis redis://127.0.0.1:6379/0] [--scales 1 4 16]

The events come from a load simulator (below): nobody's real behaviour, only its skew. Beside what the job reaches
stands what Spark alone reaches on the same log when it only reads, or reads and parses, and throws the rows away.
"""

import argparse
import os
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

sys.path.insert(0, str(Path(__file__).parents[2]))

from features.events import rfc3339
from features.windows import HOUR
from infra import topics
from infra.log.client import open_log
from infra.settings import Settings
from streaming import histories, job, source
from streaming.session import open_session

EVENTS_PER_USER = 20
PAYMENT_SHARE = 0.1
KINDS = ("view", "cart", "purchase", "return")
KIND_SHARES = (0.75, 0.12, 0.12, 0.01)
START = 1_790_000_000_000


def simulate(settings: Settings, *, events: int, seed: int) -> None:
    """A load simulator: `events` events of one day, users and items as unequal as those of a shop (log-normal
    activity, items by Zipf), a tenth of them card payments, appended to the log in order of time."""
    rng = np.random.default_rng(seed)
    users, items = max(1, events // EVENTS_PER_USER), 20_000
    activity = rng.lognormal(0, 1.2, users)
    user = rng.choice(users, events, p=activity / activity.sum())
    item = np.minimum(rng.zipf(1.3, events), items)
    kind = rng.choice(len(KINDS), events, p=KIND_SHARES)
    when = np.sort(rng.integers(0, 24 * HOUR, events)) + START
    is_payment = rng.random(events) < PAYMENT_SHARE
    price = np.round(rng.lognormal(1.5, 0.8, events), 2)
    log = open_log(settings)
    shop: list[tuple[str, bytes]] = []
    paid: list[tuple[str, bytes]] = []
    for row in range(events):
        name, moment = f"u{user[row]}", rfc3339(int(when[row]))
        if is_payment[row]:
            event = {"event_id": f"t{row}", "event_time": moment, "type": "transaction", "card_id": f"c-{name}",
                     "terminal_id": f"t{item[row] % 2000}", "amount": float(price[row]), "channel": "chip"}  # fmt: skip
            paid.append((f"c-{name}", orjson.dumps(event)))
        else:
            event = {"event_id": f"e{row}", "event_time": moment, "type": KINDS[kind[row]], "user_id": name,
                     "item_id": f"S{item[row]:05d}", "quantity": 1.0, "price": float(price[row]),
                     "order_id": f"{name}-{when[row] // HOUR}"}  # fmt: skip
            shop.append((name, orjson.dumps(event)))
        if len(shop) + len(paid) >= 20_000 or row == events - 1:
            log.append(topics.SHOP, shop)
            log.append(topics.TRANSACTIONS, paid)
            shop, paid = [], []


class Stages:
    """Adds up the time that named functions take, each without what the others take inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside: list[float] = []

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            self._inside.append(0.0)
            try:
                return function(*arguments, **options)
            finally:
                took = time.perf_counter() - started
                self.seconds[name] += took - self._inside.pop()
                if self._inside:
                    self._inside[-1] += took

        return call

    def watch(self, name: str, owner: Any, attribute: str) -> None:
        setattr(owner, attribute, self.timed(name, getattr(owner, attribute)))


class _Parsed:
    """What parse() gave, whose toArrow() is timed: Spark reads and parses when the rows are asked for."""

    def __init__(self, frame: Any, stages: Stages) -> None:
        self.toArrow = stages.timed("read and parse (Spark)", frame.toArrow)


def run(settings: Settings, stages: Stages) -> tuple[float, int]:
    """Turn the log into features with the real job; (seconds from the first micro-batch on, records)."""
    with job._session(settings, "bench") as spark:
        features = job.FeatureJob(settings)
        first: list[float] = []
        handle = stages.timed("the rest of a micro-batch", features.handle)

        def timed_handle(records: Any, batch_id: int) -> None:
            first.append(time.perf_counter())
            handle(records, batch_id)

        features.handle = timed_handle  # type: ignore[method-assign]
        query = job._start(spark, settings, features)
        query.processAllAvailable()
        took = time.perf_counter() - first[0]
        job._finish(query)
        return took, features.records


def limit(settings: Settings, *, parsed: bool) -> float:
    """Seconds that Spark alone needs to hand over the log's records, parsed or as they are."""
    spark = open_session(settings, app="limit")
    done = threading.Event()
    first: list[float] = []

    def handle(records: Any, batch_id: int) -> None:
        first.append(time.perf_counter())
        (source.parse(records) if parsed else records).toArrow()

    with tempfile.TemporaryDirectory() as checkpoint:
        query = (
            source.read_stream(spark, settings).writeStream.foreachBatch(handle)
            .option("checkpointLocation", checkpoint).start()
        )  # fmt: skip
        query.processAllAvailable()
        took = time.perf_counter() - first[0]
        query.stop()
    done.set()
    spark.stop()
    return took


def bench(events: int, *, redis: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HEADRACE_DATA_DIR"] = folder
        if redis:
            os.environ["HEADRACE_REDIS_URL"] = redis
        settings = Settings()
        simulate(settings, events=events, seed=7)
        raw, parse_only = limit(settings, parsed=False), limit(settings, parsed=True)
        stages = Stages()
        parse = source.parse
        job.parse = lambda records: _Parsed(parse(records), stages)  # type: ignore[attr-defined]
        originals = {name: getattr(histories, name) for name, _ in WATCHED}
        table = job.write_table
        for name, stage in WATCHED:
            stages.watch(stage, histories, name)
        stages.watch("Parquet write", job, "write_table")
        took, records = run(settings, stages)
        job.parse, job.write_table = parse, table  # type: ignore[attr-defined]
        for name, original in originals.items():
            setattr(histories, name, original)
        print(f"\n{records:,} events ({'Redis' if redis else 'SQLite'}): {records / took:,.0f} events/s in {took:.1f} s")
        print(f"  Spark reads the log alone {records / raw:,.0f}/s; reads and parses {records / parse_only:,.0f}/s")
        named = sum(stages.seconds.values())
        for name, seconds in sorted(stages.seconds.items(), key=lambda item: -item[1]):
            print(f"  {seconds:7.2f} s {seconds / took:5.0%}  {name}")
        print(f"  {took - named:7.2f} s {(took - named) / took:5.0%}  between micro-batches (Spark)")
        size = sum(path.stat().st_size for path in Path(folder, "offline").rglob("*.parquet"))
        print(f"  offline tables: {size / records:,.0f} bytes an event")


WATCHED = (
    ("online_rows", "known rows read"),
    ("from_lists", "known rows read"),
    ("fold", "fold"),
    ("history_rows", "rows as Arrow"),
    ("feature_rows", "rows as Arrow"),
    ("write_table", "Parquet write"),
    ("write_online", "online write"),
)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=50_000, help="events at 1x")
    parser.add_argument("--scales", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--redis", default="", help="URL of an empty Redis; without it SQLite")
    arguments = parser.parse_args()
    for scale in arguments.scales:
        bench(arguments.events * scale, redis=arguments.redis)

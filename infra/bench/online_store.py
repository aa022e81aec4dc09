"""Measures rows a second into and out of the online store: Feast's own code, ours, and the limit of the database.

    python -m infra.bench.online_store [--rows 20000] [--redis redis://127.0.0.1:6379/0]

The limit of Redis is a pipeline of HSET (HMGET) with the same bytes that compares no timestamps. That of SQLite is an
INSERT of the same bytes in one transaction. The rows are simulated: users with 20 entries each, on average.
"""

import argparse
import sqlite3
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from features.contract import columns
from features.history import arrays
from features.history.arrays import History, to_arrow
from features.store import feature_store, views
from features.store.codec import encode_lists, entity_keys
from features.store.online import _microseconds
from features.store.redis_rows import RedisRows, _field, _stamps
from infra.settings import Settings

VIEW = views.USER_HISTORY
FEAST_AT_ONCE = 1_000
ENTRIES = 20
REQUESTS = 1_000


def simulate(rows: int, *, seed: int) -> pa.Table:
    """Returns user histories, one a row."""
    rng = np.random.default_rng(seed)
    lengths = np.minimum(rng.geometric(1 / ENTRIES, rows), arrays.USER_CAP)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    total = int(offsets[-1])
    entries = {
        columns.TIMES: 1_790_000_000_000 + np.arange(total),
        columns.ITEMS: np.array([f"S{item:05d}" for item in np.minimum(rng.zipf(1.3, total), 20_000)], dtype=object),
        columns.EVENT_TYPES: rng.integers(0, 4, total),
        columns.PRICES: np.round(rng.lognormal(1.5, 0.8, total), 2),
        columns.QUANTITIES: np.ones(total),
        columns.EVENT_HASHES: rng.integers(-(2**63), 2**63 - 1, total),
    }
    stamp = pa.scalar(datetime(2026, 11, 22, tzinfo=UTC), pa.timestamp("us", tz="UTC"))
    return pa.table(
        {
            columns.USER: [f"user-{seed}-{number}" for number in range(rows)],
            **to_arrow(History(offsets.astype(np.int64), entries)),
            columns.EVENT_TIMESTAMP: pa.repeat(stamp, rows),
            columns.CREATED_TIMESTAMP: pa.repeat(stamp, rows),
        }
    )


def best(call: Callable[[], Any], *, times: int = 3) -> float:
    """Returns the seconds of the fastest of a few runs: something else disturbed the others."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def encode(rows: pa.Table, feast: feature_store.Store) -> tuple[list[bytes], list[list[bytes]]]:
    """Returns entity keys, and a column of encoded values for each feature."""
    view = feast.online._views[VIEW]
    project = views.PROJECT if isinstance(feast.online.rows, RedisRows) else ""
    keys = entity_keys(columns.USER, rows[columns.USER].to_pylist(), project=project)
    return keys, [encode_lists(rows[name].combine_chunks()) for name in view.dtypes]


def redis_limit(feast: feature_store.Store, rows: pa.Table) -> tuple[float, float]:
    """Returns the seconds of bare pipelines that write and read these rows."""
    view = feast.online._views[VIEW]
    client = feast.online.rows._address.connect(timeout_seconds=60)  # type: ignore[attr-defined]
    keys, values = encode(rows, feast)
    names = [_field(view, name) for name in view.dtypes]
    stamps = _stamps(_microseconds(rows[columns.EVENT_TIMESTAMP]))

    def write() -> None:
        for start in range(0, len(keys), 2_000):
            pipe = client.pipeline(transaction=False)
            for row in range(start, min(start + 2_000, len(keys))):
                pairs = [part for name, column in zip(names, values, strict=True) for part in (name, column[row])]
                pipe.execute_command("HSET", keys[row], f"_ts:{VIEW}", stamps[row], *pairs)
            pipe.execute()

    def read() -> None:
        for start in range(0, len(keys), 2_000):
            pipe = client.pipeline(transaction=False)
            for key in keys[start : start + 2_000]:
                pipe.execute_command("HMGET", key, *names)
            pipe.execute()

    return best(write), best(read)


def sqlite_limit(feast: feature_store.Store, rows: pa.Table, folder: Path) -> tuple[float, float]:
    """Returns the seconds of bare SQL that writes and reads these rows."""
    keys, values = encode(rows, feast)
    names = list(feast.online._views[VIEW].dtypes)
    connection = sqlite3.connect(folder / "limit.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE t (k BLOB, f TEXT, v BLOB, PRIMARY KEY (k, f))")

    def write() -> None:
        connection.execute("BEGIN")
        cells = (
            (key, name, column[row]) for row, key in enumerate(keys) for name, column in zip(names, values, strict=True)
        )
        connection.executemany("INSERT OR REPLACE INTO t VALUES (?, ?, ?)", cells)
        connection.execute("COMMIT")

    def read() -> None:
        for start in range(0, len(keys), 500):
            part = keys[start : start + 500]
            connection.execute(f"SELECT * FROM t WHERE k IN ({','.join('?' * len(part))})", part).fetchall()  # noqa: S608

    return best(write), best(read)


def bench(settings: Settings, *, rows: int) -> None:
    """Measures and prints the online store that the settings name."""
    feast = feature_store.open_store(settings)
    name = "Redis" if settings.redis_url else "SQLite"
    first, second = simulate(rows, seed=1), simulate(min(rows, 5_000), seed=2)
    users, few = first[columns.USER].to_pylist(), second[columns.USER].to_pylist()
    frames = [second.slice(start, FEAST_AT_ONCE).to_pandas() for start in range(0, second.num_rows, FEAST_AT_ONCE)]
    names = [f"{VIEW}:{column}" for column in arrays.USER_COLUMNS]

    def feast_write() -> None:
        for frame in frames:
            feast.write_to_online_store(VIEW, df=frame)

    def feast_read(ids: list[str]) -> None:
        for start in range(0, len(ids), FEAST_AT_ONCE):
            part = ids[start : start + FEAST_AT_ONCE]
            feast.get_online_features(features=names, entity_rows=[{columns.USER: user} for user in part]).to_dict()

    feast_writes = len(few) / best(feast_write, times=1)
    writes = rows / best(lambda: feature_store.write_online(feast, VIEW, first))
    feast_reads = len(few) / best(lambda: feast_read(few))
    reads = rows / best(lambda: feature_store.online_history(feast, VIEW, users, arrays.USER_COLUMNS))
    if settings.redis_url:
        write_seconds, read_seconds = redis_limit(feast, first)
    else:
        write_seconds, read_seconds = sqlite_limit(feast, first, settings.data_dir)
    print(f"\n{name}: rows of {len(arrays.USER_COLUMNS)} lists of {ENTRIES} entries on average; rows/s, share of limit")
    for label, theirs, ours, limit in (
        ("write", feast_writes, writes, rows / write_seconds),
        ("read many", feast_reads, reads, rows / read_seconds),
    ):
        share = f"{ours / limit * 100:3.0f} %"
        print(f"  {label:10} Feast {theirs:9,.0f}   ours {ours:9,.0f}   limit {limit:9,.0f}   {share}")
    for label, read in (
        ("Feast", lambda user: feast_read([user])),
        ("ours", lambda user: feature_store.online_rows(feast, VIEW, [user])),
    ):
        seconds, cpu = [], time.process_time()
        for user in users[:REQUESTS]:
            started = time.perf_counter()
            read(user)
            seconds.append(time.perf_counter() - started)
        cpu = (time.process_time() - cpu) / REQUESTS
        p50, p99 = np.percentile(seconds, [50, 99]) * 1000
        print(f"  read one   {label:5} p50 {p50:.3f} ms   p99 {p99:.3f} ms   CPU {cpu * 1000:.3f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--redis", default="", help="URL of a Redis database that may be emptied")
    arguments = parser.parse_args()
    for url in dict.fromkeys(("", arguments.redis)):
        with tempfile.TemporaryDirectory() as folder:
            settings = Settings(data_dir=Path(folder), redis_url=url)
            if url:
                feature_store.open_store(settings).online.rows._address.connect(timeout_seconds=60).flushdb()  # type: ignore[attr-defined]
            bench(settings, rows=arguments.rows)

"""Measures what one request costs the API in CPU: the inputs of infra/bench/capacity.py that need a running server.

    python -m infra.bench.request_cost DATA_DIR [--redis URL] [--requests 1000]

DATA_DIR is a data directory with a release and events, such as the demo's. It is copied, and only the copy is written
to. One process of `headrace serve` answers one caller that waits for each answer. CPU is that of the server alone, so a
busy machine makes it slower but hardly dearer. Prints milliseconds of CPU a request, and memory of the process.
"""

import argparse
import http.client
import json
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import psutil
import pyarrow.parquet as pq

from infra import topics
from infra.bench.servers import api
from infra.local.ports import free_port
from infra.log.client import START
from infra.log.open import open_log
from infra.settings import Settings

WARM = 100
BATCH = 100
"""Events in one large POST."""


def main(data: Path, *, redis: str, requests: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder) / "data"
        shutil.copytree(data, copied, symlinks=True, ignore=shutil.ignore_patterns("run", "live", "logs"))
        settings = Settings(data_dir=copied, port=free_port(), redis_url=redis)
        users = distinct(copied / "offline" / "shop_events", "user_id")
        items = distinct(copied / "offline" / "shop_events", "item_id")
        print(f"{len(users):,} users, {len(items):,} items, online store {'Redis' if redis else 'SQLite'}")
        with api(settings) as process:
            measure = partial(cost, process, settings.port)
            at_start = process.memory_info().rss
            measure("recommend", "/v1/recommend", requests, lambda n: {"user_id": users[n % len(users)], "n": 20})
            measure("score a payment", "/v1/transactions/score", requests, payment)
            for size in (1, BATCH):
                body = partial(shop_events, size=size, users=users, items=items)
                measure(f"{size} events", "/v1/events", max(50, requests // size), body)
            now = process.memory_info().rss
            print(f"memory of the process: {at_start / 2**20:,.0f} MiB at its start, {now / 2**20:,.0f} MiB now")
        for topic in (topics.SHOP, topics.IMPRESSIONS, topics.DECISIONS, topics.TRANSACTIONS):
            records = open_log(settings).read(topic, START, max_records=100_000)
            if records:
                mean = sum(len(record.value) + len(record.key) for record in records) / len(records)
                print(f"{topic}: {mean:,.0f} bytes a record, key and value")


def distinct(table: Path, column: str) -> list[str]:
    """Returns the values of a column, sorted, each once."""
    values: set[str] = set()
    for path in sorted(table.glob("*.parquet")):
        values.update(value for value in pq.read_table(path, columns=[column])[column].to_pylist() if value)
    return sorted(values)


def payment(number: int) -> dict[str, object]:
    return {
        "transaction_id": f"bench-{uuid.uuid4().hex}", "card_id": f"card-{number % 500}",
        "terminal_id": f"terminal-{number % 300}", "amount": 12.5, "channel": "online",
    }  # fmt: skip


def shop_events(number: int, *, size: int, users: list[str], items: list[str]) -> dict[str, object]:
    """Returns the body of the POST with that number: `size` views."""
    now = datetime.now(UTC).isoformat()
    return {
        "events": [
            {"type": "view", "event_id": uuid.uuid4().hex, "event_time": now, "user_id": users[index % len(users)],
             "item_id": items[index % len(items)]}
            for index in range(number * size, (number + 1) * size)
        ]
    }  # fmt: skip


def cost(
    process: psutil.Process, port: int, name: str, path: str, requests: int, body: Callable[[int], object]
) -> None:
    """Sends `requests` after a warm-up and prints CPU and time of each; `body` makes the body of each by its number."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    started = cpu = 0.0
    for number in range(WARM + requests):
        if number == WARM:
            started, cpu = time.perf_counter(), sum(process.cpu_times()[:2])
        connection.request("POST", path, json.dumps(body(number)), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        if answer.status not in (200, 202):
            raise SystemExit(f"{path} answered {answer.status}: {text[:300]!r}")
    took, used = time.perf_counter() - started, sum(process.cpu_times()[:2]) - cpu
    print(f"{name}: {1000 * used / requests:.2f} ms of CPU, {1000 * took / requests:.2f} ms by the clock, each")
    connection.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--redis", default="", help="an online store that holds the rows of DATA_DIR")
    parser.add_argument("--requests", type=int, default=1_000)
    arguments = parser.parse_args()
    main(arguments.data, redis=arguments.redis, requests=arguments.requests)

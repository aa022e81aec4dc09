"""What one request costs the API, in CPU: the inputs of infra/bench/capacity.py that a running server has to tell.

    python infra/bench/request_cost.py DATA_DIR [--redis URL] [--requests 1000]

DATA_DIR is a data directory with a release and events, such as the demo's; it is copied, and the copy written to. One
process of `headrace serve` answers one caller that waits for each answer: CPU is that of the server alone, so that a
busy machine makes it slower but hardly dearer. Prints milliseconds of CPU a request, and memory of the process.
"""

import argparse
import contextlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import psutil
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[2]))

from infra import topics
from infra.local.ports import free_port
from infra.log.client import START
from infra.log.open import open_log
from infra.settings import Settings
from tests.apps.servers import ROOT, Server, ready, wait_until

WARM = 100
BATCH = 100
"""Events in one large POST."""


def main(data: Path, *, redis: str, requests: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder) / "data"
        shutil.copytree(data, copied, symlinks=True, ignore=shutil.ignore_patterns("run", "live", "logs"))
        users = known(copied / "offline" / "shop_events", "user_id")
        items = known(copied / "offline" / "shop_events", "item_id")
        print(f"{len(users):,} users, {len(items):,} items, online store {'Redis' if redis else 'SQLite'}")
        with served(copied, redis=redis) as server:
            at_start = psutil.Process(server.process.pid).memory_info().rss
            cost(
                server, "recommend", requests, lambda n: ("/v1/recommend", {"user_id": users[n % len(users)], "n": 20})
            )
            cost(server, "score a payment", requests, lambda n: ("/v1/transactions/score", payment(n)))
            for size in (1, BATCH):
                ask = partial(shop_events, size=size, users=users, items=items)
                cost(server, f"{size} events", max(50, requests // size), lambda n, ask=ask: ("/v1/events", ask(n)))  # type: ignore[misc]
            now = psutil.Process(server.process.pid).memory_info().rss
            print(f"memory of the process: {at_start / 2**20:,.0f} MiB at its start, {now / 2**20:,.0f} MiB now")
        for topic in (topics.SHOP, topics.IMPRESSIONS, topics.DECISIONS, topics.TRANSACTIONS):
            records = open_log(Settings(data_dir=copied)).read(topic, START, max_records=100_000)
            if records:
                size = sum(len(record.value) + len(record.key) for record in records) / len(records)
                print(f"{topic}: {size:,.0f} bytes a record, key and value")


@contextlib.contextmanager
def served(folder: Path, *, redis: str) -> Iterator[Server]:
    """The API over `folder`; a busy machine may take minutes to start it."""
    port, output = free_port(), folder / "serve.log"
    own = {"HEADRACE_DATA_DIR": str(folder), "HEADRACE_PORT": str(port), "HEADRACE_REDIS_URL": redis}
    with output.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "infra.cli", "serve"], env={**os.environ, **own}, stdout=log, stderr=log, cwd=ROOT
        )
    server = Server(Settings(data_dir=folder), port, process, output)
    try:
        wait_until(lambda: process.poll() is not None or ready(server), seconds=600)
        assert process.poll() is None, output.read_text()[-3000:]
        yield server
    finally:
        server.kill()


def known(table: Path, column: str) -> list[str]:
    found: set[str] = set()
    for path in sorted(table.glob("*.parquet")):
        found.update(value for value in pq.read_table(path, columns=[column])[column].to_pylist() if value)
    return sorted(found)


def payment(number: int) -> dict[str, object]:
    return {
        "transaction_id": f"bench-{uuid.uuid4().hex}", "card_id": f"card-{number % 500}",
        "terminal_id": f"terminal-{number % 300}", "amount": 12.5, "channel": "online",
    }  # fmt: skip


def shop_events(number: int, *, size: int, users: list[str], items: list[str]) -> dict[str, object]:
    now = datetime.now(UTC).isoformat()
    return {
        "events": [
            {"type": "view", "event_id": uuid.uuid4().hex, "event_time": now, "user_id": users[one % len(users)],
             "item_id": items[one % len(items)]}
            for one in range(number * size, (number + 1) * size)
        ]
    }  # fmt: skip


def cost(server: Server, name: str, requests: int, make: Callable[[int], tuple[str, object]]) -> None:
    process = psutil.Process(server.process.pid)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
    started = cpu = 0.0
    for number in range(WARM + requests):
        if number == WARM:
            started, cpu = time.perf_counter(), sum(process.cpu_times()[:2])
        path, body = make(number)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status in (200, 202), (answer.status, text[:300])
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

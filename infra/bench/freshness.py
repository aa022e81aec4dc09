"""`headrace bench freshness`: measures how long an event takes to change its user's answer.

Shop events come at a steady rate from a load simulator, whatever the servers do. Beside them run probes: a user asks
for recommendations without the items seen already, posts a purchase of the first item, and asks again until that item
is gone. The limit beside the result is the time of the feature job's micro-batches: an event waits for the current one
to end, and for its own.
"""

import contextlib
import http.client
import json
import re
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import numpy as np

from infra.bench.servers import serving
from infra.settings import Settings

EVENTS_PER_POST = 10
POLL_SECONDS = 0.02
GIVEN_UP_SECONDS = 30.0
ITEMS, USERS = 500, 2_000


class Site:
    """Keeps one connection to the API alive."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection: http.client.HTTPConnection | None = None

    def post(self, path: str, body: object) -> Any:
        """Returns the JSON of the answer; None when it is not 200 or two connections broke."""
        for _ in range(2):
            try:
                self._connection = self._connection or http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
                self._connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
                answer = self._connection.getresponse()
                content = json.loads(answer.read())
            except (OSError, http.client.HTTPException):
                self._connection = None
                continue
            return content if answer.status == 200 else None
        return None


def _event(event_id: str, user: str, item: str, *, event_type: str = "view") -> dict[str, Any]:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return {"type": event_type, "event_id": event_id, "event_time": now, "user_id": user, "item_id": item, "price": 2.5}


def _load(settings: Settings, *, rate: float, over: threading.Event) -> dict[str, int]:
    """Posts `rate` events a second until `over`; a post that is due does not wait for those before it."""
    rng = np.random.default_rng(7)
    counts = {"accepted": 0, "refused_posts": 0}
    local = threading.local()

    def post(number: int) -> None:
        site = local.__dict__.setdefault("site", Site(settings.port))
        events = [
            _event(f"load-{number}-{index}", f"u{rng.integers(USERS)}", f"item-{rng.integers(ITEMS)}")
            for index in range(EVENTS_PER_POST)
        ]
        answer = site.post("/v1/events", {"events": events})
        counts["accepted" if answer else "refused_posts"] += answer["accepted"] if answer else 1

    with ThreadPoolExecutor(max_workers=8) as pool:
        start, number = time.monotonic(), 0
        while not over.is_set():
            pause = start + number * EVENTS_PER_POST / rate - time.monotonic()
            if pause > 0 and over.wait(pause):
                break
            pool.submit(post, number)
            number += 1
    return counts


def _probe(site: Site, number: int) -> float | None:
    """Returns the seconds from posting a purchase to the first answer without the item; None when it gave up."""
    user = f"probe-{number}"
    session = {"session_id": user, "items": [f"item-{number % ITEMS}"]}
    question = {"user_id": user, "session": session, "surface": "bench", "n": 5, "seen": "drop"}
    first = site.post("/v1/recommend", question)
    if not first or not first["items"]:
        return None
    item = first["items"][0]["item_id"]
    posted = time.monotonic()
    site.post("/v1/events", _event(f"probe-{number}", user, item, event_type="purchase"))
    while time.monotonic() - posted < GIVEN_UP_SECONDS:
        answer = site.post("/v1/recommend", question)
        if answer and item not in {shown["item_id"] for shown in answer["items"]}:
            return time.monotonic() - posted
        time.sleep(POLL_SECONDS)
    return None


def _batches(settings: Settings) -> tuple[float, float]:
    """Returns (micro-batches so far, seconds they took), from the feature job's metrics; zeros when it has none yet."""
    address = f"http://127.0.0.1:{settings.stream_metrics_port}/metrics"
    with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5) as answer:
        text = answer.read().decode()
        count = re.search(r"^headrace_stream_batch_seconds_count (\S+)", text, re.M)
        total = re.search(r"^headrace_stream_batch_seconds_sum (\S+)", text, re.M)
        if count and total:
            return float(count[1]), float(total[1])
    return 0.0, 0.0


def run(*, rate: float, probes: int, seconds: float, real: bool) -> dict[str, Any]:
    """Measures, and returns the result as plain data. Times in seconds."""
    with serving(real=real) as settings, ThreadPoolExecutor() as pool:
        over = threading.Event()
        load = pool.submit(_load, settings, rate=rate, over=over)
        try:
            time.sleep(20)  # until the JVM has compiled its code and the first tables are written
            batches_before, seconds_before = _batches(settings)
            site, delays = Site(settings.port), []
            started = time.monotonic()
            for number in range(probes):
                time.sleep(max(0.0, started + number * seconds / probes - time.monotonic()))
                delays.append(_probe(site, number))
            batches_after, seconds_after = _batches(settings)
        finally:
            over.set()
        counts = load.result()
    took = np.array([delay for delay in delays if delay is not None])
    batch = (seconds_after - seconds_before) / max(1.0, batches_after - batches_before)
    return {
        "bench": "freshness",
        "servers": "kafka, redis" if real else "files, sqlite",
        "events_per_s": rate,
        **counts,
        "probes": len(delays),
        "lost": len(delays) - len(took),
        "p50_s": round(float(np.quantile(took, 0.5)), 3),
        "p99_s": round(float(np.quantile(took, 0.99)), 3),
        "max_s": round(float(took.max()), 3),
        "micro_batch_s": round(batch, 3),
        "limit_p50_s": round(1.5 * batch, 3),
    }

"""How long until an event changes its user's answer: from POST /v1/events to another /v1/recommend.

Shop events come at a steady rate from a load simulator, whatever the servers do. Beside them, probes: a user asks what
to buy, without what was seen already; the first of it is posted as bought; the user asks again until it is gone. The
limit beside it is the time that the feature job's micro-batches took themselves: an event waits for the one under way
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
    """A keep-alive connection to the API."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection: http.client.HTTPConnection | None = None

    def post(self, path: str, body: object) -> Any:
        for _ in range(2):
            try:
                self._connection = self._connection or http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
                self._connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
                answer = self._connection.getresponse()
                told = json.loads(answer.read())
            except (OSError, http.client.HTTPException):
                self._connection = None
                continue
            return told if answer.status == 200 else None
        return None


def _event(name: str, user: str, item: str, *, kind: str = "view") -> dict[str, Any]:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return {"type": kind, "event_id": name, "event_time": now, "user_id": user, "item_id": item, "price": 2.5}


def _load(settings: Settings, *, rate: float, over: threading.Event) -> dict[str, int]:
    """Events at `rate` a second until `over`; a post that is due goes out beside those that still wait."""
    rng = np.random.default_rng(7)
    told = {"accepted": 0, "refused_posts": 0}
    local = threading.local()

    def post(number: int) -> None:
        site = local.__dict__.setdefault("site", Site(settings.port))
        events = [
            _event(f"load-{number}-{one}", f"u{rng.integers(USERS)}", f"item-{rng.integers(ITEMS)}")
            for one in range(EVENTS_PER_POST)
        ]
        answer = site.post("/v1/events", {"events": events})
        told["accepted" if answer else "refused_posts"] += answer["accepted"] if answer else 1

    with ThreadPoolExecutor(max_workers=8) as pool:
        start, number = time.monotonic(), 0
        while not over.is_set():
            pause = start + number * EVENTS_PER_POST / rate - time.monotonic()
            if pause > 0 and over.wait(pause):
                break
            pool.submit(post, number)
            number += 1
    return told


def _probe(site: Site, number: int) -> float | None:
    """Seconds from the post of a purchase to the first answer that knows it; None where it was given up."""
    user = f"probe-{number}"
    session = {"session_id": user, "items": [f"item-{number % ITEMS}"]}
    question = {"user_id": user, "session": session, "surface": "bench", "n": 5, "seen": "drop"}
    first = site.post("/v1/recommend", question)
    if not first or not first["items"]:
        return None
    item = first["items"][0]["item_id"]
    posted = time.monotonic()
    site.post("/v1/events", _event(f"probe-{number}", user, item, kind="purchase"))
    while time.monotonic() - posted < GIVEN_UP_SECONDS:
        told = site.post("/v1/recommend", question)
        if told and item not in {one["item_id"] for one in told["items"]}:
            return time.monotonic() - posted
        time.sleep(POLL_SECONDS)
    return None


def _batches(settings: Settings) -> tuple[float, float]:
    """(micro-batches so far, seconds they took), as the feature job tells Prometheus."""
    address = f"http://127.0.0.1:{settings.stream_metrics_port}/metrics"
    with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5) as answer:
        text = answer.read().decode()
        count = re.search(r"^headrace_stream_batch_seconds_count (\S+)", text, re.M)
        total = re.search(r"^headrace_stream_batch_seconds_sum (\S+)", text, re.M)
        if count and total:
            return float(count[1]), float(total[1])
    return 0.0, 0.0


def run(*, rate: float, probes: int, seconds: float, real: bool) -> dict[str, Any]:
    """Measure; returns what the JSON line holds. Times in seconds."""
    with serving(real=real) as settings, ThreadPoolExecutor() as pool:
        over = threading.Event()
        load = pool.submit(_load, settings, rate=rate, over=over)
        try:
            time.sleep(20)  # what the JVM compiles and the tables that are made once
            batches, took = _batches(settings)
            site, found = Site(settings.port), []
            started = time.monotonic()
            for number in range(probes):
                time.sleep(max(0.0, started + number * seconds / probes - time.monotonic()))
                found.append(_probe(site, number))
            more, longer = _batches(settings)
        finally:
            over.set()
        told = load.result()
    known = np.array([one for one in found if one is not None])
    batch = (longer - took) / max(1.0, more - batches)
    return {
        "bench": "freshness",
        "servers": "kafka, redis" if real else "files, sqlite",
        "events_per_s": rate,
        "accepted": told["accepted"],
        "refused_posts": told["refused_posts"],
        "probes": len(found),
        "lost": len(found) - len(known),
        "p50_s": round(float(np.quantile(known, 0.5)), 3),
        "p99_s": round(float(np.quantile(known, 0.99)), 3),
        "max_s": round(float(known.max()), 3),
        "micro_batch_s": round(batch, 3),
        "limit_p50_s": round(1.5 * batch, 3),
    }

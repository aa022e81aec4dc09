"""`headrace traffic`: sends held-out visits and payments as live traffic through the public API.

At the first moment of each held-out visit with a purchase it asks for recommendations as of that moment; then it sends
what the visit did, with the id of the request for every bought item that had been shown. Half of the held-out payments
ask for a score, half are sent as events. Open loop: every call has an intended time and latency counts from there, so
that a slow server cannot slow the load down (Tene, How NOT to Measure Latency).
"""

import http.client
import json
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
import pyarrow.parquet as pq

from apps.wording import counted
from features.contract.timestamps import rfc3339
from features.recommender.recency import VISIT_GAP_MS
from infra.progress import progress_bar
from infra.settings import Settings

WORKERS = 8
LIST_LENGTH = 20
PATIENCE_SECONDS = 30
DELIVERIES = 20
DELIVERY_PAUSE_SECONDS = 0.5


class TrafficError(Exception):
    """The traffic cannot be sent; the message says what is missing."""


@dataclass
class Outcome:
    """Counts and latencies of all calls."""

    visits: int = 0
    """Visits that asked for recommendations."""
    recommend_ms: list[float] = field(default_factory=list)
    score_ms: list[float] = field(default_factory=list)
    events: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    shown_and_bought: int = 0
    seconds: float = 0.0


SendRequest = Callable[[http.client.HTTPConnection, float], None]


@dataclass(frozen=True)
class Planned:
    """One call to send when `share` of the whole time has passed, by the worker that has this key."""

    share: float
    key: str
    call: SendRequest


def run(settings: Settings, *, seconds: float, visits: int | None, surface: str, say: Callable[[str], None]) -> Outcome:
    """Sends held-out visits and payments over `seconds`; the result also goes to status/traffic.json.

    visits: at most so many of them, spread evenly. Raises TrafficError when nothing was held out or the API does not
    answer.
    """
    outcome, lock = Outcome(), threading.Lock()
    planned = _plan_visits(settings, outcome, lock, most=visits, surface=surface)
    planned += _plan_payments(settings, outcome, lock)
    if not planned:
        raise TrafficError(
            "nothing was held out; run `headrace import` with --hold-out-days or `headrace simulate` with --live-days"
        )
    planned.sort(key=lambda call: call.share)
    lanes: list[list[Planned]] = [[] for _ in range(WORKERS)]
    for call in planned:
        lanes[zlib.crc32(call.key.encode()) % WORKERS].append(call)
    start = time.monotonic() + 0.2
    failures: list[Exception] = []
    with progress_bar(total=len(planned), desc="traffic", unit="call") as bar:
        threads = [
            threading.Thread(target=_drive, args=(settings, lane, start, seconds, bar, failures)) for lane in lanes
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failures:
        raise TrafficError(f"the API on port {settings.port} failed: {failures[0]}; is `headrace serve` running?")
    outcome.seconds = time.monotonic() - start
    _report(settings, outcome, say)
    return outcome


def _drive(
    settings: Settings, lane: list[Planned], start: float, seconds: float, bar: Any, failures: list[Exception]
) -> None:
    connection = http.client.HTTPConnection(settings.host, settings.port, timeout=PATIENCE_SECONDS)
    for planned in lane:
        if failures:
            return
        intended = start + planned.share * seconds
        time.sleep(max(0.0, intended - time.monotonic()))
        try:
            planned.call(connection, intended)
        except (OSError, http.client.HTTPException, ValueError) as error:
            failures.append(error)
            return
        bar.update()


def post(connection: http.client.HTTPConnection, path: str, body: Any) -> tuple[int, Any]:
    """Posts JSON; returns the status and the answer."""
    connection.request("POST", path, orjson.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def deliver(connection: http.client.HTTPConnection, path: str, body: Any) -> tuple[int, Any]:
    """Posts what must not be lost, as a site does: repeats it after a pause while an overloaded server refuses it."""
    for _ in range(DELIVERIES):
        status, answer = post(connection, path, body)
        if status != 503:
            break
        time.sleep(DELIVERY_PAUSE_SECONDS)
    return status, answer


Visit = list[dict[str, Any]]


def _held_out_visits(settings: Settings, most: int | None) -> list[tuple[int, str, Visit]]:
    """Returns (moment, user, lines) of every held-out visit, in order of time; at most `most`, spread evenly."""
    path = settings.data_dir / "holdout" / "shop_events.parquet"
    if not path.exists():
        return []
    visits: list[tuple[int, str, Visit]] = []
    latest: dict[str, Visit] = {}
    rows = (row for row in pq.read_table(path).to_pylist() if row["user_id"])
    for row in sorted(rows, key=lambda row: row["event_time"]):
        user, moment = row["user_id"], row["event_time"]
        if user not in latest or moment - latest[user][-1]["event_time"] > VISIT_GAP_MS:
            latest[user] = []
            visits.append((moment, user, latest[user]))
        latest[user].append(row)
    if most is not None and most < len(visits):
        visits = [visits[index] for index in np.unique(np.linspace(0, len(visits) - 1, most).astype(int))]
    return visits


def _plan_visits(
    settings: Settings, outcome: Outcome, lock: threading.Lock, *, most: int | None, surface: str
) -> list[Planned]:
    visits = _held_out_visits(settings, most)

    def ask(connection: http.client.HTTPConnection, intended: float, moment: int, user: str) -> tuple[set[str], str]:
        """Returns the items shown to the user at that moment, and the id of the request."""
        context = {"request_time": rfc3339(moment)}
        body = {"user_id": user, "surface": surface, "n": LIST_LENGTH, "context": context}
        status, answer = post(connection, "/v1/recommend", body)
        with lock:
            outcome.visits += 1
            outcome.recommend_ms.append((time.monotonic() - intended) * 1000)
            outcome.statuses[f"recommend {status}"] += 1
            outcome.models[answer.get("model", "none")] += 1
        return {item["item_id"] for item in answer.get("items", [])}, answer.get("request_id", "")

    def visit(moment: int, user: str, lines: Visit) -> SendRequest:
        def call(connection: http.client.HTTPConnection, intended: float) -> None:
            shown, request_id = set[str](), ""
            if any(line["type"] == "purchase" for line in lines):
                shown, request_id = ask(connection, intended, moment, user)
            sent = [_event(line, request_id if line["item_id"] in shown else "") for line in lines]
            for first in range(0, len(sent), 500):
                status, answer = deliver(connection, "/v1/events", {"events": sent[first : first + 500]})
                with lock:
                    outcome.statuses[f"events {status}"] += 1
                    for name in ("accepted", "duplicates", "refused"):
                        outcome.events[name] += answer.get(name, 0)
            with lock:
                outcome.shown_and_bought += sum("request_id" in event for event in sent)

        return call

    return [
        Planned((index + 0.5) / len(visits), user, visit(moment, user, lines))
        for index, (moment, user, lines) in enumerate(visits)
    ]


def _event(line: dict[str, Any], request_id: str) -> dict[str, Any]:
    event = {name: value for name, value in line.items() if value is not None}
    event["event_time"] = rfc3339(line["event_time"])
    if request_id and line["type"] == "purchase":
        event["request_id"] = request_id
    return event


def _plan_payments(settings: Settings, outcome: Outcome, lock: threading.Lock) -> list[Planned]:
    folder = settings.data_dir / "live"
    path = folder / "live_transactions.parquet"
    if not path.exists():
        return []
    rows = pq.read_table(path).to_pylist()
    names = ("event_time", "card_id", "terminal_id", "amount", "channel")

    def payment(row: dict[str, Any], *, ask: bool) -> SendRequest:
        body = {name: row[name] for name in names} | {"event_time": rfc3339(row["event_time"])}

        def call(connection: http.client.HTTPConnection, intended: float) -> None:
            if ask:
                status, _ = post(connection, "/v1/transactions/score", {**body, "transaction_id": row["event_id"]})
                with lock:
                    outcome.score_ms.append((time.monotonic() - intended) * 1000)
                    outcome.statuses[f"score {status}"] += 1
                return
            status, answer = deliver(
                connection, "/v1/events", {**body, "event_id": row["event_id"], "type": "transaction"}
            )
            with lock:
                outcome.statuses[f"events {status}"] += 1
                outcome.events["accepted"] += answer.get("accepted", 0)

        return call

    planned = [
        Planned((index + 0.5) / len(rows), row["card_id"], payment(row, ask=index % 2 == 0))
        for index, row in enumerate(rows)
    ]
    return planned + _plan_labels(settings, outcome, lock)


def _plan_labels(settings: Settings, outcome: Outcome, lock: threading.Lock) -> list[Planned]:
    """Plans the labels that become known meanwhile, 100 to a call."""
    rows = pq.read_table(settings.data_dir / "live" / "live_labels.parquet").to_pylist()
    chunks = [rows[first : first + 100] for first in range(0, len(rows), 100)]

    def send(chunk: list[dict[str, Any]]) -> SendRequest:
        body = [
            {
                "transaction_id": row["transaction_id"], "fraud": row["fraud"], "card_id": row["card_id"],
                "terminal_id": row["terminal_id"], "known_time": rfc3339(row["event_time"]),
                "transaction_time": rfc3339(row["transaction_time"]),
            }
            for row in chunk
        ]  # fmt: skip

        def call(connection: http.client.HTTPConnection, intended: float) -> None:
            status, _ = deliver(connection, "/v1/labels", body)
            with lock:
                outcome.statuses[f"labels {status}"] += 1

        return call

    return [Planned((index + 0.5) / len(chunks), f"labels-{index}", send(chunk)) for index, chunk in enumerate(chunks)]


def percentiles(values: list[float]) -> dict[str, float]:
    """Returns the 50th and 99th percentile of milliseconds, and their count."""
    if not values:
        return {"p50": 0.0, "p99": 0.0, "count": 0}
    p50, p99 = np.percentile(values, [50, 99])
    return {"p50": round(float(p50), 1), "p99": round(float(p99), 1), "count": len(values)}


def _report(settings: Settings, outcome: Outcome, say: Callable[[str], None]) -> None:
    recommend, scored = percentiles(outcome.recommend_ms), percentiles(outcome.score_ms)
    # vars, not asdict, which would rebuild each Counter from its pairs and count those.
    summary = vars(outcome) | {"recommend_ms": recommend, "score_ms": scored}
    settings.traffic_status.parent.mkdir(parents=True, exist_ok=True)
    settings.traffic_status.write_text(json.dumps(summary, indent=2))
    say(
        f"traffic: {counted(outcome.visits, 'visit')} and {counted(int(scored['count']), 'score request')} "
        f"in {outcome.seconds:.0f} s; "
        f"recommend p50 {recommend['p50']} ms, p99 {recommend['p99']} ms; score p50 {scored['p50']} ms, "
        f"p99 {scored['p99']} ms; bought of what was shown: {counted(outcome.shown_and_bought, 'item')}"
    )
    failed = {name: count for name, count in outcome.statuses.items() if not name.endswith(("200", "201"))}
    refused = outcome.events["refused"]
    if failed or refused:
        calls = [f"{name}: {counted(count, 'call')}" for name, count in failed.items()]
        say("traffic: not all went well: " + ", ".join([*calls, f"{counted(refused, 'event')} refused"]))

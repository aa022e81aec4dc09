"""Kills one part of the stack after the other under load: no acknowledged event is lost, none counts twice, and
recommendations never stop. `pytest tests/faults/test_kills.py -s --rounds 3` kills each part three times.

The stack is three brokers, Redis, the feature job, the scorer and the API, as `headrace up` starts them. The reference
is an undisturbed run: the same events, each once, folded by one job over files.
"""

import contextlib
import http.client
import itertools
import json
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from features.store import views
from features.store.feature_store import online_rows, open_store
from infra import topics
from infra.bench.sample_release import publish_release
from infra.local import processes, stack
from infra.local.ports import free_port, free_ports
from infra.log.client import EventLog, read_all
from infra.log.open import open_log
from infra.settings import Settings
from streaming import job

pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(shutil.which("redis-server") is None, reason="no redis-server"),
    pytest.mark.skipif(shutil.which("java") is None, reason="no java"),
]

VICTIMS = ("stream", "redis", "api", "api alone", "scorer", "kafka")
"""`api alone`: the parent of the workers, who takes the connections; `kafka`: any one of the three brokers."""
USERS = [f"u{number}" for number in range(40)]
CARDS = [f"c{number}" for number in range(30)]
TERMINALS = [f"t{number}" for number in range(12)]
REST_SECONDS = 6.0
"""Mean time without a fault between two kills."""
AWAY_SECONDS = 3.0
"""Mean time until the killed part is started again. Both times are drawn from 0.5 to 1.5 times the mean."""


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    chosen = stack.stack_settings(
        Settings(
            data_dir=tmp_path, port=free_port(), redis_port=free_port(), kafka_port=free_ports(6), api_workers=2,
            kafka_replication=3, kafka_partitions=4, scorer_metrics_port=free_port(), stream_metrics_port=free_port(),
            exposures_refresh_seconds=3, tools_dir=Path(".tools").absolute(),
        )
    )  # fmt: skip
    publish_release(chosen.releases_dir, "v1")
    try:
        yield chosen
    finally:
        processes.stop_all(chosen)


class Shop:
    """A site that sends events until they are acknowledged, and asks for recommendations."""

    def __init__(self, port: int, *, seed: int) -> None:
        self._port = port
        self._rng = random.Random(seed)
        self.over = threading.Event()
        self.sent: dict[str, dict[str, Any]] = {}
        """Every acknowledged event, by its id."""
        self.answered: dict[str, str | None] = {}
        """Variation of every 200, by request_id."""
        self.refused: Counter[str] = Counter()
        """Answers of /v1/recommend other than 200, while a server answered at all."""
        self.degraded = 0
        self.repeats = 0

    def call(self, method: str, path: str, body: object) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        with contextlib.closing(connection):
            connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"null")

    def deliver(self, events: list[dict[str, Any]]) -> None:
        """Sends events until each is acknowledged, as a client that keeps them until then."""
        waiting = {event["event_id"]: event for event in events}
        while waiting:
            try:
                _, answer = self.call("POST", "/v1/events", {"events": list(waiting.values())})
                for result in answer.get("results", []):
                    if result["status"] in ("accepted", "duplicate"):
                        self.sent[result["event_id"]] = waiting.pop(result["event_id"])
                    assert result["status"] != "invalid", result
            except (OSError, http.client.HTTPException, json.JSONDecodeError):
                pass
            if waiting:
                self.repeats += 1
                time.sleep(0.2)

    def trade(self) -> None:
        number = 0
        while not self.over.is_set():
            number += 1
            bought = [self._purchase(f"e{number}-{index}") for index in range(15)]
            paid = [self._payment(f"p{number}-{index}") for index in range(5)]
            self.deliver([*bought, *paid])
            time.sleep(0.2)

    def ask(self) -> None:
        while not self.over.is_set():
            session = {"session_id": "s", "items": [f"item-{self._rng.randrange(500)}"]}
            question = {"user_id": self._rng.choice(USERS), "session": session, "surface": "home", "n": 5}
            try:
                status, answer = self.call("POST", "/v1/recommend", question)
            except (OSError, http.client.HTTPException, json.JSONDecodeError):
                time.sleep(0.1)  # no answer: the API itself is dead
                continue
            if status == 200:
                assert answer["items"]
                experiment = answer["experiment"]
                self.answered[answer["request_id"]] = experiment and experiment["variation"]
                self.degraded += answer["degraded"]
            else:
                self.refused[str(status)] += 1
            time.sleep(0.1)

    def _purchase(self, name: str) -> dict[str, Any]:
        return {
            "type": "purchase", "event_id": name, "event_time": _now(), "user_id": self._rng.choice(USERS),
            "item_id": f"item-{self._rng.randrange(500)}", "price": 2.5, "quantity": 1, "order_id": f"o-{name}",
        }  # fmt: skip

    def _payment(self, name: str) -> dict[str, Any]:
        return {
            "type": "transaction", "event_id": name, "event_time": _now(), "card_id": self._rng.choice(CARDS),
            "terminal_id": self._rng.choice(TERMINALS), "amount": self._rng.choice([5.0, 20.0, 950.0]),
        }  # fmt: skip


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass
class Kills:
    """What happened while one part was away, over all rounds."""

    kills: int = 0
    acknowledged: int = 0
    answered: int = 0


def _kill(settings: Settings, victim: str, rng: random.Random) -> None:
    """Kills a part with all its children as a power cut would, or the parent alone."""
    name = f"kafka-{rng.choice([1, 2, 3])}" if victim == "kafka" else victim.removesuffix(" alone")
    process = processes.alive(settings)[name]
    for member in [process, *([] if victim.endswith("alone") else process.children(recursive=True))]:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait(10)


def _revive(settings: Settings) -> None:
    """Runs `make up`, repeatedly on a busy machine: the next call finds running what started meanwhile."""
    for _ in range(3):
        with contextlib.suppress(stack.StackError):
            stack.up(settings, airflow=False, say=lambda line: None)
            return
    stack.up(settings, airflow=False, say=print)


def _records(log: EventLog, topic: str) -> list[dict[str, Any]]:
    return [json.loads(record.value) for record in read_all(log, topic)]


def _once(records: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    first: dict[str, dict[str, Any]] = {}
    for record in records:
        first.setdefault(record["event_id"], record)
    return first


def _histories(settings: Settings) -> dict[str, list[Any]]:
    """Returns the histories of every user, card and terminal in the online store, with sorted entries."""
    store = open_store(settings)
    ids_by_view = ((views.USER_HISTORY, USERS), (views.CARD_HISTORY, CARDS), (views.TERMINAL_HISTORY, TERMINALS))
    return {view: [_sorted(row) for row in online_rows(store, view, ids)] for view, ids in ids_by_view}


def _twice(histories: dict[str, list[Any]]) -> int:
    """Returns how many entries of histories are duplicates."""
    return sum(len(entries) - len(set(entries)) for rows in histories.values() for entries in rows)


def _sorted(row: dict[str, Any]) -> list[Any]:
    lists = {name: values for name, values in row.items() if values and not name.startswith("fraud")}
    return sorted(zip(*(lists[name] for name in sorted(lists)), strict=True))


def _undisturbed(folder: Path, events: dict[str, list[dict[str, Any]]]) -> Settings:
    """Folds the same events, each once, over files and SQLite in one undisturbed job."""
    settings = Settings(data_dir=folder)
    log = open_log(settings)
    for topic, records in events.items():
        log.append(topic, [("k", json.dumps(record).encode()) for record in records])
    job.catch_up(settings, say=lambda line: None)
    job.join_exposures(settings)
    return settings


def _units(settings: Settings) -> list[dict[str, Any]]:
    return pq.read_table(settings.offline_dir / "experiment_units.parquet").to_pylist()


def _wait(check: Callable[[], bool], *, seconds: float, what: str) -> None:
    assert processes.wait_until(check, seconds=seconds, pause=0.5), f"not in time: {what}"


def test_whatever_is_killed_nothing_is_lost_and_nothing_counts_twice(
    settings: Settings, tmp_path: Path, rounds: int, seed: int
) -> None:
    print(f"\n{rounds} rounds, --seed {seed}")
    _revive(settings)
    shop = Shop(settings.port, seed=7)
    _wait(lambda: shop.call("GET", "/readyz", None)[0] == 200, seconds=60, what="a release in service")
    status, answer = shop.call("PUT", "/v1/experiments/e", _EXPERIMENT)
    assert status in (200, 201), answer

    rng, kills = random.Random(seed), {victim: Kills() for victim in VICTIMS}
    with ThreadPoolExecutor() as pool:
        work = [pool.submit(shop.trade), pool.submit(shop.ask), pool.submit(shop.ask)]
        try:
            for victim in itertools.chain(*(rng.sample(VICTIMS, len(VICTIMS)) for _ in range(rounds))):
                time.sleep(REST_SECONDS * rng.uniform(0.5, 1.5))
                acknowledged, answered = len(shop.sent), len(shop.answered)
                _kill(settings, victim, rng)
                time.sleep(AWAY_SECONDS * rng.uniform(0.5, 1.5))
                kills[victim].kills += 1
                kills[victim].acknowledged += len(shop.sent) - acknowledged
                kills[victim].answered += len(shop.answered) - answered
                _revive(settings)
                print(f"killed {victim}: {len(shop.sent) - acknowledged} events acknowledged until it ran again")
            time.sleep(REST_SECONDS)
        finally:
            shop.over.set()
        for task in work:
            task.result(timeout=60)
    print("| killed | kills | events acknowledged while it was away | recommendations given |\n|---|---|---|---|")
    for victim, counts in kills.items():
        print(f"| {victim} | {counts.kills} | {counts.acknowledged} | {counts.answered} |")

    assert not shop.refused, "recommendations never stop"
    assert all(counts.answered > 0 for victim, counts in kills.items() if not victim.startswith("api"))
    log, end = open_log(settings), time.monotonic() + 240
    while (lacking := _lacking(log, shop)) and time.monotonic() < end:
        time.sleep(2)
    assert not lacking, "an impression of an answer, or the decision on a payment, is missing"

    held = {topic: _once(_records(log, topic)) for topic in topics.ALL if topic != topics.DEAD_LETTERS}
    events = {**held[topics.SHOP], **held[topics.TRANSACTIONS]}
    lost = (set(shop.sent) - set(events)) | (set(shop.answered) - set(held[topics.IMPRESSIONS]))
    decided = held[topics.DECISIONS]
    assert set(decided) == set(held[topics.TRANSACTIONS])
    alerts = {name for name, decision in decided.items() if decision["outcome"] != "approve"}
    assert alerts == {name for name, payment in held[topics.TRANSACTIONS].items() if payment["amount"] > 900}

    apart = (topics.EXPERIMENTS, topics.DECISIONS)
    calm = _undisturbed(
        tmp_path / "calm", {topic: list(records.values()) for topic, records in held.items() if topic not in apart}
    )
    same = processes.wait_until(lambda: _histories(settings) == _histories(calm), seconds=60, pause=0.5)
    twice = _twice(_histories(settings))
    print(
        f"{len(shop.sent)} events acknowledged ({shop.repeats} repeats), {len(shop.answered)} recommendations "
        f"({shop.degraded} degraded), refused {dict(shop.refused)}; lost {len(lost)}, counted twice {twice}"
    )
    assert not lost, "an acknowledged event, or an impression that was answered, is not in the log"
    assert twice == 0
    assert same, "the histories are not those of an undisturbed run"
    _wait(lambda: _units(settings) == _units(calm), seconds=90, what="the experiment's counts of an undisturbed run")


_EXPERIMENT = {
    "key": "e",
    "surface": "home",
    "variations": [
        {"key": "baseline", "weight": 0.5, "parameters": {"recommender": "baseline"}},
        {"key": "model", "weight": 0.5, "parameters": {"recommender": "model"}},
    ],
}


def _lacking(log: EventLog, shop: Shop) -> list[str]:
    """Returns answered requests without an impression in the log, and payments there without a decision."""
    impressions, payments, decisions = (
        set(_once(_records(log, topic))) for topic in (topics.IMPRESSIONS, topics.TRANSACTIONS, topics.DECISIONS)
    )
    return sorted({*(set(shop.answered) - impressions), *(payments - decisions)})

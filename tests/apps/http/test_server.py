"""The API as real processes: workers that die, stops, release swaps, outages of the log, more load than it bears."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from features.contract.release import current_version
from infra import topics
from infra.bench.sample_release import publish_release
from infra.log.client import START
from infra.log.files import FileLog
from tests.apps.servers import ASK, ROOT, Server, closed_loop, metric, open_loop, serving, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

PAIRS, HELD = 5, 6.0
"""The 99th percentile at twice the capacity, in multiples of that at 0.8 of it: below this it was held."""
EXPERIMENT = {
    "key": "x", "surface": "elsewhere", "description": "",
    "variations": [{"key": "a", "weight": 0.5}, {"key": "b", "weight": 0.5}],
}  # fmt: skip


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two workers; the tests that use it stand in an order, and the last one stops it."""
    with serving(tmp_path_factory.mktemp("two"), api_workers=2, release_poll_seconds=0.2) as server:
        wait_until(lambda: metric(server, 'headrace_release_info{version="v1"}') == 2)
        yield server


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("one")) as server:
        yield server


def shown(server: Server) -> list[str]:
    """request_ids of the impressions in the log, in its order."""
    log = FileLog(server.settings.log_dir)
    return [json.loads(record.value)["event_id"] for record in log.read(topics.IMPRESSIONS, START, max_records=100_000)]


def block(server: Server) -> None:
    """Make the log refuse impressions: a file stands where their folder was."""
    folder = server.settings.log_dir / topics.IMPRESSIONS
    folder.rename(folder.with_name("aside"))
    folder.write_text("")


def unblock(server: Server) -> None:
    folder = server.settings.log_dir / topics.IMPRESSIONS
    folder.unlink()
    folder.with_name("aside").rename(folder)


def test_connections_are_divided_evenly(two: Server) -> None:
    loops = [psutil.Process(worker) for worker in two.workers()]
    with contextlib.ExitStack() as clients:
        for _ in range(64):
            clients.enter_context(socket.create_connection(("127.0.0.1", two.port)))
        wait_until(lambda: sum(map(connections, loops)) >= 64)
        assert min(map(connections, loops)) >= 31


def connections(worker: psutil.Process) -> int:
    """How many clients a worker has."""
    return sum(link.status == psutil.CONN_ESTABLISHED for link in worker.net_connections("tcp"))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_port_that_is_taken_is_named(two: Server, tmp_path: Path, workers: int) -> None:
    """By one process, or by several that share it among themselves."""
    own = {"HEADRACE_PORT": str(two.port), "HEADRACE_API_WORKERS": str(workers), "HEADRACE_DATA_DIR": str(tmp_path)}
    refused = subprocess.run(
        [sys.executable, "-m", "infra.cli", "serve"], env={**os.environ, **own, "PYTHONPATH": str(ROOT)}, cwd=ROOT,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert refused.returncode == 1
    assert f"port {two.port}: Address already in use" in refused.stderr
    assert "HEADRACE_PORT" in refused.stderr


def test_a_dead_worker_is_replaced_and_what_it_counted_stays(two: Server) -> None:
    for _ in range(20):
        assert two.call("POST", "/v1/recommend", ASK)[0] == 200
    counted = "headrace_recommendations_total{"
    assert metric(two, counted) == 20
    dead = two.workers()[0]
    os.kill(dead, signal.SIGKILL)
    wait_until(lambda: len(two.workers()) == 2 and dead not in two.workers())
    wait_until(lambda: metric(two, 'headrace_release_info{version="v1"}') == 2)
    assert metric(two, counted) == 20
    assert two.call("POST", "/v1/recommend", ASK)[0] == 200
    assert metric(two, counted) == 21


def test_an_experiment_defined_through_one_worker_is_known_to_all_within_two_seconds(two: Server) -> None:
    assert two.call("PUT", "/v1/experiments/x", EXPERIMENT)[0] == 201
    time.sleep(2)
    ask = {**ASK, "surface": "elsewhere", "user_id": "u"}
    answers = [two.call("POST", "/v1/recommend", ask)[2]["experiment"] for _ in range(20)]
    assert {answer and answer["key"] for answer in answers} == {"x"}
    assert len({answer["variation"] for answer in answers}) == 1


def test_a_payment_scored_by_one_worker_counts_in_the_windows_of_the_other(tmp_path: Path) -> None:
    """Without a fraud model the rule of bursts says how many payments the answering worker knows of."""
    publish_release(tmp_path / "releases", "v1", fraud_model=False)

    def count_known(server: Server, number: int) -> int:
        body = {"transaction_id": f"t{number}", "card_id": "c", "terminal_id": "t", "amount": 9.5}
        reasons = server.call("POST", "/v1/transactions/score", body)[2]["reasons"]
        counts = [re.match(r"payments in 1 hour: (\d+),", reason["text"]) for reason in reasons]
        return max((int(count[1]) for count in counts if count), default=0)

    with serving(tmp_path, api_workers=2) as server:
        for number in range(12):
            count_known(server, number)
            time.sleep(0.35)  # a worker follows the log every quarter of a second
        assert server.call("GET", "/v1/alerts?limit=50")[2]["alerts"][0]["transaction_id"] == "t11"
        counts = [count_known(server, number) for number in range(12, 20)]
    assert min(counts) >= 13  # the twelve before, and itself
    assert counts[-1] <= 20


def test_publishing_and_rolling_back_under_load_fail_no_request(two: Server) -> None:
    rate, answers = 20.0, []
    load = threading.Thread(
        target=lambda: answers.append(open_loop(two.port, "/v1/recommend", ASK, rate=rate, seconds=8))
    )
    load.start()
    time.sleep(1)
    publish_release(two.settings.releases_dir, "v2")
    wait_until(lambda: metric(two, 'headrace_release_info{version="v2"}') == 2)
    started = time.monotonic()
    environment = {**os.environ, "HEADRACE_DATA_DIR": str(two.settings.data_dir), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "infra.cli", "rollback"], env=environment, check=True, capture_output=True)
    wait_until(lambda: metric(two, 'headrace_release_info{version="v1"}') == 2)
    took = time.monotonic() - started
    load.join()
    assert current_version(two.settings.releases_dir) == "v1"
    assert answers[0].statuses == {200: int(rate * 8)}
    assert answers[0].failed == 0
    assert took < 15
    print(f"\nrollback took {took:.1f} s; p99 during the swaps {answers[0].percentile(0.99):.0f} ms")


def test_a_terminate_signal_lets_requests_finish(two: Server) -> None:
    with ThreadPoolExecutor(8) as visitors:
        calls = [visitors.submit(two.call, "POST", "/v1/recommend", ASK) for _ in range(8)]
        time.sleep(0.02)
        two.process.send_signal(signal.SIGTERM)
        statuses = [call.result()[0] for call in calls]
    assert two.process.wait(30) == 0
    assert set(statuses) <= {200, 503}
    assert 200 in statuses


def test_workers_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    with serving(tmp_path, api_workers=2) as server:
        workers = server.workers()
        assert len(workers) == 2
        server.process.kill()
        server.process.wait(10)
        wait_until(lambda: not any(map(psutil.pid_exists, workers)))
        with pytest.raises(OSError, match="refused"):
            server.call("GET", "/healthz")


def test_an_outage_of_the_log_and_a_kill_in_it_lose_no_impression(tmp_path: Path) -> None:
    asked: list[str] = []

    def ask(server: Server, count: int, *, degraded: bool) -> None:
        for _ in range(count):
            status, _, answer = server.call("POST", "/v1/recommend", ASK)
            assert (status, answer["degraded"]) == (200, degraded)
            asked.append(answer["request_id"])

    with serving(tmp_path) as server:
        ask(server, 3, degraded=False)
        wait_until(lambda: len(shown(server)) == 3)
        block(server)
        asked.append(server.call("POST", "/v1/recommend", ASK)[2]["request_id"])  # the one that finds it blocked
        time.sleep(1)
        ask(server, 19, degraded=True)
        wait_until(lambda: metric(server, "headrace_spool_records") == 20)
        server.kill()
    with serving(tmp_path) as server:
        ask(server, 5, degraded=True)
        unblock(server)
        wait_until(lambda: metric(server, "headrace_spool_records") == 0)
        wait_until(lambda: not server.call("POST", "/v1/recommend", {**ASK, "surface": "probe"})[2]["degraded"])
        seen = [request_id for request_id in dict.fromkeys(shown(server)) if request_id in asked]
        assert seen == asked
        assert metric(server, "headrace_impressions_lost_total") == 0
        assert server.stop() in (0, -signal.SIGTERM)


def test_past_its_capacity_it_refuses_early_and_what_it_accepts_stays_fast(single: Server) -> None:
    """Both counted from the moment at which a request was to be sent. A machine that stops for a while in one of the
    two makes any ratio: the best of some pairs counts, and one that stopped while its capacity was measured was not
    overloaded."""
    capacity, ratios = closed_loop(single.port, "/v1/recommend", ASK, clients=4, seconds=1.0), []
    for _ in range(PAIRS):
        capacity = max(capacity, closed_loop(single.port, "/v1/recommend", ASK, clients=4, seconds=2.0))
        below = open_loop(single.port, "/v1/recommend", ASK, rate=capacity * 0.8, seconds=3.0)
        double = open_loop(single.port, "/v1/recommend", ASK, rate=capacity * 2, seconds=3.0)
        assert single.call("GET", "/healthz")[0] == 200
        assert below.failed == double.failed == 0
        assert set(double.statuses) <= {200, 503}
        if double.statuses.get(503, 0) < 0.1 * sum(double.statuses.values()):
            continue
        assert double.without_retry_after == 0
        ratios.append(double.percentile(0.99) / below.percentile(0.99))
        print(
            f"\ncapacity {capacity:.0f}/s; accepted at 0.8 and 2 times of it: p50 {below.percentile(0.5):.0f} and "
            f"{double.percentile(0.5):.0f} ms, p99 {below.percentile(0.99):.0f} and {double.percentile(0.99):.0f} ms; "
            f"at 2 times {dict(double.statuses)}; the client was late by {double.late_ms:.0f} ms"
        )
        if ratios[-1] < HELD:
            break
    assert ratios, "twice its capacity, and next to nothing was refused"
    assert min(ratios) < HELD


def test_a_flood_of_events_leaves_room_for_recommendations(single: Server) -> None:
    batch = {"events": [{"type": "view", "event_id": "v", "event_time": "2026-01-01T00:00:00Z", "item_id": "i"}] * 300}
    flood = threading.Thread(target=lambda: open_loop(single.port, "/v1/events", batch, rate=200, seconds=5.0))
    flood.start()
    time.sleep(1.0)
    answers = open_loop(single.port, "/v1/recommend", ASK, rate=10, seconds=3.0)
    flood.join()
    assert answers.statuses.get(200, 0) >= 0.9 * sum(answers.statuses.values())
    assert metric(single, 'headrace_requests_shed_total{priority="bulk"}') > 0

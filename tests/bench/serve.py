"""`headrace bench serve`: how fast recommendations are at a size, and where the time goes.

A simulated shop (tests/bench/serve_world.py), the real API in processes of its own, and load from this process, on the
same machine. Beside the latency stand the kernels' own times: what the feature read, the user encoder, Faiss, the
ranker and JSON cost alone, one after the other on one thread, so that everything between them shows. CPU milliseconds
a request are the server's alone: on a machine that does other things too they tell more than the clock.
"""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psutil

from infra.settings import Settings
from tests.bench.serve_load import Measured, closed_loop, open_loop, post

ROOT = Path(__file__).parents[2]
BODIES = 2_000
START_SECONDS = 180.0
FILTER = "price < 20 and category in ['line-1', 'line-2', 'line-3', 'line-5', 'line-8'] or price >= 20"
RULES = {
    "rules": [
        {"kind": "boost", "when": "category == 'line-3'", "factor": 1.2},
        {"kind": "quota", "field": "category", "most": 5},
        {"kind": "bought", "days": 7},
        {"kind": "rotate", "hours": 24, "factor": 0.8},
    ],
    "diversity": {"weight": 0.2},
}


def run(
    *, items: int, width: int, candidates: int, rate: float | None, clients: int | None, seconds: float, workers: int,
    folder: Path | None, as_json: bool, say: Callable[[str], None],
) -> None:  # fmt: skip
    """Build, serve, load, and tell: one JSON line, or a table for people."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tests.bench import serve_world

        base = folder or Path(tempfile.gettempdir()) / "headrace-bench"
        settings = Settings(data_dir=base / f"{items}x{width}", candidates_per_source=max(1, candidates // 3))
        logging.disable(logging.INFO)
        serve_world.build(settings, items=items, width=width, say=(lambda text: None) if as_json else say)
        kind, recall = serve_world.index_recall(settings)
    bodies = make_bodies(items, seed=7)
    requests = [post("/v1/recommend", body) for body in bodies]
    port = _free_port()
    server = _serve(settings, port, workers=workers)
    try:
        _wait(server, port)
        _put(port, "/v1/rules/home", RULES)
        closed_loop(port, requests, clients=4, seconds=1)
        cpu = _cpu_seconds(server.pid)
        if rate is not None:
            measured = open_loop(port, requests, rate=rate, seconds=seconds)
        else:
            measured = closed_loop(port, requests, clients=clients or 1, seconds=seconds)
        cpu = _cpu_seconds(server.pid) - cpu
        memory = _memory(server.pid)
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            server.kill()
    from tests.bench.serve_kernels import kernels

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone, path_ms, drawn = kernels(settings, bodies, rules=RULES)
    total = sum(alone.values())
    result = {
        "items": items, "dim": width, "candidates": drawn, "index": kind, "index_recall": round(recall, 4),
        "load": f"{rate:g} requests/s" if rate is not None else f"{clients or 1} clients", "workers": workers,
        "requests_per_s": round(measured.per_second, 1), "p50_ms": _ms(measured, 0.5), "p99_ms": _ms(measured, 0.99),
        "errors": measured.errors, "cpu_ms_per_request": round(cpu * 1000 / max(1, len(measured.ms)), 3),
        "path_ms": round(path_ms, 3), "kernels_ms": {name: round(value, 3) for name, value in alone.items()},
        "kernels_sum_ms": round(total, 3), "path_over_kernels": round(path_ms / total, 2),
        "memory_mib_per_worker": memory, "load_average": round(os.getloadavg()[0], 1),
    }  # fmt: skip
    if as_json:
        say(json.dumps(result))
    else:
        _table(result, say)


def make_bodies(items: int, *, seed: int) -> list[bytes]:
    """Requests of visitors: most are known, some are sessions, some strangers; a third of them with a filter."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(BODIES):
        body: dict[str, Any] = {"surface": "home", "n": 20}
        who = rng.random()
        if who < 0.75:
            body["user_id"] = f"user-{rng.integers(0, 5_000)}"
        elif who < 0.95 and items:
            looked = [f"item-{place:07d}" for place in rng.integers(0, items, 5)]
            body["session"] = {"session_id": f"s-{number}", "items": looked}
        if rng.random() < 1 / 3:
            body["filter"] = FILTER
        if rng.random() < 0.2 and items:
            body["exclude"] = [f"item-{place:07d}" for place in rng.integers(0, items, 5)]
        made.append(orjson.dumps(body))
    return made


def _ms(measured: Measured, share: float) -> float | None:
    return round(measured.percentile(share), 2) if measured.ms else None


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _serve(settings: Settings, port: int, *, workers: int) -> "subprocess.Popen[bytes]":
    environment = {
        **os.environ, "HEADRACE_DATA_DIR": str(settings.data_dir), "HEADRACE_PORT": str(port),
        "HEADRACE_API_WORKERS": str(workers), "HEADRACE_CANDIDATES_PER_SOURCE": str(settings.candidates_per_source),
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    with (settings.data_dir / "serve.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "infra.cli", "serve"], env=environment, stdout=log, stderr=log, cwd=ROOT
        )


def _wait(server: "subprocess.Popen[bytes]", port: int) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (OSError, urllib.error.HTTPError):
            time.sleep(0.2)
    raise SystemExit("the server did not become ready; see serve.log in the folder of the bench")


def _put(port: int, path: str, body: object) -> None:
    address = f"http://127.0.0.1:{port}{path}"
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(address, orjson.dumps(body), headers, method="PUT")
    with urllib.request.urlopen(request, timeout=10):  # noqa: S310
        time.sleep(1.5)  # every worker follows the log


def _family(pid: int) -> list[psutil.Process]:
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def _cpu_seconds(pid: int) -> float:
    return sum(one.cpu_times().user + one.cpu_times().system for one in _family(pid))


def _memory(pid: int) -> dict[str, float]:
    """MiB of the largest process: resident, and of that what no other process has."""
    full = max((one.memory_full_info() for one in _family(pid)), key=lambda info: info.rss)
    return {"resident": round(full.rss / 2**20, 1), "own": round(full.uss / 2**20, 1)}


def _table(result: dict[str, Any], say: Callable[[str], None]) -> None:
    say("A simulated shop (random vectors in clusters, random model weights): for load, not for quality.")
    for name, value in result.items():
        if not isinstance(value, dict):
            say(f"  {name:22} {value}")
    for group in ("kernels_ms", "memory_mib_per_worker"):
        say(f"  {group}")
        for name, value in result[group].items():
            say(f"    {name:20} {value}")

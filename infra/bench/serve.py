"""`headrace bench serve`: measures latency and throughput of recommendations at a size, and where the time goes.

A simulated shop (infra/bench/serve_data.py) is served by the real API in processes of its own, under load from this
process on the same machine. Beside the latency stand the times of the kernels: feature read, user encoder, Faiss,
ranker and JSON, on one thread and without HTTP; what the whole path costs beyond their sum is overhead. CPU
milliseconds a request are the server's alone: on a machine that also does other work they say more than the clock.
"""

import gc
import logging
import os
import tempfile
import time
import urllib.request
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psutil

from infra.bench.load import closed_loop, open_loop, post
from infra.bench.servers import api
from infra.local.ports import free_port
from infra.settings import Settings

BODIES = 2_000
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
    *,
    items: int,
    width: int,
    candidates: int,
    rate: float | None,
    clients: int | None,
    seconds: float,
    workers: int,
    folder: Path | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Builds the shop, serves it under load, and returns the result as plain data.

    With `rate` the load is an open loop of so many requests a second, otherwise a closed loop of `clients`.
    """
    base = folder or Path(tempfile.gettempdir()) / "headrace-bench"
    settings = Settings(
        data_dir=base.absolute() / f"{items}x{width}",
        candidates_per_source=max(1, candidates // 3),
        api_workers=workers,
        port=free_port(),
        log_level="ERROR",
    )
    logging.disable(logging.INFO)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from infra.bench import serve_data

        serve_data.build(settings, items=items, width=width, say=say)
    kind, recall = serve_data.index_recall(settings)
    bodies = make_bodies(items, seed=7)
    requests = [post("/v1/recommend", body) for body in bodies]
    with api(settings) as server:
        _put(settings.port, "/v1/rules/home", RULES)
        closed_loop(settings.port, requests, clients=4, seconds=1)
        cpu = _cpu_seconds(server)
        if rate is not None:
            measured = open_loop(settings.port, requests, rate=rate, seconds=seconds)
        else:
            measured = closed_loop(settings.port, requests, clients=clients or 1, seconds=seconds)
        cpu = _cpu_seconds(server) - cpu
        memory = _memory(server)
    from apps.main import YOUNG_OBJECTS
    from apps.wiring import Services
    from infra.bench.serve_kernels import filtered, kernels

    gc.set_threshold(YOUNG_OBJECTS)  # as workers of the API do

    services = Services(settings)
    services.poll_release()
    services.rules.renew()
    assert services.releases.recommender is not None
    filters = filtered(services.releases.recommender)
    parts, path_ms, ranked = kernels(services, bodies)
    services.impressions.stop()
    total = sum(parts.values())
    return {
        "items": items,
        "dim": width,
        "candidates": ranked,
        "index": kind,
        "index_recall": round(recall, 4),
        "load": f"{rate:g} requests/s" if rate is not None else f"{clients or 1} clients",
        "workers": workers,
        "requests_per_s": round(measured.per_second, 1),
        "p50_ms": round(measured.percentile(0.5), 2),
        "p99_ms": round(measured.percentile(0.99), 2),
        "errors": measured.errors,
        "cpu_ms_per_request": round(cpu * 1000 / max(1, measured.sent), 3),
        "path_cpu_ms": round(path_ms, 3),
        "kernels_cpu_ms": {name: round(value, 3) for name, value in parts.items()},
        "kernels_sum_cpu_ms": round(total, 3),
        "path_over_kernels": round(path_ms / total, 2),
        "filters": filters,
        "memory_mib_per_worker": memory,
        "load_average": round(os.getloadavg()[0], 1),
    }


def make_bodies(items: int, *, seed: int) -> list[bytes]:
    """Returns bodies of requests: 75 % known users, 20 % sessions, 5 % nobody; a third of them with a filter."""
    rng = np.random.default_rng(seed)

    def some_items() -> list[str]:
        return [f"item-{item:07d}" for item in rng.integers(0, items, 5)]

    bodies = []
    for number in range(BODIES):
        body: dict[str, Any] = {"surface": "home", "n": 20}
        visitor = rng.random()
        if visitor < 0.75:
            body["user_id"] = f"user-{rng.integers(0, 5_000)}"
        elif visitor < 0.95 and items:
            body["session"] = {"session_id": f"s-{number}", "items": some_items()}
        if rng.random() < 1 / 3:
            body["filter"] = FILTER
        if rng.random() < 0.2 and items:
            body["exclude"] = some_items()
        bodies.append(orjson.dumps(body))
    return bodies


def _put(port: int, path: str, body: object) -> None:
    address = f"http://127.0.0.1:{port}{path}"
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(address, orjson.dumps(body), headers, method="PUT")
    with urllib.request.urlopen(request, timeout=10):  # noqa: S310
        time.sleep(1.5)  # until every worker has read it from the log


def _family(server: psutil.Process) -> list[psutil.Process]:
    return [server, *server.children(recursive=True)]


def _cpu_seconds(server: psutil.Process) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in _family(server))


def _memory(server: psutil.Process) -> dict[str, float]:
    """Returns MiB of the largest process: resident, and the part that it shares with no other process."""
    full = max((process.memory_full_info() for process in _family(server)), key=lambda info: info.rss)
    return {"resident": round(full.rss / 2**20, 1), "own": round(full.uss / 2**20, 1)}

"""`headrace bench serve`: how fast recommendations are at a size, and where the time goes.

A simulated shop (infra/bench/serve_data.py), the real API in processes of its own, and load from this process, on the
same machine. Beside the latency stand the kernels' own times: what the feature read, the user encoder, Faiss, the
ranker and JSON cost of the whole path, on one thread and without HTTP, so that everything between them shows. CPU
milliseconds a request are the server's alone: on a machine that does other things too they tell more than the clock.
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
    """Build, serve, load, and tell. Open loop with `rate`, else a closed one of `clients`."""
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

    gc.set_threshold(YOUNG_OBJECTS)  # as a worker of the API does

    services = Services(settings)
    services.poll_release()
    services.rules.renew()
    assert services.releases.recommender is not None
    filters = filtered(services.releases.recommender)
    parts, path_ms, drawn = kernels(services, bodies)
    services.impressions.stop()
    total = sum(parts.values())
    return {
        "items": items,
        "dim": width,
        "candidates": drawn,
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


def _put(port: int, path: str, body: object) -> None:
    address = f"http://127.0.0.1:{port}{path}"
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(address, orjson.dumps(body), headers, method="PUT")
    with urllib.request.urlopen(request, timeout=10):  # noqa: S310
        time.sleep(1.5)  # every worker follows the log


def _family(server: psutil.Process) -> list[psutil.Process]:
    return [server, *server.children(recursive=True)]


def _cpu_seconds(server: psutil.Process) -> float:
    return sum(one.cpu_times().user + one.cpu_times().system for one in _family(server))


def _memory(server: psutil.Process) -> dict[str, float]:
    """MiB of the largest process: resident, and of that what no other process has."""
    full = max((one.memory_full_info() for one in _family(server)), key=lambda info: info.rss)
    return {"resident": round(full.rss / 2**20, 1), "own": round(full.uss / 2**20, 1)}

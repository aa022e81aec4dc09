"""The API as its own process, for tests that talk to it over HTTP, stop it, kill it or send it load."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from features.store.feature_store import open_store
from infra.bench import load
from infra.bench.sample_release import publish_release
from infra.local import processes
from infra.local.ports import free_port
from infra.settings import Settings

ROOT = Path(__file__).parents[2]
ASK = {"session": {"session_id": "s-1", "items": ["item-3", "item-5"]}, "n": 10}
VISITORS = 512
"""Connections of an open loop: visitors share no pool, so that the server meets every request that is due."""


@dataclass
class Server:
    """`headrace serve` and its workers."""

    settings: Settings
    port: int
    process: subprocess.Popen[bytes]
    output: Path

    def call(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, dict[str, str], Any]:
        """Sends a request over a connection of its own; returns (status, headers, JSON or text)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"Content-Type": "application/json", **headers})
            answer = connection.getresponse()
            text = answer.read().decode()
            fields = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, fields, json.loads(text) if "json" in fields.get("content-type", "") else text

    def workers(self) -> list[int]:
        """Returns the process ids of the living workers, of a server that has several."""
        pids = []
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.Error):  # it died a moment ago
                pids += [child.pid] if "spawn_main" in " ".join(child.cmdline()) else []
        return pids

    def kill(self) -> None:
        """Kills it and its workers as a power cut would, without a chance to tidy up."""
        server = psutil.Process(self.process.pid)
        for process in [server, *server.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(10)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@contextlib.contextmanager
def serving(folder: Path, **more: object) -> Iterator[Server]:
    """Serves a small release from `folder`; further settings as keywords."""
    settings = Settings(data_dir=folder, **more)  # type: ignore[arg-type]
    if not (settings.releases_dir / "current").exists():
        publish_release(settings.releases_dir, "v1")
        open_store(settings)
    port, output = free_port(), folder / "serve.log"
    environment = {
        **os.environ,
        **{f"HEADRACE_{name.upper()}": str(value) for name, value in more.items()},
        "HEADRACE_DATA_DIR": str(folder),
        "HEADRACE_PORT": str(port),
        "PYTHONPATH": str(ROOT),
    }
    with output.open("ab") as log:
        process = subprocess.Popen(processes.command("serve"), env=environment, stdout=log, stderr=log, cwd=ROOT)
    server = Server(settings, port, process, output)
    try:
        wait_until(lambda: process.poll() is not None or ready(server), seconds=60)
        assert process.poll() is None, output.read_text()[-3000:]
        yield server
    finally:
        if process.poll() is None:
            server.kill()


def metric(server: Server, name: str) -> float:
    """Returns the sum of the samples whose lines begin with `name`."""
    text: str = server.call("GET", "/metrics")[2]
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


def ready(server: Server) -> bool:
    try:
        return server.call("GET", "/readyz")[0] == 200
    except OSError:
        return False


def wait_until(check: Callable[[], object], *, seconds: float = 20) -> None:
    assert processes.wait_until(check, seconds=seconds, pause=0.05), f"it did not come about within {seconds:g} s"


def closed_loop(port: int, path: str, body: object, *, clients: int, seconds: float) -> float:
    """Returns the answers a second to `clients` that each send again as soon as they are answered."""
    requests = [load.post(path, json.dumps(body).encode())]
    return load.closed_loop(port, requests, clients=clients, seconds=seconds, warm_seconds=0).per_second


def open_loop(port: int, path: str, body: object, *, rate: float, seconds: float) -> load.Measured:
    """Sends `rate` requests a second whatever the server does."""
    requests = [load.post(path, json.dumps(body).encode())]
    return load.open_loop(port, requests, rate=rate, seconds=seconds, warm_seconds=0, connections=VISITORS)

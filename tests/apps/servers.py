"""The API as its own process, and a client whose load does not wait for the answers."""

import asyncio
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from features.store.feature_store import open_store
from infra.bench.sample_release import publish_release
from infra.local.ports import free_port
from infra.settings import Settings

ROOT = Path(__file__).parents[2]
ASK = {"session": {"session_id": "s-1", "items": ["item-3", "item-5"]}, "n": 10}


@dataclass
class Server:
    """`headrace serve` and its workers."""

    settings: Settings
    port: int
    process: subprocess.Popen[bytes]
    output: Path

    def call(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, dict[str, str], Any]:
        """(status, headers, JSON or text) over a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"Content-Type": "application/json", **headers})
            answer = connection.getresponse()
            text = answer.read().decode()
            told = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, told, json.loads(text) if "json" in told.get("content-type", "") else text

    def workers(self) -> list[int]:
        """Process ids of the living workers, of a server that has several."""
        found = []
        for one in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.Error):  # it died a moment ago
                found += [one.pid] if "spawn_main" in " ".join(one.cmdline()) else []
        return found

    def kill(self) -> None:
        """As a power cut would: nobody gets to tidy up."""
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        self.process.wait(10)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@contextlib.contextmanager
def serving(folder: Path, **more: object) -> Iterator[Server]:
    """A server over `folder`, with a small release; settings as keywords."""
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
        process = subprocess.Popen(
            [sys.executable, "-m", "infra.cli", "serve"], env=environment, stdout=log, stderr=log, cwd=ROOT
        )
    server = Server(settings, port, process, output)
    try:
        wait_until(lambda: process.poll() is not None or ready(server), seconds=60)
        assert process.poll() is None, output.read_text()[-3000:]
        yield server
    finally:
        if process.poll() is None:
            server.kill()


def ready(server: Server) -> bool:
    try:
        return server.call("GET", "/readyz")[0] == 200
    except OSError:
        return False


def wait_until(check: Any, *, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.05)


@dataclass
class Answers:
    """What a load met. Milliseconds count from the moment a request was to be sent, so that whatever it waits
    for counts: a connection, its turn in the kernel, the client itself, of which `late_ms` is the most."""

    accepted_ms: list[float] = field(default_factory=list)
    refused_ms: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    late_ms: float = 0.0
    without_retry_after: int = 0
    failed: int = 0

    def percentile(self, share: float) -> float:
        return sorted(self.accepted_ms)[int(share * (len(self.accepted_ms) - 1))]


class Client:
    """Keep-alive connections to one server, as many as are needed at once."""

    def __init__(self, port: int, path: str, body: object) -> None:
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
        self._request = head.encode() + b"\r\n\r\n" + content
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def send(self, answers: Answers, intended: float) -> None:
        loop = asyncio.get_running_loop()
        answers.late_ms = max(answers.late_ms, (loop.time() - intended) * 1000)
        try:
            reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._port)
            writer.write(self._request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError):
            answers.failed += 1
            return
        self._idle.append((reader, writer))
        took = (loop.time() - intended) * 1000
        status = int(head.split(b" ")[1])
        answers.statuses[status] = answers.statuses.get(status, 0) + 1
        (answers.accepted_ms if status == 200 else answers.refused_ms).append(took)
        answers.without_retry_after += status == 503 and b"retry-after:" not in head

    async def close(self) -> None:
        for _, writer in self._idle:
            writer.close()


def closed_loop(port: int, path: str, body: object, *, clients: int, seconds: float) -> float:
    """Answers a second to `clients` that each send again as soon as they are answered."""

    async def go() -> int:
        client, answers = Client(port, path, body), Answers()
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds

        async def one() -> None:
            while loop.time() < end:
                await client.send(answers, loop.time())

        await asyncio.gather(*(one() for _ in range(clients)))
        await client.close()
        return len(answers.accepted_ms)

    return asyncio.run(go()) / seconds


def open_loop(port: int, path: str, body: object, *, rate: float, seconds: float) -> Answers:
    """`rate` requests a second whatever the server does."""

    async def go() -> Answers:
        client, answers = Client(port, path, body), Answers()
        loop = asyncio.get_running_loop()
        start, tasks = loop.time() + 0.1, []
        for number in range(int(rate * seconds)):
            intended = start + number / rate
            if (pause := intended - loop.time()) > 0:
                await asyncio.sleep(pause)
            tasks.append(asyncio.create_task(client.send(answers, intended)))
        await asyncio.gather(*tasks)
        await client.close()
        return answers

    return asyncio.run(go())

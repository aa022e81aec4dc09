"""Sends load to one HTTP server over keep-alive connections, with a client that leaves the processors to the server.

Open loop: requests leave at intended moments whatever the server does, and latency counts from the intended moment, so
that a server that stalls cannot hide it. Closed loop: a number of clients that each send again as soon as they are
answered. Reads status, Retry-After and length of an answer, and ignores what it contains.
"""

import asyncio
import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import uvloop

CONNECTIONS = 64
"""Connections of an open loop: as many as the connection pool of a site may have."""
WARM_SECONDS = 1.0
TIMEOUT_SECONDS = 20.0


@dataclass
class Measured:
    """What a load measured. Only `statuses` and `without_retry_after` count the warm-up too."""

    ms: list[float] = field(default_factory=list)
    """Milliseconds of the requests that were answered with 200."""
    seconds: float = 0.0
    """From the end of the warm-up to the last of these answers."""
    statuses: Counter[int] = field(default_factory=Counter)
    """Answers by status; 0 counts requests whose connection broke."""
    without_retry_after: int = 0
    """Answers with 503 that lack the header Retry-After."""
    late_ms: float = 0.0
    """How late the client itself was with a request of an open loop, at most."""

    def percentile(self, share: float) -> float:
        return float(np.percentile(self.ms, share * 100)) if self.ms else float("nan")

    @property
    def per_second(self) -> float:
        return len(self.ms) / self.seconds if self.seconds else 0.0

    @property
    def sent(self) -> int:
        return self.statuses.total()

    @property
    def failed(self) -> int:
        """Requests whose connection broke."""
        return self.statuses[0]

    @property
    def errors(self) -> int:
        """Answers other than 200, and connections that broke."""
        return self.sent - self.statuses[200]


def post(path: str, body: bytes) -> bytes:
    """Returns the bytes of a POST request with a JSON body."""
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


class _Connection(asyncio.Protocol):
    """Sends one request at a time and calls `answered` with the status, or with 0 when the connection broke.

    It creates no task and no future for a request, so that the client takes little of the machine.
    """

    def __init__(self, answered: Callable[["_Connection", int], None]) -> None:
        self._answered = answered
        self._transport: Any = None
        self._buffer = b""
        self._waits = False
        self.broken = False
        self.retry_after = False
        """Whether the last refusal had the header Retry-After."""
        self.sent = 0.0
        """When the current request left, or should have left."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self.broken = True
        self._finish(0)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].lower() + b"\r\n"
        length = head.find(b"content-length:") + 15
        if len(self._buffer) - end - 4 >= int(head[length : head.find(b"\r\n", length)]):
            status, self._buffer = int(head[9:12]), b""
            self.retry_after = b"\r\nretry-after:" in head
            self._finish(status)

    def _finish(self, status: int) -> None:
        if self._waits:
            self._waits = False
            self._answered(self, status)

    def ask(self, request: bytes, *, sent: float) -> None:
        self._waits, self.sent = True, sent
        if self.broken:
            self._finish(0)
        else:
            self._transport.write(request)

    def close(self) -> None:
        self._transport.close()


def _record(measured: Measured, connection: _Connection, status: int, *, begin: float) -> float:
    """Adds an answer, whose latency counts when its request was sent at `begin` or later. Returns the time now."""
    now = time.perf_counter()
    measured.statuses[status] += 1
    if status == 200 and connection.sent >= begin:
        measured.ms.append((now - connection.sent) * 1000)
        measured.seconds = now - begin
    measured.without_retry_after += status == 503 and not connection.retry_after
    return now


async def _connect(port: int, count: int, answered: Callable[[_Connection, int], None]) -> list[_Connection]:
    loop = asyncio.get_running_loop()
    pairs = [await loop.create_connection(lambda: _Connection(answered), "127.0.0.1", port) for _ in range(count)]
    return [connection for _, connection in pairs]


def closed_loop(
    port: int, requests: Sequence[bytes], *, clients: int, seconds: float, warm_seconds: float = WARM_SECONDS
) -> Measured:
    """Sends with `clients` that each send again as soon as they are answered; the warm-up comes before `seconds`."""

    async def go() -> Measured:
        measured, turns = Measured(), itertools.cycle(requests)
        done, running = asyncio.Event(), clients

        def answered(connection: _Connection, status: int) -> None:
            nonlocal running
            now = _record(measured, connection, status, begin=begin)
            if now < end and not connection.broken:
                connection.ask(next(turns), sent=now)
                return
            running -= 1
            if not running:
                done.set()

        connections = await _connect(port, clients, answered)
        begin = time.perf_counter() + warm_seconds
        end = begin + seconds
        for connection in connections:
            connection.ask(next(turns), sent=time.perf_counter())
        await asyncio.wait_for(done.wait(), warm_seconds + seconds + TIMEOUT_SECONDS)
        for connection in connections:
            connection.close()
        return measured

    return uvloop.run(go())


def open_loop(
    port: int,
    requests: Sequence[bytes],
    *,
    rate: float,
    seconds: float,
    warm_seconds: float = WARM_SECONDS,
    connections: int = CONNECTIONS,
) -> Measured:
    """Sends `rate` requests a second, evenly, over `connections`; the warm-up comes before `seconds`."""

    async def go() -> Measured:
        measured, count = Measured(), int(rate * (seconds + warm_seconds))
        waiting, idle, done = deque[int](), list[_Connection](), asyncio.Event()

        def send(connection: _Connection, number: int) -> None:
            connection.ask(requests[number % len(requests)], sent=start + number / rate)

        def answered(connection: _Connection, status: int) -> None:
            _record(measured, connection, status, begin=start + warm_seconds)
            if measured.sent == count:
                done.set()
            elif waiting:
                send(connection, waiting.popleft())
            else:
                idle.append(connection)

        opened = await _connect(port, connections, answered)
        idle += opened
        start = time.perf_counter() + 0.05
        for number in range(count):
            if (pause := start + number / rate - time.perf_counter()) > 0:
                await asyncio.sleep(pause)
            else:
                measured.late_ms = max(measured.late_ms, -pause * 1000)
            if idle:
                send(idle.pop(), number)
            else:
                waiting.append(number)
        await asyncio.wait_for(done.wait(), TIMEOUT_SECONDS)
        for connection in opened:
            connection.close()
        return measured

    return uvloop.run(go())

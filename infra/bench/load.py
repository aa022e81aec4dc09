"""Load on one HTTP server over keep-alive connections, by a client that takes little of the machine.

Open loop: requests leave at intended moments whatever the server does, and latency counts from the intended moment, so
that a server that stalls cannot hide it. Closed loop: some clients that each ask again once they are answered. Knows
nothing of what the answers say but their status.
"""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import uvloop

CONNECTIONS = 64
"""Of an open loop: as many as a site's connection pool may have."""
WARM_SECONDS = 1.0
TIMEOUT_SECONDS = 20.0


@dataclass
class Measured:
    """What a load met; milliseconds of the requests that were answered with 200."""

    ms: list[float] = field(default_factory=list)
    errors: int = 0
    """Answers other than 200, and connections that broke, in the warm-up too."""
    seconds: float = 0.0
    sent: int = 0
    """All requests, those of the warm-up too."""

    def percentile(self, share: float) -> float:
        return float(np.percentile(self.ms, share * 100)) if self.ms else float("nan")

    @property
    def per_second(self) -> float:
        return len(self.ms) / self.seconds if self.seconds else 0.0


def post(path: str, body: bytes) -> bytes:
    """The bytes of a request."""
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


class _Connection(asyncio.Protocol):
    """One request at a time; `answered` is told of the status, 0 when the connection broke meanwhile. No task and no
    future a request: the client shall leave the processors to the server."""

    def __init__(self, answered: Callable[["_Connection", int], None]) -> None:
        self._answered = answered
        self._transport: Any = None
        self._buffer = b""
        self._waits = False
        self.broken = False
        self.sent = 0.0
        """When the request that is under way left, or should have left."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self.broken = True
        self._finish(0)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        at = self._buffer.lower().find(b"content-length:", 0, head)
        end = self._buffer.find(b"\r\n", at)
        if len(self._buffer) - head - 4 >= int(self._buffer[at + 15 : end]):
            status, self._buffer = int(self._buffer[9:12]), b""
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


async def _connect(port: int, count: int, answered: Callable[[_Connection, int], None]) -> list[_Connection]:
    loop = asyncio.get_running_loop()
    made = [await loop.create_connection(lambda: _Connection(answered), "127.0.0.1", port) for _ in range(count)]
    return [connection for _, connection in made]


def closed_loop(port: int, requests: Sequence[bytes], *, clients: int, seconds: float) -> Measured:
    """`clients` that each send again as soon as they are answered; the first WARM_SECONDS do not count."""

    async def go() -> Measured:
        measured, turns = Measured(), itertools.cycle(requests)
        done, going = asyncio.Event(), clients

        def answered(connection: _Connection, status: int) -> None:
            nonlocal going
            now = time.perf_counter()
            measured.sent += 1
            measured.errors += status != 200
            if status == 200 and connection.sent >= begin:
                measured.ms.append((now - connection.sent) * 1000)
                measured.seconds = now - begin
            if now < end and not connection.broken:
                connection.ask(next(turns), sent=now)
                return
            going -= 1
            if not going:
                done.set()

        connections = await _connect(port, clients, answered)
        begin = time.perf_counter() + WARM_SECONDS
        end = begin + seconds
        for connection in connections:
            connection.ask(next(turns), sent=time.perf_counter())
        await asyncio.wait_for(done.wait(), WARM_SECONDS + seconds + TIMEOUT_SECONDS)
        for connection in connections:
            connection.close()
        return measured

    return uvloop.run(go())


def open_loop(port: int, requests: Sequence[bytes], *, rate: float, seconds: float) -> Measured:  # noqa: C901
    """`rate` requests a second, evenly; the first WARM_SECONDS of them do not count."""

    async def go() -> Measured:
        measured, count = Measured(), int(rate * (seconds + WARM_SECONDS))
        waiting, idle, done = deque[int](), list[_Connection](), asyncio.Event()

        def send(connection: _Connection, number: int) -> None:
            connection.ask(requests[number % len(requests)], sent=start + number / rate)

        def answered(connection: _Connection, status: int) -> None:
            now = time.perf_counter()
            measured.sent += 1
            measured.errors += status != 200
            if status == 200 and connection.sent >= start + WARM_SECONDS:
                measured.ms.append((now - connection.sent) * 1000)
                measured.seconds = now - start - WARM_SECONDS
            if measured.sent == count:
                done.set()
            elif waiting:
                send(connection, waiting.popleft())
            else:
                idle.append(connection)

        idle += await _connect(port, CONNECTIONS, answered)
        connections, start = list(idle), time.perf_counter() + 0.05
        for number in range(count):
            if (pause := start + number / rate - time.perf_counter()) > 0:
                await asyncio.sleep(pause)
            if idle:
                send(idle.pop(), number)
            else:
                waiting.append(number)
        await asyncio.wait_for(done.wait(), TIMEOUT_SECONDS)
        for connection in connections:
            connection.close()
        return measured

    return uvloop.run(go())

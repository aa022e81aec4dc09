"""Load on one HTTP server over keep-alive connections, by a client that takes little of the machine.

Open loop: requests leave at intended moments whatever the server does, and latency counts from the intended moment, so
that a server that stalls cannot hide it. Closed loop: some clients that each ask again once they are answered. Knows
nothing of what the answers say but their status.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
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
    """One request at a time; `ask` gives the status, 0 when the connection broke."""

    def __init__(self) -> None:
        self._transport: Any = None
        self._answer: asyncio.Future[int] | None = None
        self._buffer = b""
        self.broken = False

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
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(status)

    def ask(self, request: bytes) -> "asyncio.Future[int]":
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        if self.broken:
            self._finish(0)
        else:
            self._transport.write(request)
        return self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


async def _connect(port: int, count: int) -> list[_Connection]:
    loop = asyncio.get_running_loop()
    made = [await loop.create_connection(_Connection, "127.0.0.1", port) for _ in range(count)]
    return [connection for _, connection in made]


def closed_loop(port: int, requests: Sequence[bytes], *, clients: int, seconds: float) -> Measured:
    """`clients` that each send again as soon as they are answered; the first WARM_SECONDS do not count."""

    async def go() -> Measured:
        measured = Measured()
        connections = await _connect(port, clients)
        begin = time.perf_counter() + WARM_SECONDS
        end = begin + seconds

        async def one(connection: _Connection, place: int) -> None:
            while (sent := time.perf_counter()) < end and not connection.broken:
                status = await asyncio.wait_for(connection.ask(requests[place % len(requests)]), TIMEOUT_SECONDS)
                place += clients
                measured.sent += 1
                if sent >= begin:
                    measured.errors += status != 200
                    if status == 200:
                        measured.ms.append((time.perf_counter() - sent) * 1000)
                    measured.seconds = time.perf_counter() - begin

        await asyncio.gather(*(one(connection, place) for place, connection in enumerate(connections)))
        for connection in connections:
            connection.close()
        return measured

    return uvloop.run(go())


def open_loop(port: int, requests: Sequence[bytes], *, rate: float, seconds: float) -> Measured:  # noqa: C901
    """`rate` requests a second, evenly; the first WARM_SECONDS of them do not count."""

    async def go() -> Measured:
        loop, measured = asyncio.get_running_loop(), Measured()
        idle = deque(await _connect(port, CONNECTIONS))
        freed: deque[asyncio.Future[None]] = deque()
        start = time.perf_counter() + 0.05

        async def one(number: int) -> None:
            intended = start + number / rate
            while not idle:
                turn: asyncio.Future[None] = loop.create_future()
                freed.append(turn)
                await turn
            connection = idle.pop()
            status = await asyncio.wait_for(connection.ask(requests[number % len(requests)]), TIMEOUT_SECONDS)
            if connection.broken:
                connection = (await _connect(port, 1))[0]
            idle.append(connection)
            if freed:
                freed.popleft().set_result(None)
            if intended >= start + WARM_SECONDS:
                measured.errors += status != 200
                if status == 200:
                    measured.ms.append((time.perf_counter() - intended) * 1000)

        tasks = []
        for number in range(int(rate * (seconds + WARM_SECONDS))):
            if (pause := start + number / rate - time.perf_counter()) > 0:
                await asyncio.sleep(pause)
            tasks.append(asyncio.create_task(one(number)))
        await asyncio.gather(*tasks)
        measured.seconds = time.perf_counter() - start - WARM_SECONDS
        measured.sent = len(tasks)
        for connection in idle:
            connection.close()
        return measured

    return uvloop.run(go())

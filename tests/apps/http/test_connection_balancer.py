"""Connections go to the worker that has fewest, and nobody is let in when there is none."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest

from apps.http.connection_balancer import Doorman, Loop, Seat
from apps.http.server import PortError, listen
from infra.local.ports import free_port


@dataclass
class Worker:
    """A seat, and how many connections it has."""

    seat: Seat
    connections: set[asyncio.BaseTransport] = field(default_factory=set)

    def protocol(self) -> asyncio.Protocol:
        worker = self

        class Noted(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                self.transport = transport
                worker.connections.add(transport)

            def data_received(self, data: bytes) -> None:
                self.transport.write(data.upper())  # type: ignore[attr-defined]

            def connection_lost(self, error: Exception | None) -> None:
                worker.connections.discard(self.transport)

        return Noted()


@dataclass
class House:
    port: int
    doorman: Doorman
    loop: asyncio.AbstractEventLoop
    workers: list[Worker] = field(default_factory=list)
    clients: list[asyncio.StreamWriter] = field(default_factory=list)

    async def join(self) -> Worker:
        build, arguments = self.doorman.__reduce__()
        worker = Worker(build(*arguments))
        await self.loop.create_server(worker.protocol, sock=worker.seat)  # type: ignore[call-overload]
        self.workers.append(worker)
        return worker

    async def connect(self, count: int) -> None:
        for _ in range(count):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(b"who")
            assert await reader.read(3) == b"WHO"
            self.clients.append(writer)

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not holds():
                await asyncio.sleep(0.01)

    def counts(self) -> list[int]:
        return [len(worker.connections) for worker in self.workers]


@contextlib.asynccontextmanager
async def house(workers: int) -> AsyncIterator[House]:
    port = free_port()
    made = House(port, Doorman(listen("127.0.0.1", port)), asyncio.get_running_loop())
    made.doorman.start()
    for _ in range(workers):
        await made.join()
    await asyncio.sleep(0.1)  # the last worker is greeted
    try:
        yield made
    finally:
        for client in made.clients:
            client.close()
        for worker in made.workers:
            worker.seat.close()
        made.doorman.close()
        await asyncio.sleep(0.05)


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def run(story: Callable[[], object]) -> None:
    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(story())  # type: ignore[arg-type]


def test_connections_are_divided_evenly() -> None:
    async def story() -> None:
        async with house(3) as one:
            await one.connect(12)
            assert one.counts() == [4, 4, 4]

    run(story)


def test_who_lost_connections_gets_the_next_ones() -> None:
    async def story() -> None:
        async with house(2) as one:
            await one.connect(8)
            for transport in list(one.workers[1].connections)[:3]:
                transport.close()
            await one.until(lambda: one.counts() == [4, 1])
            await asyncio.sleep(0.1)  # the doorman hears of it
            await one.connect(3)
            assert one.counts() == [4, 4]

    run(story)


def test_a_worker_that_leaves_gets_no_more_and_the_one_after_it_catches_up() -> None:
    async def story() -> None:
        async with house(2) as one:
            await one.connect(4)
            one.workers[0].seat.close()
            await asyncio.sleep(0.1)
            await one.connect(2)
            assert one.counts() == [2, 4]
            third = await one.join()
            await asyncio.sleep(0.1)
            await one.connect(4)
            assert len(third.connections) == 4

    run(story)


def test_whoever_comes_too_early_is_answered_and_refused_once_all_have_left() -> None:
    async def story() -> None:
        async with house(0) as one:
            early = asyncio.create_task(one.connect(2))
            await asyncio.sleep(0.1)
            worker = await one.join()
            await early
            assert one.counts() == [2]
            worker.seat.close()
            await one.until(lambda: not is_open(one.port))
            await one.join()
            await one.until(lambda: is_open(one.port))
            await one.connect(2)

    run(story)


def test_the_port_of_another_is_not_taken() -> None:
    port = free_port()
    with (
        listen("127.0.0.1", port),
        pytest.raises(PortError, match=f"port {port}: Address already in use.*HEADRACE_PORT"),
    ):
        listen("127.0.0.1", port)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_of_the_machine_gets_no_connections() -> None:
    doorman = Doorman(listen("127.0.0.1", free_port()))
    doorman.start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
        line.settimeout(10)
        os.seteuid(65534)
        try:
            line.connect(doorman.__reduce__()[1][0])
        finally:
            os.seteuid(0)
        assert line.recv(1) == b""
    doorman.close()

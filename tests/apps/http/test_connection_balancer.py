"""Connections go to the worker that has fewest, and nobody is let in when there is none."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest

from apps.http.connection_balancer import BalancedLoop, ConnectionBalancer, WorkerListener
from apps.http.server import PortError, listen
from infra.local.ports import free_port


@dataclass
class Worker:
    """Holds a listener and the connections it has."""

    listener: WorkerListener
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
class Service:
    port: int
    balancer: ConnectionBalancer
    loop: asyncio.AbstractEventLoop
    workers: list[Worker] = field(default_factory=list)
    clients: list[asyncio.StreamWriter] = field(default_factory=list)

    async def join(self) -> Worker:
        build, arguments = self.balancer.__reduce__()
        worker = Worker(build(*arguments))
        await self.loop.create_server(worker.protocol, sock=worker.listener)  # type: ignore[call-overload]
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
async def running(workers: int) -> AsyncIterator[Service]:
    port = free_port()
    started = Service(port, ConnectionBalancer(listen("127.0.0.1", port)), asyncio.get_running_loop())
    started.balancer.start()
    for _ in range(workers):
        await started.join()
    await asyncio.sleep(0.1)  # the balancer has seen the last worker
    try:
        yield started
    finally:
        for client in started.clients:
            client.close()
        for worker in started.workers:
            worker.listener.close()
        started.balancer.close()
        await asyncio.sleep(0.05)


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def run(story: Callable[[], object]) -> None:
    with asyncio.Runner(loop_factory=BalancedLoop) as runner:
        runner.run(story())  # type: ignore[arg-type]


def test_connections_are_divided_evenly() -> None:
    async def story() -> None:
        async with running(3) as service:
            await service.connect(12)
            assert service.counts() == [4, 4, 4]

    run(story)


def test_the_worker_that_lost_connections_gets_the_next_ones() -> None:
    async def story() -> None:
        async with running(2) as service:
            await service.connect(8)
            for transport in list(service.workers[1].connections)[:3]:
                transport.close()
            await service.until(lambda: service.counts() == [4, 1])
            await asyncio.sleep(0.1)  # the balancer reads it
            await service.connect(3)
            assert service.counts() == [4, 4]

    run(story)


def test_a_worker_that_leaves_gets_no_more_and_the_one_after_it_catches_up() -> None:
    async def story() -> None:
        async with running(2) as service:
            await service.connect(4)
            service.workers[0].listener.close()
            await asyncio.sleep(0.1)
            await service.connect(2)
            assert service.counts() == [2, 4]
            third = await service.join()
            await asyncio.sleep(0.1)
            await service.connect(4)
            assert len(third.connections) == 4

    run(story)


def test_whoever_comes_too_early_is_answered_and_refused_once_all_have_left() -> None:
    async def story() -> None:
        async with running(0) as service:
            early = asyncio.create_task(service.connect(2))
            await asyncio.sleep(0.1)
            worker = await service.join()
            await early
            assert service.counts() == [2]
            worker.listener.close()
            await service.until(lambda: not is_open(service.port))
            await service.join()
            await service.until(lambda: is_open(service.port))
            await service.connect(2)

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
    balancer = ConnectionBalancer(listen("127.0.0.1", free_port()))
    balancer.start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
        line.settimeout(10)
        os.seteuid(65534)
        try:
            line.connect(balancer.__reduce__()[1][0])
        finally:
            os.seteuid(0)
        assert line.recv(1) == b""
    balancer.close()

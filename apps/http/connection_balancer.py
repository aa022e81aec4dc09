"""Balances the connections of one port over several workers: each new one goes to the worker that has the fewest.

The parent process accepts connections and sends their descriptors to the workers over a Unix socket, one message a
connection; a worker reports each that ends. The kernel's own balancing (SO_REUSEPORT) is random, and a site keeps its
connections for hours: docs/decisions/0031 has the figures. Knows nothing of what the connections carry.
"""

import asyncio
import contextlib
import logging
import os
import selectors
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import uvloop

logger = logging.getLogger(__name__)

BACKLOG = 2048
CLOSED = b"-"
"""A worker's message for each connection that has ended."""
PAUSE_SECONDS, ERROR_PAUSE_SECONDS = 0.001, 0.1
"""How long the balancer waits when no worker can take another connection, and when the system refuses one."""

Protocol = Callable[[], asyncio.Protocol]


class ConnectionBalancer:
    """Accepts connections in the parent process and hands each to the worker with the fewest.

    A client that connects before the first worker is ready waits for it; when all workers are gone, connections are
    refused. Sent to another process, the balancer becomes that worker's `WorkerListener`.
    """

    def __init__(self, port: socket.socket) -> None:
        """port: a listening socket, which the balancer closes."""
        self._port = port
        self._port.setblocking(False)
        # An abstract socket: no file is left after a crash.
        self._address = f"\0headrace-{uuid.uuid4().hex}"
        self._arrivals = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._arrivals.bind(self._address)
        self._arrivals.listen()
        self._open: dict[socket.socket, int] = {}
        """Number of connections of each worker."""
        self._user = os.geteuid()
        self._watched = selectors.DefaultSelector()
        self._watched.register(self._arrivals, selectors.EVENT_READ, self._add_worker)
        self._close_sender, self._close_receiver = socket.socketpair()
        self._watched.register(self._close_receiver, selectors.EVENT_READ, self._shut_down)
        self._thread = threading.Thread(target=self._run, name="connection balancer", daemon=True)
        self._working = True

    def __reduce__(self) -> tuple[Callable[[str], "WorkerListener"], tuple[str]]:
        return WorkerListener, (self._address,)

    def start(self) -> None:
        """Starts balancing in a thread, until `close`."""
        self._thread.start()

    def close(self) -> None:
        """Stops, and releases the port."""
        self._close_sender.send(b"!")
        self._thread.join()

    def _shut_down(self, receiver: socket.socket) -> None:
        self._working = False
        self._watched.close()
        for open_socket in (self._port, self._arrivals, self._close_sender, receiver, *self._open):
            open_socket.close()

    def _run(self) -> None:
        while self._working:
            for key, _ in self._watched.select():
                try:
                    if self._working:
                        key.data(key.fileobj)
                except Exception:
                    logger.exception("a new connection was lost; the balancer continues")
                    time.sleep(ERROR_PAUSE_SECONDS)

    def _add_worker(self, arrivals: socket.socket) -> None:
        """Accepts a worker that is ready; turns away processes of other users."""
        worker, _ = arrivals.accept()
        _, user, _ = struct.unpack("iII", worker.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if user != self._user:
            logger.warning("a process of user %d asked for connections and was turned away", user)
            worker.close()
            return
        worker.setblocking(False)
        self._open[worker] = 0
        self._watched.register(worker, selectors.EVENT_READ, self._read_worker)
        if len(self._open) == 1:
            self._port.listen(BACKLOG)
            self._watched.register(self._port, selectors.EVENT_READ, self._dispatch)

    def _read_worker(self, worker: socket.socket) -> None:
        """Counts the connections that a worker reports as ended; removes a worker that is gone."""
        if worker not in self._open:  # removed a moment ago
            return
        try:
            while worker.recv(len(CLOSED)):
                self._open[worker] -= 1
        except BlockingIOError:
            return
        except ConnectionError:
            pass
        self._remove_worker(worker)

    def _remove_worker(self, worker: socket.socket) -> None:
        self._watched.unregister(worker)
        del self._open[worker]
        worker.close()
        if not self._open:
            # Refuse at once: nobody answers.
            self._watched.unregister(self._port)
            self._port.shutdown(socket.SHUT_RDWR)

    def _dispatch(self, port: socket.socket) -> None:
        try:
            connection, _ = port.accept()
        except (BlockingIOError, ConnectionError):  # the client is gone already
            return
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while self._open:
                for worker in sorted(self._open, key=self._open.__getitem__):
                    try:
                        socket.send_fds(worker, [b"+"], [connection.fileno()])
                    except OSError:  # its queue is full, or it has just gone
                        continue
                    self._open[worker] += 1
                    return
                time.sleep(PAUSE_SECONDS)
                for worker in list(self._open):
                    self._read_worker(worker)


class WorkerListener:
    """Receives a worker's connections; `BalancedLoop.create_server` takes it in place of a listening socket."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starting: set[asyncio.Task[Any]] = set()

    def serve(self, loop: asyncio.AbstractEventLoop, protocol: Protocol) -> None:
        """Starts to take connections. Raises OSError when the parent is gone."""
        self._line.connect(self._address)
        self._line.setblocking(False)
        self._loop, self._protocol = loop, protocol
        loop.add_reader(self._line.fileno(), self._take, loop)

    def _take(self, loop: asyncio.AbstractEventLoop) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                message, descriptors, _, _ = socket.recv_fds(self._line, 1, 1)
                if not message:
                    self.close()  # the parent is gone: infra/parent_watch.py ends this process
                    return
                for descriptor in descriptors:
                    connection = socket.socket(fileno=descriptor)
                    task = loop.create_task(loop.connect_accepted_socket(self._counted, connection))
                    self._starting.add(task)
                    task.add_done_callback(self._starting.discard)

    def _counted(self) -> asyncio.Protocol:
        """Returns a protocol that reports the end of its connection to the parent."""
        protocol = self._protocol()
        lost = protocol.connection_lost

        def connection_lost(error: Exception | None) -> None:
            lost(error)
            with contextlib.suppress(OSError):
                self._line.send(CLOSED)

        protocol.connection_lost = connection_lost  # type: ignore[method-assign,assignment]
        return protocol

    def getsockname(self) -> str:
        return self._address

    def close(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._line.fileno())
            self._loop = None
        self._line.close()

    async def wait_closed(self) -> None:
        """Returns at once: asyncio expects the method of a server."""


class BalancedLoop(uvloop.Loop):
    """Is uvloop that also serves a `WorkerListener`."""

    async def create_server(  # type: ignore[override]
        self, protocol_factory: Protocol, *arguments: Any, sock: Any = None, **options: Any
    ) -> Any:
        if isinstance(sock, WorkerListener):
            sock.serve(self, protocol_factory)
            return sock
        return await super().create_server(protocol_factory, *arguments, sock=sock, **options)

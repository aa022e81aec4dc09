"""One port for several workers: connections are taken in the parent process and go to the worker that has fewest.

Left to the kernel, connections are divided by lot (SO_REUSEPORT), and as a site keeps its connections for hours, one
worker of two may have eleven of sixteen for hours. Parent and workers speak over a Unix socket, one message a
connection. Knows nothing of what the connections carry.
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
ENDED = b"-"
"""A worker says so of each connection that is over."""
PAUSE_SECONDS, TROUBLE_SECONDS = 0.001, 0.1
"""How long the doorman waits when no worker takes another connection just now, and when the system refuses one."""

Protocol = Callable[[], asyncio.Protocol]


class Doorman:
    """Who connects before the first worker is ready waits for it; when all have gone, connections are refused.

    Sent to another process, it is that worker's `Seat`.
    """

    def __init__(self, port: socket.socket) -> None:
        """port: listening; the doorman closes it."""
        self._port = port
        self._port.setblocking(False)
        # Without a name in the file system, so that nothing is left of it after a crash.
        self._address = f"\0headrace-{uuid.uuid4().hex}"
        self._arrivals = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._arrivals.bind(self._address)
        self._arrivals.listen()
        self._open: dict[socket.socket, int] = {}
        """Connections of each worker."""
        self._user = os.geteuid()
        self._watched = selectors.DefaultSelector()
        self._watched.register(self._arrivals, selectors.EVENT_READ, self._greet)
        self._bell, self._heard = socket.socketpair()
        self._watched.register(self._heard, selectors.EVENT_READ, self._go_home)
        self._thread = threading.Thread(target=self._run, name="doorman", daemon=True)
        self._working = True

    def __reduce__(self) -> tuple[Callable[[str], "Seat"], tuple[str]]:
        return Seat, (self._address,)

    def start(self) -> None:
        """Work in a thread, until `close`."""
        self._thread.start()

    def close(self) -> None:
        """Let go of the port."""
        self._bell.send(b"!")
        self._thread.join()

    def _go_home(self, heard: socket.socket) -> None:
        self._working = False
        self._watched.close()
        for one in (self._port, self._arrivals, self._bell, heard, *self._open):
            one.close()

    def _run(self) -> None:
        while self._working:
            for key, _ in self._watched.select():
                try:
                    if self._working:
                        key.data(key.fileobj)
                except Exception:
                    logger.exception("a connection is lost at the door; going on")
                    time.sleep(TROUBLE_SECONDS)

    def _greet(self, arrivals: socket.socket) -> None:
        """A worker is ready."""
        worker, _ = arrivals.accept()
        _, user, _ = struct.unpack("iII", worker.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if user != self._user:
            logger.warning("a process of user %d asked for connections and was turned away", user)
            worker.close()
            return
        worker.setblocking(False)
        self._open[worker] = 0
        self._watched.register(worker, selectors.EVENT_READ, self._hear)
        if len(self._open) == 1:
            self._port.listen(BACKLOG)
            self._watched.register(self._port, selectors.EVENT_READ, self._hand_over)

    def _hear(self, worker: socket.socket) -> None:
        """A worker ended a connection, or is gone."""
        if worker not in self._open:  # dismissed a moment ago
            return
        try:
            while worker.recv(len(ENDED)):
                self._open[worker] -= 1
        except BlockingIOError:
            return
        except ConnectionError:
            pass
        self._dismiss(worker)

    def _dismiss(self, worker: socket.socket) -> None:
        self._watched.unregister(worker)
        del self._open[worker]
        worker.close()
        if not self._open:
            # Whoever connects shall know at once that nobody answers.
            self._watched.unregister(self._port)
            self._port.shutdown(socket.SHUT_RDWR)

    def _hand_over(self, port: socket.socket) -> None:
        try:
            connection, _ = port.accept()
        except (BlockingIOError, ConnectionError):  # the client has left again
            return
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while self._open:
                for worker in sorted(self._open, key=self._open.__getitem__):
                    try:
                        socket.send_fds(worker, [b"+"], [connection.fileno()])
                    except OSError:  # it has enough to do, or has just gone
                        continue
                    self._open[worker] += 1
                    return
                time.sleep(PAUSE_SECONDS)
                for worker in list(self._open):
                    self._hear(worker)


class Seat:
    """A worker's end: `Loop.create_server` takes it in place of a socket."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._coming: set[asyncio.Task[Any]] = set()

    def serve(self, loop: asyncio.AbstractEventLoop, protocol: Protocol) -> None:
        """Take connections from now on. Raises OSError when the parent is gone."""
        self._line.connect(self._address)
        self._line.setblocking(False)
        self._loop, self._protocol = loop, protocol
        loop.add_reader(self._line.fileno(), self._take, loop)

    def _take(self, loop: asyncio.AbstractEventLoop) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                message, descriptors, _, _ = socket.recv_fds(self._line, 1, 1)
                if not message:
                    self.close()  # the parent is gone, and infra/parent_watch.py ends this process
                    return
                for descriptor in descriptors:
                    connection = socket.socket(fileno=descriptor)
                    task = loop.create_task(loop.connect_accepted_socket(self._counted, connection))
                    self._coming.add(task)
                    task.add_done_callback(self._coming.discard)

    def _counted(self) -> asyncio.Protocol:
        """A protocol whose connection is counted until it is lost."""
        protocol = self._protocol()
        lost = protocol.connection_lost

        def connection_lost(error: Exception | None) -> None:
            lost(error)
            with contextlib.suppress(OSError):
                self._line.send(ENDED)

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
        """A server of asyncio has this: nothing is left to wait for."""


class Loop(uvloop.Loop):
    """uvloop that also serves a `Seat`."""

    async def create_server(  # type: ignore[override]
        self, protocol_factory: Protocol, *arguments: Any, sock: Any = None, **options: Any
    ) -> Any:
        if isinstance(sock, Seat):
            sock.serve(self, protocol_factory)
            return sock
        return await super().create_server(protocol_factory, *arguments, sock=sock, **options)

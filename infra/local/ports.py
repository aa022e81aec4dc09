"""Free ports of the loopback, for servers that a bench or a test starts."""

import contextlib
import socket


def free_ports(count: int) -> int:
    """The first of `count` consecutive ports that nobody uses."""
    while True:
        first = free_port()
        with contextlib.ExitStack() as taken, contextlib.suppress(OSError):
            for port in range(first, first + count):
                taken.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first


def free_port() -> int:
    """A port that nobody uses at the moment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port

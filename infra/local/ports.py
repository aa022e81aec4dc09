"""Finds free ports of the loopback, for servers that a benchmark or a test starts."""

import contextlib
import socket


def free_ports(count: int) -> int:
    """Returns the first of `count` consecutive ports that are free at the moment."""
    while True:
        first = free_port()
        with contextlib.ExitStack() as taken, contextlib.suppress(OSError):
            for port in range(first, first + count):
                taken.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first


def free_port() -> int:
    """Returns a port that is free at the moment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port

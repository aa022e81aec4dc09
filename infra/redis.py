"""The Redis of one data directory: how to start it on this machine, and whether it answers.

Writes are kept in an append-only file that is synced every second: a crash may lose what came within the last one or
two. The feature job notices and writes it anew (features/online_recovery.py), for the offline tables have it.
"""

import contextlib
import shutil
import socket

from infra.settings import Settings

HOST = "127.0.0.1"
ANSWER_SECONDS = 1.0


class RedisMissingError(Exception):
    """There is no redis-server on this machine; says how to get it."""


def url(settings: Settings) -> str:
    """What HEADRACE_REDIS_URL has to be for the server that `command` starts."""
    return f"redis://{HOST}:{settings.redis_port}/0"


def command(settings: Settings) -> list[str]:
    """The command line of a server on settings.redis_port with its files in data_dir/redis, which is made.

    It listens on loopback alone, so it asks for no password. Raises RedisMissingError.
    """
    program = shutil.which("redis-server")
    if program is None:
        raise RedisMissingError(
            "redis-server is not on PATH; install it (Debian, Ubuntu: `apt install redis-server`, macOS: `brew install "
            "redis`), or unset HEADRACE_REDIS_URL and use the embedded store"
        )
    folder = (settings.data_dir / "redis").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "bind": HOST,
        "port": str(settings.redis_port),
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "everysec",
        # The append-only file has everything: no snapshots beside it.
        "save": "",
        # To forget rows silently would be worse than to refuse new ones.
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    return [program, *(word for name, value in options.items() for word in (f"--{name}", value))]


def healthy(settings: Settings) -> bool:
    """Whether a Redis on settings.redis_port answers, its data loaded."""
    with (
        contextlib.suppress(OSError),
        socket.create_connection((HOST, settings.redis_port), timeout=ANSWER_SECONDS) as connection,
    ):
        connection.settimeout(ANSWER_SECONDS)
        connection.sendall(b"PING\r\n")
        return connection.recv(16).startswith(b"+PONG")
    return False

"""Starts the Redis of one data directory on this machine, and checks whether it answers.

Redis writes to an append-only file that is synced every second, so a crash may lose the last 1 or 2 seconds. The
feature job notices that and writes the rows again from the offline tables (features/store/recovery.py).
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from types import TracebackType

from infra.settings import Settings

HOST = "127.0.0.1"
ANSWER_SECONDS = 1.0
START_SECONDS = 90.0


class RedisMissingError(Exception):
    """Says that there is no redis-server on this machine, and how to get it."""


def url(settings: Settings) -> str:
    """Returns HEADRACE_REDIS_URL for the server that `command` starts."""
    return f"redis://{HOST}:{settings.redis_port}/0"


def command(settings: Settings) -> list[str]:
    """Returns the command line of a server on settings.redis_port with its files in data_dir/redis, which it creates.

    The server listens on loopback only, so it needs no password. Raises RedisMissingError.
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
        # No snapshots: the append-only file holds everything.
        "save": "",
        # Refusing new rows is better than silently evicting old ones.
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    return [program, *(word for name, value in options.items() for word in (f"--{name}", value))]


def healthy(settings: Settings) -> bool:
    """Returns whether a Redis on settings.redis_port answers and has loaded its data."""
    with (
        contextlib.suppress(OSError),
        socket.create_connection((HOST, settings.redis_port), timeout=ANSWER_SECONDS) as connection,
    ):
        connection.settimeout(ANSWER_SECONDS)
        connection.sendall(b"PING\r\n")
        return connection.recv(16).startswith(b"+PONG")
    return False


class RedisServer:
    """Runs a redis-server for one benchmark or test, as a context manager that kills it at the end."""

    def __init__(self, settings: Settings, *extra: str) -> None:
        """extra: further words for the server's command line."""
        self.settings = settings
        self._extra = extra
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until it answers. Raises RuntimeError with its log when it does not."""
        log = self.settings.data_dir / "redis.log"
        self.settings.data_dir.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*command(self.settings), *self._extra], stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        deadline = time.monotonic() + START_SECONDS
        while not healthy(self.settings):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"redis-server does not answer:\n{log.read_text()}")
            time.sleep(0.02)

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the running server."""
        if self._process is None:
            raise RuntimeError("the server is not running")
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """Ends it as a crash would: writes that were not synced may be lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)
            self._process = None

    def __enter__(self) -> "RedisServer":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

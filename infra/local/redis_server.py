"""The Redis of one data directory: how to start it on this machine, and whether it answers.

Writes are kept in an append-only file that is synced every second: a crash may lose what came within the last one or
two. The feature job notices and writes it anew (features/store/recovery.py), for the offline tables have it.
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


class RedisServer:
    """A redis-server of one bench or test, as a context manager: it runs inside and is killed at the end."""

    def __init__(self, settings: Settings, *extra: str) -> None:
        """extra: further words for the server's command line."""
        self.settings = settings
        self._extra = extra
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers. Raises RuntimeError with its log when it does not."""
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
        """Send a signal to the running server."""
        if self._process is None:
            raise RuntimeError("the server does not run")
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """End it as a crash does: what was not synced may be gone."""
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

"""A real redis-server for tests: started as `make up` does, killed and stopped as the world does."""

import os
import signal
import subprocess
import time
from types import TracebackType

from infra import redis
from infra.settings import Settings


class RedisServer:
    def __init__(self, settings: Settings, *extra: str) -> None:
        self.settings = settings
        self._extra = extra
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        log = self.settings.data_dir / "redis.log"
        self.settings.data_dir.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*redis.command(self.settings), *self._extra], stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        deadline = time.monotonic() + 90
        while not redis.healthy(self.settings):
            assert self._process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """As a crash does: whatever was not synced may be gone."""
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

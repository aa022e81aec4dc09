"""`headrace serve`: the API in one process, or in several that share its port.

The parent starts the workers, starts a dead one anew, and on a terminate signal lets them finish what they began
(uvicorn's own supervisor). Imports the app only where it is served.
"""

import contextlib
import os
import shutil
import socket
import sys
from collections.abc import Callable

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from infra.settings import Settings

DRAIN_SECONDS = 5
"""Time for requests under way when it stops; open alert streams must not hold up a stop for longer."""
KEEP_ALIVE_SECONDS = 75
"""Longer than load balancers keep an idle connection (60 s is usual): a request sent while this end closes is lost."""
HANGING_SECONDS = 30
"""A worker that says nothing for this long is replaced."""


def run(settings: Settings) -> None:
    """Serve until a signal says to stop."""
    # The workers are the parallelism: numpy's own threads would only wake each other up for arrays this small.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if settings.api_workers > 1:
        # Before the first import of prometheus_client in any worker: that is when it chooses where numbers live.
        shutil.rmtree(settings.metrics_dir, ignore_errors=True)
        settings.metrics_dir.mkdir(parents=True)
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(settings.metrics_dir.absolute())
    config = uvicorn.Config(
        "apps.main:served",
        factory=True,
        workers=settings.api_workers,
        host=settings.host,
        port=settings.port,
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        timeout_worker_healthcheck=HANGING_SECONDS,
    )
    if settings.api_workers == 1:
        server = uvicorn.Server(config)
        with contextlib.suppress(KeyboardInterrupt):
            server.run()
        if not server.started:
            sys.exit(STARTUP_FAILURE)
        return
    port = SharedPort(settings.host, settings.port)
    Multiprocess(config, sockets=[port]).run()  # type: ignore[list-item]


class SharedPort:
    """A port: held in the parent, and in each worker that it is sent to a socket of that worker's own.

    The kernel divides connections among such sockets by their addresses (SO_REUSEPORT). Of a socket that workers
    share, the one that looked last takes nearly all of them, and the others idle.
    """

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._held = bound(host, port)

    def __reduce__(self) -> tuple[Callable[[str, int], socket.socket], tuple[str, int]]:
        return bound, self._address

    def close(self) -> None:
        self._held.close()


def bound(host: str, port: int) -> socket.socket:
    """A socket that others may be bound beside. Raises OSError when somebody else holds the port."""
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind((host, port))
    return made

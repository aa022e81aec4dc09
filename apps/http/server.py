"""Runs `headrace serve`: the API in one process, or in several workers that share a port.

Uvicorn's supervisor starts the workers, replaces dead ones, and on a terminate signal lets them finish their requests.
Each worker listens on a socket of its own, and the kernel spreads new connections over these sockets (SO_REUSEPORT).
Imports the app only where it is served.
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

BACKLOG = 2048
"""Connections that may wait to be accepted."""
DRAIN_SECONDS = 5
"""Time for running requests at a stop; open alert streams must not hold up a stop for longer."""
KEEP_ALIVE_SECONDS = 75
"""Longer than load balancers keep an idle connection (60 s is usual): a request sent while this end closes is lost."""
HANGING_SECONDS = 10
"""A worker that does not answer the supervisor for this long is replaced."""


class PortError(Exception):
    """Says why the port cannot be listened on."""


def run(settings: Settings) -> None:
    """Serves until a signal stops it. Raises PortError."""
    # Workers are the parallelism: for arrays this small, NumPy's own threads cost more than they bring.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if settings.api_workers > 1:
        # Set before any worker imports prometheus_client, which then decides where its values are kept.
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
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        timeout_worker_healthcheck=HANGING_SECONDS,
    )
    if settings.api_workers == 1:
        server, listener = uvicorn.Server(config), bind(settings.host, settings.port)
        # Who connects while the models load waits for the answer.
        listener.listen(BACKLOG)
        with contextlib.suppress(KeyboardInterrupt):
            server.run([listener])
        if not server.started:
            sys.exit(STARTUP_FAILURE)
        return
    Multiprocess(config, sockets=[SharedPort(settings.host, settings.port)]).run()  # type: ignore[list-item]


class SharedPort:
    """Reserves a port in the parent process; sent to a worker, it becomes a socket of that worker's own.

    A dead worker's waiting connections are reset; everyone else's are not touched. See docs/decisions/0031.
    """

    def __init__(self, host: str, port: int) -> None:
        """Raises PortError, also when another server shares the port among workers of its own."""
        bind(host, port).close()
        self._address = (host, port)
        self._reserved = bind(host, port, shared=True)

    def __reduce__(self) -> tuple[Callable[[str, int, bool], socket.socket], tuple[str, int, bool]]:
        return bind, (*self._address, True)

    def close(self) -> None:
        """Releases the port; the supervisor calls it at its end."""
        self._reserved.close()


def bind(host: str, port: int, shared: bool = False) -> socket.socket:
    """Returns a bound socket that does not listen yet; shared: beside others of this user. Raises PortError."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise PortError(
            f"cannot listen on {host}, port {port}: {error.strerror}; stop what holds it, or set HEADRACE_PORT and "
            "HEADRACE_HOST"
        ) from error
    return bound

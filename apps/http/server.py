"""Runs `headrace serve`: the API in one process, or in several workers that share a port.

Uvicorn's supervisor starts the workers, replaces dead ones, and on a terminate signal lets them finish their requests.
The parent hands each connection to the worker that has the fewest (apps/http/connection_balancer.py).
Imports the app only where it is served.
"""

import contextlib
import os
import shutil
import socket
import sys

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from apps.http.connection_balancer import BACKLOG, BalancedLoop, ConnectionBalancer
from infra.settings import Settings

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
        loop=f"{BalancedLoop.__module__}:{BalancedLoop.__name__}",
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
    port = listen(settings.host, settings.port)
    if settings.api_workers == 1:
        server = uvicorn.Server(config)
        with contextlib.suppress(KeyboardInterrupt):
            server.run([port])
        if not server.started:
            sys.exit(STARTUP_FAILURE)
        return
    balancer = ConnectionBalancer(port)
    balancer.start()
    Multiprocess(config, sockets=[balancer]).run()  # type: ignore[list-item]
    balancer.close()


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that takes connections. Raises PortError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise PortError(
            f"cannot listen on {host}, port {port}: {error.strerror}; stop what holds it, or set HEADRACE_PORT and "
            "HEADRACE_HOST"
        ) from error

"""`headrace serve`: the API in one process, or in several that share its port.

The parent starts the workers, starts a dead one anew, and on a terminate signal lets them finish what they began
(uvicorn's own supervisor). Imports the app only where it is served.
"""

import contextlib
import os
import shutil
import socket
import sys

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from apps.http.connection_balancer import BACKLOG, Doorman, Loop
from infra.settings import Settings

DRAIN_SECONDS = 5
"""Time for requests under way when it stops; open alert streams must not hold up a stop for longer."""
KEEP_ALIVE_SECONDS = 75
"""Longer than load balancers keep an idle connection (60 s is usual): a request sent while this end closes is lost."""
HANGING_SECONDS = 30
"""A worker that says nothing for this long is replaced."""


class PortError(Exception):
    """The port cannot be listened on."""


def run(settings: Settings) -> None:
    """Serve until a signal says to stop. Raises PortError."""
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
        loop=f"{Loop.__module__}:{Loop.__name__}",
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
    doorman = Doorman(port)
    doorman.start()
    Multiprocess(config, sockets=[doorman]).run()  # type: ignore[list-item]
    doorman.close()


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections. Raises PortError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        told = f"cannot listen on {host}, port {port}: {error.strerror}"
        raise PortError(f"{told}; stop what holds it, or set HEADRACE_PORT and HEADRACE_HOST") from error

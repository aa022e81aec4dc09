"""`headrace up`: starts the real servers on one machine, without containers, and waits until each is healthy.

Kafka, Redis, the feature job, the scorer, the API and Airflow run as background processes of settings.data_dir
(infra/local/processes.py). A second `up` leaves those that already run alone. For development and tests: everything
listens on loopback, and only Airflow has a password.
"""

import json
import os
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from infra.local import kafka_broker, processes, redis_server
from infra.settings import Settings

Say = Callable[[str], None]
ROOT = Path(__file__).parents[2]
AIRFLOW = ROOT / ".venv-dags" / "bin" / "airflow"
AIRFLOW_PASSWORDS = "simple_auth_manager_passwords.json.generated"
SCORER_METRICS_PORT = 9101
STREAM_METRICS_PORT = 9102


class StackError(Exception):
    """Says which server did not come up, with the end of its log."""


@dataclass(frozen=True, slots=True)
class Server:
    """One process of the stack: how to start it, and how to see that it is healthy."""

    name: str
    address: str
    start: Callable[[], object]
    healthy: Callable[[], bool]
    seconds: float
    """Longest wait until it is healthy."""
    ports: Sequence[int] = ()


def stack_settings(base: Settings) -> Settings:
    """Returns settings with which everything talks to the servers of the stack; what `base` sets explicitly stays."""
    own = {
        "kafka_bootstrap": kafka_broker.bootstrap(_nodes(base)),
        # A micro-batch has a task for each partition of each topic, and one machine has few cores.
        "kafka_partitions": 2,
        "redis_url": redis_server.url(base),
        "scorer_metrics_port": SCORER_METRICS_PORT,
        "stream_metrics_port": STREAM_METRICS_PORT,
        "data_dir": base.data_dir.absolute(),
    }
    chosen = base.model_dump(include=base.model_fields_set)
    return Settings(**{**own, **chosen})


def up(base: Settings, *, airflow: bool, say: Say) -> None:
    """Starts what does not run, waits until each is healthy, and says where everything is. Raises StackError."""
    settings = stack_settings(base)
    servers = _servers(settings, airflow=airflow)
    running = processes.alive(settings)
    for server in servers:
        if server.name not in running:
            _refuse_taken_ports(server)
    for server in servers:
        if server.name in running:
            say(f"{server.name:8} is already running")
            continue
        say(f"{server.name:8} starting")
        server.start()
        _wait(settings, server)
    variables = _write_variables(settings)
    say("")
    for server in servers:
        process = processes.alive(settings)[server.name]
        say(f"{server.name:8} pid {process.pid:<7} {server.address:38} {settings.data_dir / 'logs' / server.name}.log")
    say("")
    if airflow:
        say(f"Airflow's password is in {settings.data_dir / 'airflow' / AIRFLOW_PASSWORDS}; its DAGs start paused")
    say(f"run `. {variables}` to make other commands use these servers; `make down` stops them")


def _servers(settings: Settings, *, airflow: bool) -> list[Server]:
    """Returns the servers in the order in which they start: each needs only those before it."""
    api = f"http://{settings.host}:{settings.port}"
    nodes = _nodes(settings)
    metrics = f"http://127.0.0.1:{settings.scorer_metrics_port}/metrics"
    servers = [
        Server(
            name="redis",
            address=redis_server.url(settings),
            start=lambda: processes.launch(settings, "redis", redis_server.command(settings)),
            healthy=lambda: redis_server.healthy(settings),
            seconds=60,
            ports=[settings.redis_port],
        ),
        *(
            Server(
                name=node.name,
                address=f"127.0.0.1:{node.port}",
                # The first call starts all brokers: one of several is healthy only when it has found the others.
                start=lambda: kafka_broker.start(settings, nodes),
                healthy=lambda: True,
                seconds=90,
                ports=[node.port, node.controller_port],
            )
            for node in nodes
        ),
        Server(
            name="stream",
            address=f"http://127.0.0.1:{settings.stream_metrics_port}/metrics",
            start=lambda: processes.start(settings, "stream", "stream"),
            healthy=lambda: _written_by(settings, "stream", settings.stream_status),
            seconds=180,
            ports=[settings.stream_metrics_port],
        ),
        Server(
            name="scorer",
            address=metrics,
            start=lambda: processes.start(settings, "scorer", "score"),
            healthy=lambda: _answers(metrics),
            seconds=90,
            ports=[settings.scorer_metrics_port],
        ),
        Server(
            name="api",
            address=api,
            start=lambda: processes.start(settings, "api", "serve"),
            healthy=lambda: _answers(f"{api}/healthz"),
            seconds=90,
            ports=[settings.port],
        ),
    ]
    if airflow:
        servers.append(
            Server(
                name="airflow",
                address=f"http://127.0.0.1:{settings.airflow_port}",
                start=lambda: _start_airflow(settings),
                healthy=lambda: _airflow_healthy(settings),
                seconds=300,
                ports=[settings.airflow_port],
            )
        )
    return servers


def _nodes(settings: Settings) -> list[kafka_broker.Node]:
    return kafka_broker.plan(settings.kafka_port, brokers=settings.kafka_replication)


def wait_for(settings: Settings, name: str) -> None:
    """Waits until the named process, which was started elsewhere, is healthy. Raises StackError."""
    _wait(settings, next(server for server in _servers(settings, airflow=False) if server.name == name))


def _wait(settings: Settings, server: Server) -> None:
    def settled() -> bool:
        if server.name not in processes.alive(settings):
            raise StackError(f"{server.name} ended while starting:\n{processes.log_tail(settings, server.name)}")
        return server.healthy()

    if not processes.wait_until(settled, seconds=server.seconds):
        raise StackError(
            f"{server.name} is not healthy after {server.seconds:.0f} s:\n{processes.log_tail(settings, server.name)}"
        )


def _refuse_taken_ports(server: Server) -> None:
    for port in server.ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise StackError(
                    f"another program uses port {port}, which {server.name} needs; stop it, or choose another port "
                    f"(docs/settings.md: HEADRACE_PORT, HEADRACE_REDIS_PORT, HEADRACE_KAFKA_PORT, ...)"
                ) from error


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=2) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except OSError:
        return False


def _written_by(settings: Settings, name: str, path: Path) -> bool:
    """Returns whether a file was written since the process of that name started."""
    process: psutil.Process | None = processes.alive(settings).get(name)
    return process is not None and path.exists() and path.stat().st_mtime > process.create_time()


def _start_airflow(settings: Settings) -> None:
    """Starts `airflow standalone`, which runs all of Airflow's processes, with a database of this stack's own."""
    if not AIRFLOW.exists():
        raise StackError("Airflow is not installed: run `make setup-dags`, or start the rest with `headrace up`")
    home = settings.data_dir / "airflow"
    headrace = Path(sys.executable).with_name("headrace")
    own = {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(settings.airflow_port),
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{settings.airflow_port}",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{settings.airflow_port}/execution/",
        "AIRFLOW__CORE__PARALLELISM": "2",
        "HEADRACE_BIN": str(headrace) if headrace.exists() else "headrace",
        "PATH": f"{AIRFLOW.parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    processes.launch(settings, "airflow", [str(AIRFLOW), "standalone"], extra=own)


def _airflow_healthy(settings: Settings) -> bool:
    try:
        address = f"http://127.0.0.1:{settings.airflow_port}/api/v2/monitor/health"
        with urllib.request.urlopen(address, timeout=5) as answer:
            parts = json.load(answer)
    except (OSError, ValueError, urllib.error.HTTPError):
        return False
    return all((parts.get(part) or {}).get("status") == "healthy" for part in ("metadatabase", "scheduler"))


def _write_variables(settings: Settings) -> Path:
    """Writes a file to source, so that other commands use the same servers; returns its path."""
    path = settings.data_dir / "stack.env"
    shared = ("data_dir", "kafka_bootstrap", "kafka_partitions", "kafka_replication", "redis_url")
    lines = [f"export HEADRACE_{name.upper()}='{getattr(settings, name)}'\n" for name in shared]
    path.write_text("".join(lines))
    return path

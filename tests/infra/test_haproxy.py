"""HAProxy in front of two real API processes, with the configuration that the project ships."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from infra.local.ports import free_port
from tests.apps.servers import ASK, ROOT, Server, metric, ready, serving, wait_until

CONFIG = ROOT / "infra" / "haproxy" / "haproxy.cfg"

pytestmark = pytest.mark.skipif(shutil.which("haproxy") is None, reason="needs haproxy (apt-get install haproxy)")


def environment(front: int, *ports: int) -> dict[str, str]:
    addresses = {"HEADRACE_FRONT": front, "HEADRACE_A": ports[0], "HEADRACE_B": ports[1]}
    return {**os.environ, **{name: f"127.0.0.1:{port}" for name, port in addresses.items()}}


def test_the_configuration_is_valid() -> None:
    checked = subprocess.run(
        ["haproxy", "-c", "-f", CONFIG], env=environment(1, 2, 3), capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert "WARNING" not in checked.stderr


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    with serving(tmp_path) as first, serving(tmp_path) as second:
        yield first, second


@pytest.mark.slow
@pytest.mark.cluster
def test_requests_are_shared_and_a_dead_process_costs_none_after_its_check(processes: tuple[Server, Server]) -> None:
    first, second = processes
    front = replace(first, port=free_port())
    proxy = subprocess.Popen(
        ["haproxy", "-db", "-f", CONFIG],
        env=environment(front.port, first.port, second.port),
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: ready(front))
        time.sleep(1)  # both checks have passed
        assert {front.call("POST", "/v1/recommend", ASK)[0] for _ in range(20)} == {200}
        assert min(metric(server, "headrace_recommendations_total{") for server in (first, second)) >= 5
        second.kill()
        time.sleep(2)  # two failed checks, half a second apart
        assert {front.call("POST", "/v1/recommend", ASK)[0] for _ in range(20)} == {200}
        first.kill()
        wait_until(lambda: front.call("GET", "/readyz")[0] == 503)
    finally:
        proxy.terminate()
        proxy.wait(10)

"""Settings of all tests, and the servers that tests of several folders share."""

import shutil
import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings

from infra.local import processes
from infra.settings import Settings

# A busy machine is slow at times; that does not make an example fail.
hypothesis_settings.register_profile("headrace", deadline=None)
hypothesis_settings.load_profile("headrace")

KAFKA_PORTS = range(19_010, 19_190, 10)


@pytest.fixture(scope="session")
def kafka_port() -> Callable[[], int]:
    """Returns a function that finds the first of ten consecutive free ports."""

    def is_free(port: int) -> bool:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            return probe.connect_ex(("127.0.0.1", port)) != 0

    return lambda: next(first for first in KAFKA_PORTS if all(is_free(first + offset) for offset in range(10)))


@pytest.fixture(scope="session")
def kafka_tools() -> None:
    """Skips the test where a broker cannot be started."""
    from infra.maven.jars import BROKER, JarsError, jars

    if shutil.which("java") is None:
        pytest.skip("a real Kafka needs Java")
    try:
        jars(Settings(), BROKER)
    except JarsError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def kafka_broker(
    kafka_tools: None, kafka_port: Callable[[], int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Starts one real broker for all tests; yields HEADRACE_KAFKA_BOOTSTRAP for it."""
    from infra.local import kafka_broker

    own = Settings(data_dir=tmp_path_factory.mktemp("kafka"))
    nodes = kafka_broker.plan(kafka_port())
    try:
        kafka_broker.start(own, nodes)
        yield kafka_broker.bootstrap(nodes)
    finally:
        processes.stop_all(own)


@pytest.fixture
def kafka_settings(kafka_broker: str, tmp_path: Path) -> Settings:
    """Returns settings whose log is on the broker and empty."""
    prefix = f"test-{uuid.uuid4().hex[:12]}-"
    return Settings(data_dir=tmp_path, kafka_bootstrap=kafka_broker, kafka_topic_prefix=prefix, kafka_partitions=3)

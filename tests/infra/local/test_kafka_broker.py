"""A broker's folder can be formatted with any id of its cluster."""

from collections.abc import Callable
from pathlib import Path

import pytest

from infra.local import kafka_broker, processes
from infra.settings import Settings

pytestmark = pytest.mark.slow


def test_a_cluster_id_may_begin_with_a_dash(kafka_tools: None, kafka_port: Callable[[], int], tmp_path: Path) -> None:
    settings, nodes = Settings(data_dir=tmp_path), kafka_broker.plan(kafka_port())
    (tmp_path / "kafka").mkdir()
    (tmp_path / "kafka" / "cluster.id").write_text("-eqAQWLFRHmkNnbKMWhDhg")
    try:
        kafka_broker.start(settings, nodes)
    finally:
        processes.stop_all(settings)
    written = tmp_path / "kafka" / nodes[0].name / "data" / "meta.properties"
    assert "cluster.id=-eqAQWLFRHmkNnbKMWhDhg" in written.read_text()

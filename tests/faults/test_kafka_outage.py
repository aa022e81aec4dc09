"""The only broker dies: users still get recommendations, and their impressions reach Kafka when it is back."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra import topics
from infra.local import kafka_broker, processes
from infra.log.client import read_all
from infra.log.open import open_log
from infra.settings import Settings
from tests.apps.servers import ASK, serving

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

AWAY_SECONDS = 8.0


@pytest.fixture
def own(kafka_tools: None, tmp_path: Path) -> Iterator[Settings]:
    settings = Settings(data_dir=tmp_path / "kafka")
    yield settings
    processes.stop_all(settings)


def test_users_are_answered_without_kafka_and_it_gets_their_impressions_later(
    own: Settings, kafka_port: Callable[[], int], tmp_path: Path
) -> None:
    nodes = kafka_broker.plan(kafka_port())
    kafka_broker.start(own, nodes)
    with serving(tmp_path / "api", kafka_bootstrap=kafka_broker.bootstrap(nodes)) as server:
        asked: list[str] = []

        def ask() -> bool:
            status, _, answer = server.call("POST", "/v1/recommend", ASK)
            assert status == 200, answer
            assert answer["items"]
            asked.append(answer["request_id"])
            return bool(answer["degraded"])

        assert processes.wait_until(lambda: not ask(), seconds=60), "the first request creates the topic: slow"
        processes.alive(own)[nodes[0].name].kill()
        assert processes.wait_until(ask, seconds=10), "answers whose impressions wait for the log are degraded"
        end = time.monotonic() + AWAY_SECONDS
        while time.monotonic() < end:
            assert ask(), "they stay degraded while it is away"
            time.sleep(0.05)

        kafka_broker.start(own, nodes)
        assert processes.wait_until(lambda: not ask(), seconds=60), "it recovers by itself"
        log = open_log(server.settings)

        def lacking() -> set[str]:
            return set(asked) - {json.loads(record.value)["event_id"] for record in read_all(log, topics.IMPRESSIONS)}

        assert processes.wait_until(lambda: not lacking(), seconds=60, pause=1.0), f"lost {len(lacking())}"
        assert server.output.read_text().count("experiments stay as they were read last") <= 2

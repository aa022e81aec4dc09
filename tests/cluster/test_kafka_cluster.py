"""Three real brokers with three replicas, two of them in sync: acknowledged records survive a killed broker."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.local import kafka_broker, processes
from infra.log.client import LogUnreachableError
from infra.log.open import open_log
from infra.settings import Settings
from tests.infra.log.test_kafka import everything

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

WRITERS = 4


@pytest.fixture
def cluster(kafka_tools: None, kafka_port: Callable[[], int], tmp_path: Path) -> Iterator[Settings]:
    nodes = kafka_broker.plan(kafka_port(), brokers=3)
    settings = Settings(
        data_dir=tmp_path, kafka_bootstrap=kafka_broker.bootstrap(nodes), kafka_replication=3, kafka_partitions=6,
        kafka_timeout_seconds=30.0,
    )  # fmt: skip
    try:
        kafka_broker.start(settings, nodes)
        yield settings
    finally:
        processes.stop_all(settings)


def test_acknowledged_records_survive_a_killed_broker(cluster: Settings) -> None:
    log, stop = open_log(cluster), threading.Event()
    acknowledged: list[list[bytes]] = [[] for _ in range(WRITERS)]
    refused: list[LogUnreachableError] = []

    def write(name: int) -> None:
        number = 0
        while not stop.is_set():
            values = [b'{"writer": %d, "n": %d}' % (name, number + part) for part in range(3)]
            try:
                log.append("t", [(f"writer-{name}", value) for value in values])
            except LogUnreachableError as error:
                refused.append(error)
                return
            acknowledged[name] += values
            number += 3

    log.append("t", [("first", b"{}")])
    writers = [threading.Thread(target=write, args=(name,)) for name in range(WRITERS)]
    for writer in writers:
        writer.start()
    time.sleep(1.5)
    before = [len(values) for values in acknowledged]
    assert min(before) > 0
    victim = processes.alive(cluster)["kafka-2"]
    os.kill(victim.pid, signal.SIGKILL)
    killed = time.monotonic()
    assert processes.wait_until(
        lambda: all(len(values) > count + 30 for values, count in zip(acknowledged, before, strict=True)), seconds=60
    )
    print(f"every writer had 30 more records stored {time.monotonic() - killed:.1f} s after the kill")
    stop.set()
    for writer in writers:
        writer.join(60)
    assert refused == []  # thirty seconds are enough to elect another leader

    for reader in (log, open_log(cluster)):
        records = everything(reader)
        stored = [record for record in records if record.key != "first"]
        assert Counter(record.value for record in stored).most_common(1)[0][1] == 1  # retries store nothing twice
        for name, values in enumerate(acknowledged):
            own = [record for record in stored if record.key == f"writer-{name}"]
            assert [record.value for record in own] == values  # nothing lost, in order
            assert len({record.partition for record in own}) == 1


def test_a_lost_majority_is_reported_and_nothing_is_acknowledged(cluster: Settings) -> None:
    settings = cluster.model_copy(update={"kafka_timeout_seconds": 3.0})
    log = open_log(settings)
    log.append("t", [("a", b'{"n": 0}')])
    for name in ("kafka-2", "kafka-3"):
        os.kill(processes.alive(cluster)[name].pid, signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises(LogUnreachableError, match="cannot reach Kafka"):
        log.append("t", [("a", b'{"n": 1}')])
    assert time.monotonic() - started < 6
    kafka_broker.start(
        cluster, kafka_broker.plan(int(str(cluster.kafka_bootstrap).split(",")[0].split(":")[1]), brokers=3)
    )

    def stored() -> bool:
        try:
            log.append("t", [("a", b'{"n": 2}')])
        except LogUnreachableError:
            return False
        return True

    assert processes.wait_until(stored, seconds=60)
    # The other partitions may still be without a leader for longer than the log above waits.
    patient = open_log(cluster.model_copy(update={"kafka_timeout_seconds": 20.0}))
    values = [record.value for record in everything(patient)]
    assert values[0] == b'{"n": 0}'
    assert values[-1] == b'{"n": 2}'

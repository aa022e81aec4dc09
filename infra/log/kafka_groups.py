"""Stores the positions of a consumer group in Kafka. Nobody joins a group: partition shares decide who reads what."""

import threading
import time
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition


class Committer:
    """Commits and reads the positions of `group`; the client's own synchronous commit would wait without a limit."""

    def __init__(self, connection: dict[str, Any], group: str) -> None:
        self.consumer = Consumer(
            {**connection, "group.id": group, "enable.auto.commit": False, "on_commit": self._on_commit}
        )
        self._lock = threading.Lock()
        self._requested: list[TopicPartition] = []
        self._outcome: list[KafkaError | None] = []

    def _on_commit(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        if _as_tuples(partitions) == _as_tuples(self._requested):  # not the late answer to an earlier commit
            errors = (entry.error for entry in partitions if entry.error is not None)
            self._outcome.append(error or next(errors, None))

    def commit(self, offsets: list[TopicPartition], *, seconds: float) -> None:
        """Commits. Raises KafkaException when Kafka refuses, TimeoutError when there is no answer within `seconds`."""
        with self._lock:
            self._requested, self._outcome = offsets, []
            self.consumer.commit(offsets=offsets, asynchronous=True)
            deadline = time.monotonic() + seconds
            while not self._outcome:
                if time.monotonic() > deadline:
                    raise TimeoutError
                self.consumer.poll(0.005)
            if self._outcome[0] is not None:
                raise KafkaException(self._outcome[0])


def _as_tuples(partitions: list[TopicPartition]) -> list[tuple[str, int, int]]:
    return [(entry.topic, entry.partition, entry.offset) for entry in partitions]

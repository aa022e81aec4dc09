"""The positions of a group in Kafka. Nobody joins a group: who reads what is settled by shares."""

import threading
import time
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition


class Committer:
    """A consumer that only keeps the positions of `group`. Its own synchronous commit waits without a limit."""

    def __init__(self, connection: dict[str, Any], group: str) -> None:
        self.consumer = Consumer(
            {**connection, "group.id": group, "enable.auto.commit": False, "on_commit": self._on_commit}
        )
        self._lock = threading.Lock()
        self._asked: list[TopicPartition] = []
        self._outcome: list[KafkaError | None] = []

    def _on_commit(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        told = [(one.topic, one.partition, one.offset) for one in partitions]
        if told == [(one.topic, one.partition, one.offset) for one in self._asked]:  # not of one that was given up
            self._outcome.append(error or next((one.error for one in partitions if one.error is not None), None))

    def commit(self, offsets: list[TopicPartition], *, seconds: float) -> None:
        """Raises KafkaException when it is refused, TimeoutError when nothing is said for `seconds`."""
        with self._lock:
            self._asked, self._outcome = offsets, []
            self.consumer.commit(offsets=offsets, asynchronous=True)
            deadline = time.monotonic() + seconds
            while not self._outcome:
                if time.monotonic() > deadline:
                    raise TimeoutError
                self.consumer.poll(0.005)
            if self._outcome[0] is not None:
                raise KafkaException(self._outcome[0])

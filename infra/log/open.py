"""Which log the settings name: the one on files, or Kafka."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infra.log.client import EventLog

if TYPE_CHECKING:  # Spark's Python workers import this module often, and need no settings
    from infra.settings import Settings


def make_topic(settings: Settings, topic: str) -> None:
    """Have a topic that a reader of another make (Spark) expects to be there; on files every topic is."""
    if settings.kafka_bootstrap is not None:
        from infra.log.kafka import KafkaLog

        KafkaLog(settings).make(topic)


def open_log(settings: Settings) -> EventLog:
    """The log that the settings name."""
    if settings.kafka_bootstrap is not None:
        from infra.log.kafka import KafkaLog

        return KafkaLog(settings)
    from infra.log.files import FileLog

    return FileLog(settings.log_dir, segment_bytes=settings.segment_mebibytes * 2**20)

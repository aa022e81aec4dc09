"""Opens the log that the settings name: on files or in Kafka."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infra.log.client import EventLog

if TYPE_CHECKING:  # Spark's Python workers import this module often, and do not need the settings
    from infra.settings import Settings


def make_topic(settings: Settings, topic: str) -> None:
    """Creates a topic that Spark's own Kafka reader expects to exist; on files every topic does."""
    if settings.kafka_bootstrap is not None:
        from infra.log.kafka import KafkaLog

        KafkaLog(settings).create_topic(topic)


def open_log(settings: Settings) -> EventLog:
    """Opens the log that the settings name."""
    if settings.kafka_bootstrap is not None:
        from infra.log.kafka import KafkaLog

        return KafkaLog(settings)
    from infra.log.files import FileLog

    return FileLog(settings.log_dir, segment_bytes=settings.segment_mebibytes * 2**20)

"""Events as a client sends them, and a service that takes them in."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from apps.ingest.service import IngestService
from infra.log.client import EventLog
from infra.log.files import FileLog

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.fixture
def log(tmp_path: Path) -> FileLog:
    return FileLog(tmp_path / "log")


@pytest.fixture
def service_on() -> Callable[..., IngestService]:
    def make(log: EventLog, **more: Any) -> IngestService:
        limits = {"recent": 1000, "max_event_bytes": 2000, "max_future_seconds": 300, "max_age_days": 400}
        return IngestService(log, NOW.timestamp, **limits | more)

    return make


@pytest.fixture
def service(log: FileLog, service_on: Callable[..., IngestService]) -> IngestService:
    return service_on(log)


@pytest.fixture
def purchase() -> Callable[..., dict[str, Any]]:
    def make(event_id: str = "p-1", **more: Any) -> dict[str, Any]:
        usual = {"type": "purchase", "event_time": "2026-11-22T10:15:00Z", "user_id": "u", "item_id": "i", "price": 2.5}
        return {**usual, "event_id": event_id} | more

    return make


@pytest.fixture
def payment() -> Callable[..., dict[str, Any]]:
    def make(event_id: str = "t-1", **more: Any) -> dict[str, Any]:
        usual = {"type": "transaction", "event_time": "2026-11-22T10:15:00Z", "card_id": "c", "terminal_id": "t"}
        return {**usual, "event_id": event_id, "amount": 10.0} | more

    return make

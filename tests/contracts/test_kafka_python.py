"""The example of docs/kafka-python.md runs as it stands, against a real broker, and its records are whole events."""

import importlib.util
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest

from apps.wiring import run_scorer
from features.store.feature_store import open_store
from infra import topics
from infra.log.client import START, Record
from infra.log.open import make_topic, open_log
from infra.settings import Settings
from streaming.parsing import parse
from streaming.source import READ_TOPICS

pytest.importorskip("lz4.frame", reason="kafka-python reads what Headrace writes with lz4: `make setup` installs it")
pytestmark = [
    pytest.mark.slow,
    # kafka-python, at import.
    pytest.mark.filterwarnings("ignore:(read|open)_text is deprecated:DeprecationWarning"),
]

PAGE = Path(__file__).parents[2] / "docs" / "kafka-python.md"
BURST = 5
"""From this payment of an hour on a card is reviewed, where there is no model (apps/fraud/judgement.py)."""


@pytest.fixture
def settings(kafka_settings: Settings) -> Settings:
    made = kafka_settings.model_copy(update={"kafka_timeout_seconds": 20.0})
    for topic in (*READ_TOPICS, topics.DECISIONS):
        make_topic(made, topic)
    return made


@pytest.fixture
def example_file(tmp_path: Path) -> Path:
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    path = tmp_path / "kafka_python_example.py"
    path.write_text(code)
    return path


@pytest.fixture
def environment(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_KAFKA_BOOTSTRAP", str(settings.kafka_bootstrap))
    monkeypatch.setenv("HEADRACE_KAFKA_TOPIC_PREFIX", settings.kafka_topic_prefix)


@pytest.fixture
def example(example_file: Path, environment: None) -> ModuleType:
    spec = importlib.util.spec_from_file_location("kafka_python_example", example_file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def scorer(settings: Settings) -> Iterator[None]:
    open_store(settings)
    stop = threading.Event()
    thread = threading.Thread(target=run_scorer, args=(settings,), kwargs={"stop": stop})
    thread.start()
    yield
    stop.set()
    thread.join(30)
    assert not thread.is_alive()


def in_the_log(settings: Settings, topic: str) -> list[Record]:
    log, position, found = open_log(settings), START, list[Record]()
    while not position.covers(log.end(topic)):
        records = log.read(topic, position)
        found, position = found + records, position.after(records)
    return found


def parsed(records: list[Record]) -> pa.Table:
    """The records as the feature job reads them."""
    names = ("topic", "partition", "offset", "timestamp_ms")
    columns: dict[str, Any] = {name: [getattr(record, name) for record in records] for name in names}
    values = pa.array([record.value.decode() for record in records], pa.string())
    return parse(pa.table({**columns, "value": values}).rename_columns([*names[:3], "timestamp", "value"]))


def payment(number: int, card: str = "card-1") -> dict[str, Any]:
    return {
        "type": "transaction", "event_id": f"t-{number}", "event_time": datetime.now(UTC).isoformat(), "card_id": card,
        "terminal_id": "terminal-1", "amount": 812.5, "channel": "online",
    }  # fmt: skip


def test_the_page_as_a_program_prints_a_decision(
    example_file: Path, environment: None, settings: Settings, scorer: None
) -> None:
    done = subprocess.run([sys.executable, str(example_file)], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "'event_id': 't-1'" in done.stdout
    for topic, event_id in ((topics.SHOP, "v-1"), (topics.TRANSACTIONS, "t-1")):
        events = parsed(in_the_log(settings, topic))
        assert events["reason"].to_pylist() == [None]
        assert events["event_id"].to_pylist() == [event_id]


def test_the_decision_read_back_is_the_one_in_the_log(example: ModuleType, settings: Settings, scorer: None) -> None:
    producer, consumer = example.open_producer(), example.open_decisions()
    sent = [payment(number) for number in range(BURST)]
    read_back = []
    try:
        for event in sent:
            example.send(producer, topics.TRANSACTIONS, event["card_id"], event)
            read_back.append(example.wait_for_decision(consumer, event["event_id"]))
    finally:
        producer.close()
        consumer.close()
    assert read_back == [json.loads(record.value) for record in in_the_log(settings, topics.DECISIONS)]
    assert [decision["outcome"] for decision in read_back] == ["approve"] * (BURST - 1) + ["review"]
    for event, decision in zip(sent, read_back, strict=True):
        assert {name: decision[name] for name in ("event_id", "card_id", "terminal_id", "amount")} == {
            name: event[name] for name in ("event_id", "card_id", "terminal_id", "amount")
        }
    assert not in_the_log(settings, topics.DEAD_LETTERS)


def test_the_feature_job_reads_every_field(example: ModuleType, settings: Settings) -> None:
    now = "2026-11-22T10:15:00+00:00"
    purchase = {
        "type": "purchase", "event_id": "o-1:1", "event_time": now, "user_id": "Zoë", "item_id": "85123A",
        "quantity": 6, "price": 2.55, "order_id": "o-1", "request_id": "r-1",
    }  # fmt: skip
    label = {
        "type": "label", "event_id": "l-1", "event_time": now, "transaction_id": "t-1", "fraud": True,
        "card_id": "card-1", "terminal_id": "terminal-1", "transaction_time": now,
    }  # fmt: skip
    producer = example.open_producer()
    for topic, key, event in ((topics.SHOP, "Zoë", purchase), (topics.LABELS, "card-1", label)):
        example.send(producer, topic, key, event)
        (record,) = in_the_log(settings, topic)
        assert record.key == key
        (row,) = parsed([record]).to_pylist()
        assert row["reason"] is None
        times = ("event_time", "transaction_time")
        assert {name: row[name] for name in event if name not in times} == {
            name: value for name, value in event.items() if name not in times
        }
        assert row["event_time"] == datetime.fromisoformat(now).timestamp() * 1000
    producer.close()


def test_a_key_lies_where_headrace_puts_it(example: ModuleType, settings: Settings) -> None:
    log, producer = open_log(settings), example.open_producer()
    for number in range(30):
        event = payment(number, card=f"card-{number}")
        log.append(topics.TRANSACTIONS, [(event["card_id"], json.dumps(event).encode())])
        example.send(producer, topics.TRANSACTIONS, event["card_id"], event)
    producer.close()
    partitions: dict[str, set[int]] = {}
    for record in in_the_log(settings, topics.TRANSACTIONS):
        partitions.setdefault(record.key, set()).add(record.partition)
    assert len(partitions) == 30
    assert all(len(lies_in) == 1 for lies_in in partitions.values())
    assert len(set.union(*partitions.values())) == 3

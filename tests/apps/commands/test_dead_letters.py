"""Dead letters are shown by reason, exported, corrected and replayed, and count once."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import ValidationError

from apps.commands.bulk_load import append_dead_letters
from apps.commands.dead_letters import LettersError, export, letters, replay, show
from apps.fraud import scorer
from features.contract.events import Transaction
from infra import topics
from infra.log.client import START, Record
from infra.log.open import open_log
from infra.settings import Settings

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
OLD = {"type": "purchase", "event_id": "p-1", "event_time": "2019-01-01T00:00:00Z", "user_id": "u", "item_id": "i"}
PAYMENT = {"type": "transaction", "event_id": "t-1", "event_time": "2026-11-22T11:00:00Z", "card_id": "c"}


class Output:
    """Collects the lines that a command prints."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = Settings(data_dir=tmp_path)
    log = open_log(settings)
    append_dead_letters(log, [("no customer", {"item": "i"}), ("no customer", {"item": "j"})], origin="x")
    fields = {"reason": "malformed", "detail": "terminal_id: missing"}
    bad = {"event_id": "transactions:0:17", **fields, "value": json.dumps(PAYMENT)}
    log.append(topics.DEAD_LETTERS, [("malformed", orjson.dumps(bad))] * 2)
    return settings


def exported(settings: Settings, tmp_path: Path, reason: str | None = None) -> tuple[Path, list[dict[str, Any]]]:
    target = tmp_path / "letters.jsonl"
    export(settings, target, reason=reason, say=Output())
    return target, [json.loads(line) for line in target.read_text().splitlines()]


def correct(target: Path, lines: list[dict[str, Any]], *values: object) -> Path:
    corrected = [{**line, "value": value} for line, value in zip(lines, values, strict=True)]
    target.write_text("\n".join(map(json.dumps, corrected)) + "\n\n")
    return target


def test_they_are_shown_by_reason_the_most_frequent_first_and_a_repeat_counts_once(settings: Settings) -> None:
    output = Output()
    show(settings, reason=None, samples=1, say=output)
    assert [line.split(None, 1) for line in output.lines[::2]] == [
        ["2", "no customer"], ["1", "malformed"], ["waiting:", "3 dead letters; replayed: 0"],
    ]  # fmt: skip
    assert "terminal_id: missing" in output.lines[3]


def test_corrected_letters_go_to_their_topics_however_old_and_once(settings: Settings, tmp_path: Path) -> None:
    target, lines = exported(settings, tmp_path)
    assert lines[2]["value"] == PAYMENT
    correct(target, lines, OLD, {**OLD, "event_id": "p-2", "price": -1}, {**PAYMENT, "terminal_id": "t", "amount": 3})
    output = Output()
    assert replay(settings, target, now=NOW, say=output) == 1
    assert output.lines[0].startswith("line 2: price: ")
    assert output.lines[-1] == "replayed: 2; replayed before: 0; still wrong: 1"
    log = open_log(settings)
    assert [json.loads(record.value)["event_id"] for record in log.read(topics.SHOP, START)] == ["p-1"]
    assert [record.key for record in log.read(topics.TRANSACTIONS, START)] == ["c"]

    assert replay(settings, target, now=NOW, say=output) == 1
    assert output.lines[-1] == "replayed: 0; replayed before: 2; still wrong: 1"
    assert len(log.read(topics.SHOP, START)) == 1
    assert [line["reason"] for line in exported(settings, tmp_path)[1]] == ["no customer"]
    show(settings, reason=None, samples=0, say=output)
    assert output.lines[-1] == "waiting: 1 dead letter; replayed: 2"


def test_letters_that_are_still_wrong_and_lines_that_are_no_letters_are_reported(
    settings: Settings, tmp_path: Path
) -> None:
    target, lines = exported(settings, tmp_path, reason="no customer")
    assert len(lines) == 2
    output = Output()
    correct(target, lines, "{not json", {**OLD, "type": "label"})
    assert replay(settings, target, now=NOW, say=output) == 2
    assert output.lines[0] == "line 1: an event is a JSON object"
    target.write_text('{"value": {}}\n')
    with pytest.raises(LettersError, match="line 1 is not a letter"):
        replay(settings, target, now=NOW, say=output)
    assert open_log(settings).end(topics.SHOP) == START


@pytest.mark.parametrize(
    "value",
    [b"\xff\xfe{", b"null", b"[]", b'"x"', b"{}", b'{"type": 3}', b"x" * 200_000, b'{"amount": "\xc3("}', b"[" * 5000],
    ids=["not UTF-8", "null", "a list", "a text", "empty", "a number as type", "huge", "bad UTF-8", "deep"],
)
def test_any_record_of_a_topic_becomes_a_letter_that_can_be_read_and_exported(
    settings: Settings, tmp_path: Path, value: bytes
) -> None:
    with pytest.raises(ValidationError):
        Transaction.model_validate_json(value)
    record = Record(topics.TRANSACTIONS, 0, 5, 6, 0, "c", value)
    key, letter = scorer._refuse(record, reason="malformed", detail="a reason")
    open_log(settings).append(topics.DEAD_LETTERS, [(key, letter)])
    last = list(letters(open_log(settings)))[-1]
    assert (last.id, last.reason) == ("transactions:0:5", "malformed")
    assert exported(settings, tmp_path)[1][-1]["origin"]["offset"] == 5

"""Dead letters: told by reason, exported, mended, and put back so that they count once."""

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


class Said:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = Settings(data_dir=tmp_path)
    log = open_log(made)
    append_dead_letters(log, [("no customer", {"item": "i"}), ("no customer", {"item": "j"})], origin="x")
    said = {"reason": "malformed", "detail": "terminal_id: missing"}
    bad = {"event_id": "transactions:0:17", **said, "value": json.dumps(PAYMENT)}
    log.append(topics.DEAD_LETTERS, [("malformed", orjson.dumps(bad))] * 2)
    return made


def exported(settings: Settings, tmp_path: Path, reason: str | None = None) -> tuple[Path, list[dict[str, Any]]]:
    target = tmp_path / "letters.jsonl"
    export(settings, target, reason=reason, say=Said())
    return target, [json.loads(line) for line in target.read_text().splitlines()]


def mend(target: Path, lines: list[dict[str, Any]], *values: object) -> Path:
    mended = [{**line, "value": value} for line, value in zip(lines, values, strict=True)]
    target.write_text("\n".join(map(json.dumps, mended)) + "\n\n")
    return target


def test_they_are_told_by_reason_the_commonest_first_and_a_repeat_counts_once(settings: Settings) -> None:
    said = Said()
    show(settings, reason=None, samples=1, say=said)
    assert [line.split(None, 1) for line in said.lines[::2]] == [
        ["2", "no customer"], ["1", "malformed"], ["3", "dead letters wait, 0 were put back"],
    ]  # fmt: skip
    assert "terminal_id: missing" in said.lines[3]


def test_mended_letters_go_to_their_topics_however_old_and_once(settings: Settings, tmp_path: Path) -> None:
    target, lines = exported(settings, tmp_path)
    assert lines[2]["value"] == PAYMENT
    mend(target, lines, OLD, {**OLD, "event_id": "p-2", "price": -1}, {**PAYMENT, "terminal_id": "t", "amount": 3})
    said = Said()
    assert replay(settings, target, now=NOW, say=said) == 1
    assert said.lines[0].startswith("line 2: price: ")
    assert said.lines[-1] == "2 put back, 0 were back already, 1 still wrong"
    log = open_log(settings)
    assert [json.loads(record.value)["event_id"] for record in log.read(topics.SHOP, START)] == ["p-1"]
    assert [record.key for record in log.read(topics.TRANSACTIONS, START)] == ["c"]

    assert replay(settings, target, now=NOW, say=said) == 1
    assert said.lines[-1] == "0 put back, 2 were back already, 1 still wrong"
    assert len(log.read(topics.SHOP, START)) == 1
    assert [line["reason"] for line in exported(settings, tmp_path)[1]] == ["no customer"]
    show(settings, reason=None, samples=0, say=said)
    assert said.lines[-1] == "1 dead letters wait, 2 were put back"


def test_what_came_neither_mended_nor_as_a_letter_is_told(settings: Settings, tmp_path: Path) -> None:
    target, lines = exported(settings, tmp_path, reason="no customer")
    assert len(lines) == 2
    said = Said()
    mend(target, lines, "{not json", {**OLD, "type": "label"})
    assert replay(settings, target, now=NOW, say=said) == 2
    assert said.lines[0] == "line 1: an event is a JSON object"
    target.write_text('{"value": {}}\n')
    with pytest.raises(LettersError, match="line 1 is not a letter"):
        replay(settings, target, now=NOW, say=said)
    assert open_log(settings).end(topics.SHOP) == START


@pytest.mark.parametrize(
    "value",
    [b"\xff\xfe{", b"null", b"[]", b'"x"', b"{}", b'{"type": 3}', b"x" * 200_000, b'{"amount": "\xc3("}', b"[" * 5000],
    ids=["not UTF-8", "null", "a list", "a text", "empty", "a number as type", "huge", "bad UTF-8", "deep"],
)
def test_whatever_stands_in_a_topic_becomes_a_letter_that_can_be_read_and_exported(
    settings: Settings, tmp_path: Path, value: bytes
) -> None:
    with pytest.raises(ValidationError):
        Transaction.model_validate_json(value)
    record = Record(topics.TRANSACTIONS, 0, 5, 6, 0, "c", value)
    key, letter = scorer._refuse(record, reason="malformed", detail="said why")
    open_log(settings).append(topics.DEAD_LETTERS, [(key, letter)])
    found = list(letters(open_log(settings)))[-1]
    assert (found.id, found.reason) == ("transactions:0:5", "malformed")
    assert exported(settings, tmp_path)[1][-1]["origin"]["offset"] == 5

"""The vocabulary: every event survives its JSON, knows its topic and its key, and refuses what it cannot be."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from features.contract.events import ACCEPTED, LOGGED, TOPIC_OF, Id, LoggedEvent, key_of, to_json
from features.contract.timestamps import from_milliseconds, milliseconds, rfc3339
from infra import topics

COMMON = {"event_id": "e", "event_time": "2026-11-22T10:15:00Z"}
SHOWN = {"item_id": "i", "position": 1, "score": 0.5, "source": "two_tower", "propensity": 0.1}
PAYMENT = {"card_id": "c", "terminal_id": "t", "amount": 1.5}
EXAMPLES: dict[str, tuple[dict[str, Any], str]] = {
    "item": ({"item_id": "i", "title": "Ä\n"}, "i"),
    "view": ({"item_id": "i", "session_id": "s"}, "s"),
    "cart": ({"item_id": "i", "user_id": "u", "session_id": "s"}, "u"),
    "purchase": ({"item_id": "i", "user_id": "u"}, "u"),
    "return": ({"item_id": "i", "user_id": "u"}, "u"),
    "transaction": (PAYMENT, "c"),
    "label": ({"transaction_id": "x", "fraud": True}, "x"),
    "impression": ({"user_id": "u", "surface": "home", "model": "m", "items": [SHOWN]}, "u"),
    "decision": (
        {**PAYMENT, "score": 0.5, "outcome": "review", "model": "m", "decided_time": "2026-11-22T10:15:01Z"}, "c",
    ),
    "experiment": ({"experiment": "x", "definition": {"a": 1}}, "x"),
    "rules": ({"surface": "home", "rules": {"rules": []}}, "home"),
}  # fmt: skip


@pytest.mark.parametrize("kind", TOPIC_OF)
def test_every_event_survives_its_json_under_its_key(kind: str) -> None:
    fields, key = EXAMPLES[kind]
    event = LOGGED.validate_python({"type": kind, **COMMON, **fields})
    assert LOGGED.validate_json(to_json(event)) == event
    assert b"\n" not in to_json(event)
    assert b"null" not in to_json(event)
    assert key_of(event) == key
    assert TOPIC_OF[kind] in topics.ALL
    with pytest.raises(ValidationError, match="frozen"):
        event.event_id = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="Extra inputs"):
        LOGGED.validate_python({"type": kind, **COMMON, **fields, "colour": "red"})


def test_every_kind_of_event_has_a_topic() -> None:
    kinds = {get_args(model.model_fields["type"].annotation)[0] for model in get_args(get_args(LoggedEvent)[0])}
    assert kinds == set(TOPIC_OF) == set(EXAMPLES)


@pytest.mark.parametrize("kind", ["label", "impression", "decision", "experiment", "rules"])
def test_what_headrace_writes_itself_is_not_taken_from_outside(kind: str) -> None:
    with pytest.raises(ValidationError, match="does not match any of the expected tags"):
        ACCEPTED.validate_python({"type": kind, **COMMON, **EXAMPLES[kind][0]})


@given(st.text(max_size=140))
def test_an_id_is_1_to_128_characters_none_of_them_control(text: str) -> None:
    good = 1 <= len(text) <= 128 and not any(ord(letter) < 32 or ord(letter) == 127 for letter in text)
    try:
        TypeAdapter(Id).validate_python(text)
    except ValidationError:
        assert not good or any(0xD800 <= ord(letter) < 0xE000 for letter in text)
    else:
        assert good


@given(st.integers(-62_000_000_000_000, 250_000_000_000_000))
def test_moments_come_back_from_milliseconds(moment: int) -> None:
    assert milliseconds(from_milliseconds(moment)) == moment
    assert milliseconds(datetime.fromisoformat(rfc3339(moment))) == moment


def test_a_moment_is_the_same_in_every_time_zone() -> None:
    noon = datetime(2026, 11, 22, 12, tzinfo=UTC)
    assert milliseconds(noon.astimezone(timezone(timedelta(hours=-9)))) == milliseconds(noon) == 1_795_348_800_000
    assert rfc3339(1_795_348_800_000) == "2026-11-22T12:00:00.000Z"
    assert milliseconds(noon + timedelta(microseconds=1999)) == milliseconds(noon) + 1  # as Spark's unix_millis

"""docs/events.md lists exactly the event types and fields of the code, and its examples are events."""

import json
import re
import typing
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from features.contract import events

PAGE = (Path(__file__).parents[2] / "docs" / "events.md").read_text()
EVENT_CLASSES: dict[str, type[events.Event]] = {
    event_class.model_json_schema()["properties"]["type"]["const"]: event_class
    for event_class in typing.get_args(events.Logged)
}
PARTS: dict[str, type[BaseModel]] = {"shown item": events.ShownItem, "reason": events.Reason}
SECTION_MODELS = {**EVENT_CLASSES, **PARTS}
SHARED_FIELDS = {*events.Event.model_fields, "type"}
PATTERNS = {(128, "^[^\\x00-\\x1f\\x7f]+$"): "id", (64, "^[A-Za-z0-9_.:-]+$"): "code"}

Row = list[str]


def sections() -> dict[str, str]:
    """Heading, of whatever depth, to the text below it up to the next heading."""
    parts = re.split(r"^#{1,3} (.+)$", PAGE, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(text: str) -> dict[str, Row]:
    """First cell to the other cells of the table rows of a section."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "| `" in line[:3]]
    assert len({row[0] for row in cells}) == len(cells), "a row stands twice"
    return {row[0].strip("`"): row[1:] for row in cells}


def examples(text: str) -> list[dict[str, Any]]:
    return [json.loads(block) for block in re.findall(r"^```json\n(.*?)^```", text, re.M | re.S)]


def section_of(name: str) -> str:
    return next(text for heading, text in sections().items() if name in heading.split(", "))


def number(value: float) -> str:
    return f"{value:,.0f}"


def limits(schema: dict[str, Any]) -> str:
    """The limits of a JSON Schema in the words of the page; "" where it has none."""
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "maxLength" in schema:
        return f"at most {number(schema['maxLength'])} characters"
    if "exclusiveMinimum" in schema:
        return f"above {number(schema['exclusiveMinimum'])}, at most {number(schema['maximum'])}"
    highest = schema.get("maximum", schema.get("exclusiveMaximum", 0) - 1)
    if "minimum" in schema:
        return f"{number(schema['minimum'])}{' or more' if highest < 0 else f' to {number(highest)}'}"
    return ""


def type_and_range(schema: dict[str, Any]) -> str:
    """What the column "type and range" says of a field with this JSON Schema."""
    schema = next((option for option in schema.get("anyOf", ()) if option["type"] != "null"), schema)
    if schema["type"] == "array":
        part = schema["items"]["$ref"].rpartition("/")[2]
        return f"list of {next(name for name, model in PARTS.items() if model.__name__ == part)}"
    if schema.get("format") == "date-time":
        return "time"
    if name := PATTERNS.get((schema.get("maxLength", 0), schema.get("pattern", ""))):
        return name
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return limits(schema)
    names = {"string": "text", "number": "number", "integer": "whole number", "boolean": "true or false"}
    return ", ".join(filter(None, (names.get(schema["type"], schema["type"]), limits(schema))))


def test_every_section_is_of_an_event_type() -> None:
    listed = [name for heading in sections() for name in heading.split(", ")]
    assert sorted(listed) == sorted([*SECTION_MODELS, "Events", "Every event"])


def test_every_event_type_has_its_topic() -> None:
    table = rows(sections()["Events"])
    assert {name: cells[0].strip("`") for name, cells in table.items()} == events.TOPIC_OF
    assert all(len(cells) == 4 and all(cells) for cells in table.values())


@pytest.mark.parametrize("name", SECTION_MODELS)
def test_the_fields_are_those_of_the_code(name: str) -> None:
    schema = SECTION_MODELS[name].model_json_schema()
    expected = {
        field: (type_and_range(described), "yes" if field in schema["required"] else "no")
        for field, described in schema["properties"].items()
        if name in PARTS or field not in SHARED_FIELDS
    }
    listed = rows(section_of(name))
    assert {field: tuple(cells[:2]) for field, cells in listed.items()} == expected
    assert all(cells[2] for cells in listed.values()), "a field without a meaning"


def test_the_fields_of_every_event_are_those_of_the_code() -> None:
    schema = events.Event.model_json_schema()["properties"]
    expected = {name: type_and_range(described) for name, described in schema.items()} | {"type": "the event type"}
    assert {name: cells[0] for name, cells in rows(sections()["Every event"]).items()} == expected


@pytest.mark.parametrize("name", EVENT_CLASSES)
def test_the_example_is_such_an_event_under_its_key(name: str) -> None:
    heading = next(heading for heading in sections() if name in heading.split(", "))
    nested = {"impression": "shown item", "decision": "reason"}.get(name, heading)
    example = next(event for event in examples(sections()[nested]) if event["type"] == name)
    event = events.LOGGED.validate_json(json.dumps(example))
    assert isinstance(event, EVENT_CLASSES[name])
    keys = re.findall(r"`(\w+)`", rows(sections()["Events"])[name][1])
    assert events.key_of(event) == next(example[key] for key in keys if key in example)
    shared = rows(sections()["Every event"])
    values = {field: json.loads(cells[3].strip("`")) for field, cells in (shared | rows(section_of(name))).items()}
    events.LOGGED.validate_json(json.dumps(example | values | {"type": name}))


@pytest.mark.parametrize("name", PARTS)
def test_the_example_of_a_part_is_one(name: str) -> None:
    values = {field: json.loads(cells[3].strip("`")) for field, cells in rows(section_of(name)).items()}
    PARTS[name].model_validate_json(json.dumps(values))

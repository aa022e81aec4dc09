"""Writes docs/api.md from the OpenAPI document: `python -m infra.cli.api_page` after a change of the API.

Knows JSON Schema and Markdown, and nothing of what an endpoint does.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from features.contract.events import TOPIC_OF
from infra.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
BASE = "localhost:8000"
JSON = "application/json"
HEAD = """# HTTP API

For developers of clients. Written by `python -m infra.cli.api_page` from the OpenAPI document; do not edit. The server
has the same at `/openapi.json`, and pages to try it at `/docs`. Bodies are JSON with `content-type: application/json`.
An error is an `application/problem+json` object with `type`, `status`, `title` and `detail`. A server that has too much
to do answers 503 with `Retry-After` ([operations.md](operations.md#overload)). Every answer carries `X-Request-ID`.
"""

Schema = dict[str, Any]


def render(document: Schema) -> str:
    """The page of an OpenAPI 3.1 document."""
    operations = [
        (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    lines = [HEAD, "| method | path | summary |", "|---|---|---|"]
    lines += [
        f"| {method} | [`{path}`](#{_anchor(method, path)}) | {_summary(it)} |" for method, path, it in operations
    ]
    schemas = _Schemas(document)
    for method, path, operation in operations:
        lines += ["", *_operation(method, path, operation, schemas)]
    lines += ["", "## Objects", *schemas.listed()]
    return "\n".join(lines) + "\n"


class _Schemas:
    """The named schemas of the document, and which of them the page has mentioned."""

    def __init__(self, document: Schema) -> None:
        self._components: Schema = document["components"]["schemas"]
        self._mentioned: dict[str, None] = {}

    def type_of(self, schema: Schema) -> str:
        """What a value is, in a few words; objects are links to their tables."""
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            return self._named(name)
        if options := schema.get("anyOf") or schema.get("oneOf"):
            return " or ".join(dict.fromkeys(self.type_of(option) for option in options))
        if "const" in schema:
            return f"`{json.dumps(schema['const'])}`"
        if "enum" in schema:
            return ", ".join(f"`{value}`" for value in schema["enum"])
        if schema.get("type") == "array":
            return f"list of {self.type_of(schema.get('items', {}))}{_size(schema, 'Items')}"
        if "properties" in schema:
            parts = (f"`{name}`: {self.type_of(field)}" for name, field in schema["properties"].items())
            return f"object with {', '.join(parts)}"
        kind = {"string": "text", "number": "number", "integer": "whole number", "boolean": "true or false"}
        if schema.get("format") == "date-time":
            return "time"
        if schema.get("format") == "date":
            return "date"
        name = str(schema.get("type", "any"))
        return kind.get(name, name) + _range(schema) + _size(schema, "Length")

    def _named(self, name: str) -> str:
        schema = self._components[name]
        if "properties" not in schema:
            return self.type_of(schema)
        if (event_type := schema["properties"].get("type", {}).get("const")) in TOPIC_OF:
            return f"[{event_type}](events.md)"
        self._mentioned.setdefault(name)
        return f"[{name}](#{name.lower()})"

    def fields(self, schema: Schema) -> list[str]:
        """A table of an object's fields; none where it has none."""
        if not schema.get("properties"):
            return []
        required = set(schema.get("required", ()))
        rows = []
        for name, field in schema["properties"].items():
            cells = (f"`{name}`", self.type_of(field), "yes" if name in required else _default(field), _meaning(field))
            rows.append(f"| {' | '.join(map(_cell, cells))} |")
        return ["| field | type | required | meaning |", "|---|---|---|---|", *rows]

    def resolved(self, schema: Schema) -> Schema:
        target: Schema = self._components[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
        return target

    def listed(self) -> Iterator[str]:
        """A section for every object that was mentioned, and for those that these mention."""
        written: set[str] = set()
        while left := [name for name in self._mentioned if name not in written]:
            for name in left:
                written.add(name)
                schema = self._components[name]
                about = [_text(schema["description"]), ""] if "description" in schema else []
                yield from ["", f"### {name}", "", *about, *self.fields(schema)]


def _operation(method: str, path: str, operation: Schema, schemas: _Schemas) -> Iterator[str]:
    yield from [
        f"## {method} {path}",
        "",
        f"**{_summary(operation)}.** {_text(operation.get('description', ''))}".strip(),
    ]
    if parameters := operation.get("parameters"):
        yield from ["", "| parameter | in | type | required | meaning |", "|---|---|---|---|---|"]
        for parameter in parameters:
            required = "yes" if parameter.get("required") else _default(parameter["schema"])
            meaning = parameter.get("description") or _meaning(parameter["schema"])
            type_name = _cell(schemas.type_of(parameter["schema"]))
            yield f"| `{parameter['name']}` | {parameter['in']} | {type_name} | {required} | {_cell(meaning)} |"
    body = operation.get("requestBody", {}).get("content", {}).get(JSON)
    if body:
        yield from ["", f"Body: {schemas.type_of(body['schema'])}"]
    yield from ["", "| status | answer |", "|---|---|"]
    for status, answer in operation["responses"].items():
        yield f"| {status} | {_cell(_answer(answer, schemas))} |"
    yield from ["", "```sh", *_curl(method, path, operation, body, schemas), "```"]


def _answer(answer: Schema, schemas: _Schemas) -> str:
    about = answer.get("description", "")
    for media, content in answer.get("content", {}).items():
        if "schema" in content and media == JSON:
            return f"{about}: {schemas.type_of(content['schema'])}"
        if media == "application/problem+json" and "detail" in content.get("example", {}):
            return f"{about}, such as: {content['example']['detail']}"
    return str(about)


def _curl(method: str, path: str, operation: Schema, body: Schema | None, schemas: _Schemas) -> list[str]:
    url = BASE + path
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "path":
            example = (parameter.get("examples") or parameter["schema"].get("examples") or ["x"])[0]
            url = url.replace("{" + parameter["name"] + "}", str(example))
    flags = " -N" if "text/event-stream" in operation["responses"].get("200", {}).get("content", {}) else ""
    verb = "" if method == "GET" or (method == "POST" and body) else f" -X {method}"
    if not body:
        return [f"curl{flags}{verb} {url}"]
    value = json.dumps(_example(body, schemas)).replace("'", "'\\''")
    return [f"curl{flags}{verb} {url} -H 'content-type: {JSON}' -d '{value}'"]


def _example(body: Schema, schemas: _Schemas) -> Any:
    """The first example of a request body, from the operation or from the schema."""
    for example in body.get("examples", {}).values():
        return example["value"]
    schema = body["schema"]
    options = [schemas.resolved(option) for option in schema.get("anyOf", [schema])]
    return next((option["examples"][0] for option in options if option.get("examples")), {})


def _range(schema: Schema) -> str:
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    above, below = "exclusiveMinimum" in schema, "exclusiveMaximum" in schema
    parts = [
        "" if low is None else f"{'above' if above else 'from'} {low:,g}",
        "" if high is None else f"{'below' if below else 'to'} {_plain(high)}",
    ]
    return (", " + " ".join(filter(None, parts))) if any(parts) else ""


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"


def _size(schema: Schema, suffix: str) -> str:
    low, high = schema.get(f"min{suffix}"), schema.get(f"max{suffix}")
    unit = {"Items": "", "Length": " characters"}[suffix]
    if low is None and high is None:
        return ""
    if high is None:
        return f", at least {low}{unit}"
    return f", {low or 0} to {high:,}{unit}"


def _default(schema: Schema) -> str:
    value = schema.get("default")
    return "no" if value in (None, "", [], {}) else f"`{json.dumps(value)}`"


def _meaning(schema: Schema) -> str:
    return _text(schema.get("description", ""))


def _summary(operation: Schema) -> str:
    return str(operation.get("summary", "")).rstrip(".")


def _text(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _anchor(method: str, path: str) -> str:
    """The anchor that Markdown viewers give the heading of an operation."""
    kept = (character for character in f"{method} {path}".lower() if character.isalnum() or character in " -_")
    return "".join(kept).replace(" ", "-")


def openapi() -> Schema:
    """The document of this version, made without data."""
    from apps.main import create_app

    with tempfile.TemporaryDirectory() as folder:
        return create_app(Settings(data_dir=Path(folder))).openapi()


if __name__ == "__main__":
    PAGE.write_text(render(openapi()), encoding="utf-8")
    print(f"wrote {PAGE}")

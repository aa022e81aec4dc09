"""Every route of the app: the same middleware and dependencies, a whole description, no query parameter ignored."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI
from fastapi.routing import RouteContext, iter_route_contexts
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from apps.http.admission import priority_of
from apps.http.errors import Problem, problem_response
from apps.http.query_parameters import query_parameters
from apps.main import create_app
from infra.settings import Settings

REFUSED = 401


def routes(app: FastAPI) -> list[RouteContext]:
    return list(iter_route_contexts(app.routes))


def calls(app: FastAPI) -> Iterator[tuple[str, str]]:
    """(method, path) of every route, with a value for each part of the path."""
    for route in routes(app):
        path = re.sub(r"\{.*?\}", "x", str(route.path))
        yield from ((method, path) for method in sorted(route.methods or {"GET"}))


def answers(app: FastAPI, query: str = "", *, only: str = "") -> dict[str, httpx.Response]:
    """The answer of each route, or of the one path; alerts are streamed without end where nothing refuses."""

    async def send() -> dict[str, httpx.Response]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return {
                f"{method} {path}": await client.request(method, path + query)
                for method, path in calls(app)
                if only in ("", path)
            }

    return asyncio.run(send())


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return create_app(Settings(data_dir=tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def document(app: FastAPI) -> dict[str, Any]:
    return app.openapi()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        yield from ((method, path, operation) for method, operation in methods.items())


def test_the_walk_covers_api_console_documentation_metrics_and_streams(app: FastAPI) -> None:
    paths = {path for _, path in calls(app)}
    assert {"/v1/recommend", "/v1/alerts/stream", "/", "/docs", "/openapi.json", "/metrics", "/healthz"} <= paths


def test_every_route_has_the_dependencies_of_the_app(tmp_path: Path) -> None:
    def refuse() -> None:
        raise Problem(REFUSED, "No key", "send a key")

    app = create_app(Settings(data_dir=tmp_path), dependencies=[Depends(refuse)])
    assert {call: answer.status_code for call, answer in answers(app).items() if answer.status_code != REFUSED} == {}


def test_every_route_lies_behind_the_innermost_middleware(tmp_path: Path) -> None:
    class Refuse:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await problem_response(REFUSED, "No key", "send a key")(scope, receive, send)

    app = create_app(Settings(data_dir=tmp_path))
    app.user_middleware.append(Middleware(Refuse))
    assert {call: answer.status_code for call, answer in answers(app).items() if answer.status_code != REFUSED} == {}


def test_every_route_refuses_an_unknown_query_parameter(app: FastAPI) -> None:
    for call, answer in answers(app, "?unheard_of=1").items():
        assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json"), call
        assert call.startswith("HEAD") or answer.json()["errors"][0]["field"] == "query.unheard_of", call


def test_every_route_takes_the_query_parameters_that_it_declares(app: FastAPI) -> None:
    declared = {str(route.path): query_parameters(route) for route in routes(app)}
    assert declared["/v1/alerts"] == ["card_id", "limit", "min_score", "outcome", "since"]
    assert declared["/v1/alerts/stream"] == ["after"]
    assert declared["/console/static/{name}"] == ["v"]
    for query in ("?limit=3", "?outcome=review&card_id=c&min_score=0.1", "?since=2026-11-22T10:20:00Z", "?", ""):
        answer = answers(app, query, only="/v1/alerts")["GET /v1/alerts"]
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("?terminal_id=t", "there is no query parameter terminal_id: the nearest is"),
        (
            "?limits=3&limit=3",
            "there is no query parameter limits: the nearest is limit; there are card_id, lim",
        ),
        ("?min-score", "there is no query parameter min-score: the nearest is min_score"),
    ],
)
def test_an_unknown_query_parameter_is_named_with_the_nearest(app: FastAPI, query: str, detail: str) -> None:
    assert detail in answers(app, query, only="/v1/alerts")["GET /v1/alerts"].json()["detail"]


def test_every_operation_says_what_it_does_and_where(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(names) == len(set(names))
    assert [name for name in names if not re.fullmatch(r"[a-z]+(_[a-z]+)+", name)] == []
    for method, path, operation in operations(document):
        assert operation["tags"], (method, path)
        generated = operation["operationId"].replace("_", " ").title()
        assert operation["summary"] not in ("", generated), f"{method} {path} has no summary of its own"
    assert document["servers"] == [{"url": "/", "description": "The server that this document came from."}]


def test_every_operation_lists_its_errors_in_the_one_shape(document: dict[str, Any]) -> None:
    assert {"HTTPValidationError", "ValidationError"}.isdisjoint(document["components"]["schemas"])
    for method, path, operation in operations(document):
        errors = {status: answer for status, answer in operation["responses"].items() if status >= "400"}
        assert {"422", "500"} <= set(errors), (method, path)
        assert priority_of(path) is None or {"413", "503"} <= set(errors), (method, path)
        for status, answer in errors.items():
            if (path, status) != ("/readyz", "503"):
                schema = answer["content"]["application/problem+json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/Problem"}, (method, path, status)


@pytest.mark.parametrize(
    ("method", "path", "statuses"),
    [
        ("post", "/v1/events", {"400", "507"}), ("post", "/v1/recommend", {"503"}),
        ("post", "/v1/items/{item_id}/similar", {"404"}), ("put", "/v1/rules/{surface}", {"507"}),
        ("post", "/v1/transactions/score", {"507"}), ("post", "/v1/labels", {"507"}),
        ("get", "/v1/alerts/stream", {"400"}), ("get", "/v1/experiments/{key}", {"404"}),
        ("put", "/v1/experiments/{key}", {"201", "409", "507"}), ("get", "/v1/experiments/{key}/report", {"404"}),
        ("get", "/readyz", {"503"}),
    ],
)  # fmt: skip
def test_an_operation_lists_what_it_alone_answers(
    document: dict[str, Any], method: str, path: str, statuses: set[str]
) -> None:
    assert statuses <= set(document["paths"][path][method]["responses"])


def test_every_reference_of_the_document_resolves(document: dict[str, Any]) -> None:
    references = set(re.findall(r"'\$ref': '#/components/schemas/(.*?)'", str(document)))
    assert references <= set(document["components"]["schemas"])

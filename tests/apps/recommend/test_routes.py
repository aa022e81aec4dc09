"""Recommending over HTTP, on a real release: the answer's schema, rules, traces, and every kind of invalid request."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from apps.main import create_app
from apps.recommend.schemas import RecommendResponse
from infra.bench.sample_release import publish_release
from infra.settings import Settings

KNOWN = {"session": {"session_id": "s", "items": ["item-3"]}, "n": 5}


def create(folder: Path, **more: Any) -> FastAPI:
    publish_release(folder / "releases", "v1", **more)
    app = create_app(Settings(data_dir=folder))
    app.state.services.poll_release()
    return app


def send(app: FastAPI, method: str, path: str, body: Any = None, *, content: bytes | None = None) -> httpx.Response:
    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            return await client.request(method, path, content=content, json=None if content else body)

    return asyncio.run(call())


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return create(tmp_path_factory.mktemp("shop"))


def test_the_unchecked_answer_fits_its_schema(app: FastAPI) -> None:
    for body in ({}, KNOWN, KNOWN | {"trace": True}, KNOWN | {"user_id": "u", "filter": "price < 20"}):
        answer = send(app, "POST", "/v1/recommend", body)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
        RecommendResponse.model_validate_json(answer.content)


def test_the_openapi_document_has_the_request_and_its_parts(app: FastAPI) -> None:
    document = send(app, "GET", "/openapi.json").json()
    content = document["paths"]["/v1/recommend"]["post"]["requestBody"]["content"]["application/json"]
    assert content["schema"]["$ref"] == "#/components/schemas/RecommendRequest"
    assert {"RecommendRequest", "Session", "Context"} <= set(document["components"]["schemas"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "Invalid JSON"),
        (b"[]", "body: Input should be an object"),
        (b'{"n": 0}', "body.n: Input should be greater than or equal to 1"),
        (b'{"colour": "red"}', "body.colour: Extra inputs are not permitted"),
        (b'{"filter": "price <"}', "filter: character 8: the end cannot stand here"),
        (b'{"context": {"request_time": "2999-01-01T00:00:00Z"}}', "lies in the future"),
    ],
)
def test_an_invalid_request_is_refused_with_the_field(app: FastAPI, content: bytes, message: str) -> None:
    answer = send(app, "POST", "/v1/recommend", content=content)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert message in answer.json()["detail"]


def test_rules_are_put_read_and_in_force(app: FastAPI) -> None:
    assert send(app, "GET", "/v1/rules/cart").json()["rules"] == []
    document = {"rules": [{"kind": "pin", "item_id": "item-7", "position": 2}, {"kind": "hide", "when": "price > 40"}]}
    assert send(app, "PUT", "/v1/rules/cart", document).status_code == 200
    assert [rule["kind"] for rule in send(app, "GET", "/v1/rules/cart").json()["rules"]] == ["pin", "hide"]
    items = send(app, "POST", "/v1/recommend", KNOWN | {"surface": "cart"}).json()["items"]
    assert (items[1]["item_id"], items[1]["source"], items[1]["reasons"][0]["code"]) == ("item-7", "pin", "PINNED")
    assert all(item["price"] <= 40 for item in items)
    assert send(app, "POST", "/v1/recommend", KNOWN).json()["items"][1]["source"] != "pin"


def test_bad_rules_leave_the_old_ones_in_force(app: FastAPI) -> None:
    send(app, "PUT", "/v1/rules/checkout", {"rules": [{"kind": "hide", "when": "price > 40"}]})
    answer = send(app, "PUT", "/v1/rules/checkout", {"rules": [{"kind": "hide", "when": "prize > 40"}]})
    assert answer.status_code == 422
    assert "there is no field prize" in answer.json()["detail"]
    assert send(app, "GET", "/v1/rules/checkout").json()["rules"][0]["when"] == "price > 40"


def test_another_process_follows_the_rules(app: FastAPI) -> None:
    send(app, "PUT", "/v1/rules/elsewhere", {"rules": [{"kind": "bought", "days": 3}]})
    other = create_app(app.state.settings)
    other.state.services.rules.renew()
    assert send(other, "GET", "/v1/rules/elsewhere").json()["rules"][0]["kind"] == "bought"


def test_a_trace_accounts_for_every_candidate(app: FastAPI) -> None:
    rules = {"rules": [{"kind": "hide", "when": "price > 40"}, {"kind": "quota", "field": "source", "most": 3}]}
    send(app, "PUT", "/v1/rules/traced", rules)
    answer = send(app, "POST", "/v1/recommend", KNOWN | {"surface": "traced", "trace": True}).json()
    traced = {candidate["item_id"]: candidate for candidate in answer["trace"]["candidates"]}
    shown = [item_id for item_id, candidate in traced.items() if candidate["stage"] == "shown"]
    assert set(shown) == {item["item_id"] for item in answer["items"]}
    assert {candidate["stage"] for candidate in traced.values()} >= {"shown", "hide", "quota"}
    assert [candidate["rank"] for candidate in traced.values()] == list(range(1, len(traced) + 1))
    scores = [candidate["score"] for candidate in traced.values()]
    assert scores == sorted(scores, reverse=True)
    assert all(candidate["sources"] and candidate["why"] for candidate in traced.values())
    assert set(answer["trace"]["stages_ms"]) == {"read features", "retrieve", "rank", "arrange"}
    assert "trace" not in send(app, "POST", "/v1/recommend", KNOWN).json()


def test_a_visitor_is_not_shown_the_same_again_and_again(app: FastAPI) -> None:
    send(app, "PUT", "/v1/rules/rotating", {"rules": [{"kind": "rotate", "factor": 0.0001}]})
    ask = KNOWN | {"surface": "rotating", "user_id": "u-rotates"}

    def shown(user: str) -> list[str]:
        items = send(app, "POST", "/v1/recommend", ask | {"user_id": user}).json()["items"]
        return [item["item_id"] for item in items]

    first, second = shown("u-rotates"), shown("u-rotates")
    assert first != second
    assert shown("somebody-else") == first


@pytest.mark.parametrize("items", [0, 1, 2])
def test_the_smallest_catalogues_answer_too(tmp_path: Path, items: int) -> None:
    app = create(tmp_path, items=items)
    everything = {
        "rules": [{"kind": "quota", "field": "category", "most": 5}, {"kind": "rotate"}],
        "diversity": {"weight": 0.5}, "exploration": {"policy": "epsilon"},
    }  # fmt: skip
    send(app, "PUT", "/v1/rules/home", everything)
    session = {"session_id": "s", "items": ["item-0", "unknown"]}
    bodies: list[dict[str, Any]] = [{}, {"user_id": "u"}, {"session": session}]
    for body in [*bodies, {"session": session, "filter": "price > 0", "trace": True}]:
        answer = send(app, "POST", "/v1/recommend", body)
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["items"]) <= items
    assert len(send(app, "GET", "/v1/trending").json()["items"]) == items
    status = send(app, "POST", "/v1/items/item-0/similar", {"n": 5}).status_code
    assert status == (200 if items else 404)


def test_before_the_first_release_the_error_says_what_to_do(tmp_path: Path) -> None:
    answer = send(create_app(Settings(data_dir=tmp_path)), "POST", "/v1/recommend", {})
    assert (answer.status_code, answer.json()["title"]) == (503, "No release yet")

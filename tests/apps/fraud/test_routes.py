"""The fraud endpoints over HTTP: shapes, idempotence, plain problems, and the alert stream."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from apps.fraud.decisions import DecisionStore
from apps.fraud.routes import alert_events, router
from apps.fraud.service import FraudService
from apps.http.errors import install_errors
from features.contract.events import LOGGED, Label
from infra import topics
from infra.log.client import START, LogFullError
from infra.log.files import FileLog

PAYMENT = {
    "transaction_id": "tx_a",
    "card_id": "card_1",
    "terminal_id": "term_1",
    "amount": 20.0,
    "channel": "online",
    "event_time": "2026-11-22T10:00:00Z",
}


class Client:
    """Asks the app in this process, and waits for the whole answer."""

    def __init__(self, app: FastAPI) -> None:
        self._transport = httpx.ASGITransport(app=app)

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            async with httpx.AsyncClient(transport=self._transport, base_url="http://test") as client:
                return await client.request(method, path, **more)

        return asyncio.run(ask())

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.request("GET", path, **more)

    def post(self, path: str, **more: Any) -> httpx.Response:
        return self.request("POST", path, **more)


@pytest.fixture
def client(service: FraudService, decisions: DecisionStore) -> Client:
    app = FastAPI()
    app.include_router(router)
    install_errors(app)
    app.state.fraud, app.state.decisions = service, decisions
    return Client(app)


def score(client: Client, **changes: Any) -> dict[str, Any]:
    answer = client.post("/v1/transactions/score", json=PAYMENT | changes)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def alerts_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    """(id, data) of the stream's alerts."""
    alerts = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line)
        if fields.get("event") == "alert":
            alerts.append((fields["id"], json.loads(fields["data"])))
    return alerts


def test_a_score_has_the_documented_shape(client: Client) -> None:
    body = score(client, amount=2_000)
    assert list(body) == ["transaction_id", "score", "outcome", "reasons", "model", "took_ms", "degraded"]
    assert body["transaction_id"] == "tx_a"
    assert body["outcome"] == "decline"
    assert list(body["reasons"][0]) == ["code", "weight", "text"]
    assert body["reasons"][0]["code"] == "AMOUNT_UNUSUAL"
    assert body["took_ms"] > 0


def test_a_repeated_transaction_gets_its_first_answer(client: Client) -> None:
    first, second = score(client), score(client, amount=9_999)
    assert {**first, "took_ms": 0} == {**second, "took_ms": 0}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"amount": -1}, "body.amount"),
        ({"card_id": ""}, "body.card_id"),
        ({"channel": "telepathy"}, "body.channel"),
        ({"event_time": "2026-11-22T10:00:00"}, "body.event_time"),
        ({"surprise": 1}, "body.surprise"),
    ],
)
def test_an_invalid_payment_is_refused_with_field_and_reason(
    client: Client, log: FileLog, changes: dict[str, Any], field: str
) -> None:
    answer = client.post("/v1/transactions/score", json=PAYMENT | changes)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["errors"][0]["field"] == field
    assert log.read(topics.DECISIONS, START) == []


def test_a_full_log_is_reported_and_nothing_is_acknowledged(
    client: Client, log: FileLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(topic: str, records: Any) -> list[int]:
        raise LogFullError("not stored: free space")

    monkeypatch.setattr(log, "append", full)
    for path, body in (("transactions/score", PAYMENT), ("labels", {"transaction_id": "tx_a", "fraud": True})):
        answer = client.post(f"/v1/{path}", json=body)
        assert answer.status_code == 507
        assert "free space" in answer.json()["detail"]


def test_a_label_is_completed_from_the_decision(client: Client, log: FileLog) -> None:
    score(client)
    body = client.post("/v1/labels", json={"transaction_id": "tx_a", "fraud": True}).json()
    assert body == {
        "accepted": 1,
        "duplicates": 0,
        "results": [{"transaction_id": "tx_a", "status": "accepted"}],
    }
    (record,) = log.read(topics.LABELS, START)
    label = LOGGED.validate_json(record.value)
    assert isinstance(label, Label)
    assert (label.card_id, label.terminal_id, label.fraud) == ("card_1", "term_1", True)
    assert label.transaction_time is not None
    assert label.transaction_time.isoformat() == "2026-11-22T10:00:00+00:00"
    assert record.key == "card_1"


def test_labels_come_in_batches_and_a_repeat_counts_once(client: Client, log: FileLog) -> None:
    unknown = {"transaction_id": "tx_unknown", "fraud": False}
    other = {"transaction_id": "tx_b", "fraud": True, "known_time": "2026-11-25T00:00:00Z"}
    first = client.post("/v1/labels", json=[unknown, other, unknown]).json()
    assert [result["status"] for result in first["results"]] == ["accepted", "accepted", "duplicate"]
    again = client.post("/v1/labels", json=[other]).json()
    assert (again["accepted"], again["duplicates"]) == (0, 1)
    assert [record.key for record in log.read(topics.LABELS, START)] == ["tx_unknown", "tx_b"]
    changed = client.post("/v1/labels", json={**other, "fraud": False}).json()
    assert changed["accepted"] == 1


@pytest.mark.parametrize("body", [[], {}, [{"transaction_id": "x"}], "x", [{"transaction_id": "x", "fraud": 3}]])
def test_invalid_labels_are_refused(client: Client, body: Any) -> None:
    assert client.post("/v1/labels", json=body).status_code == 422


def test_alerts_are_listed_with_filters(client: Client) -> None:
    score(client, transaction_id="tx_ok")
    score(client, transaction_id="tx_bad", amount=2_000, card_id="card_2")
    score(client, transaction_id="tx_odd", amount=950, card_id="card_3")
    listed = client.get("/v1/alerts").json()["alerts"]
    assert [alert["transaction_id"] for alert in listed] == ["tx_odd", "tx_bad"]
    assert listed[1]["event_time"] == "2026-11-22T10:00:00Z"
    declined = client.get("/v1/alerts", params={"outcome": "decline", "min_score": 0.5}).json()["alerts"]
    assert [alert["transaction_id"] for alert in declined] == ["tx_bad"]
    assert client.get("/v1/alerts", params={"since": "2026-11-23T00:00:00Z"}).json() == {"alerts": []}
    assert client.get("/v1/alerts", params={"limit": 0}).status_code == 422


def test_the_stream_resumes_behind_the_last_event_id(client: Client, decisions: DecisionStore) -> None:
    for number in range(3):
        score(client, transaction_id=f"tx_{number}", card_id=f"card_{number}", amount=2_000)
    decisions.closing.set()
    whole = client.get("/v1/alerts/stream", params={"after": "0:0"})
    assert whole.headers["content-type"].startswith("text/event-stream")
    assert whole.text.startswith("retry: ")
    alerts = alerts_of(whole.text)
    assert [data["transaction_id"] for _, data in alerts] == ["tx_0", "tx_1", "tx_2"]
    rest = client.get("/v1/alerts/stream", headers={"Last-Event-ID": alerts[0][0]})
    assert alerts_of(rest.text) == alerts[1:]
    listed = client.get("/v1/alerts").json()["alerts"]
    assert [alert["alert_id"] for alert in listed] == [position for position, _ in reversed(alerts)]


def test_a_stream_without_a_position_starts_now_and_names_its_position(
    client: Client, decisions: DecisionStore
) -> None:
    score(client, amount=2_000)
    decisions.closing.set()
    text = client.get("/v1/alerts/stream").text
    assert alerts_of(text) == []
    assert f"id: {decisions.end()}\n" in text


@pytest.mark.parametrize("position", ["x", "-1", "1.5", "²", "0:²", "7", "0:1,"])
def test_a_position_that_the_stream_never_gave_is_refused(client: Client, position: str) -> None:
    answer = client.get("/v1/alerts/stream", params={"after": position})
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"


def test_an_alert_reaches_an_open_stream(
    service: FraudService, decisions: DecisionStore, new_payment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apps.fraud.routes.POLL_SECONDS", 0.01)
    monkeypatch.setattr("apps.fraud.routes.HEARTBEAT_SECONDS", 0.02)

    async def follow() -> list[str]:
        seen = []
        stream = alert_events(decisions, decisions.end())
        async for text in stream:
            seen.append(text)
            if text.startswith(": alive") and not alerts_of("".join(seen)):
                service.score(new_payment(1, amount=2_000))
            if "event: alert" in text:
                decisions.closing.set()
        return seen

    seen = asyncio.run(follow())
    assert any(text.startswith(": alive\nid: ") for text in seen)
    assert [data["transaction_id"] for _, data in alerts_of("".join(seen))] == ["tx_1"]


def test_every_endpoint_is_documented_with_an_example(client: Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for path, methods in paths.items():
        for operation in methods.values():
            for content in operation["responses"]["200"]["content"].values():
                assert "example" in content, path
            for content in operation.get("requestBody", {}).get("content", {}).values():
                assert content["examples"], path

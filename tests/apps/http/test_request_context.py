"""What every request gets: an id that goes with it everywhere, a log line where it failed, a count, and a span."""

import asyncio
import http.server
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client import REGISTRY

from apps import metrics
from apps.http.errors import install_errors
from apps.http.request_context import RequestContext
from apps.ingest.service import IngestService
from apps.main import create_app
from infra import topics
from infra.bench.sample_release import publish_release
from infra.log.client import START, LogUnreachableError
from infra.log.files import FileLog
from infra.observability import traces
from infra.observability.logs import REQUEST_ID, JsonLines, pseudonym
from infra.settings import Settings
from tests.apps.servers import ASK

PAYMENT = {"transaction_id": "t-1", "card_id": "card-9", "terminal_id": "x", "amount": 950.0}


def send(app: Any, *calls: tuple[str, str, Any], headers: dict[str, str] | None = None) -> list[httpx.Response]:
    async def go() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://x", headers=headers) as client:
            return [await client.request(method, path, json=body) for method, path, body in calls]

    return asyncio.run(go())


def small_app() -> FastAPI:
    app = FastAPI()
    install_errors(app)

    @app.get("/request-id")
    def request_id() -> str | None:
        return REQUEST_ID.get()

    @app.get("/broken/{part}")
    def broken(part: str) -> None:
        raise ValueError("inside")

    app.add_middleware(RequestContext, log_requests=False)
    return app


@pytest.mark.parametrize("given", ["abc-1", "a" * 128])
def test_a_usable_request_id_is_taken_over_and_sent_back(given: str) -> None:
    (answer,) = send(small_app(), ("GET", "/request-id", None), headers={"X-Request-ID": given})
    assert answer.json() == answer.headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a" * 129, "a b", "a\tb", '"x"'])
def test_another_is_replaced(given: str) -> None:
    first, second = send(
        small_app(), ("GET", "/request-id", None), ("GET", "/request-id", None), headers={"X-Request-ID": given}
    )
    assert first.json() == first.headers["x-request-id"]
    assert len({given, first.json(), second.json()}) == 3


def test_a_failure_is_one_line_with_its_request_and_counts_as_500(caplog: pytest.LogCaptureFixture) -> None:
    labels = {"method": "GET", "route": "/broken/{part}", "status": "500"}
    before = REGISTRY.get_sample_value("headrace_request_seconds_count", labels) or 0
    with caplog.at_level(logging.INFO):
        (answer,) = send(small_app(), ("GET", "/broken/x", None), headers={"X-Request-ID": "call-1"})
    assert answer.status_code == 500
    assert REGISTRY.get_sample_value("headrace_request_seconds_count", labels) == before + 1
    (line,) = [record for record in caplog.records if record.name == "apps.http.request_context"]
    assert (line.levelname, line.__dict__["status"]) == ("WARNING", 500)


def test_a_log_line_carries_its_request_and_no_readable_id(capsys: pytest.CaptureFixture[str]) -> None:
    token = REQUEST_ID.set("call-2")
    try:
        record = logging.LogRecord("x", logging.INFO, "", 0, "said", (), None)
        record.card = pseudonym("card-9")
        line = json.loads(JsonLines().format(record))
    finally:
        REQUEST_ID.reset(token)
    assert (line["request_id"], line["message"]) == ("call-2", "said")
    assert line["card"] == pseudonym("card-9") != pseudonym("card-8")
    assert "card-9" not in json.dumps(line)


def test_pseudonyms_follow_the_key(tmp_path: Path) -> None:
    script = (
        "from infra.observability import logs; from infra.settings import Settings;"
        "logs.set_up(Settings()); print(logs.pseudonym('card-9'))"
    )

    def with_key(key: str | None) -> str:
        environment = {"PYTHONPATH": "."} | ({"HEADRACE_PSEUDONYM_KEY": key} if key else {})
        command = [sys.executable, "-c", script]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert with_key("one") == with_key("one") != with_key("two")
    assert with_key(None) != with_key(None)


def test_the_request_id_of_a_score_is_in_its_decision_alert_and_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish_release(tmp_path / "releases", "v1")
    app = create_app(Settings(data_dir=tmp_path))
    app.state.services.poll_release()
    with caplog.at_level(logging.INFO):
        score, alerts, docs, shown = send(
            app,
            ("POST", "/v1/transactions/score", PAYMENT),
            ("GET", "/v1/alerts", None),
            ("GET", "/docs", None),
            ("POST", "/v1/recommend", ASK),
            headers={"X-Request-ID": "call-3"},
        )
    assert score.json()["outcome"] == "review"
    app.state.services.impressions.stop()  # delivers what waits
    log = FileLog(tmp_path / "log")
    for topic in (topics.DECISIONS, topics.TRANSACTIONS, topics.IMPRESSIONS):
        (record,) = log.read(topic, START)
        assert json.loads(record.value)["http_request_id"] == "call-3"
    assert alerts.json()["alerts"][0]["http_request_id"] == "call-3"
    (line,) = [record for record in caplog.records if record.message == "alert"]
    assert line.__dict__["request_id"] == "call-3"
    assert "card-9" not in json.dumps(line.__dict__, default=str)
    assert shown.json()["items"]
    assert "https://" not in docs.text
    (script,) = [part.split('"')[0] for part in docs.text.split('src="')[1:]]
    assert send(app, ("GET", script, None))[0].status_code == 200


def test_events_are_not_acknowledged_while_the_log_is_away(tmp_path: Path) -> None:
    class Away(FileLog):
        def append(self, topic: str, records: object) -> None:
            raise LogUnreachableError("no broker answers")

    event = {"type": "view", "event_id": "v", "event_time": "2026-11-22T10:00:00Z", "item_id": "i", "user_id": "u"}
    app = create_app(Settings(data_dir=tmp_path))
    noon = datetime(2026, 11, 22, 12, tzinfo=UTC)
    limits = {"recent": 10, "max_event_bytes": 999, "max_future_seconds": 9, "max_age_days": 999}
    app.state.ingest = IngestService(Away(tmp_path / "away"), noon.timestamp, **limits)
    (answer,) = send(app, ("POST", "/v1/events", event))
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["title"] == "Event log unavailable"


class Collector(http.server.BaseHTTPRequestHandler):
    spans: list[Any]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            import gzip

            body = gzip.decompress(body)
        attributes = ExportTraceServiceRequest.FromString(body)
        for resource in attributes.resource_spans:
            for scope in resource.scope_spans:
                type(self).spans += scope.spans
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Any]]]:
    Collector.spans = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", Collector.spans
    server.shutdown()
    server.server_close()


def test_a_request_is_one_trace_below_the_callers_with_a_span_for_each_step(
    tmp_path: Path, collector: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, spans = collector
    publish_release(tmp_path / "releases", "v1")
    settings = Settings(data_dir=tmp_path, otlp_endpoint=endpoint)
    app = create_app(settings)
    app.state.services.poll_release()
    monkeypatch.setattr(traces, "_tracer", None)
    flush = traces.start(settings, "test")
    above = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    send(app, ("POST", "/v1/recommend", ASK), ("POST", "/v1/transactions/score", PAYMENT), headers=above)
    flush()
    assert {span.trace_id.hex() for span in spans} == {"a" * 32}
    by_name = {span.name: span for span in spans}
    top = by_name["POST /v1/recommend"]
    assert top.parent_span_id.hex() == "b" * 16
    assert {"read features", "retrieve", "rank", "log append", "score", "POST /v1/transactions/score"} <= set(by_name)
    assert by_name["rank"].parent_span_id == top.span_id
    attributes = {attribute.key: attribute.value for attribute in top.attributes}
    assert attributes["http.response.status_code"].int_value == 200
    assert attributes["http.route"].string_value == "/v1/recommend"


def test_without_a_collector_nothing_of_opentelemetry_is_imported() -> None:
    script = (
        "import sys; from infra.observability import traces; from infra.settings import Settings;"
        "traces.start(Settings(), 'x');\n"
        "with traces.span('a', b=1), traces.request_span('c', {}) as describe: describe('d', {})\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_numbers_of_processes_that_died_stay_and_what_they_said_of_their_present_goes(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    for name in (f"gauge_livesum_{gone.pid}.db", f"counter_{gone.pid}.db", "gauge_livemax_1.db"):
        (tmp_path / name).write_bytes(b"")
    metrics.forget_dead(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f"counter_{gone.pid}.db", "gauge_livemax_1.db"])

"""POST /v1/events as a client meets it: statuses, problem documents, limits of the body, a full disk."""

import asyncio
import os
import resource
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from fastapi import FastAPI

from apps.http.admission import AdmissionControl, ConcurrencyLimiter
from apps.http.errors import install_errors
from apps.ingest.routes import router
from apps.ingest.service import IngestService
from infra import topics
from infra.log.client import START
from infra.log.files import FileLog
from infra.settings import Settings

Make = Callable[..., dict[str, Any]]
Send = Callable[[Any], httpx.Response]


@pytest.fixture
def send(tmp_path: Path, service: IngestService) -> Send:
    """Posts a body (bytes as they are, anything else as JSON) to the app in this process."""
    app = FastAPI()
    app.state.settings = Settings(data_dir=tmp_path, max_batch_events=20, max_event_bytes=2000)
    app.state.ingest = service
    app.include_router(router)
    # Places for all: the requests of a test come from several event loops, and none may wait in another.
    app.add_middleware(AdmissionControl, limiter=ConcurrencyLimiter(64, queue_seconds=10), most_bytes=20 * 2000)
    install_errors(app)

    async def post(content: bytes) -> httpx.Response:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            return await client.post("/v1/events", content=content)

    return lambda body: asyncio.run(post(body if isinstance(body, bytes) else orjson.dumps(body)))


def stored(log: FileLog) -> list[str]:
    return [orjson.loads(record.value)["event_id"] for record in log.read(topics.SHOP, START, max_records=10_000)]


def test_one_event_and_a_batch(send: Send, log: FileLog, purchase: Make) -> None:
    answer = send(purchase("a"))
    assert (answer.status_code, answer.json()["accepted"]) == (200, 1)
    many = send({"events": [purchase("a"), purchase("b", price=-1), purchase("c")]})
    assert many.status_code == 200
    assert many.json() == {
        "accepted": 1,
        "duplicates": 1,
        "refused": 1,
        "results": [
            {"index": 0, "event_id": "a", "status": "duplicate", "field": None, "reason": None},
            {
                "index": 1, "event_id": "b", "status": "refused", "field": "price",
                "reason": "Input should be greater than or equal to 0",
            },
            {"index": 2, "event_id": "c", "status": "accepted", "field": None, "reason": None},
        ],
    }  # fmt: skip
    assert stored(log) == ["a", "c"]


MALFORMED = {
    "nothing": b"",
    "cut off": b'{"events": [{"type": "view"',
    "not JSON": b"type=view&item_id=1",
    "not UTF-8": b'{"type": "\xff"}',
    "half a surrogate": rb'{"type": "\ud800"}',
    "NaN": b'{"type": "purchase", "price": NaN}',
    "infinity": b'{"type": "purchase", "price": 1e999}',
    "a number of 400 digits": b'{"quantity": ' + b"1" * 400 + b"}",
    "nested without end": b"[" * 5000,
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_a_body_that_is_no_json_is_a_bad_request(send: Send, log: FileLog, body: bytes) -> None:
    answer = send(body)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["title"] == "Not JSON"
    assert "the body is not valid JSON: " in answer.json()["detail"]
    assert stored(log) == []


@pytest.mark.parametrize("body", [{"events": []}, {"events": {}}, {"events": None}, {"events": "view"}])
def test_a_batch_without_events_is_invalid(send: Send, body: object) -> None:
    answer = send(body)
    assert (answer.status_code, answer.json()["title"]) == (422, "Invalid request")
    assert 'send one event, or {"events": [...]}' in answer.json()["detail"]


def test_too_many_events_are_refused_as_a_whole(send: Send, log: FileLog, purchase: Make) -> None:
    answer = send({"events": [purchase(str(number)) for number in range(21)]})
    assert (answer.status_code, answer.headers["content-type"]) == (413, "application/problem+json")
    assert answer.json()["detail"] == "21 events in one batch; at most 20 are taken"
    assert stored(log) == []
    assert send({"events": [purchase(str(number)) for number in range(20)]}).json()["accepted"] == 20


def test_an_oversized_body_is_refused_before_it_is_read_whole(send: Send) -> None:
    answer = send(b'{"events": "' + b"x" * 50_000 + b'"}')
    assert (answer.status_code, answer.json()["title"]) == (413, "Too large")
    assert "larger than 40000 bytes; send smaller batches" in answer.json()["detail"]


def test_deep_and_oversized_events_do_not_harm_their_batch(send: Send, purchase: Make) -> None:
    deep = b"[" * 500 + b"]" * 500
    body = b'{"events": [%s, %s, {"type": "view", "title": %s}]}' % (
        orjson.dumps(purchase("a")), orjson.dumps(purchase("b", order_id="x" * 3000)), deep,
    )  # fmt: skip
    answer = send(body)
    assert answer.status_code == 200
    assert [result["reason"] for result in answer.json()["results"]] == [
        None, "larger than 2000 bytes", "nested too deep",
    ]  # fmt: skip


def test_posts_at_the_same_moment_are_each_answered_and_kept(send: Send, log: FileLog, purchase: Make) -> None:
    def post(number: int) -> dict[str, Any]:
        answer: dict[str, Any] = send({"events": [purchase("shared"), purchase(f"own-{number}")]}).json()
        return answer

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(post, range(12)))
    assert all(answer["accepted"] + answer["duplicates"] == 2 for answer in answers)
    assert sorted(set(stored(log))) == sorted(["shared", *(f"own-{number}" for number in range(12))])
    assert stored(log).count("shared") == sum(a["results"][0]["status"] == "accepted" for a in answers)


@pytest.fixture
def no_room() -> Iterator[Callable[[], None]]:
    """Files of this process may grow to 1,000 bytes, until the function that this gives is called."""
    handler, (soft, hard) = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)

    def make_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    yield make_room
    make_room()
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_reported_and_a_retry_counts_once(
    send: Send, log: FileLog, purchase: Make, no_room: Callable[[], None]
) -> None:
    assert send(purchase("small")).status_code == 200
    batch = {"events": [purchase(f"p-{number}") for number in range(20)]}
    answer = send(batch)
    no_room()
    assert (answer.status_code, answer.headers["content-type"]) == (507, "application/problem+json")
    assert answer.json()["title"] == "Event log is full"
    assert "free space there" in answer.json()["detail"]
    assert stored(log) == ["small"]
    assert send(batch).json()["accepted"] == 20
    assert send(batch).json()["duplicates"] == 20
    assert stored(log) == ["small", *(f"p-{number}" for number in range(20))]
    assert os.listdir(log._folder / topics.SHOP).count("lock") == 1

"""Admission control: how long a request waits, which goes first, and that no slot is ever lost."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from apps.http.admission import AdmissionControl, ConcurrencyLimiter, Priority, priority_of

QUEUE_SECONDS = 0.05


@pytest.mark.parametrize(
    ("path", "priority"),
    [
        ("/healthz", None), ("/readyz", None), ("/metrics", None), ("/", None), ("/docs", None),
        ("/v1/alerts/stream", None), ("/v1/recommend", "interactive"), ("/v1/transactions/score", "interactive"),
        ("/v1/trending", "interactive"), ("/v1/items/i/similar", "interactive"), ("/v1/alerts", "interactive"),
        ("/v1/events", "bulk"), ("/v1/labels", "bulk"), ("/v1/experiments/x/report", "bulk"),
    ],
)  # fmt: skip
def test_what_is_never_refused_and_what_comes_first(path: str, priority: Priority | None) -> None:
    assert priority_of(path) == priority


class App:
    """Answers each request once `go` is set."""

    def __init__(self) -> None:
        self.working = self.most = 0
        self.go = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.working += 1
        self.most = max(self.most, self.working)
        try:
            if (await receive())["body"] == b"fail":
                raise ValueError("broken")
            await self.go.wait()
        finally:
            self.working -= 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def call(gate: AdmissionControl, path: str, body: bytes = b"", length: int | None = None) -> list[Message]:
    sent: list[Message] = []
    headers = [] if length is None else [(b"content-length", str(length).encode())]

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    await gate({"type": "http", "path": path, "method": "POST", "headers": headers}, receive, send)
    return sent


def run(story: Callable[[App, AdmissionControl, ConcurrencyLimiter], Awaitable[Any]], *, slots: int = 2) -> Any:
    async def go() -> Any:
        app, limiter = App(), ConcurrencyLimiter(slots, queue_seconds=QUEUE_SECONDS)
        return await asyncio.wait_for(story(app, AdmissionControl(app, limiter=limiter, most_bytes=100), limiter), 10)

    return asyncio.run(go())


def statuses(answers: list[list[Message]]) -> list[int]:
    return [answer[0]["status"] for answer in answers]


def test_a_request_that_waits_too_long_is_refused_with_a_time_to_retry() -> None:
    async def story(app: App, gate: AdmissionControl, limiter: ConcurrencyLimiter) -> None:
        tasks = [asyncio.create_task(call(gate, "/v1/recommend")) for _ in range(3)]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        (refused,) = [task.result() for task in tasks if task.done()]
        assert refused[0]["status"] == 503
        assert dict(refused[0]["headers"])[b"retry-after"] == b"1"
        assert dict(refused[0]["headers"])[b"content-type"] == b"application/problem+json"
        app.go.set()
        answers = await asyncio.gather(*tasks)
        assert sorted(statuses(answers)) == [200, 200, 503]
        assert (app.most, limiter.running) == (2, 0)

    run(story)


def test_a_standing_queue_refuses_sooner_than_a_burst() -> None:
    async def story(app: App, gate: AdmissionControl, limiter: ConcurrencyLimiter) -> None:
        loop = asyncio.get_running_loop()
        busy = [asyncio.create_task(call(gate, "/v1/recommend")) for _ in range(2)]
        await asyncio.sleep(0)

        async def refused_after() -> float:
            started = loop.time()
            assert statuses([await call(gate, "/v1/recommend")]) == [503]
            return loop.time() - started

        first = asyncio.create_task(refused_after())
        waiting = [first]
        for _ in range(12):
            await asyncio.sleep(QUEUE_SECONDS / 5)
            waiting.append(asyncio.create_task(refused_after()))
        took = await asyncio.gather(*waiting)
        assert took[0] >= QUEUE_SECONDS * 0.9
        assert min(took[7:]) < QUEUE_SECONDS / 2
        app.go.set()
        await asyncio.gather(*busy)

    run(story)


def test_a_standing_queue_is_served_in_order_and_refuses_the_longest_waits_first() -> None:
    async def story(app: App, gate: AdmissionControl, limiter: ConcurrencyLimiter) -> None:
        loop = asyncio.get_running_loop()
        assert all([await limiter.acquire("interactive") for _ in range(2)])
        order: list[int] = []

        async def request(number: int) -> float:
            started = loop.time()
            if await limiter.acquire("interactive"):
                order.append(number)
                loop.call_later(QUEUE_SECONDS / 10, limiter.release, "interactive")
                return 0.0
            return loop.time() - started

        waiting = [asyncio.create_task(request(0))]
        await asyncio.sleep(QUEUE_SECONDS / 2)
        waiting.append(asyncio.create_task(request(1)))
        await asyncio.sleep(QUEUE_SECONDS * 0.6)
        assert (waiting[0].done(), waiting[1].done(), limiter.has_standing_queue("interactive")) == (True, False, True)
        waiting += [asyncio.create_task(request(number)) for number in (2, 3)]
        await asyncio.sleep(0)
        assert await waiting[1] > QUEUE_SECONDS / 2, "refused at once when the next came"
        limiter.release("interactive")
        limiter.release("interactive")
        assert await asyncio.gather(*waiting[2:]) == [0.0, 0.0]
        assert order == [2, 3]
        await asyncio.sleep(QUEUE_SECONDS / 4)
        assert limiter.running == 0
        assert await limiter.acquire("interactive")
        assert not limiter.has_standing_queue("interactive")

    run(story)


def test_bulk_takes_half_of_the_slots_and_interactive_goes_first() -> None:
    async def story(app: App, gate: AdmissionControl, limiter: ConcurrencyLimiter) -> None:
        bulk = [asyncio.create_task(call(gate, "/v1/events")) for _ in range(4)]
        await asyncio.sleep(0.01)
        assert limiter.running == 1
        recommend = asyncio.create_task(call(gate, "/v1/recommend"))
        await asyncio.sleep(0.01)
        assert limiter.running == 2
        await asyncio.sleep(QUEUE_SECONDS * 1.5)
        app.go.set()
        assert statuses([await recommend]) == [200]
        assert sorted(statuses(await asyncio.gather(*bulk))) == [200, 503, 503, 503]

    run(story)


def test_health_is_answered_whatever_waits() -> None:
    async def story(app: App, gate: AdmissionControl, limiter: ConcurrencyLimiter) -> None:
        tasks = [asyncio.create_task(call(gate, "/v1/recommend")) for _ in range(5)]
        health = asyncio.create_task(call(gate, "/healthz"))
        await asyncio.sleep(0.01)
        assert app.working == 3
        app.go.set()
        assert statuses([await health]) == [200]
        await asyncio.gather(*tasks)

    run(story)


def test_a_body_that_is_too_large_takes_no_slot() -> None:
    async def story(app: App, gate: AdmissionControl, limiter: ConcurrencyLimiter) -> None:
        answers = [await call(gate, "/v1/events", length=101), await call(gate, "/v1/recommend", b"x" * 101)]
        assert statuses(answers) == [413, 413]
        assert app.most == 0

    run(story)


def test_an_answer_that_fails_gives_its_slot_back() -> None:
    async def story(app: App, gate: AdmissionControl, limiter: ConcurrencyLimiter) -> None:
        for _ in range(5):
            with pytest.raises(ValueError, match="broken"):
                await call(gate, "/v1/recommend", b"fail")
        assert limiter.running == 0

    run(story)


def granted(waiting: list[tuple[asyncio.Task[bool], Priority]]) -> list[Priority]:
    """Removes the waits that are over; returns the priorities of those that got a slot."""
    over = [wait for wait in waiting if wait[0].done()]
    for wait in over:
        waiting.remove(wait)
    return [priority for task, priority in over if not task.cancelled() and task.result()]


@given(
    steps=st.lists(st.tuples(st.sampled_from(["take", "leave", "cancel", "pause"]), st.booleans()), max_size=60),
    most=st.integers(1, 5),
)
def test_slots_are_never_lost_nor_given_twice(steps: list[tuple[str, bool]], most: int) -> None:
    async def go() -> None:
        limiter = ConcurrencyLimiter(most, queue_seconds=0.002)
        waiting: list[tuple[asyncio.Task[bool], Priority]] = []
        held: list[Priority] = []
        for step, bulk in steps:
            priority: Priority = "bulk" if bulk else "interactive"
            if step == "take":
                waiting.append((asyncio.create_task(limiter.acquire(priority)), priority))
            elif step == "leave" and held:
                limiter.release(held.pop())
            elif step == "cancel" and waiting:
                waiting[-1][0].cancel()
            else:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0)
            held += granted(waiting)
            assert len(held) <= most
        await asyncio.sleep(0.01)
        for priority in held + granted(waiting):
            limiter.release(priority)
        assert limiter.running == 0
        assert await limiter.acquire("interactive")

    asyncio.run(go())

"""Refuses early what cannot be answered in time, so that what is answered stays fast.

A process works on a bounded number of requests at once; the rest wait in a short queue, in order, `queue_seconds` at
most: that absorbs a burst. Once no request has got a slot without waiting for that long, the queue is a standing one,
and every further millisecond of it only makes answers late: then a request waits a quarter as long, and one that has
waited longer gets a 503 at once. That is controlled delay (K. Nichols, V. Jacobson: Controlling Queue Delay, ACM Queue
10(5), 2012) as simplified for request servers (B. Maurer: Fail at Scale, ACM Queue 13(8), 2015). See decision 0012.
"""

import asyncio
import json
import time
import typing
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from apps import metrics
from apps.http.errors import MEDIA_TYPE, describe_problem, problem_body

Priority = Literal["interactive", "bulk"]
BULK = ("/v1/events", "/v1/labels", "/v1/experiments", "/v1/rules")
ALWAYS = ("/v1/alerts/stream",)
"""Below /v1, but open for hours and mostly idle: they hold no slot."""
QUICK_SHARE, QUEUE_SHARE = 1 / 20, 1 / 4
"""Shares of the longest wait: below the first it counts as none; the second is the longest in a standing queue."""
RETRY_AFTER_SECONDS = 1
OVERLOADED = f"more requests than can be answered in time; send it again in {RETRY_AFTER_SECONDS} s"
REFUSALS = {
    **describe_problem(413, "Too large", "the body is larger than ... bytes; send smaller batches"),
    **describe_problem(503, "Overloaded", OVERLOADED),
}
"""Errors of the routes that have a priority."""


def priority_of(path: str) -> Priority | None:
    """Returns None for what is never refused: health, metrics, the console and its streams, the documentation."""
    if not path.startswith("/v1/") or path in ALWAYS:
        return None
    return "bulk" if path.startswith(BULK) else "interactive"


@dataclass
class _Queue:
    most: int
    """Slots that requests of this priority may take together."""
    working: int = 0
    waiting: deque[tuple[float, asyncio.Future[bool]]] = field(default_factory=deque)
    """Start of the wait, and the future that ends it: True with a slot; oldest first."""
    quick_at: float = 0.0
    """When a request last got a slot with next to no wait."""


class ConcurrencyLimiter:
    """Holds the slots of one process and the requests that wait for them. Needs no lock: all is in the event loop."""

    def __init__(self, slots: int, *, queue_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """clock: seconds, monotonic."""
        self._most = slots
        self._queue_seconds = queue_seconds
        self._clock = clock
        self.running = 0
        now = clock()
        # Interactive first: the order in which a free slot is offered.
        self._queues: dict[Priority, _Queue] = {
            "interactive": _Queue(slots, quick_at=now),
            "bulk": _Queue(max(1, slots // 2), quick_at=now),
        }

    def has_standing_queue(self, priority: Priority) -> bool:
        """Returns whether no request got a slot without waiting for as long as a request may wait."""
        queue = self._queues[priority]
        return bool(queue.waiting) and self._clock() - queue.quick_at > self._queue_seconds

    def would_time_out(self, priority: Priority) -> bool:
        """Returns whether so many requests wait that another is not worth reading."""
        return len(self._queues[priority].waiting) >= 4 * self._most

    async def acquire(self, priority: Priority) -> bool:
        """Waits for a slot; returns False when none came free in time. `release` gives it back."""
        queue = self._queues[priority]
        if not queue.waiting and self._free(queue):
            queue.quick_at = self._clock()
            self._start(queue)
            return True
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[bool] = loop.create_future()
        patience = self._queue_seconds
        if self.has_standing_queue(priority):
            patience *= QUEUE_SHARE
            while queue.waiting and queue.waiting[0][0] < self._clock() - patience:
                self._reject(queue, queue.waiting[0][1])
        queue.waiting.append((self._clock(), turn))
        timer = loop.call_later(patience, self._reject, queue, turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.result():
                self.release(priority)
            else:
                self._forget(queue, turn)
            raise
        finally:
            timer.cancel()

    def release(self, priority: Priority) -> None:
        """Gives a slot back, to the requests that wait for one."""
        self._queues[priority].working -= 1
        self.running -= 1
        for queue in self._queues.values():
            while queue.waiting and self._free(queue):
                since, turn = queue.waiting.popleft()
                if not turn.done():
                    if self._clock() - since < self._queue_seconds * QUICK_SHARE:
                        queue.quick_at = self._clock()
                    self._start(queue)
                    turn.set_result(True)

    def _start(self, queue: _Queue) -> None:
        queue.working += 1
        self.running += 1

    def _free(self, queue: _Queue) -> bool:
        return queue.working < queue.most and self.running < self._most

    def _reject(self, queue: _Queue, turn: asyncio.Future[bool]) -> None:
        self._forget(queue, turn)
        if not turn.done():
            turn.set_result(False)

    def _forget(self, queue: _Queue, turn: asyncio.Future[bool]) -> None:
        for position, (_, waiting) in enumerate(queue.waiting):
            if waiting is turn:
                del queue.waiting[position]
                return


class AdmissionControl:
    """ASGI middleware in front of routing and parsing.

    A body is read before its request takes a slot, so that a slow sender holds none, and up to `most_bytes` (413
    beyond).
    """

    def __init__(self, app: ASGIApp, *, limiter: ConcurrencyLimiter, most_bytes: int) -> None:
        self._app = app
        self._limiter = limiter
        self._most_bytes = most_bytes
        self._queue_seconds = {
            priority: metrics.QUEUE_SECONDS.labels(priority) for priority in typing.get_args(Priority)
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        priority = priority_of(scope["path"]) if scope["type"] == "http" else None
        if priority is None:
            await self._app(scope, receive, send)
            return
        if self._limiter.would_time_out(priority):
            await self._refuse(priority, send)
            return
        body = await self._body(scope, receive)
        if body is None:
            detail = f"the body is larger than {self._most_bytes} bytes; send smaller batches"
            await _answer(send, 413, "Too large", detail)
            return
        started = time.perf_counter()
        if not await self._limiter.acquire(priority):
            await self._refuse(priority, send)
            return
        self._queue_seconds[priority].observe(time.perf_counter() - started)
        try:
            await self._app(scope, _replay(body, receive), send)
        finally:
            self._limiter.release(priority)

    async def _refuse(self, priority: Priority, send: Send) -> None:
        metrics.SHED.labels(priority).inc()
        await _answer(send, 503, "Overloaded", OVERLOADED, retry_after_seconds=RETRY_AFTER_SECONDS)

    async def _body(self, scope: Scope, receive: Receive) -> list[Message] | None:
        """Returns the messages of the request's body, or None when it is too large."""
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > self._most_bytes:
                return None
        messages, size = [], 0
        while True:
            message = await receive()
            messages.append(message)
            size += len(message.get("body", b""))
            if size > self._most_bytes:
                return None
            if message["type"] != "http.request" or not message.get("more_body", False):
                return messages


def _replay(messages: list[Message], receive: Receive) -> Receive:
    """Returns a `receive` that first gives the messages that were read already."""
    remaining = iter(messages)

    async def next_message() -> Message:
        return next(remaining, None) or await receive()

    return next_message


async def _answer(send: Send, status: int, title: str, detail: str, *, retry_after_seconds: int | None = None) -> None:
    headers = [(b"content-type", MEDIA_TYPE.encode())]
    if retry_after_seconds is not None:
        headers.append((b"retry-after", str(retry_after_seconds).encode()))
    body = json.dumps(problem_body(status, title, detail)).encode()
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

"""Collects the requests that wait in the event loop at the same moment, and has them answered together.

Knows who answers, not what an answer contains.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from apps.recommend.service import RequestState

MAX_BATCH = 8
"""Most requests of one batch: more would keep the event loop too long from new connections."""
EVENT_LOOP_PASSES = 3
"""Passes of the event loop before each batch. A pass accepts one new connection, and those that wait have to reach the
limits of apps/http/admission.py instead of a socket that nobody reads."""


class RequestBatcher:
    """Answers in batches of at most MAX_BATCH. Runs in the event loop alone, so it needs no lock."""

    def __init__(self, answer_all: Callable[[list[RequestState]], None]) -> None:
        self._answer_all = answer_all
        self._waiting: deque[tuple[RequestState, asyncio.Future[dict[str, Any]]]] = deque()
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, state: RequestState) -> dict[str, Any]:
        """Returns the answer to a request; raises the error that it fails with."""
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting.append((state, answer))
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        return await answer

    async def _work(self) -> None:
        while self._waiting:
            for _ in range(EVENT_LOOP_PASSES):
                await asyncio.sleep(0)
            batch = [self._waiting.popleft() for _ in range(min(MAX_BATCH, len(self._waiting)))]
            batch = [(state, answer) for state, answer in batch if not answer.done()]
            try:
                self._answer_all([state for state, _ in batch])
            except Exception as error:
                for state, _ in batch:
                    state.error = error
            for state, answer in batch:
                if state.error is not None:
                    answer.set_exception(state.error)
                else:
                    answer.set_result(state.answer)
        self._worker = None

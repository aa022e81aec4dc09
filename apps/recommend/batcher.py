"""Where requests wait in the event loop, to be answered together with those that wait at the same moment.

Knows nothing of what an answer is, but who gives it.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from apps.recommend.service import RequestState

MAX_BATCH = 8
"""Most answers that are worked out at once: more would keep the event loop from whoever comes."""
EVENT_LOOP_PASSES = 3
"""Before each round the event loop looks so often for what came: it takes one new connection at each look, and those
that wait must be met by the limits of apps/http/admission.py, not by a socket that nobody reads."""


class RequestBatcher:
    """Lives in the event loop, so it needs no lock."""

    def __init__(self, answer_all: Callable[[list[RequestState]], None]) -> None:
        self._answer_all = answer_all
        self._waiting: deque[tuple[RequestState, asyncio.Future[dict[str, Any]]]] = deque()
        self._working: asyncio.Task[None] | None = None

    async def submit(self, call: RequestState) -> dict[str, Any]:
        """The answer of the call; raises what it fails with."""
        turn: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting.append((call, turn))
        if self._working is None:
            self._working = asyncio.create_task(self._work())
        return await turn

    async def _work(self) -> None:
        while self._waiting:
            for _ in range(EVENT_LOOP_PASSES):
                await asyncio.sleep(0)
            together = [self._waiting.popleft() for _ in range(min(MAX_BATCH, len(self._waiting)))]
            together = [(call, turn) for call, turn in together if not turn.done()]
            try:
                self._answer_all([call for call, _ in together])
            except Exception as error:
                for call, _ in together:
                    call.error = error
            for call, turn in together:
                if call.error is not None:
                    turn.set_exception(call.error)
                else:
                    turn.set_result(call.answer)
        self._working = None

"""Requests that wait at the same moment are answered together, and fail alone."""

import asyncio
from typing import Any

import pytest

from apps.http.errors import Problem
from apps.recommend.batcher import MAX_BATCH, RequestBatcher
from apps.recommend.schemas import RecommendRequest
from apps.recommend.service import RequestState


def request_for(n: int) -> RequestState:
    return RequestState(RecommendRequest(n=n))


async def submit_all(batcher: RequestBatcher, *sizes: int) -> list[Any]:
    return await asyncio.gather(*(batcher.submit(request_for(n)) for n in sizes), return_exceptions=True)


def test_requests_that_wait_together_are_answered_together_in_order_up_to_a_limit() -> None:
    batches: list[list[int]] = []

    def answer(states: list[RequestState]) -> None:
        batches.append([state.request.n for state in states])
        for state in states:
            state.answer = {"n": state.request.n}

    sizes = range(1, MAX_BATCH + 4)

    async def twice() -> list[Any]:
        batcher = RequestBatcher(answer)
        return [*await submit_all(batcher, *sizes), *await submit_all(batcher, 50)]

    assert [answer["n"] for answer in asyncio.run(twice())] == [*sizes, 50]
    assert batches == [list(range(1, MAX_BATCH + 1)), list(range(MAX_BATCH + 1, MAX_BATCH + 4)), [50]]


def test_an_error_fails_its_own_request_alone() -> None:
    def answer(states: list[RequestState]) -> None:
        for state in states:
            if state.request.n == 2:
                state.error = Problem(422, "Invalid filter", "filter: no")
            else:
                state.answer = {"n": state.request.n}

    first, second, third = asyncio.run(submit_all(RequestBatcher(answer), 1, 2, 3))
    assert (first, third) == ({"n": 1}, {"n": 3})
    assert isinstance(second, Problem)


def test_what_fails_as_a_whole_fails_for_all_and_the_batcher_continues() -> None:
    failing = True

    def answer(states: list[RequestState]) -> None:
        if failing:
            raise Problem(503, "No release yet", "train first")
        for state in states:
            state.answer = {}

    async def run() -> list[Any]:
        nonlocal failing
        batcher = RequestBatcher(answer)
        answers = await submit_all(batcher, 1, 2)
        failing = False
        return [*answers, *await submit_all(batcher, 3)]

    first, second, third = asyncio.run(run())
    assert [type(error) for error in (first, second)] == [Problem, Problem]
    assert third == {}


def test_a_cancelled_request_is_not_answered() -> None:
    sizes: list[int] = []

    def answer(states: list[RequestState]) -> None:
        sizes.extend(state.request.n for state in states)
        for state in states:
            state.answer = {}

    async def run() -> None:
        batcher = RequestBatcher(answer)
        cancelled = asyncio.create_task(batcher.submit(request_for(1)))
        waiting = asyncio.create_task(batcher.submit(request_for(2)))
        await asyncio.sleep(0)
        cancelled.cancel()
        await waiting
        with pytest.raises(asyncio.CancelledError):
            await cancelled

    asyncio.run(run())
    assert sizes == [2]

"""Requests that wait at the same moment are answered together, and fail alone."""

import asyncio
from typing import Any

import pytest

from apps.http.errors import Problem
from apps.recommend.batcher import MAX_BATCH, RequestBatcher
from apps.recommend.schemas import RecommendRequest
from apps.recommend.service import RequestState


def asking(n: int) -> RequestState:
    return RequestState(RecommendRequest(n=n))


async def gathered(desk: RequestBatcher, *sizes: int) -> list[Any]:
    return await asyncio.gather(*(desk.submit(asking(n)) for n in sizes), return_exceptions=True)


def test_who_waits_together_is_answered_together_in_order_and_not_too_many_at_once() -> None:
    rounds: list[list[int]] = []

    def answer(calls: list[RequestState]) -> None:
        rounds.append([call.request.n for call in calls])
        for call in calls:
            call.answer = {"n": call.request.n}

    sizes = range(1, MAX_BATCH + 4)

    async def twice() -> list[Any]:
        desk = RequestBatcher(answer)
        return [*await gathered(desk, *sizes), *await gathered(desk, 50)]

    assert [one["n"] for one in asyncio.run(twice())] == [*sizes, 50]
    assert rounds == [list(range(1, MAX_BATCH + 1)), list(range(MAX_BATCH + 1, MAX_BATCH + 4)), [50]]


def test_what_fails_fails_for_its_own_visitor() -> None:
    def answer(calls: list[RequestState]) -> None:
        for call in calls:
            if call.request.n == 2:
                call.error = Problem(422, "Invalid filter", "filter: no")
            else:
                call.answer = {"n": call.request.n}

    first, second, third = asyncio.run(gathered(RequestBatcher(answer), 1, 2, 3))
    assert (first, third) == ({"n": 1}, {"n": 3})
    assert isinstance(second, Problem)


def test_what_fails_as_a_whole_fails_for_all_and_the_desk_goes_on() -> None:
    failing = True

    def answer(calls: list[RequestState]) -> None:
        if failing:
            raise Problem(503, "No release yet", "train first")
        for call in calls:
            call.answer = {}

    async def run() -> list[Any]:
        nonlocal failing
        desk = RequestBatcher(answer)
        told = await gathered(desk, 1, 2)
        failing = False
        return [*told, *await gathered(desk, 3)]

    first, second, third = asyncio.run(run())
    assert [type(one) for one in (first, second)] == [Problem, Problem]
    assert third == {}


def test_who_went_away_is_not_answered() -> None:
    met: list[int] = []

    def answer(calls: list[RequestState]) -> None:
        met.extend(call.request.n for call in calls)
        for call in calls:
            call.answer = {}

    async def run() -> None:
        desk = RequestBatcher(answer)
        gone = asyncio.create_task(desk.submit(asking(1)))
        stays = asyncio.create_task(desk.submit(asking(2)))
        await asyncio.sleep(0)
        gone.cancel()
        await stays
        with pytest.raises(asyncio.CancelledError):
            await gone

    asyncio.run(run())
    assert met == [2]

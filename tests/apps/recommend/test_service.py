"""Recommending: everybody gets an answer, what is shown is logged, and failures only make an answer poorer."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from apps.experiments import definitions
from apps.experiments.definitions import ExperimentStore
from apps.experiments.schemas import ExperimentDefinition
from apps.http.errors import Problem
from apps.recommend.item_stats import ItemStats
from apps.recommend.rules.schemas import NO_RULES
from apps.recommend.schemas import ItemList, RecommendRequest, RecommendResponse, SimilarRequest
from apps.recommend.service import ActiveRelease, RecommendService, RequestState
from infra import topics
from infra.log.client import START, LogError, Record
from infra.log.files import FileLog
from infra.observability.logs import REQUEST_ID
from tests.apps.recommend.fakes import IDS, NOW, FakeImpressions, FakeReader, FakeRecommender


class Shop:
    """The service over fakes and a real log."""

    def __init__(self, folder: Path) -> None:
        self.log = FileLog(folder)
        self.shown = FakeImpressions(self.log)
        self.reader = FakeReader()
        self.experiments = ExperimentStore(self.log, lambda: NOW / 1000)
        self.serving: ActiveRelease | None = ActiveRelease(FakeRecommender(), ItemStats(FakeRecommender()))
        self.serving.item_stats.refresh(self.reader, now=NOW)
        self.service = RecommendService(
            lambda: self.serving,
            self.reader,
            self.shown,
            self.experiments,
            lambda: NOW / 1000,
            per_source=10,
            max_future_seconds=300,
            rng=np.random.default_rng(7),
            rules=lambda surface: self.rules,
        )
        self.rules = NO_RULES

    def ask(self, **body: Any) -> Any:
        answer = self.service.recommend(RecommendRequest.model_validate(body))
        return RecommendResponse.model_validate(answer)

    def items(self, **body: Any) -> list[str]:
        return [item.item_id for item in self.ask(**body).items]

    def impressions(self) -> list[dict[str, Any]]:
        return [orjson.loads(record.value) for record in self.log.read(topics.IMPRESSIONS, START)]


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


@pytest.mark.parametrize("visitor", [{}, {"user_id": "nobody-knows-me"}, {"session": {"session_id": "s"}}])
def test_a_stranger_gets_what_sells(shop: Shop, visitor: dict[str, Any]) -> None:
    answer = shop.ask(**visitor)
    assert "rug" in [item.item_id for item in answer.items]
    assert {item.source for item in answer.items} == {"trending"}
    assert not answer.degraded


def test_a_session_gets_what_goes_with_its_items(shop: Shop) -> None:
    answer = shop.ask(session={"session_id": "s", "items": ["tea"]}, n=6)
    mug = next(item for item in answer.items if item.item_id == "mug")
    assert mug.source == "co_purchase"
    assert mug.reasons[0].code == "BOUGHT_TOGETHER"
    assert mug.reasons[0].item_id == "tea"


def test_a_known_user_is_offered_what_they_bought_before(shop: Shop) -> None:
    shop.reader.bought("ann", "lamp")
    lamp = next(item for item in shop.ask(user_id="ann", n=6).items if item.item_id == "lamp")
    assert lamp.reasons[0].text == "Bought once before, last 3 days ago"


def test_seen_items_can_be_left_out(shop: Shop) -> None:
    shop.reader.bought("ann", "lamp", "rug")
    assert not {"lamp", "rug"} & set(shop.items(user_id="ann", n=6, seen="drop"))


def test_the_ranker_orders_and_n_cuts(shop: Shop) -> None:
    shop.reader.bought("ann", "tea")
    assert shop.items(user_id="ann", n=2) == ["vase", "rug"]


def test_a_filter_is_filled_from_within_it(shop: Shop) -> None:
    cheap = "price <= 3"
    assert set(shop.items(session={"session_id": "s", "items": ["tea"]}, filter=cheap, n=6)) <= {"tea", "mug", "pot"}
    assert shop.items(filter="title contains 'RUG'") == ["rug"]
    assert "rug" not in shop.items(exclude=["rug", "not-an-item"])


def test_a_filter_that_leaves_nothing_gives_an_empty_list(shop: Shop) -> None:
    answer = shop.ask(user_id="ann", filter="price > 1e6")
    assert answer.items == []
    assert shop.impressions() == []


def test_propensities_are_logged_as_they_were_answered(shop: Shop) -> None:
    shop.rules = NO_RULES.model_validate({"exploration": {"policy": "epsilon", "epsilon": 0.5, "pool": 4}})
    propensities: dict[tuple[int, str], float] = {}
    counts: Counter[tuple[int, str]] = Counter()
    requests = 600
    for _ in range(requests):
        for index, item in enumerate(shop.ask(n=2).items):
            propensities[index, item.item_id] = item.propensity
            counts[index, item.item_id] += 1
            assert (item.reasons[0].code == "EXPLORED") == (item.propensity < 0.5)
    logged = {
        (item["position"] - 1, item["item_id"]): item["propensity"]
        for impression in shop.impressions()
        for item in impression["items"]
    }
    assert logged == propensities
    for cell, propensity in propensities.items():
        deviation = (propensity * (1 - propensity) / requests) ** 0.5
        assert abs(counts[cell] / requests - propensity) < 4.5 * deviation


def test_an_experiment_may_explore(shop: Shop) -> None:
    explores = {"exploration": "plackett_luce", "temperature": 2.0}
    variations = [{"key": "a", "weight": 0.999999, "parameters": explores}, {"key": "b", "weight": 0.000001}]
    definition = {"key": "x", "surface": "home", "variations": variations}
    shop.experiments.put(ExperimentDefinition.model_validate(definition))
    assert all(0 < item.propensity < 1 for item in shop.ask(user_id="ann", n=3).items)
    assert {item.propensity for item in shop.ask(user_id="ann", n=3, surface="cart").items} == {1.0}


def test_histories_of_many_items_are_read_in_slices(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shop.serving is not None
    item_stats = shop.serving.item_stats
    pauses: list[float] = []
    whole = item_stats.windows_at(NOW).windows
    monkeypatch.setattr("apps.recommend.item_stats.SLICE", 4)
    item_stats.refresh(shop.reader, now=NOW, pause=pauses.append)
    assert np.array_equal(item_stats.windows_at(NOW).windows, whole)
    assert len(pauses) == 2


def test_an_invalid_filter_is_refused_with_the_position_of_the_mistake(shop: Shop) -> None:
    with pytest.raises(Problem, match="character 7: price is a number") as refused:
        shop.ask(filter="price<'cheap'")
    assert refused.value.status == 422


def test_the_impression_says_what_was_shown_where(shop: Shop) -> None:
    answer = shop.ask(user_id="ann", surface="product", n=3)
    (impression,) = shop.impressions()
    assert impression["event_id"] == answer.request_id
    assert impression["surface"] == "product"
    assert [item["item_id"] for item in impression["items"]] == [item.item_id for item in answer.items]
    assert [item["position"] for item in impression["items"]] == [1, 2, 3]
    assert {item["propensity"] for item in impression["items"]} == {1.0}


def test_without_the_online_store_the_answer_is_trending_and_flagged(shop: Shop) -> None:
    shop.reader.bought("ann", "tea")
    shop.reader.down = True
    answer = shop.ask(user_id="ann")
    assert answer.degraded
    assert {item.source for item in answer.items} == {"trending"}
    assert shop.impressions()[0]["degraded"]
    shop.reader.down = False
    assert not shop.ask(user_id="ann").degraded


def test_a_log_that_is_down_flags_the_answer_and_does_not_stop_it(shop: Shop) -> None:
    shop.shown.down = True
    answer = shop.ask(user_id="ann")
    assert answer.degraded
    assert answer.items


def test_experiments_stay_in_force_while_the_log_cannot_be_read(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    variations = [{"key": "baseline", "weight": 0.5}, {"key": "model", "weight": 0.5}]
    shop.experiments.put(ExperimentDefinition.model_validate({"key": "x", "surface": "home", "variations": variations}))

    def refuse(*_: object, **__: object) -> list[Record]:
        raise LogError("the log is away")

    monkeypatch.setattr(shop.log, "read", refuse)
    monkeypatch.setattr(definitions, "REFRESH_SECONDS", 0.0)
    assert shop.ask(user_id="ann").experiment.key == "x"


def test_the_impression_names_the_call_that_it_answered(shop: Shop) -> None:
    token = REQUEST_ID.set("call-7")
    try:
        shop.ask(user_id="ann")
    finally:
        REQUEST_ID.reset(token)
    assert shop.impressions()[0]["http_request_id"] == "call-7"


def test_before_the_first_release_the_error_says_what_to_do(shop: Shop) -> None:
    shop.serving = None
    with pytest.raises(Problem, match="headrace train") as refused:
        shop.ask(user_id="ann")
    assert refused.value.status == 503


def test_a_request_from_the_future_is_refused(shop: Shop) -> None:
    ahead = datetime.fromtimestamp(NOW / 1000, tz=UTC) + timedelta(hours=1)
    with pytest.raises(Problem, match="request_time"):
        shop.ask(user_id="ann", context={"request_time": ahead.isoformat()})


@pytest.mark.parametrize("parameter", ["baseline", "floor", "repurchase"])
def test_variations_are_answered_by_what_they_name(shop: Shop, parameter: str) -> None:
    shop.experiments.put(
        ExperimentDefinition.model_validate(
            {
                "key": "exp",
                "surface": "home",
                "variations": [
                    {"key": "baseline", "weight": 0.5, "parameters": {"recommender": parameter}},
                    {"key": "model", "weight": 0.5, "parameters": {"recommender": "model"}},
                ],
            }
        )
    )
    answers = [shop.ask(user_id=f"user-{number}") for number in range(40)]
    models = {(answer.experiment.variation, answer.model) for answer in answers}
    assert models == {("baseline", "repurchase"), ("model", "ranker")}
    assert {impression["variation"] for impression in shop.impressions()} == {"baseline", "model"}
    assert shop.ask(user_id="user-1", surface="elsewhere").experiment is None


def test_similar_items_start_with_those_bought_together(shop: Shop) -> None:
    items = ItemList.model_validate(shop.service.similar("tea", SimilarRequest(n=4))).items
    assert [item.item_id for item in items[:2]] == ["mug", "pot"]
    assert "tea" not in {item.item_id for item in items}
    with pytest.raises(Problem, match="does not know") as unknown:
        shop.service.similar("unheard-of", SimilarRequest())
    assert unknown.value.status == 404


def test_trending_goes_by_the_latest_orders(shop: Shop) -> None:
    assert shop.service.trending(n=1)["items"][0]["item_id"] == "rug"
    assert len(shop.service.trending(n=100)["items"]) == len(IDS)


def test_requests_of_one_batch_are_answered_as_each_would_be_alone(shop: Shop) -> None:
    shop.reader.bought("ann", "tea", "mug")
    shop.reader.bought("bob", "lamp")
    bodies: list[dict[str, Any]] = [
        {"user_id": "ann"}, {}, {"user_id": "bob", "filter": "price <"}, {"user_id": "bob", "filter": "price > 2"},
        {"session": {"session_id": "s", "items": ["pot"]}, "n": 3}, {"filter": "price > 1000"},
    ]  # fmt: skip
    states = []
    for number, body in enumerate(bodies):
        REQUEST_ID.set(f"call-{number}")
        states.append(RequestState(RecommendRequest.model_validate(body)))
    REQUEST_ID.set(None)
    shop.service.recommend_all(states)
    logged = {impression["http_request_id"]: impression for impression in shop.impressions()}
    for number, (body, state) in enumerate(zip(bodies, states, strict=True)):
        if number == 2:
            with pytest.raises(Problem, match="character 8"):
                state.result()
            continue
        answer = RecommendResponse.model_validate(state.result())
        assert answer.items == shop.ask(**body).items
        if answer.items:
            assert logged[f"call-{number}"]["event_id"] == answer.request_id
    assert len(logged) == len([state for state in states if state.error is None and state.answer["items"]])

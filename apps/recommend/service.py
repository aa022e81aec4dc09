"""Answering a request for recommendations: retrieve, rank, filter, log, in that order.

Whatever fails on the way makes the answer poorer, not absent: without the online store, a visitor gets what is
trending, and without the event log the impression waits in a spool; either way the answer is flagged `degraded`.
"""

import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apps import metrics
from apps.errors import Problem
from apps.experiments.assignment import assign
from apps.experiments.definitions import Experiments
from apps.experiments.schemas import ExperimentDefinition
from apps.ports import Clock, FeatureReader, Impressions, Recommender
from apps.recommend.board import ItemBoard
from apps.recommend.filters import mask
from apps.recommend.reasons import reasons_for
from apps.recommend.schemas import (
    InExperiment,
    ItemList,
    ItemReason,
    RecommendedItem,
    RecommendRequest,
    RecommendResponse,
    SimilarRequest,
)
from features import events, history
from features.candidates import FLOORS, RECENT_ITEMS, SOURCES, Candidates, Visitor, draw, visitor
from features.history import from_lists
from infra import topics
from infra.observability.logs import REQUEST_ID
from infra.observability.traces import span

logger = logging.getLogger(__name__)

SESSION_PREFIX = "session:"
"""Histories of anonymous sessions are stored under this and the session's id."""


@dataclass(frozen=True, slots=True)
class Serving:
    """A release's recommender and the board of its items: what one request works with from start to end."""

    recommender: Recommender
    board: ItemBoard


@dataclass(frozen=True, slots=True)
class Ranked:
    """Candidates in the order in which they will be shown."""

    candidates: Candidates
    order: NDArray[np.int64]
    scores: NDArray[np.float32]


class RecommendService:
    def __init__(
        self,
        serving: Callable[[], Serving | None],
        reader: FeatureReader,
        impressions: Impressions,
        experiments: Experiments,
        clock: Clock,
        *,
        per_source: int,
        max_future_seconds: int,
        watch: Callable[[NDArray[np.float32]], None] = lambda features: None,
    ) -> None:
        """watch: sees the candidates' features of every answer to a visitor, [C, len(CANDIDATE_FEATURES)]."""
        self._serving = serving
        self._reader = reader
        self._impressions = impressions
        self._watch = watch
        self._experiments = experiments
        self._clock = clock
        self._per_source = per_source
        self._max_future_ms = max_future_seconds * 1000

    def recommend(self, request: RecommendRequest) -> RecommendResponse:
        """The whole answer. Raises Problem 422 for a filter without sense, 503 before the first release."""
        return self._answer(request, to_visitor=True)

    def preview(self, request: RecommendRequest) -> RecommendResponse:
        """What `recommend` would answer, for somebody who looks over the visitor's shoulder: no impression is logged,
        so nothing counts in an experiment, and the request_id is good for nothing."""
        return self._answer(request, to_visitor=False)

    def _answer(self, request: RecommendRequest, *, to_visitor: bool) -> RecommendResponse:
        started = time.perf_counter()
        serving, at = self._current(), self._moment(request)
        with span("read features"):
            who, degraded = self._visitor(request, serving, at)
        experiment, model = self._variant(request, serving)

        with span("retrieve"):
            candidates = self._retrieve(
                who, serving, allowed=mask(serving.recommender.catalogue, request.filter, request.exclude)
            )
        with span("rank", model=model):
            ranked = self._rank(candidates, serving, model)
        shown = self._filter(ranked, who, drop_seen=request.seen == "drop", n=request.n)
        items = self._describe(shown, serving, who)
        response = RecommendResponse(
            request_id=uuid.uuid4().hex,
            items=items,
            model=model,
            release=serving.recommender.manifest.version,
            experiment=experiment,
            degraded=degraded,
            took_ms=0.0,
        )
        logged = True
        if to_visitor:
            self._watch(candidates.features)
            logged = self._log_impression(request, response, at)
            metrics.RECOMMENDATIONS.labels(request.surface, model, str(degraded or not logged).lower()).inc()
        took = (time.perf_counter() - started) * 1000
        return response.model_copy(update={"took_ms": round(took, 3), "degraded": degraded or not logged})

    def similar(self, item_id: str, request: SimilarRequest) -> ItemList:
        """Items bought together with this one, then items near it. Raises Problem 404 for an unknown item."""
        started = time.perf_counter()
        serving = self._current()
        catalogue = serving.recommender.catalogue
        place = catalogue.index.get(item_id)
        if place is None:
            raise Problem(
                404, "Unknown item", f"release {serving.recommender.manifest.version} does not know {item_id!r}"
            )
        allowed = mask(catalogue, request.filter, [*request.exclude, item_id])
        assert allowed is not None
        near = catalogue.neighbours[place][catalogue.neighbours[place] >= 0].astype(np.int64)
        together = near[allowed[near]][: request.n]
        hits = serving.recommender.nearest(catalogue.vectors[place], request.n + len(together), allowed)
        rest = hits[~np.isin(hits, together)][: request.n - len(together)]
        similarity = dict(zip(near.tolist(), catalogue.similarities[place].tolist(), strict=False))
        items = [
            self._item(serving, int(item), similarity[int(item)], "co_purchase", "BOUGHT_TOGETHER", item_id)
            for item in together
        ] + [
            self._item(
                serving,
                int(item),
                float(catalogue.vectors[item] @ catalogue.vectors[place]),
                "two_tower",
                "SIMILAR",
                item_id,
            )
            for item in rest
        ]
        return ItemList(items=items, release=serving.recommender.manifest.version, took_ms=_since(started))

    def trending(self, *, n: int) -> ItemList:
        """What was ordered most of late, today included."""
        started = time.perf_counter()
        serving = self._current()
        scores = serving.board.trending(int(self._clock() * 1000))
        best = np.lexsort((np.arange(len(scores)), -scores))[:n]
        items = [self._item(serving, int(item), float(scores[item]), "trending", "TRENDING", None) for item in best]
        return ItemList(items=items, release=serving.recommender.manifest.version, took_ms=_since(started))

    def _current(self) -> Serving:
        serving = self._serving()
        if serving is None:
            raise Problem(503, "No release yet", "nothing is published to recommend with; run `headrace train` first")
        return serving

    def _moment(self, request: RecommendRequest) -> int:
        now = int(self._clock() * 1000)
        if request.context.request_time is None:
            return now
        at = events.milliseconds(request.context.request_time)
        if at > now + self._max_future_ms:
            raise Problem(422, "Invalid request", "context.request_time lies in the future; leave it out to mean now")
        return at

    def _visitor(self, request: RecommendRequest, serving: Serving, at: int) -> tuple[Visitor, bool]:
        """Who asks, from the online store and the session; and whether the store could not be asked."""
        rows, degraded = [{}], False  # type: ignore[var-annotated]
        key = request.user_id or (request.session and SESSION_PREFIX + request.session.session_id)
        if key:
            try:
                rows = self._reader.user_histories([key])
            except Exception as error:
                logger.warning("answering without features: the online store failed (%s)", type(error).__name__)
                degraded = True
        session_items = request.session.items if request.session else []
        who = visitor(
            from_lists(rows, history.USER_COLUMNS), serving.recommender.catalogue, at=at, session_items=session_items
        )
        return who, degraded or serving.board.stale

    def _variant(self, request: RecommendRequest, serving: Serving) -> tuple[InExperiment | None, str]:
        """The experiment this request is in, and the ranking that answers it."""
        card = serving.recommender.manifest.recommend
        assert card is not None
        names = {"model": card.gate.served, "floor": card.gate.best_floor, card.gate.model: card.gate.served}
        definition = self._experiments.running_for(request.surface)
        session = request.session.session_id if request.session else None
        if definition is None:
            return None, card.gate.served
        unit = _unit(definition, request.user_id, session)
        assigned = assign(definition, unit) if unit else None
        if assigned is None:
            return None, card.gate.served
        variation = next(one for one in definition.variations if one.key == assigned.variation)
        wanted = str(variation.parameters.get("recommender", "model"))
        return (
            InExperiment(key=definition.key, variation=assigned.variation, bucket=assigned.bucket),
            names.get(wanted, wanted if wanted in FLOORS else card.gate.served),
        )

    def _retrieve(self, who: Visitor, serving: Serving, *, allowed: NDArray[np.bool_] | None) -> Candidates:
        """Candidates from every source, within what the request allows."""
        recommender = serving.recommender
        recent, weights = who.recent, who.recency_weights
        vector = np.zeros(recommender.catalogue.vectors.shape[1], dtype=np.float32)
        hits = np.empty(0, dtype=np.int64)
        if len(recent):
            items = np.zeros((1, RECENT_ITEMS), dtype=np.int64)
            padded = np.zeros((1, RECENT_ITEMS), dtype=np.float32)
            items[0, : len(recent)], padded[0, : len(recent)] = recent, weights / weights.sum()
            vector = recommender.user_vector(items, padded)
            hits = recommender.nearest(vector, self._per_source, allowed)
        return draw(
            who,
            recommender.catalogue,
            serving.board.windows(who.at),
            tower_hits=hits,
            user_vector=vector,
            per_source=self._per_source,
            allowed=allowed,
        )

    def _rank(self, candidates: Candidates, serving: Serving, model: str) -> Ranked:
        """Best first, by the ranker or by the one feature that a floor goes by."""
        if not len(candidates.items):
            return Ranked(candidates, np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))
        if model in FLOORS:
            scores = candidates.column(FLOORS[model])
            # A floor that says nothing of a candidate falls back on what sells.
            order = np.lexsort((-candidates.column("item_orders_30d"), -scores))
        else:
            scores = serving.recommender.rank(candidates.features, candidates.items)
            order = np.argsort(-scores, kind="stable")
        return Ranked(candidates, order, scores)

    @staticmethod
    def _filter(ranked: Ranked, who: Visitor, *, drop_seen: bool, n: int) -> Ranked:
        """The first n, without what the visitor has seen where that is wanted."""
        order = ranked.order
        if drop_seen:
            order = order[~np.isin(ranked.candidates.items[order], who.items)]
        return Ranked(ranked.candidates, order[:n], ranked.scores)

    def _describe(self, shown: Ranked, serving: Serving, who: Visitor) -> list[RecommendedItem]:
        catalogue = serving.recommender.catalogue
        items = []
        for row in shown.order:
            item = int(shown.candidates.items[row])
            source = SOURCES[int(np.argmin(shown.candidates.ranks[row]))]
            items.append(
                RecommendedItem(
                    item_id=catalogue.ids[item],
                    score=round(float(shown.scores[row]), 6),
                    source=source,
                    reasons=reasons_for(shown.candidates, int(row), catalogue),
                    propensity=1.0,
                    title=catalogue.titles[item],
                    price=round(float(catalogue.prices[item]), 2),
                )
            )
        return items

    @staticmethod
    def _item(
        serving: Serving, item: int, score: float, source: str, code: str, because: str | None
    ) -> RecommendedItem:
        catalogue = serving.recommender.catalogue
        texts = {
            "BOUGHT_TOGETHER": "Often bought in the same order",
            "SIMILAR": "Close to it by who buys it and by its title",
            "TRENDING": "Ordered often in the last days",
        }
        reason = ItemReason.model_validate({"code": code, "text": texts[code], "item_id": because})
        return RecommendedItem(
            item_id=catalogue.ids[item],
            score=round(score, 6),
            source=source,
            reasons=[reason],
            propensity=1.0,
            title=catalogue.titles[item],
            price=round(float(catalogue.prices[item]), 2),
        )

    def _log_impression(self, request: RecommendRequest, response: RecommendResponse, at: int) -> bool:
        """Write down what was shown; False when the log does not hold it."""
        if not response.items:
            return True
        session = request.session.session_id if request.session else None
        impression = events.Impression(
            type="impression",
            event_id=response.request_id,
            event_time=events.from_milliseconds(at),
            user_id=request.user_id,
            session_id=session or (None if request.user_id else f"request-{response.request_id}"),
            surface=request.surface,
            model=response.model,
            experiment=response.experiment.key if response.experiment else None,
            variation=response.experiment.variation if response.experiment else None,
            bucket=response.experiment.bucket if response.experiment else None,
            degraded=response.degraded,
            http_request_id=REQUEST_ID.get(),
            items=tuple(
                events.ShownItem(
                    item_id=item.item_id,
                    position=place,
                    score=item.score,
                    source=item.source,
                    propensity=item.propensity,
                )
                for place, item in enumerate(response.items, start=1)
            ),
        )
        with span("log append", topic=topics.IMPRESSIONS):
            return self._impressions.append(events.key_of(impression), events.to_json(impression))


def _unit(definition: ExperimentDefinition, user: str | None, session: str | None) -> str | None:
    """What the experiment assigns: the id it asks for, or the other one where that is missing."""
    return (user or session) if definition.unit == "user" else (session or user)


def _since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 3)

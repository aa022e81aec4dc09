"""Answering a request for recommendations: retrieve, rank, arrange by the rules, log, in that order.

Whatever fails on the way makes the answer poorer, not absent: without the online store, a visitor gets what is
trending, and without the event log the impression waits in a spool; either way the answer is flagged `degraded`.
"""

import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import ValidationError

from apps import metrics
from apps.errors import Problem
from apps.experiments.assignment import assign
from apps.experiments.definitions import Experiments
from apps.experiments.schemas import ExperimentDefinition
from apps.ports import Clock, FeatureReader, Impressions, Recommender
from apps.recommend import lists
from apps.recommend.board import ItemBoard
from apps.recommend.reasons import Reasons
from apps.recommend.retrieval import Retrieved, retrieve
from apps.recommend.rules import NO_RULES, Exploration, SurfaceRules
from apps.recommend.schemas import RecommendRequest, RecommendResponse, SimilarRequest
from apps.recommend.shown_lately import ShownLately
from apps.recommend.slate import MS_PER_HOUR, Ground, Slate, arrange
from features import columns, events, history
from features.candidates import FLOORS, Visitor, visitor
from features.history import History, from_lists
from features.windows import DAY
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
class Known:
    """What the online store said of a visitor."""

    history: History
    """One row of history.USER_COLUMNS."""
    degraded: bool
    """The store could not be asked."""
    asked: float
    """When, in seconds of time.perf_counter."""


@dataclass(frozen=True, slots=True)
class Treatment:
    """What answers this request: the ranking and the exploration, by the experiment it is in, if any."""

    model: str
    exploration: Exploration | None
    experiment: dict[str, Any] | None


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
        rng: np.random.Generator,
        rules: Callable[[str], SurfaceRules] = lambda surface: NO_RULES,
        watch: Callable[[NDArray[np.float32]], None] = lambda features: None,
    ) -> None:
        """rules: of a surface; watch: sees the candidates' features of every answer to a visitor, shape
        [C, len(CANDIDATE_FEATURES)]."""
        self._serving = serving
        self._reader = reader
        self._impressions = impressions
        self._experiments = experiments
        self._clock = clock
        self._per_source = per_source
        self._max_future_ms = max_future_seconds * 1000
        self._rng = rng
        self._rules = rules
        self.watch = watch
        self._shown = ShownLately()
        self._shown_of: str | None = None

    def recommend(self, request: RecommendRequest, known: Known | None = None) -> dict[str, Any]:
        """The whole answer, a RecommendResponse as plain data. Raises Problem 422 for a filter without sense, 503
        before the first release. known: what `known_of` said, where that was asked apart."""
        return self._answer(request, known or self.known_of(request), to_visitor=True)

    def preview(self, request: RecommendRequest) -> RecommendResponse:
        """What `recommend` would answer, for somebody who looks over the visitor's shoulder: no impression is logged,
        so nothing counts in an experiment, and the request_id is good for nothing."""
        return RecommendResponse.model_validate(self._answer(request, self.known_of(request), to_visitor=False))

    def similar(self, item_id: str, request: SimilarRequest) -> dict[str, Any]:
        serving = self._current()
        return lists.similar(serving.recommender, serving.board, item_id, request)

    def trending(self, *, n: int) -> dict[str, Any]:
        serving = self._current()
        return lists.trending(serving.recommender, serving.board, at=int(self._clock() * 1000), n=n)

    def known_of(self, request: RecommendRequest) -> Known:
        """What the online store says of the visitor now: the one step that may wait for another machine."""
        started = time.perf_counter()
        history, degraded = NOBODY, False
        if key := _key(request):
            try:
                with span("read features"):
                    history = self._reader.user_history(key)
            except Exception as error:
                logger.warning("answering without features: the online store failed (%s)", type(error).__name__)
                degraded = True
        return Known(history, degraded, started)

    @property
    def waits(self) -> bool:
        """Whether `known_of` asks another machine."""
        return self._reader.remote

    def _answer(self, request: RecommendRequest, known: Known, *, to_visitor: bool) -> dict[str, Any]:
        marks = [known.asked, time.perf_counter()]
        serving, at, rules = self._current(), self._moment(request), self._rules(request.surface)
        self._forget_other_releases(serving)
        session_items = request.session.items if request.session else []
        who = visitor(known.history, serving.recommender.catalogue, at=at, session_items=session_items)
        degraded = known.degraded or serving.board.stale
        treatment = self._treatment(request, serving, rules)
        with span("retrieve"):
            found = retrieve(
                who, serving.recommender, serving.board,
                expression=request.filter, exclude=request.exclude, rules=rules, per_source=self._per_source,
            )  # fmt: skip
        marks.append(time.perf_counter())
        with span("rank", model=treatment.model):
            order, scores, log_odds = _rank(found, treatment.model)
        marks.append(time.perf_counter())
        slate = arrange(
            order, log_odds, self._ground(found, who, request), rules,
            n=request.n, drop_seen=request.seen == "drop", exploration=treatment.exploration, rng=self._rng,
            traced=request.trace,
        )  # fmt: skip
        marks.append(time.perf_counter())
        response: dict[str, Any] = {
            "request_id": uuid.uuid4().hex,
            "items": _describe(slate, scores, found),
            "model": treatment.model,
            "release": serving.recommender.manifest.version,
            "experiment": treatment.experiment,
            "degraded": degraded,
            "took_ms": 0.0,
        }
        if request.trace:
            response["trace"] = _trace(slate, order, scores, found, rules, marks)
        if to_visitor:
            self.watch(found.candidates.features)
            if key := _key(request):
                self._shown.add(key, request.surface, found.candidates.items[slate.rows].tolist(), at)
            logged = self._log_impression(request, response, at)
            response["degraded"] = degraded or not logged
            told = str(response["degraded"]).lower()
            metrics.RECOMMENDATIONS.labels(request.surface, treatment.model, told).inc()
        response["took_ms"] = round((time.perf_counter() - marks[0]) * 1000, 3)
        return response

    def _current(self) -> Serving:
        serving = self._serving()
        if serving is None:
            raise Problem(503, "No release yet", "nothing is published to recommend with; run `headrace train` first")
        return serving

    def _forget_other_releases(self, serving: Serving) -> None:
        """What was shown is remembered by index, and another release numbers its items anew."""
        version = serving.recommender.manifest.version
        if self._shown_of != version:
            self._shown.clear()
            self._shown_of = version

    def _moment(self, request: RecommendRequest) -> int:
        now = int(self._clock() * 1000)
        if request.context.request_time is None:
            return now
        at = events.milliseconds(request.context.request_time)
        if at > now + self._max_future_ms:
            raise Problem(422, "Invalid request", "context.request_time lies in the future; leave it out to mean now")
        return at

    def _treatment(self, request: RecommendRequest, serving: Serving, rules: SurfaceRules) -> Treatment:
        """The experiment this request is in, and the ranking and exploration that answer it."""
        card = serving.recommender.manifest.recommend
        assert card is not None
        definition = self._experiments.running_for(request.surface)
        unit = _unit(definition, request) if definition else None
        assigned = assign(definition, unit) if definition and unit else None
        if definition is None or assigned is None:
            return Treatment(card.gate.served, rules.exploration, None)
        variation = next(one for one in definition.variations if one.key == assigned.variation)
        wanted = str(variation.parameters.get("recommender", "model"))
        names = {"model": card.gate.served, "floor": card.gate.best_floor, card.gate.model: card.gate.served}
        return Treatment(
            names.get(wanted, wanted if wanted in FLOORS else card.gate.served),
            _exploration(variation.parameters, rules.exploration),
            {"key": definition.key, "variation": assigned.variation, "bucket": assigned.bucket},
        )

    def _ground(self, found: Retrieved, who: Visitor, request: RecommendRequest) -> Ground:
        key, items = _key(request), found.candidates.items

        def visited(kind: str, days: float) -> NDArray[np.int64]:
            wanted = who.times > who.at - days * DAY
            if kind == "bought":
                wanted &= who.kinds == columns.KIND_CODES["purchase"]
            return who.items[wanted]

        def row_of(item_id: str) -> int | None:
            rows = np.flatnonzero(items == found.index_of(item_id))
            return int(rows[0]) if len(rows) else None

        return Ground(
            items=items,
            matches=found.matches,
            values_of=found.values_of,
            vectors=found.vectors,
            row_of=row_of,
            visited=visited,
            shown=lambda hours: (
                self._shown.times(key, request.surface, since=int(who.at - hours * MS_PER_HOUR)) if key else {}
            ),
        )

    def _log_impression(self, request: RecommendRequest, response: dict[str, Any], at: int) -> bool:
        """Write down what was shown, as an events.Impression; False while the log is down."""
        if not response["items"]:
            return True
        session = request.session.session_id if request.session else None
        anonymous = None if request.user_id else f"request-{response['request_id']}"
        experiment = response["experiment"] or {}
        impression = {
            "event_id": response["request_id"],
            "event_time": events.rfc3339(at),
            "schema_version": 1,
            "user_id": request.user_id,
            "session_id": session or anonymous,
            "type": "impression",
            "surface": request.surface,
            "model": response["model"],
            "experiment": experiment.get("key"),
            "variation": experiment.get("variation"),
            "bucket": experiment.get("bucket"),
            "degraded": response["degraded"],
            "http_request_id": REQUEST_ID.get(),
            "items": [
                {
                    "item_id": item["item_id"],
                    "position": place,
                    "score": item["score"],
                    "source": item["source"],
                    "propensity": item["propensity"],
                }
                for place, item in enumerate(response["items"], start=1)
            ],
        }
        value = orjson.dumps({name: told for name, told in impression.items() if told is not None})
        with span("log append", topic=topics.IMPRESSIONS):
            return self._impressions.append(request.user_id or session or str(anonymous), value)


NOBODY = from_lists([{}], history.USER_COLUMNS)


def _key(request: RecommendRequest) -> str | None:
    """Whose history it is; None for a stranger."""
    return request.user_id or (SESSION_PREFIX + request.session.session_id if request.session else None)


def _unit(definition: ExperimentDefinition, request: RecommendRequest) -> str | None:
    """What the experiment assigns: the id it asks for, or the other one where that is missing."""
    user, session = request.user_id, request.session.session_id if request.session else None
    return (user or session) if definition.unit == "user" else (session or user)


def _exploration(parameters: dict[str, str | int | float | bool], otherwise: Exploration | None) -> Exploration | None:
    """A variation may name the policy: exploration = none, epsilon or plackett_luce; and its epsilon, temperature and
    pool. What makes no sense leaves the surface's own in force."""
    policy = parameters.get("exploration")
    if policy is None:
        return otherwise
    if policy == "none":
        return None
    given = {name: parameters[name] for name in ("epsilon", "temperature", "pool") if name in parameters}
    try:
        return Exploration.model_validate({"policy": policy, **given})
    except ValidationError as error:
        logger.warning("a variation's exploration is not usable: %s", error)
        return otherwise


def _rank(found: Retrieved, model: str) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float64]]:
    """(rows, best first; score of each row; its logarithmic odds), by the ranker or by the feature of a floor."""
    candidates = found.candidates
    if not len(candidates.items):
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32), np.empty(0)
    if model in FLOORS:
        scores = candidates.column(FLOORS[model])
        # A floor that says nothing of a candidate falls back on what sells.
        order = np.lexsort((-candidates.column("item_orders_30d"), -scores))
        return order, scores, np.log(np.maximum(scores, 0).astype(np.float64) + 1e-6)
    scores = found.rank()
    return np.argsort(-scores, kind="stable"), scores, scores.astype(np.float64)


def _describe(slate: Slate, scores: NDArray[np.float32], found: Retrieved) -> list[dict[str, Any]]:
    rows = np.array(slate.rows, dtype=np.int64)
    items, shown = found.candidates.items[rows].tolist(), scores[rows].tolist()
    reasons = Reasons(found.candidates, rows, found.recommender.catalogue)
    answer = []
    for place, (row, item) in enumerate(zip(slate.rows, items, strict=True)):
        item_id, title, price, category = found.described(item)
        pinned = row in slate.pinned
        answer.append(
            {
                "item_id": item_id,
                "score": round(shown[place], 6),
                "source": "pin" if pinned else reasons.sources[place],
                "reasons": reasons.of(place, pinned=pinned, explored=row in slate.explored),
                "propensity": slate.propensities[place],
                "title": title,
                "price": round(price, 2),
                "category": category,
            }
        )
    return answer


STAGES = ("read features", "retrieve", "rank", "arrange")


def _trace(
    slate: Slate,
    order: NDArray[np.int64],
    scores: NDArray[np.float32],
    found: Retrieved,
    rules: SurfaceRules,
    marks: list[float],
) -> dict[str, Any]:
    """Every candidate by rank: where it came from, and which stage dropped it."""
    traced, sources = [], Reasons(found.candidates, order, found.recommender.catalogue).places
    position = {row: place for place, row in enumerate(slate.rows, start=1)}
    for rank, row in enumerate(order.tolist(), start=1):
        stage, why = slate.dropped.get(row, ("shown", f"position {position.get(row)}"))
        traced.append(
            {
                "item_id": found.described(int(found.candidates.items[row]))[0],
                "sources": {source: place + 1 for source, place in sources(rank - 1)},
                "score": round(float(scores[row]), 6),
                "log_odds": round(float(slate.log_odds[row]), 6),
                "rank": rank,
                "stage": stage,
                "why": why,
            }
        )
    took = {name: round((end - start) * 1000, 3) for name, start, end in zip(STAGES, marks, marks[1:], strict=False)}
    return {"candidates": traced, "stages_ms": took, "rules": rules.model_dump(mode="json")}

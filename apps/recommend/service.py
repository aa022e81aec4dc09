"""Answering a request for recommendations: retrieve, rank, arrange by the rules, log, in that order.

Whatever fails on the way makes the answer poorer, not absent: without the online store, a visitor gets what is
trending, and without the event log the impression waits in a spool; either way the answer is flagged `degraded`.
"""

import logging
import time
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from functools import partial
from secrets import token_hex
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from apps import metrics
from apps.experiments.assignment import assign
from apps.experiments.definitions import ExperimentStore
from apps.experiments.schemas import ExperimentDefinition
from apps.http.errors import Problem
from apps.ports import Clock, FeatureReader, Impressions, Recommender
from apps.recommend import item_lists
from apps.recommend.answer import answer_items, impression, trace
from apps.recommend.candidate_generation import CandidateSet, generate, user_vectors
from apps.recommend.item_stats import ItemStats
from apps.recommend.recent_impressions import RecentImpressions
from apps.recommend.reranking import RerankContext, Slate, rerank
from apps.recommend.rules.schemas import NO_RULES, Exploration, SurfaceRules
from apps.recommend.schemas import RecommendRequest, RecommendResponse, SimilarRequest
from features.contract import columns
from features.contract.timestamps import DAY, HOUR, milliseconds
from features.history import arrays
from features.history.arrays import History, from_lists
from features.recommender.candidate_kernels import interacted_since
from features.recommender.candidates import BASELINES, Visitor, build_visitor
from infra import topics
from infra.observability.traces import span

logger = logging.getLogger(__name__)

SESSION_PREFIX = "session:"
"""Histories of anonymous sessions are stored under this and the session's id."""


@dataclass(frozen=True, slots=True)
class ActiveRelease:
    """A release's recommender and the board of its items: what one request works with from start to end."""

    recommender: Recommender
    item_stats: ItemStats


@dataclass(frozen=True, slots=True)
class VisitorState:
    """What the online store said of a visitor."""

    history: History
    """One row of arrays.USER_COLUMNS."""
    degraded: bool
    """The store could not be asked."""


@dataclass(frozen=True, slots=True)
class Treatment:
    """What answers this request: the ranking and the exploration, by the experiment it is in, if any."""

    model: str
    exploration: Exploration | None
    experiment: dict[str, Any] | None


@dataclass(slots=True)
class RequestState:
    """A request on its way through the steps, each of which adds what it finds."""

    request: RecommendRequest
    visitor_state: VisitorState | None = None
    """What `read_visitor_state` said, where that was asked before."""
    context: Context = field(default_factory=copy_context)
    """Of whoever asks: log lines and spans belong to that request."""
    at: int = field(init=False)
    rules: SurfaceRules = field(init=False)
    visitor: Visitor = field(init=False)
    treatment: Treatment = field(init=False)
    user_vector: NDArray[np.float32] = field(init=False)
    candidates: CandidateSet = field(init=False)
    order: NDArray[np.int64] = field(init=False)
    """Rows of the candidates, best first."""
    scores: NDArray[np.float32] = field(init=False)
    log_odds: NDArray[np.float64] = field(init=False)
    slate: Slate = field(init=False)
    answer: dict[str, Any] = field(init=False)
    error: Exception | None = None

    def result(self) -> dict[str, Any]:
        """The answer, a RecommendResponse as plain data; raises what went wrong instead."""
        if self.error is not None:
            raise self.error
        return self.answer


class RecommendService:
    def __init__(
        self,
        serving: Callable[[], ActiveRelease | None],
        reader: FeatureReader,
        impressions: Impressions,
        experiments: ExperimentStore,
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
        self._shown = RecentImpressions()
        self._shown_of: str | None = None

    def recommend(self, request: RecommendRequest, known: VisitorState | None = None) -> dict[str, Any]:
        """The whole answer, a RecommendResponse as plain data. Raises Problem 422 for a filter without sense, 503
        before the first release. known: what `read_visitor_state` said, where that was asked apart."""
        call = RequestState(request, known)
        self.recommend_all([call])
        return call.result()

    def recommend_all(self, calls: list[RequestState]) -> None:
        """Answer visitors who wait at the same moment, each as by `recommend`."""
        self._answer(calls, to_visitor=True)

    def preview(self, request: RecommendRequest) -> RecommendResponse:
        """What `recommend` would answer, for somebody who looks over the visitor's shoulder: no impression is logged,
        so nothing counts in an experiment, and the request_id is good for nothing."""
        call = RequestState(request, None)
        self._answer([call], to_visitor=False)
        return RecommendResponse.model_validate(call.result())

    def similar(self, item_id: str, request: SimilarRequest) -> dict[str, Any]:
        serving = self._active_release()
        return item_lists.similar(serving.recommender, serving.item_stats, item_id, request)

    def trending(self, *, n: int) -> dict[str, Any]:
        serving = self._active_release()
        return item_lists.trending(serving.recommender, serving.item_stats, at=int(self._clock() * 1000), n=n)

    def read_visitor_state(self, request: RecommendRequest) -> VisitorState:
        """What the online store says of the visitor now: the one step that may wait for another machine."""
        history, degraded = EMPTY_HISTORY, False
        if key := _visitor_key(request):
            try:
                with span("read features"):
                    history = self._reader.user_history(key)
            except Exception as error:
                logger.warning("answering without features: the online store failed (%s)", type(error).__name__)
                degraded = True
        return VisitorState(history, degraded)

    @property
    def reads_remotely(self) -> bool:
        """Whether `read_visitor_state` asks another machine."""
        return self._reader.remote

    def _answer(self, calls: list[RequestState], *, to_visitor: bool) -> None:
        """One step for all of them, then the next: each model runs once, and what a step needs stays in the processor's
        caches. What fails, fails for its own visitor alone."""
        marks, serving = [time.perf_counter()], self._active_release()
        self._forget_impressions_of_other_releases(serving)
        going = _run_step(calls, partial(self._resolve_visitor, serving))
        marks.append(time.perf_counter())
        _encode_users(going, serving.recommender)
        going = _run_step(going, partial(self._generate_candidates, serving))
        marks.append(time.perf_counter())
        if going:
            # A model that runs for all has its span in the trace of the first.
            going[0].context.run(_rank, going, serving.recommender)
        marks.append(time.perf_counter())
        going = _run_step(going, self._rerank)
        marks.append(time.perf_counter())
        _run_step(going, partial(self._respond, serving, marks, to_visitor=to_visitor))

    def _resolve_visitor(self, serving: ActiveRelease, call: RequestState) -> None:
        """Who asks, when, and what shall answer."""
        request = call.request
        call.visitor_state = call.visitor_state or self.read_visitor_state(request)
        call.at, call.rules = self._request_time(request), self._rules(request.surface)
        looked_at = request.session.items if request.session else []
        catalogue = serving.recommender.catalogue
        call.visitor = build_visitor(call.visitor_state.history, catalogue, at=call.at, session_items=looked_at)
        call.treatment = self._treatment(request, serving, call.rules)

    def _generate_candidates(self, serving: ActiveRelease, call: RequestState) -> None:
        with span("retrieve"):
            call.candidates = generate(
                call.visitor, call.user_vector, serving.recommender, serving.item_stats,
                expression=call.request.filter, exclude=call.request.exclude, rules=call.rules,
                per_source=self._per_source,
            )  # fmt: skip

    def _rerank(self, call: RequestState) -> None:
        request = call.request
        call.slate = rerank(
            call.order, call.log_odds, self._rerank_context(call.candidates, call.visitor, request), call.rules,
            n=request.n, drop_seen=request.seen == "drop", exploration=call.treatment.exploration, rng=self._rng,
            traced=request.trace,
        )  # fmt: skip

    def _respond(self, serving: ActiveRelease, marks: list[float], call: RequestState, *, to_visitor: bool) -> None:
        """Make the answer, and log what it shows."""
        request, found, slate = call.request, call.candidates, call.slate
        degraded = serving.item_stats.stale or (call.visitor_state is not None and call.visitor_state.degraded)
        call.answer = {
            "request_id": token_hex(16),
            "items": answer_items(slate, call.scores, found),
            "model": call.treatment.model,
            "release": serving.recommender.manifest.version,
            "experiment": call.treatment.experiment,
            "degraded": degraded,
            "took_ms": 0.0,
        }
        if request.trace:
            call.answer["trace"] = trace(slate, call.order, call.scores, found, call.rules, marks)
        if to_visitor:
            self.watch(found.candidates.features)
            if key := _visitor_key(request):
                self._shown.add(key, request.surface, found.candidates.items[slate.rows], call.at)
            logged = self._log_impression(call)
            call.answer["degraded"] = degraded or not logged
            told = str(call.answer["degraded"]).lower()
            metrics.RECOMMENDATIONS.labels(request.surface, call.treatment.model, told).inc()
        call.answer["took_ms"] = round((time.perf_counter() - marks[0]) * 1000, 3)

    def _active_release(self) -> ActiveRelease:
        serving = self._serving()
        if serving is None:
            raise Problem(503, "No release yet", "nothing is published to recommend with; run `headrace train` first")
        return serving

    def _forget_impressions_of_other_releases(self, serving: ActiveRelease) -> None:
        """What was shown is remembered by index, and another release numbers its items anew."""
        version = serving.recommender.manifest.version
        if self._shown_of != version:
            self._shown.clear()
            self._shown_of = version

    def _request_time(self, request: RecommendRequest) -> int:
        now = int(self._clock() * 1000)
        if request.context.request_time is None:
            return now
        at = milliseconds(request.context.request_time)
        if at > now + self._max_future_ms:
            raise Problem(422, "Invalid request", "context.request_time lies in the future; leave it out to mean now")
        return at

    def _treatment(self, request: RecommendRequest, serving: ActiveRelease, rules: SurfaceRules) -> Treatment:
        """The experiment this request is in, and the ranking and exploration that answer it."""
        card = serving.recommender.manifest.recommend
        assert card is not None
        definition = self._experiments.running_for(request.surface)
        unit = _experiment_unit(definition, request) if definition else None
        assigned = assign(definition, unit) if definition and unit else None
        if definition is None or assigned is None:
            return Treatment(card.gate.served, rules.exploration, None)
        variation = next(one for one in definition.variations if one.key == assigned.variation)
        wanted = str(variation.parameters.get("recommender", "model"))
        names = {"model": card.gate.served, "floor": card.gate.best_baseline, card.gate.model: card.gate.served}
        return Treatment(
            names.get(wanted, wanted if wanted in BASELINES else card.gate.served),
            _exploration(variation.parameters, rules.exploration),
            {"key": definition.key, "variation": assigned.variation, "bucket": assigned.bucket},
        )

    def _rerank_context(self, found: CandidateSet, who: Visitor, request: RecommendRequest) -> RerankContext:
        key, items = _visitor_key(request), found.candidates.items

        def met(kind: str, days: float) -> NDArray[np.bool_]:
            code = columns.EVENT_TYPE_CODES["purchase"] if kind == "bought" else -1
            return interacted_since(items, who.items, who.times, who.event_types, who.at - days * DAY, code)

        def row_of(item_id: str) -> int | None:
            rows = np.flatnonzero(items == found.index_of(item_id))
            return int(rows[0]) if len(rows) else None

        return RerankContext(
            items=items,
            matches=found.matches,
            values_of=found.values_of,
            vectors=found.vectors,
            row_of=row_of,
            visited=met,
            shown=lambda hours: self._shown.items(key, request.surface, since=int(who.at - hours * HOUR)),
        )

    def _log_impression(self, call: RequestState) -> bool:
        """Write down what was shown; False while the log is down."""
        if not call.answer["items"]:
            return True
        key, value = impression(call.request, call.answer, call.at)
        with span("log append", topic=topics.IMPRESSIONS):
            return self._impressions.append(key, value)


EMPTY_HISTORY = from_lists([{}], arrays.USER_COLUMNS)


def _visitor_key(request: RecommendRequest) -> str | None:
    """Whose history it is; None for a stranger."""
    return request.user_id or (SESSION_PREFIX + request.session.session_id if request.session else None)


def _experiment_unit(definition: ExperimentDefinition, request: RecommendRequest) -> str | None:
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


def _run_step(calls: list[RequestState], step: Callable[[RequestState], None]) -> list[RequestState]:
    """Take the step for each, as part of its own request; returns those that it succeeded for."""
    going = []
    for call in calls:
        try:
            call.context.run(step, call)
            going.append(call)
        except Exception as error:
            call.error = error
    return going


def _encode_users(calls: list[RequestState], recommender: Recommender) -> None:
    """The user vectors, by the tower, which runs once for all."""
    vectors = user_vectors([call.visitor for call in calls], recommender)
    for call, vector in zip(calls, vectors, strict=True):
        call.user_vector = vector


def _rank(calls: list[RequestState], recommender: Recommender) -> None:
    """Order the candidates of each by the ranker, which runs once for all, or by the feature of a floor."""
    ranked = [call for call in calls if call.treatment.model not in BASELINES and len(call.candidates.candidates.items)]
    if ranked:
        features, items = ranked[0].candidates.candidates.features, ranked[0].candidates.nearest_known
        if len(ranked) > 1:
            features = np.concatenate([call.candidates.candidates.features for call in ranked])
            items = np.concatenate([call.candidates.nearest_known for call in ranked])
        with span("rank", visitors=len(calls)):
            scores, end = recommender.rank(features, items), 0
    for call in calls:
        candidates = call.candidates.candidates
        if call.treatment.model in BASELINES:
            call.scores = candidates.column(BASELINES[call.treatment.model])
            # A floor that says nothing of a candidate falls back on what sells.
            call.order = np.lexsort((-candidates.column("item_orders_30d"), -call.scores))
            call.log_odds = np.log(np.maximum(call.scores, 0).astype(np.float64) + 1e-6)
            continue
        call.scores = np.empty(0, dtype=np.float32)
        if count := len(candidates.items):
            call.scores, end = scores[end : end + count], end + count
        call.order = (-call.scores).argsort(kind="stable")
        call.log_odds = call.scores.astype(np.float64)

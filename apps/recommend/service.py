"""Answers requests for recommendations in four steps: candidate generation, ranking, re-ranking by the rules, logging.

What fails on the way makes the answer poorer, not absent: without the online store a visitor gets what is trending, and
without the event log the impression waits in a spool. Either way the answer is flagged `degraded`.

Where to change what: a source of candidates, candidate_generation.py; a rule of re-ranking, rules/schemas.py and
reranking.py; the length of a list that names none and all other defaults of a request, schemas.py; what a variation of
an experiment may set, treatment.py; the weight of earlier visits, features/recommender/recency.py.
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

from apps import metrics
from apps.experiments.definitions import ExperimentStore
from apps.http.errors import Problem
from apps.ports import Clock, FeatureReader, Impressions, Recommender
from apps.recommend import item_lists
from apps.recommend.answer import answer_items, impression, trace
from apps.recommend.candidate_generation import generate, user_vectors
from apps.recommend.candidate_set import CandidateSet, Rows
from apps.recommend.item_stats import ItemStats
from apps.recommend.recent_impressions import RecentImpressions, ShownSlate
from apps.recommend.reranking import RerankContext, Slate, rerank
from apps.recommend.rules.schemas import NO_RULES, SurfaceRules
from apps.recommend.schemas import RecommendRequest, RecommendResponse, SimilarRequest
from apps.recommend.treatment import Treatment, choose_treatment
from features.contract.timestamps import milliseconds
from features.history import arrays
from features.history.arrays import History, from_lists
from features.recommender.candidates import BASELINES, Visitor, baseline_order, build_visitor
from infra import topics
from infra.observability.traces import span

logger = logging.getLogger(__name__)

SESSION_PREFIX = "session:"
"""Histories of anonymous sessions are stored under this and the session's id."""
EMPTY_HISTORY = from_lists([{}], arrays.USER_COLUMNS)


@dataclass(frozen=True, slots=True)
class ActiveRelease:
    """A release's recommender and the statistics of its items; a request uses one of them from start to end."""

    recommender: Recommender
    item_stats: ItemStats


@dataclass(frozen=True, slots=True)
class VisitorState:
    """What the online store holds of a visitor."""

    history: History
    """One row of arrays.USER_COLUMNS."""
    degraded: bool
    """The store could not be read."""


@dataclass(slots=True)
class RequestState:
    """A request on its way through the steps, each of which sets the fields that it computes."""

    request: RecommendRequest
    visitor_state: VisitorState | None = None
    """The answer of `read_visitor_state`, where the caller has read it already."""
    context: Context = field(default_factory=copy_context)
    """The caller's: log lines and spans belong to its request."""
    at: int = field(init=False)
    rules: SurfaceRules = field(init=False)
    visitor: Visitor = field(init=False)
    treatment: Treatment = field(init=False)
    user_vector: NDArray[np.float32] = field(init=False)
    candidate_set: CandidateSet = field(init=False)
    order: Rows = field(init=False)
    """Rows of the candidates, best first."""
    scores: NDArray[np.float32] = field(init=False)
    log_odds: NDArray[np.float64] = field(init=False)
    slate: Slate = field(init=False)
    answer: dict[str, Any] = field(init=False)
    error: Exception | None = None

    def result(self) -> dict[str, Any]:
        """Returns the answer, a RecommendResponse as plain data. Raises the error of the step that failed."""
        if self.error is not None:
            raise self.error
        return self.answer


class RecommendService:
    """Answers with the release that is served. Safe to use from threads."""

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
        """rules: returns those of a surface; watch: called with the candidates' features of every answer to a visitor,
        shape [C, len(CANDIDATE_FEATURES)]."""
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
        self._recent_impressions = RecentImpressions()

    def recommend(self, request: RecommendRequest, visitor_state: VisitorState | None = None) -> dict[str, Any]:
        """Returns a RecommendResponse as plain data. Raises Problem 422 for a filter that is not valid, 503 before the
        first release. visitor_state: from `read_visitor_state`, where the caller has read it already."""
        state = RequestState(request, visitor_state)
        self.recommend_all([state])
        return state.result()

    def recommend_all(self, states: list[RequestState]) -> None:
        """Answers visitors who wait at the same moment, each as `recommend` does."""
        self._answer(states, to_visitor=True)

    def preview(self, request: RecommendRequest) -> RecommendResponse:
        """Returns what `recommend` would answer, for an operator. No impression is logged, so nothing counts in an
        experiment and no purchase can refer to the request_id."""
        state = RequestState(request)
        self._answer([state], to_visitor=False)
        return RecommendResponse.model_validate(state.result())

    def similar(self, item_id: str, request: SimilarRequest) -> dict[str, Any]:
        """Returns an ItemList as plain data. Raises Problem 404 for an unknown item, 422 for a filter, 503."""
        release = self._active_release()
        return item_lists.similar(release.recommender, release.item_stats, item_id, request)

    def trending(self, *, n: int) -> dict[str, Any]:
        """Returns an ItemList as plain data. Raises Problem 503."""
        release = self._active_release()
        return item_lists.trending(release.recommender, release.item_stats, at=int(self._clock() * 1000), n=n)

    def read_visitor_state(self, request: RecommendRequest) -> VisitorState:
        """Reads the visitor from the online store: the one step that may wait for another machine."""
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

    def _answer(self, states: list[RequestState], *, to_visitor: bool) -> None:
        """Takes each step for all requests before the next one: each model runs once, and what a step needs stays in
        the processor's caches. A step that fails, fails for its own request alone."""
        marks, release = [time.perf_counter()], self._active_release()
        active = _run_step(states, partial(self._resolve_visitor, release))
        marks.append(time.perf_counter())
        _encode_users(active, release.recommender)
        active = _run_step(active, partial(self._generate_candidates, release))
        marks.append(time.perf_counter())
        if active:
            # A model that runs for all has its span in the trace of the first.
            active[0].context.run(_rank, active, release.recommender)
        marks.append(time.perf_counter())
        active = _run_step(active, partial(self._rerank, release))
        marks.append(time.perf_counter())
        _run_step(active, partial(self._respond, release, marks, to_visitor=to_visitor))

    def _resolve_visitor(self, release: ActiveRelease, state: RequestState) -> None:
        """Sets who is answered, as of when, under which rules and by which treatment."""
        request, recommender = state.request, release.recommender
        state.visitor_state = state.visitor_state or self.read_visitor_state(request)
        state.at, state.rules = self._request_time(request), self._rules(request.surface)
        session_items = request.session.items if request.session else []
        history, catalogue = state.visitor_state.history, recommender.catalogue
        state.visitor = build_visitor(history, catalogue, at=state.at, session_items=session_items)
        experiment, card = self._experiments.running_for(request.surface), recommender.manifest.recommend
        assert card is not None
        state.treatment = choose_treatment(request, experiment, card.gate, state.rules.exploration)

    def _generate_candidates(self, release: ActiveRelease, state: RequestState) -> None:
        with span("retrieve"):
            state.candidate_set = generate(
                state.visitor, state.user_vector, release.recommender, release.item_stats,
                expression=state.request.filter, exclude=state.request.exclude, rules=state.rules,
                per_source=self._per_source,
            )  # fmt: skip

    def _rerank(self, release: ActiveRelease, state: RequestState) -> None:
        request, version = state.request, release.recommender.manifest.version
        recent_slates = self._recent_impressions.of(version, _visitor_key(request), request.surface)
        state.slate = rerank(
            state.order, state.log_odds, RerankContext(state.candidate_set, state.visitor, recent_slates), state.rules,
            n=request.n, drop_seen=request.seen == "drop", exploration=state.treatment.exploration, rng=self._rng,
            traced=request.trace,
        )  # fmt: skip

    def _respond(self, release: ActiveRelease, marks: list[float], state: RequestState, *, to_visitor: bool) -> None:
        """Builds the answer, and logs what it shows."""
        request, candidate_set, slate = state.request, state.candidate_set, state.slate
        version = release.recommender.manifest.version
        degraded = release.item_stats.stale or (state.visitor_state is not None and state.visitor_state.degraded)
        state.answer = {
            "request_id": token_hex(16),
            "items": answer_items(slate, state.scores, candidate_set),
            "model": state.treatment.model,
            "release": version,
            "experiment": state.treatment.experiment,
            "degraded": degraded,
            "took_ms": 0.0,
        }
        if request.trace:
            state.answer["trace"] = trace(slate, state.order, state.scores, candidate_set, state.rules, marks)
        if to_visitor:
            candidates = candidate_set.candidates
            self.watch(candidates.features)
            if key := _visitor_key(request):
                shown = ShownSlate(state.at, candidates.items[slate.rows])
                self._recent_impressions.add(version, key, request.surface, shown)
            logged = self._log_impression(state)
            state.answer["degraded"] = degraded = degraded or not logged
            metrics.RECOMMENDATIONS.labels(request.surface, state.treatment.model, str(degraded).lower()).inc()
        state.answer["took_ms"] = round((time.perf_counter() - marks[0]) * 1000, 3)

    def _active_release(self) -> ActiveRelease:
        release = self._serving()
        if release is None:
            raise Problem(503, "No release yet", "nothing is published to recommend with; run `headrace train` first")
        return release

    def _request_time(self, request: RecommendRequest) -> int:
        now = int(self._clock() * 1000)
        if request.context.request_time is None:
            return now
        at = milliseconds(request.context.request_time)
        if at > now + self._max_future_ms:
            raise Problem(422, "Invalid request", "context.request_time lies in the future; leave it out to mean now")
        return at

    def _log_impression(self, state: RequestState) -> bool:
        """Logs what is shown; False while the event log is down."""
        if not state.answer["items"]:
            return True
        key, value = impression(state.request, state.answer, state.at)
        with span("log append", topic=topics.IMPRESSIONS):
            return self._impressions.append(key, value)


def _visitor_key(request: RecommendRequest) -> str | None:
    """Returns the key of the visitor's history; None for a stranger."""
    return request.user_id or (SESSION_PREFIX + request.session.session_id if request.session else None)


def _run_step(states: list[RequestState], step: Callable[[RequestState], None]) -> list[RequestState]:
    """Takes the step for each request in its own context; returns those that it succeeded for."""
    active = []
    for state in states:
        try:
            state.context.run(step, state)
            active.append(state)
        except Exception as error:
            state.error = error
    return active


def _encode_users(states: list[RequestState], recommender: Recommender) -> None:
    """Computes all user vectors in one run of the tower."""
    vectors = user_vectors([state.visitor for state in states], recommender)
    for state, vector in zip(states, vectors, strict=True):
        state.user_vector = vector


def _rank(states: list[RequestState], recommender: Recommender) -> None:
    """Orders the candidates of each request: by the ranker, which runs once for all, or by a baseline."""
    batch = [
        state.candidate_set
        for state in states
        if state.treatment.model not in BASELINES and len(state.candidate_set.candidates.items)
    ]
    if batch:
        features, items = batch[0].candidates.features, batch[0].ranker_items
        if len(batch) > 1:
            features = np.concatenate([candidate_set.candidates.features for candidate_set in batch])
            items = np.concatenate([candidate_set.ranker_items for candidate_set in batch])
        with span("rank", visitors=len(states)):
            scores, end = recommender.rank(features, items), 0
    for state in states:
        candidates = state.candidate_set.candidates
        if state.treatment.model in BASELINES:
            state.scores = candidates.column(BASELINES[state.treatment.model])
            state.order = baseline_order(candidates, state.treatment.model)
            state.log_odds = np.log(np.maximum(state.scores, 0).astype(np.float64) + 1e-6)
            continue
        state.scores = np.empty(0, dtype=np.float32)
        if count := len(candidates.items):
            state.scores, end = scores[end : end + count], end + count
        state.order = (-state.scores).argsort(kind="stable")
        state.log_odds = state.scores.astype(np.float64)

"""The fraud endpoints: score a payment, report a label, list and follow alerts. Knows nothing of models.

app.state must hold `fraud` (FraudService) and `decisions` (DecisionStore).
"""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Header, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from pydantic import AwareDatetime

from apps.fraud.decisions import DecisionStore
from apps.fraud.schemas import (
    EXAMPLE_ALERT,
    EXAMPLE_DECISION,
    AlertsResponse,
    LabelBatch,
    LabelRequest,
    LabelResult,
    LabelsResponse,
    ScoreRequest,
    ScoreResponse,
    alert_out,
)
from apps.fraud.service import FraudService
from apps.http.errors import LOG_WRITERS, Problem, describe_problem
from features.contract.events import Transaction
from infra.log.client import Position
from infra.observability.logs import REQUEST_ID

router = APIRouter(prefix="/v1", tags=["fraud"])

POLL_SECONDS = 0.05
HEARTBEAT_SECONDS = 15.0
RETRY_MILLISECONDS = 2_000


def _answer(example: dict[str, Any], *, media: str = "application/json") -> dict[str, Any]:
    return {"content": {media: {"example": example}}}


BAD_RESUME = describe_problem(400, "Unknown event id", "Last-Event-ID 'x' was not given by this stream; leave it out")

PAYMENT = {
    "transaction_id": "tx_5f0c8a41d2e79b36",
    "card_id": "card_91d1e06f03bddec6",
    "terminal_id": "term_961e1d5e94bfab0c",
    "amount": 412.5,
    "channel": "online",
    "event_time": "2026-11-22T10:20:00Z",
}
LABEL = {"transaction_id": "tx_5f0c8a41d2e79b36", "fraud": True, "known_time": "2026-11-27T09:00:00Z"}
LABELLED = {
    "accepted": 1,
    "duplicates": 0,
    "results": [{"transaction_id": "tx_5f0c8a41d2e79b36", "status": "accepted"}],
}


@router.post(
    "/transactions/score", summary="Score a payment", responses={200: _answer(EXAMPLE_DECISION), **LOG_WRITERS}
)
def score_transaction(
    payment: Annotated[ScoreRequest, Body(openapi_examples={"online payment": {"value": PAYMENT}})], request: Request
) -> ScoreResponse:
    """Scores a card payment and decides: approve, review or decline, with reasons.

    The decision and the payment are in the event log when this answers. A transaction that is sent again gets its
    first decision back.
    """
    started = time.perf_counter()
    service: FraudService = request.app.state.fraud
    decision = service.score(
        Transaction(
            type="transaction",
            event_id=payment.transaction_id,
            event_time=payment.event_time or datetime.now(UTC),
            card_id=payment.card_id,
            terminal_id=payment.terminal_id,
            amount=payment.amount,
            channel=payment.channel,
            http_request_id=REQUEST_ID.get(),
        )
    )
    return ScoreResponse(
        transaction_id=decision.event_id,
        score=decision.score,
        outcome=decision.outcome,
        reasons=decision.reasons,
        model=decision.model,
        took_ms=round((time.perf_counter() - started) * 1000, 3),
        degraded=decision.degraded,
    )


@router.post(
    "/labels", summary="Report what transactions turned out to be", responses={200: _answer(LABELLED), **LOG_WRITERS}
)
def add_labels(
    body: Annotated[
        LabelRequest | LabelBatch,
        Body(openapi_examples={"one label": {"value": LABEL}, "a batch": {"value": [LABEL]}}),
    ],
    request: Request,
) -> LabelsResponse:
    """Stores what transactions turned out to be: one label, or up to 1,000 in an array. A repeat counts once."""
    service: FraudService = request.app.state.fraud
    requests = body if isinstance(body, list) else [body]
    fresh = service.labels.add(requests, now=datetime.now(UTC))
    results = [
        LabelResult(transaction_id=label.transaction_id, status="accepted" if is_new else "duplicate")
        for label, is_new in zip(requests, fresh, strict=True)
    ]
    return LabelsResponse(accepted=sum(fresh), duplicates=len(fresh) - sum(fresh), results=results)


@router.get("/alerts", summary="The newest alerts", responses={200: _answer({"alerts": [EXAMPLE_ALERT]})})
def list_alerts(
    request: Request,
    outcome: Annotated[Literal["review", "decline"] | None, Query(examples=["review"])] = None,
    card_id: Annotated[str | None, Query(max_length=128, examples=["card_91d1e06f03bddec6"])] = None,
    min_score: Annotated[float, Query(ge=0, le=1, examples=[0.5])] = 0.0,
    since: Annotated[AwareDatetime | None, Query(description="Payments from then on.")] = None,
    limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
) -> AlertsResponse:
    """The newest alerts that pass every filter, newest first."""
    decisions: DecisionStore = request.app.state.decisions
    alerts = decisions.alerts(outcome=outcome, card_id=card_id, min_score=min_score, since=since, limit=limit)
    return AlertsResponse(alerts=[alert_out(alert.resume, alert.decision) for alert in alerts])


@router.get(
    "/alerts/stream",
    summary="Alerts as they happen",
    response_class=StreamingResponse,
    responses={200: _answer({"event": "alert", "data": EXAMPLE_ALERT}, media="text/event-stream"), **BAD_RESUME},
)
async def stream_alerts(
    request: Request,
    last_event_id: Annotated[str | None, Header(alias="Last-Event-ID", examples=["0:18874"])] = None,
    after: Annotated[str | None, Query(description="As Last-Event-ID, for a first connection.")] = None,
) -> StreamingResponse:
    """Alerts as they happen, as server-sent events; with Last-Event-ID from there on, with nothing lost."""
    decisions: DecisionStore = request.app.state.decisions
    resume = last_event_id or after
    if resume is None:
        position = await run_in_threadpool(decisions.end)
    else:
        try:
            position = Position.parse(resume)
        except ValueError as error:
            detail = f"Last-Event-ID {resume!r} was not given by this stream; leave it out"
            raise Problem(400, "Unknown event id", detail) from error
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(alert_events(decisions, position), media_type="text/event-stream", headers=headers)


async def alert_events(decisions: DecisionStore, position: Position) -> AsyncIterator[str]:
    """Yields server-sent events after a position, until the process ends.

    A heartbeat carries the position too: a client that reconnects after a quiet time resumes from there.
    """
    yield f"retry: {RETRY_MILLISECONDS}\nid: {position}\n\n"
    quiet_since = time.monotonic()
    while True:
        closing = decisions.closing.is_set()
        alerts, reached = await run_in_threadpool(decisions.alerts_after, position)
        for alert in alerts:
            out = alert_out(alert.resume, alert.decision)
            yield f"id: {out.alert_id}\nevent: alert\ndata: {out.model_dump_json()}\n\n"
            quiet_since = time.monotonic()
        if time.monotonic() - quiet_since >= HEARTBEAT_SECONDS:
            yield f": alive\nid: {reached}\n\n"
            quiet_since = time.monotonic()
        if reached != position:
            position = reached
        elif closing:
            return
        else:
            await asyncio.sleep(POLL_SECONDS)

"""Takes events over HTTP: parses the body, whose size apps/http/admission.py has bounded, and calls the service."""

from typing import Any, cast

import orjson
from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool

from apps.http.errors import LOG_WRITERS, Problem, describe_problem
from apps.ingest.service import IngestResponse, IngestService
from features.contract.events import ACCEPTED
from infra.settings import Settings

router = APIRouter(prefix="/v1", tags=["events"])

_PURCHASE = {
    "type": "purchase",
    "event_id": "order-1:1",
    "event_time": "2026-11-22T10:15:00Z",
    "user_id": "17850",
    "item_id": "85123A",
    "quantity": 6,
    "price": 2.55,
    "order_id": "order-1",
    "request_id": "8f14e45fceea4d7f9b6d1c3e2a5b7c90",
}
_VIEW = {
    "type": "view",
    "event_id": "view-1",
    "event_time": "2026-11-22T10:14:00Z",
    "session_id": "s-1",
    "item_id": "85123A",
}
_EVENT = ACCEPTED.json_schema(ref_template="#/components/schemas/{model}")
EVENT_SCHEMAS: dict[str, Any] = _EVENT.pop("$defs")
"""Schemas of the single event types, for the components of the OpenAPI document."""
_BATCH = {
    "type": "object",
    "required": ["events"],
    "additionalProperties": False,
    "properties": {"events": {"type": "array", "minItems": 1, "maxItems": 1000, "items": _EVENT}},
}


@router.post(
    "/events",
    summary="Send one event or a batch",
    response_model=IngestResponse,
    responses={**describe_problem(400, "Not JSON", "the body is not valid JSON: ..."), **LOG_WRITERS},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"oneOf": [_EVENT, _BATCH]},
                    "examples": {
                        "one": {"summary": "One event", "value": _PURCHASE},
                        "batch": {"summary": "A batch", "value": {"events": [_PURCHASE, _VIEW]}},
                    },
                }
            },
        }
    },
)
async def post_events(request: Request) -> IngestResponse:
    """Stores the valid events of a batch and returns the invalid ones with the field and the reason.

    An event_id that was sent before is a duplicate and counts once. What is accepted survives a crash.
    """
    settings = cast(Settings, request.app.state.settings)
    try:
        payload = orjson.loads(await request.body())
    except orjson.JSONDecodeError as error:
        raise Problem(400, "Not JSON", f"the body is not valid JSON: {error}") from error
    batch = payload["events"] if isinstance(payload, dict) and "events" in payload else [payload]
    if not isinstance(batch, list) or not batch:
        raise Problem(422, "Invalid request", 'send one event, or {"events": [...]} with at least one')
    if len(batch) > settings.max_batch_events:
        raise Problem(
            413, "Too many events", f"{len(batch)} events in one batch; at most {settings.max_batch_events} are taken"
        )
    service = cast(IngestService, request.app.state.ingest)
    return await run_in_threadpool(service.accept, batch)

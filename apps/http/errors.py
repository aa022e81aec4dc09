"""Answers every error with problem+json (RFC 9457), and describes these answers for the OpenAPI document.

Problem                      status, title, detail: raised by any route
RequestValidationError  422  FastAPI's own, with a reason for each field
LogFullError            507  the event log has no room
LogError                503  the event log cannot be reached: nothing was stored, it can be sent again
anything else           500  logged with its request; the caller sees no internals
"""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from infra.log.client import LogError, LogFullError

logger = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 5
"""Pause before a call that needs the event log is sent again, while the log cannot be reached."""
INTERNAL = "the server failed to answer; its log has the reason"
UNAVAILABLE = "nothing of this call is acknowledged; send it again as it is, what was stored counts once"
MEDIA_TYPE = "application/problem+json"
SCHEMAS: dict[str, Any] = {
    "Problem": {
        "type": "object",
        "description": "What is wrong and what to do (RFC 9457).",
        "required": ["type", "status", "title", "detail"],
        "properties": {
            "type": {"type": "string"},
            "status": {"type": "integer", "description": "The HTTP status."},
            "title": {"type": "string", "description": "The kind of error."},
            "detail": {"type": "string", "description": "What is wrong with this request, and what to do."},
            "errors": {"type": "array", "items": {"$ref": "#/components/schemas/FieldError"}},
        },
    },
    "FieldError": {
        "type": "object",
        "required": ["field", "reason"],
        "properties": {"field": {"type": "string"}, "reason": {"type": "string"}},
    },
}
"""For the components of the OpenAPI document."""


class Problem(Exception):
    """An error for the caller: `title` names its kind, `detail` says what to do."""

    def __init__(self, status: int, title: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.title = title
        self.detail = detail


def problem_body(status: int, title: str, detail: str, **more: object) -> dict[str, object]:
    return {"type": "about:blank", "status": status, "title": title, "detail": detail, **more}


def problem_response(
    status: int, title: str, detail: str, *, headers: Mapping[str, str] | None = None, **more: object
) -> JSONResponse:
    body = problem_body(status, title, detail, **more)
    return JSONResponse(body, status_code=status, headers=headers, media_type=MEDIA_TYPE)


def describe_problem(status: int, title: str, detail: str) -> dict[int | str, dict[str, Any]]:
    """Returns an error for the `responses` of a route: its title as the description, and an example."""
    content = {"schema": {"$ref": "#/components/schemas/Problem"}, "example": problem_body(status, title, detail)}
    return {status: {"description": title, "content": {MEDIA_TYPE: content}}}


EVERYWHERE = {
    **describe_problem(422, "Invalid request", "FIELD: what is wrong with it"),
    **describe_problem(500, "Internal error", INTERNAL),
}
"""Errors of every route."""
LOG_WRITERS = {
    **describe_problem(503, "Event log unavailable", UNAVAILABLE),
    **describe_problem(507, "Event log is full", "not stored: ...; free space there, then send it again"),
}
"""Errors of the routes that write to the event log."""


def install_errors(app: FastAPI) -> None:
    """Makes every error of `app` a problem+json answer."""

    @app.exception_handler(Problem)
    async def on_problem(request: Request, error: Problem) -> JSONResponse:
        return problem_response(error.status, error.title, error.detail)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        errors = [
            {"field": ".".join(str(part) for part in item["loc"]), "reason": item["msg"]} for item in error.errors()
        ]
        detail = "; ".join(f"{item['field']}: {item['reason']}" for item in errors)
        return problem_response(422, "Invalid request", detail, errors=errors)

    @app.exception_handler(LogFullError)
    async def on_full(request: Request, error: LogFullError) -> JSONResponse:
        return problem_response(507, "Event log is full", str(error))

    @app.exception_handler(LogError)
    async def on_no_log(request: Request, error: LogError) -> JSONResponse:
        logger.error("%s %s: the event log failed: %s", request.method, request.url.path, error)
        headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
        return problem_response(503, "Event log unavailable", UNAVAILABLE, headers=headers)

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> JSONResponse:
        return problem_response(error.status_code, HTTPStatus(error.status_code).phrase, str(error.detail))

    @app.exception_handler(Exception)
    async def on_anything(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return problem_response(500, "Internal error", INTERNAL)

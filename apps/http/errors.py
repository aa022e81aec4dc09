"""What the API answers when it cannot do as asked: RFC 9457 problem+json, one shape for every error.

Problem                      status, title, detail: raised by any route
RequestValidationError  422  FastAPI's own, told field by field
LogFullError            507  the event log has no room
LogError                503  the event log cannot be reached: nothing was stored, it can be sent again
anything else           500  logged with its request; the caller is told no internals
"""

import logging
from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from infra.log.client import LogError, LogFullError

logger = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 5
"""Of a call that needs the event log while that cannot be reached."""


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
    return JSONResponse(body, status_code=status, headers=headers, media_type="application/problem+json")


def install_errors(app: FastAPI) -> None:
    """Make every error of `app` a problem+json answer."""

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
        detail = "nothing of this call is acknowledged; send it again as it is, what was stored counts once"
        headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
        return problem_response(503, "Event log unavailable", detail, headers=headers)

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> JSONResponse:
        return problem_response(error.status_code, HTTPStatus(error.status_code).phrase, str(error.detail))

    @app.exception_handler(Exception)
    async def on_anything(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return problem_response(500, "Internal error", "the server failed to answer; its log has the reason")

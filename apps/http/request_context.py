"""The outermost layer of the API: every request gets its id, its time, its line in the log, and its span.

Plain ASGI: a middleware that wraps responses would cost more than all of this. Knows nothing of what is answered.
"""

import functools
import logging
import re
import time
from secrets import token_hex

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from apps import metrics
from infra.observability import traces
from infra.observability.logs import REQUEST_ID

logger = logging.getLogger(__name__)

HEADER = b"x-request-id"
USABLE_ID = re.compile(rb"[A-Za-z0-9_.:/+=@-]{1,128}")
UNKNOWN_ROUTE = "unknown"


class RequestContext:
    """Takes over a usable X-Request-ID and sends it back; gives a new id to a request without one."""

    def __init__(self, app: ASGIApp, *, log_requests: bool) -> None:
        self._app = app
        self._log_requests = log_requests
        # To look up a metric's child takes longer than to add to it.
        self._request_seconds = functools.cache(metrics.REQUEST_SECONDS.labels)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == HEADER), b"")
        request_id = given.decode() if USABLE_ID.fullmatch(given) else token_hex(16)
        token = REQUEST_ID.set(request_id)
        started = time.perf_counter()
        status, seconds = 500, None

        async def send_with_id(message: Message) -> None:
            nonlocal status, seconds
            if message["type"] == "http.response.start":
                status, seconds = message["status"], time.perf_counter() - started
                message["headers"] = [*message.get("headers", ()), (HEADER, request_id.encode())]
            await send(message)

        metrics.IN_FLIGHT.inc()
        try:
            with traces.request_span(f"{scope['method']} request", Headers(raw=scope["headers"])) as describe:
                try:
                    await self._app(scope, receive, send_with_id)
                finally:
                    route = getattr(scope.get("route"), "path", UNKNOWN_ROUTE)
                    took = time.perf_counter() - started if seconds is None else seconds
                    describe(
                        f"{scope['method']} {route}",
                        {
                            "http.request.method": scope["method"],
                            "http.route": route,
                            "http.response.status_code": status,
                            "headrace.request_id": request_id,
                        },
                    )
                    self._record(scope["method"], route, status, took)
        finally:
            metrics.IN_FLIGHT.dec()
            REQUEST_ID.reset(token)

    def _record(self, method: str, route: str, status: int, seconds: float) -> None:
        self._request_seconds(method, route, str(status)).observe(seconds)
        # A refusal because of overload is counted, and no line the more for a machine that is busy.
        failed = status >= 500 and not (status == 503 and route == UNKNOWN_ROUTE)
        if failed or self._log_requests:
            level = logging.WARNING if failed else logging.INFO
            fields = {"method": method, "route": route, "status": status, "ms": round(seconds * 1000, 1)}
            logger.log(level, "%s %s %d", method, route, status, extra=fields)

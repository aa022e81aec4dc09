"""The way of the one request that every page view makes: to its endpoint, past what FastAPI does for any request.

Dependencies that are solved, exit stacks that stay empty and a second look at exceptions take a twentieth of a worker's
time. The route stays FastAPI's, for the documentation and for its name.
"""

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send


class Express:
    """ASGI middleware inside the limits of apps/http/admission.py. The endpoint takes the request and nothing else;
    what it raises becomes what the app's handlers make of it."""

    def __init__(self, app: ASGIApp, *, site: FastAPI, route: APIRoute) -> None:
        self._app = app
        self._route = route
        self._methods = route.methods or set()
        self._handlers = site.exception_handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != self._route.path or scope["method"] not in self._methods:
            await self._app(scope, receive, send)
            return
        scope["route"] = self._route
        request = Request(scope, receive)
        try:
            response = await self._route.endpoint(request)
        except Exception as error:
            handler = next(self._handlers[kind] for kind in type(error).__mro__ if kind in self._handlers)
            response = await handler(request, error)  # type: ignore[misc]
        await response(scope, receive, send)

"""Refuses what a route would ignore: a query parameter that it does not declare."""

import difflib
from collections.abc import Sequence

from fastapi.dependencies.utils import get_flat_params
from fastapi.params import ParamTypes
from fastapi.routing import RouteContext, iter_route_contexts
from starlette.datastructures import QueryParams
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

from apps.http.errors import problem_response


class QueryParameterCheck:
    """ASGI middleware over all routes. A request without a query costs one comparison."""

    def __init__(self, app: ASGIApp, *, routes: Sequence[BaseRoute]) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._app
        if scope["type"] == "http" and scope["query_string"]:
            contexts = iter_route_contexts(self._routes)
            route = next((route for route in contexts if route.matches(scope)[0] is Match.FULL), None)
            if route is not None and (reasons := _unknown(QueryParams(scope["query_string"]), query_parameters(route))):
                scope["route"] = route.original_route
                errors = [{"field": f"query.{name}", "reason": reason} for name, reason in reasons.items()]
                answer = problem_response(422, "Unknown query parameter", "; ".join(reasons.values()), errors=errors)
        await answer(scope, receive, send)


def query_parameters(route: RouteContext) -> list[str]:
    """Returns the names of the query parameters that a route and its dependencies declare, sorted."""
    fields = get_flat_params(route.dependant)
    return sorted(field.alias for field in fields if getattr(field.field_info, "in_", None) is ParamTypes.query)


def _unknown(query: QueryParams, declared: list[str]) -> dict[str, str]:
    """Returns a reason for each name that is not declared."""
    reasons = {}
    for name in query.keys() - declared:
        nearest = difflib.get_close_matches(name, declared, n=1, cutoff=0)
        hint = f"the nearest is {nearest[0]}; there are {', '.join(declared)}" if nearest else "this route takes none"
        reasons[name] = f"there is no query parameter {name}: {hint}"
    return reasons

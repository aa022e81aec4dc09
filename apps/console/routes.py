"""Serves the console's pages over HTTP.

`app.state.console` must hold a ConsoleData; where its data comes from is not known here.
"""

from pathlib import PurePath
from typing import Annotated

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.responses import FileResponse

from apps.console.pages import HERE, STATIC, page
from apps.console.views import AlertFilter, ConsoleData
from apps.http.errors import problem_response

router = APIRouter(include_in_schema=False)

EXAMPLE_USERS = 8
ALERTS_SHOWN = 100
ITEMS_SHOWN = (5, 10, 20, 50)
OUTCOMES = ("review", "decline")

Text = Annotated[str, Query(max_length=200)]


def _data(request: Request) -> ConsoleData:
    data: ConsoleData = request.app.state.console
    return data


@router.get("/")
def home(request: Request) -> Response:
    return page("home.html", at="home", view=_data(request).overview())


@router.get("/console/recommendations")
def recommendations(request: Request, user: Text = "", surface: Text = "home", n: Text = "10") -> Response:
    data = _data(request)
    count = int(n) if n.isascii() and n.isdigit() and int(n) in ITEMS_SHOWN else 10
    user, surface = user.strip(), surface.strip() or "home"
    return page(
        "recommendations.html",
        at="recommendations",
        examples=data.example_users(EXAMPLE_USERS),
        sizes=ITEMS_SHOWN,
        user=user,
        surface=surface,
        n=count,
        view=data.user_view(user, surface=surface, n=count) if user else None,
    )


@router.get("/console/alerts")
def alerts(request: Request, outcome: Text = "", card: Text = "", min_score: Text = "") -> Response:
    # An empty or invalid field filters nothing: forms send every field, and a page is no place for a 422.
    filters = AlertFilter(
        outcome=outcome if outcome in OUTCOMES else None, card_id=card.strip() or None, min_score=_score(min_score)
    )
    return page(
        "alerts.html",
        at="alerts",
        filters=filters,
        outcomes=OUTCOMES,
        limit=ALERTS_SHOWN,
        view=_data(request).alerts(filters, limit=ALERTS_SHOWN),
    )


@router.get("/console/experiments")
def experiments(request: Request) -> Response:
    return page("experiments.html", at="experiments", experiments=_data(request).experiments())


@router.get("/console/experiments/{key}")
def experiment(request: Request, key: str) -> Response:
    view = _data(request).experiment(key)
    if view is None:
        return page("missing.html", status=404, at="experiments", what=f"There is no experiment {key}.")
    return page("experiment.html", at="experiments", view=view)


@router.get("/console/static/{name}")
def static(name: str, v: Text = "") -> Response:
    """Returns a file of the pages, whichever digest `v` names."""
    if name not in STATIC:
        return page("missing.html", status=404, at="", what="There is no such file.")
    # The address carries the files' digest, so a browser may keep what it has.
    headers = {"Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}
    return FileResponse(HERE / "static" / PurePath(name).name, media_type=STATIC[name], headers=headers)


def install_missing_page(app: FastAPI) -> None:
    """Answers an unknown address with a page where a browser asks; API clients get problem+json."""

    @app.exception_handler(404)
    async def on_missing(request: Request, error: Exception) -> Response:
        if "text/html" in request.headers.get("Accept", ""):
            return page("missing.html", status=404, at="", what=f"There is nothing at {request.url.path}.")
        return problem_response(404, "Not Found", "Not Found")


def _score(text: str) -> float:
    """Returns a score from 0 to 1; 0 for text that is no such number."""
    try:
        score = float(text.replace(",", "."))
    except ValueError:
        return 0.0
    return score if 0 <= score <= 1 else 0.0

"""The API: routers, errors, health and metrics on one FastAPI app, and what starts and stops with it."""

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from apps import metrics
from apps.console import routes as console
from apps.console_feed import ConsoleFeed
from apps.errors import install_errors
from apps.experiments import routes as experiments
from apps.fraud import routes as fraud
from apps.ingest import routes as ingest
from apps.recommend import routes as recommend
from apps.wiring import Services
from infra.settings import Settings

TITLE = "Headrace"


def create_app(settings: Settings) -> FastAPI:
    """The app over the data of `settings`; it serves the current release and picks up the next by itself."""
    services = Services(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        stop = services.keep_fresh()
        yield
        services.decisions.closing.set()
        stop()

    app = FastAPI(title=TITLE, version="0.1.0", lifespan=lifespan, description="Events in, three answers out.")
    app.state.settings = settings
    app.state.services = services
    app.state.ingest = services.ingest
    app.state.recommend = services.recommend
    app.state.fraud = services.fraud
    app.state.decisions = services.decisions
    app.state.experiments = services.experiments
    app.state.console = ConsoleFeed(services, feature_age_seconds=lambda: stream_age_seconds(settings))
    install_errors(app)
    for router in (ingest.router, recommend.router, fraud.router, experiments.router, console.router):
        app.include_router(router)
    _add_health(app, services)
    _add_timing(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _add_health(app: FastAPI, services: Services) -> None:
    @app.get("/healthz", tags=["operations"], summary="Is the process alive")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", tags=["operations"], summary="Can it answer, and what is missing")
    def readyz() -> JSONResponse:
        parts = readiness(services)
        ready = parts["release"] != "missing"
        return JSONResponse({"ready": ready, **parts}, status_code=200 if ready else 503)

    @app.get("/metrics", tags=["operations"], summary="Prometheus metrics", response_class=Response)
    def prometheus() -> Response:
        age = stream_age_seconds(services.settings)
        metrics.FEATURE_AGE_SECONDS.set(-1 if age is None else age)
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


def stream_age_seconds(settings: Settings) -> float | None:
    """Seconds since the feature job last finished a micro-batch; None when it never did."""
    path = settings.data_dir / "status" / "stream.json"
    try:
        updated = datetime.fromisoformat(json.loads(path.read_text())["updated"])
    except (OSError, ValueError, KeyError):
        return None
    return (datetime.now(UTC) - updated).total_seconds()


def readiness(services: Services) -> dict[str, str]:
    """One word on each part: the release served, the online store, the feature job."""
    try:
        services.reader.user_histories(["readiness"])
        store = "ok"
    except Exception as error:
        store = f"failing: {type(error).__name__}"
    age = stream_age_seconds(services.settings)
    return {
        "release": services.releases.version or "missing",
        "online_store": store,
        "feature_job": "never ran" if age is None else f"last batch {age:.0f} s ago",
    }


def _add_timing(app: FastAPI) -> None:
    @app.middleware("http")
    async def measure(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        started = time.perf_counter()
        response = await call_next(request)
        route = request.scope.get("route")
        metrics.REQUEST_SECONDS.labels(
            request.method, getattr(route, "path", "unknown"), str(response.status_code)
        ).observe(time.perf_counter() - started)
        return response


def _openapi(app: FastAPI) -> dict[str, object]:
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schema["components"]["schemas"].update(ingest.EVENT_SCHEMAS)
        app.openapi_schema = schema
    return app.openapi_schema

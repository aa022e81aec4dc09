"""Builds the API: routers, errors, health and metrics on one FastAPI app, and what starts and stops with it."""

import gc
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, cast

from fastapi import FastAPI, Response, params
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from apps import metrics
from apps.console import routes as console
from apps.console.data import LiveConsoleData
from apps.experiments import routes as experiments
from apps.fraud import routes as fraud
from apps.http import documentation
from apps.http.admission import REFUSALS, AdmissionControl, ConcurrencyLimiter, priority_of
from apps.http.errors import EVERYWHERE, SCHEMAS, install_errors
from apps.http.query_parameters import QueryParameterCheck
from apps.http.request_context import RequestContext
from apps.ingest import routes as ingest
from apps.recommend import routes as recommend
from apps.recommend.batcher import RequestBatcher
from apps.wiring import Services
from infra import topics
from infra.observability import logs, traces
from infra.parent_watch import end_with_parent
from infra.settings import Settings
from infra.version import version

TITLE = "Headrace"
SWITCH_SECONDS = 0.0005
YOUNG_OBJECTS = 50_000
"""New objects until the garbage collector looks for cycles: an answer makes some thousands, and hardly any cycle."""


def create_app(settings: Settings, *, dependencies: Sequence[params.Depends] = ()) -> FastAPI:
    """Builds the app over the data of `settings`; it serves the current release and picks up the next by itself.

    Every route has the `dependencies`, before its own.
    """
    services = Services(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        flush = traces.start(settings, "headrace-api")
        stop = services.keep_fresh()
        yield
        services.decisions.closing.set()
        stop()
        flush()

    app = FastAPI(
        title=TITLE,
        version=version(),
        description="Events in, three answers out.",
        lifespan=lifespan,
        dependencies=dependencies,
        openapi_url=None,
        # Traces and metrics are made by apps/http/request_context.py.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        generate_unique_id_function=lambda route: route.name,
        responses=EVERYWHERE,
        servers=[{"url": "/", "description": "The server that this document came from."}],
    )
    app.state.settings = settings
    app.state.services = services
    app.state.ingest = services.ingest
    app.state.recommend = services.recommend
    app.state.fraud = services.fraud
    app.state.decisions = services.decisions
    app.state.experiments = services.experiments
    app.state.batcher = RequestBatcher(services.recommend.recommend_all)
    app.state.rules = services.rules
    app.state.console = LiveConsoleData(services, feature_age_seconds=lambda: stream_age_seconds(settings))
    install_errors(app)
    console.install_missing_page(app)
    # In the order in which a path is looked for: recommendations, which every page view asks for, come first.
    for router in (
        recommend.router,
        ingest.router,
        fraud.router,
        recommend.rules_router,
        experiments.router,
        console.router,
        documentation.router,
    ):
        app.include_router(router)
    _add_health(app, services)
    # The last one added is the outermost.
    app.add_middleware(
        AdmissionControl,
        limiter=ConcurrencyLimiter(settings.concurrent_requests, queue_seconds=settings.queue_milliseconds / 1000),
        most_bytes=settings.max_batch_events * settings.max_event_bytes,
    )
    app.add_middleware(QueryParameterCheck, routes=app.routes)
    app.add_middleware(RequestContext, log_requests=settings.log_requests)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def served() -> FastAPI:
    """Builds the app of one worker process, with the settings of the environment that `serve` gave it."""
    end_with_parent()
    settings = Settings()
    logs.set_up(settings)
    # Requests are answered in the event loop: a thread at work in the background has to let it go on soon.
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.set_threshold(YOUNG_OBJECTS)
    return create_app(settings)


class Readiness(BaseModel):
    """What `GET /readyz` answers."""

    ready: bool
    release: str
    online_store: str
    feature_job: str


def _add_health(app: FastAPI, services: Services) -> None:
    settings = services.settings

    @app.get("/healthz", tags=["operations"], summary="Is the process alive")
    async def check_health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get(
        "/readyz",
        tags=["operations"],
        summary="Can it answer, and what is missing",
        response_model=Readiness,
        responses={503: {"description": "Not ready", "model": Readiness}},
    )
    def check_readiness() -> JSONResponse:
        parts = readiness(services)
        ready = parts["release"] != "missing"
        return JSONResponse({"ready": ready, **parts}, status_code=200 if ready else 503)

    @app.get(
        "/metrics",
        tags=["operations"],
        summary="Prometheus metrics",
        response_class=PlainTextResponse,
    )
    def get_metrics() -> Response:
        age = stream_age_seconds(settings)
        metrics.FEATURE_AGE_SECONDS.set(-1 if age is None else age)
        for topic in topics.ALL:
            # The size of a topic in Kafka is among Kafka's own metrics.
            if (folder := settings.log_dir / topic).is_dir():
                metrics.LOG_BYTES.labels(topic).set(sum(path.stat().st_size for path in folder.glob("*.log")))
        processes = settings.metrics_dir if settings.api_workers > 1 else None
        return Response(metrics.exposition(processes), media_type=CONTENT_TYPE_LATEST)


def stream_age_seconds(settings: Settings) -> float | None:
    """Returns the seconds since the feature job last finished a micro-batch; None when it never did."""
    try:
        updated = datetime.fromisoformat(json.loads(settings.stream_status.read_text())["updated"])
    except (OSError, ValueError, KeyError):
        return None
    return (datetime.now(UTC) - updated).total_seconds()


def readiness(services: Services) -> dict[str, str]:
    """Returns the state of the release, the online store and the feature job, each in a few words."""
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


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        document = FastAPI.openapi(app)
        document["components"]["schemas"] |= ingest.EVENT_SCHEMAS | recommend.REQUEST_SCHEMAS | SCHEMAS
        for path, operations in document["paths"].items():
            refusals = {str(status): answer for status, answer in REFUSALS.items()} if priority_of(path) else {}
            for operation in operations.values():
                operation["responses"] = dict(sorted((refusals | operation["responses"]).items()))
    return cast(dict[str, Any], app.openapi_schema)

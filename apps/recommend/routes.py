"""Serves recommendations and the rules of surfaces over HTTP. Knows nothing of how an answer comes about."""

from typing import Annotated, Any, cast

import orjson
from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from apps.http.errors import LOG_WRITERS, describe_problem
from apps.recommend.batcher import RequestBatcher
from apps.recommend.rules.schemas import SurfaceRules
from apps.recommend.rules.store import SurfaceRuleStore
from apps.recommend.schemas import (
    DEFAULT_LIST_LENGTH,
    ItemList,
    RecommendRequest,
    RecommendResponse,
    SimilarRequest,
)
from apps.recommend.service import RecommendService, RequestState

router = APIRouter(prefix="/v1", tags=["recommend"])
rules_router = APIRouter(prefix="/v1/rules", tags=["rules"])

Surface = Annotated[str, Path(max_length=64, pattern=r"^[A-Za-z0-9_.:-]+$", examples=["home"])]


def _service(request: Request) -> RecommendService:
    return cast(RecommendService, request.app.state.recommend)


def _batcher(request: Request) -> RequestBatcher:
    return cast(RequestBatcher, request.app.state.batcher)


def _json(answer: dict[str, Any]) -> Response:
    """Sends plain data unchecked: checking an answer against its schema would cost as much as ranking."""
    return Response(orjson.dumps(answer), media_type="application/json")


NO_RELEASE = describe_problem(
    503, "No release yet", "nothing is published to recommend with; run `headrace train` first"
)
_REQUEST = RecommendRequest.model_json_schema(ref_template="#/components/schemas/{model}")
REQUEST_SCHEMAS: dict[str, Any] = {**_REQUEST.pop("$defs"), "RecommendRequest": _REQUEST}
"""For the components of the OpenAPI document."""
_BODY = {"application/json": {"schema": {"$ref": "#/components/schemas/RecommendRequest"}}}


@router.post(
    "/recommend",
    summary="Ranked items for a visitor",
    response_model=RecommendResponse,
    responses=NO_RELEASE,
    openapi_extra={"requestBody": {"required": True, "content": _BODY}},
)
async def recommend_items(request: Request) -> Response:
    """Ranks items for a known user, an anonymous session or nobody in particular.

    Unknown visitors get good answers too: what goes with the session's items, then what is trending.
    """
    service = _service(request)
    try:
        body = RecommendRequest.model_validate_json(await request.body())
    except ValidationError as error:
        raise RequestValidationError(
            [{**detail, "loc": ("body", *detail["loc"])} for detail in error.errors()]
        ) from error
    # Only what waits for the network leaves the event loop: handing two milliseconds of work to a thread and back
    # costs more than it frees, since one interpreter runs one thread at a time.
    visitor_state = await run_in_threadpool(service.read_visitor_state, body) if service.reads_remotely else None
    return _json(await _batcher(request).submit(RequestState(body, visitor_state)))


@router.post(
    "/items/{item_id}/similar",
    summary="Items that go with an item",
    response_model=ItemList,
    responses={**NO_RELEASE, **describe_problem(404, "Unknown item", "release 20261122T181741Z does not know 'x'")},
)
def list_similar_items(
    request: Request,
    item_id: Annotated[str, Path(max_length=128, examples=["85123A"])],
    body: SimilarRequest | None = None,
) -> Response:
    return _json(_service(request).similar(item_id, body or SimilarRequest()))


@router.get("/trending", summary="What sells now", response_model=ItemList, responses=NO_RELEASE)
def list_trending_items(request: Request, n: Annotated[int, Query(ge=1, le=100)] = DEFAULT_LIST_LENGTH) -> Response:
    return _json(_service(request).trending(n=n))


@rules_router.get("/{surface}", summary="What a surface does after ranking")
def get_rules(surface: Surface, request: Request) -> SurfaceRules:
    """Returns the rules in force; a surface that was never given any has none."""
    return _rules(request).get(surface)


@rules_router.put("/{surface}", summary="Change what a surface does after ranking", responses=LOG_WRITERS)
def put_rules(surface: Surface, rules: SurfaceRules, request: Request) -> SurfaceRules:
    """Replaces the whole document; it is in force in every process within a second."""
    _rules(request).put(surface, rules)
    return rules


def _rules(request: Request) -> SurfaceRuleStore:
    return cast(SurfaceRuleStore, request.app.state.rules)

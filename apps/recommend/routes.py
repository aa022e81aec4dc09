"""HTTP for recommendations: a request in, the service's answer out."""

from typing import Annotated, cast

from fastapi import APIRouter, Path, Query, Request

from apps.recommend.schemas import ItemList, RecommendRequest, RecommendResponse, SimilarRequest
from apps.recommend.service import RecommendService

router = APIRouter(prefix="/v1", tags=["recommend"])


def _service(request: Request) -> RecommendService:
    return cast(RecommendService, request.app.state.recommend)


@router.post("/recommend", summary="Ranked items for a visitor")
def recommend(request: Request, body: RecommendRequest) -> RecommendResponse:
    """Items for a known user, an anonymous session or nobody in particular. Unknown visitors get good answers too:
    what goes with the session's items, then what is trending."""
    return _service(request).recommend(body)


@router.post("/items/{item_id}/similar", summary="Items that go with an item")
def similar(
    request: Request,
    item_id: Annotated[str, Path(max_length=128, examples=["85123A"])],
    body: SimilarRequest | None = None,
) -> ItemList:
    return _service(request).similar(item_id, body or SimilarRequest())


@router.get("/trending", summary="What sells now")
def trending(request: Request, n: Annotated[int, Query(ge=1, le=100)] = 20) -> ItemList:
    return _service(request).trending(n=n)

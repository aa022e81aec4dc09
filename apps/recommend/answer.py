"""An answer as plain data: the items with their reasons, the trace, and the impression that is logged of it."""

from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from apps.recommend.candidate_generation import CandidateSet
from apps.recommend.reasons import Reasons
from apps.recommend.reranking import Slate
from apps.recommend.rules.schemas import SurfaceRules
from apps.recommend.schemas import RecommendRequest
from features.contract.timestamps import rfc3339
from infra.observability.logs import REQUEST_ID


def answer_items(slate: Slate, scores: NDArray[np.float32], found: CandidateSet) -> list[dict[str, Any]]:
    rows = np.array(slate.rows, dtype=np.int64)
    reasons = Reasons(found.candidates, rows, found.recommender.catalogue)
    described, shown = found.described(found.candidates.items[rows]), scores[rows].astype(np.float64).round(6).tolist()
    told = zip(slate.rows, described, shown, slate.propensities, strict=True)
    return [
        {
            "item_id": item_id,
            "score": score,
            "source": "pin" if row in slate.pinned else reasons.sources[place],
            "reasons": reasons.for_row(place, pinned=row in slate.pinned, explored=row in slate.explored),
            "propensity": propensity,
            "title": title,
            "price": price,
            "category": category,
        }
        for place, (row, (item_id, title, price, category), score, propensity) in enumerate(told)
    ]


STAGES = ("read features", "retrieve", "rank", "arrange")


def trace(
    slate: Slate,
    order: NDArray[np.int64],
    scores: NDArray[np.float32],
    found: CandidateSet,
    rules: SurfaceRules,
    marks: list[float],
) -> dict[str, Any]:
    """Every candidate by rank: where it came from, and which stage dropped it."""
    traced, sources = [], Reasons(found.candidates, order, found.recommender.catalogue).ranks
    position = {row: place for place, row in enumerate(slate.rows, start=1)}
    described = found.described(found.candidates.items[order])
    for rank, row in enumerate(order.tolist(), start=1):
        stage, why = slate.dropped.get(row, ("shown", f"position {position.get(row)}"))
        traced.append(
            {
                "item_id": described[rank - 1][0],
                "sources": {source: place + 1 for source, place in sources(rank - 1)},
                "score": round(float(scores[row]), 6),
                "log_odds": round(float(slate.log_odds[row]), 6),
                "rank": rank,
                "stage": stage,
                "why": why,
            }
        )
    took = {name: round((end - start) * 1000, 3) for name, start, end in zip(STAGES, marks, marks[1:], strict=False)}
    return {"candidates": traced, "stages_ms": took, "rules": rules.model_dump(mode="json")}


def impression(request: RecommendRequest, response: dict[str, Any], at: int) -> tuple[str, bytes]:
    """(key, value) of the record: an events.Impression."""
    session = request.session.session_id if request.session else None
    anonymous = None if request.user_id else f"request-{response['request_id']}"
    experiment = response["experiment"] or {}
    told = {
        "event_id": response["request_id"],
        "event_time": rfc3339(at),
        "schema_version": 1,
        "user_id": request.user_id,
        "session_id": session or anonymous,
        "type": "impression",
        "surface": request.surface,
        "model": response["model"],
        "experiment": experiment.get("key"),
        "variation": experiment.get("variation"),
        "bucket": experiment.get("bucket"),
        "degraded": response["degraded"],
        "http_request_id": REQUEST_ID.get(),
        "items": [
            {
                "item_id": item["item_id"],
                "position": place,
                "score": item["score"],
                "source": item["source"],
                "propensity": item["propensity"],
            }
            for place, item in enumerate(response["items"], start=1)
        ],
    }
    value = orjson.dumps({name: one for name, one in told.items() if one is not None})
    return request.user_id or session or str(anonymous), value

"""Builds an answer as plain data: the items with their reasons, the trace, and the impression that is logged of it.

Knows nothing of how items were chosen.
"""

from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from apps.recommend.candidate_set import CandidateSet, Rows
from apps.recommend.reasons import Reasons
from apps.recommend.reranking import Slate
from apps.recommend.rules.schemas import SurfaceRules
from apps.recommend.schemas import RecommendRequest
from features.contract.timestamps import rfc3339
from infra.observability.logs import REQUEST_ID

STAGES = ("read features", "retrieve", "rank", "arrange")
"""Keys of stages_ms in the order of the steps."""


def answer_items(slate: Slate, scores: NDArray[np.float32], candidate_set: CandidateSet) -> list[dict[str, Any]]:
    """Returns the slate as schemas.RecommendedItem. scores: of all candidates, shape [C]."""
    rows = np.array(slate.rows, dtype=np.int64)
    reasons = Reasons(candidate_set.candidates, rows, candidate_set.catalogue)
    slate_scores = scores[rows].astype(np.float64).round(6).tolist()
    shown = zip(slate.rows, candidate_set.describe(rows), slate_scores, slate.propensities, strict=True)
    return [
        {
            "item_id": item_id,
            "score": score,
            "source": "pin" if row in slate.pinned else reasons.sources[index],
            "reasons": reasons.for_row(index, pinned=row in slate.pinned, explored=row in slate.explored),
            "propensity": propensity,
            "title": title,
            "price": price,
            "category": category,
        }
        for index, (row, (item_id, title, price, category), score, propensity) in enumerate(shown)
    ]


def trace(
    slate: Slate,
    order: Rows,
    scores: NDArray[np.float32],
    candidate_set: CandidateSet,
    rules: SurfaceRules,
    marks: list[float],
) -> dict[str, Any]:
    """Returns a schemas.Trace: every candidate by rank with its sources and the stage that dropped it.

    marks: seconds of the clock at the start of each of STAGES, and at the end of the last.
    """
    reasons = Reasons(candidate_set.candidates, order, candidate_set.catalogue)
    positions = {row: position for position, row in enumerate(slate.rows, start=1)}
    candidates = [
        {
            "item_id": item_id,
            "sources": {source: rank + 1 for source, rank in reasons.ranks(index)},
            "score": round(float(scores[row]), 6),
            "log_odds": round(float(slate.log_odds[row]), 6),
            "rank": index + 1,
            "stage": "shown" if row in positions else slate.dropped[row][0],
            "why": f"position {positions[row]}" if row in positions else slate.dropped[row][1],
        }
        for index, (row, (item_id, *_)) in enumerate(zip(order.tolist(), candidate_set.describe(order), strict=True))
    ]
    took = {name: round((end - start) * 1000, 3) for name, start, end in zip(STAGES, marks, marks[1:], strict=False)}
    return {"candidates": candidates, "stages_ms": took, "rules": rules.model_dump(mode="json")}


def impression(request: RecommendRequest, response: dict[str, Any], at: int) -> tuple[str, bytes]:
    """Returns (key, value) of the record of an events.Impression. at: ms."""
    session = request.session.session_id if request.session else None
    anonymous = None if request.user_id else f"request-{response['request_id']}"
    experiment = response["experiment"] or {}
    fields = {
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
                "position": position,
                "score": item["score"],
                "source": item["source"],
                "propensity": item["propensity"],
            }
            for position, item in enumerate(response["items"], start=1)
        ],
    }
    value = orjson.dumps({name: field for name, field in fields.items() if field is not None})
    return request.user_id or session or str(anonymous), value

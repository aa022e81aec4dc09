"""Fakes of what the recommending service needs: a recommender of six items, a reader of histories, impressions."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.contract import columns
from features.contract.release import GateResult, Manifest, RecommendModelCard
from features.contract.timestamps import DAY
from features.history.arrays import CARD_COLUMNS, FRAUD_COLUMNS, ITEM_COLUMNS, USER_COLUMNS, History, from_lists
from features.recommender.catalogue import ITEM_WINDOWS, Catalogue, ItemSet
from infra import topics
from infra.log.client import EventLog

IDS = ("tea", "mug", "pot", "lamp", "rug", "vase")
NOW = 1_790_000_000_000
"""Milliseconds; the moment of every test."""


class FakeRecommender:
    """Tea, mug and pot are bought together; the rug trends; the ranker likes high catalogue indices."""

    def __init__(self) -> None:
        scores = {"ranker": 0.3, "repurchase": 0.2, "popularity": 0.1, "co_purchase": 0.1}
        gate = GateResult(
            metric="ndcg@20", scores=scores, model="ranker", best_baseline="repurchase", served="ranker", metrics={}
        )
        card = RecommendModelCard(
            feature_service="users_v1",
            gate=gate,
            index_kind="Flat",
            index_recall=1.0,
            candidate_features=(),
            catalogue_items=6,
        )
        day = datetime(2026, 11, 1, tzinfo=UTC)
        self.manifest = Manifest(
            version="v1", created_time=day, data_start=day, data_end=day, packages={}, seed=1, recommend=card, files={}
        )
        neighbours = np.full((6, 2), -1, dtype=np.int32)
        neighbours[0], neighbours[1], neighbours[2] = (1, 2), (0, 2), (0, 1)
        vectors = np.eye(6, dtype=np.float32)
        self.catalogue = Catalogue(
            ids=IDS,
            titles=tuple(name.title() for name in IDS),
            prices=np.array([1, 2, 3, 40, 50, 60], dtype=np.float32),
            neighbours=neighbours,
            similarities=np.where(neighbours >= 0, 0.5, 0).astype(np.float32),
            vectors=vectors,
            index={name: item for item, name in enumerate(IDS)},
            categories=("drinks", "kitchen", "kitchen", "living", "living", "living"),
        )
        self.windows = np.zeros((6, len(ITEM_WINDOWS)), dtype=np.float32)
        self.windows[:, :3] = np.array([1, 1, 1, 1, 9, 1])[:, None]

    def user_vectors(self, items: NDArray[np.int64], weights: NDArray[np.float32]) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = np.zeros((len(items), 6), dtype=np.float32)
        vectors[:, 5] = 1.0
        return vectors

    def nearest(self, vector: NDArray[np.float32], count: int, allowed: ItemSet | None) -> NDArray[np.int64]:
        order = np.argsort(-(self.catalogue.vectors @ vector), kind="stable")
        return order[: min(count, 2)] if allowed is None else order[allowed.contains(order)][:count]

    def rank(self, features: NDArray[np.float32], items: NDArray[np.int64]) -> NDArray[np.float32]:
        return items.astype(np.float32)


class FakeImpressions:
    """Writes to the log at once, as a spool does while the log is up; while `down` it writes nothing."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self.down = False

    def append(self, key: str, value: bytes) -> bool:
        if not self.down:
            self._log.append(topics.IMPRESSIONS, [(key, value)])
        return not self.down


class FakeReader:
    """Returns histories by user; `down` makes every call fail, as a store that cannot be reached does."""

    def __init__(self) -> None:
        self.users: dict[str, dict[str, Any]] = {}
        self.down = False
        self.remote = False

    def bought(self, user: str, *items: str, days_ago: int = 3) -> None:
        """Sets what a user bought."""
        count = len(items)
        self.users[user] = {
            columns.TIMES: [NOW - days_ago * DAY] * count,
            columns.ITEMS: list(items),
            columns.EVENT_TYPES: [columns.EVENT_TYPE_CODES["purchase"]] * count,
            columns.PRICES: [1.0] * count,
            columns.QUANTITIES: [1.0] * count,
            columns.EVENT_HASHES: list(range(count)),
        }

    def user_histories(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        if self.down:
            raise ConnectionError("the store is away")
        return [self.users.get(name, {}) for name in ids]

    def user_history(self, user: str) -> History:
        return from_lists(self.user_histories([user]), USER_COLUMNS)

    def item_histories(self, ids: Sequence[str]) -> History:
        if self.down:
            raise ConnectionError("the store is away")
        today = NOW - NOW % DAY
        orders = {"rug": 9.0}
        rows = [
            {
                columns.TIMES: [today - DAY],
                columns.ORDERS: [orders.get(name, 1.0)],
                columns.UNITS: [1.0],
                columns.REVENUE: [1.0],
                columns.RETURNS: [0.0],
            }
            for name in ids
        ]
        return from_lists(rows, ITEM_COLUMNS)

    def card_histories(self, ids: Sequence[str]) -> History:
        return from_lists([{} for _ in ids], CARD_COLUMNS)

    def terminal_histories(self, ids: Sequence[str]) -> tuple[History, History]:
        return self.card_histories(ids), from_lists([{} for _ in ids], FRAUD_COLUMNS)

"""The preview that the console shows equals the visitor's answer and leaves no trace."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from apps import metrics
from apps.experiments.definitions import ExperimentStore
from apps.experiments.schemas import ExperimentDefinition
from apps.ports import FeatureReader, Recommender
from apps.recommend.item_stats import ItemStats
from apps.recommend.schemas import RecommendRequest, RecommendResponse
from apps.recommend.service import ActiveRelease, RecommendService
from features.contract import columns
from features.contract.release import GateResult, Manifest, RecommendModelCard
from features.contract.timestamps import DAY
from features.history.arrays import ITEM_COLUMNS, USER_COLUMNS, History, from_lists
from features.recommender.candidates import CANDIDATE_FEATURES
from features.recommender.catalogue import ITEM_WINDOWS, Catalogue
from infra import topics
from infra.log.client import START
from infra.log.files import FileLog
from tests.apps.console.fakes import NOON
from tests.apps.recommend.fakes import FakeImpressions


class Reader:
    """A store without users, in which every item was ordered yesterday."""

    remote = False

    def user_history(self, user: str) -> History:
        return from_lists([{}], USER_COLUMNS)

    def item_histories(self, ids: Sequence[str]) -> History:
        day = int(NOON.timestamp() * 1000) // DAY * DAY - DAY
        rows = [{name: [day if name == columns.TIMES else 1] for name in ITEM_COLUMNS} for _ in ids]
        return from_lists(rows, ITEM_COLUMNS)


class ThreeItems:
    """A release of three items, ranked in their own order."""

    catalogue = Catalogue(
        ids=("a", "b", "c"),
        titles=("A", "B", "C"),
        prices=np.ones(3, dtype=np.float32),
        neighbours=np.full((3, 1), -1, dtype=np.int32),
        similarities=np.zeros((3, 1), dtype=np.float32),
        vectors=np.eye(3, dtype=np.float32),
        index={"a": 0, "b": 1, "c": 2},
    )
    windows = np.ones((3, len(ITEM_WINDOWS)), dtype=np.float32)
    manifest = Manifest(
        version="v1",
        created_time=NOON,
        data_start=NOON,
        data_end=NOON,
        packages={},
        seed=1,
        recommend=RecommendModelCard(
            feature_service="users_v1",
            gate=GateResult(
                metric="m", scores={}, model="ranker", best_baseline="popularity", served="ranker", metrics={}
            ),
            index_kind="Flat",
            index_recall=1.0,
            candidate_features=CANDIDATE_FEATURES,
            catalogue_items=3,
        ),
        files={},
    )

    def rank(self, features: NDArray[np.float32], items: NDArray[np.int64]) -> NDArray[np.float32]:
        return -items.astype(np.float32)


@pytest.fixture
def log(tmp_path: Path) -> FileLog:
    return FileLog(tmp_path)


@pytest.fixture
def service(log: FileLog) -> RecommendService:
    experiments = ExperimentStore(log, NOON.timestamp)
    variations = [{"key": "baseline", "weight": 0.5}, {"key": "model", "weight": 0.5}]
    experiments.put(ExperimentDefinition.model_validate({"key": "x", "surface": "home", "variations": variations}))
    reader, release = cast(FeatureReader, Reader()), cast(Recommender, ThreeItems())
    item_stats = ItemStats(release)
    item_stats.refresh(reader, now=int(NOON.timestamp() * 1000))
    return RecommendService(
        lambda: ActiveRelease(release, item_stats),
        reader,
        FakeImpressions(log),
        experiments,
        NOON.timestamp,
        per_source=10,
        max_future_seconds=0,
        rng=np.random.default_rng(1),
    )


def counted() -> float:
    return sum(sample.value for family in metrics.RECOMMENDATIONS.collect() for sample in family.samples)


def test_a_preview_is_the_answer_and_leaves_no_trace(service: RecommendService, log: FileLog) -> None:
    request, before = RecommendRequest(user_id="17850"), counted()
    preview = service.preview(request)
    assert log.end(topics.IMPRESSIONS) == START
    assert counted() == before
    answer = service.recommend(request)
    assert len(log.read(topics.IMPRESSIONS, START)) == 1
    assert counted() > before
    changing = {"request_id", "took_ms"}
    assert preview.items
    assert preview.experiment is not None
    assert preview.model_dump(exclude=changing) == RecommendResponse.model_validate(answer).model_dump(exclude=changing)

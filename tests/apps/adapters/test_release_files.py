"""A release that is not whole is refused, and the one before it keeps serving; its index has the stated recall."""

import logging
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from apps.adapters.release_files import RecommenderFiles, Releases
from features.contract.release import Manifest
from features.recommender.catalogue import MAX_LISTED_MEMBERS, ItemSet
from infra.bench.sample_release import publish_release
from training.release import publish


def release(folder: Path, version: str) -> Path:
    """A published release without models: enough to be loaded."""
    building = publish.begin(folder, version)
    (building / "notes.txt").write_text(version)
    day = datetime(2026, 11, 1, tzinfo=UTC)
    manifest = Manifest(version=version, created_time=day, data_start=day, data_end=day, packages={}, seed=1, files={})
    return publish.publish(building, manifest)


def test_the_next_release_is_picked_up(tmp_path: Path) -> None:
    releases = Releases(tmp_path)
    assert not releases.poll()
    release(tmp_path, "v1")
    assert releases.poll()
    release(tmp_path, "v2")
    assert releases.poll()
    assert releases.version == "v2"
    assert not releases.poll()


def test_a_wrong_checksum_is_refused_and_the_old_release_keeps_serving(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    releases = Releases(tmp_path)
    release(tmp_path, "v1")
    releases.poll()
    (release(tmp_path, "v2") / "notes.txt").write_text("bit rot")
    with caplog.at_level(logging.ERROR):
        assert not releases.poll()
    assert releases.version == "v1"
    assert "differs from its checksum" in caplog.text
    release(tmp_path, "v3")
    assert releases.poll()
    assert releases.version == "v3"


def test_a_release_being_written_is_not_seen(tmp_path: Path) -> None:
    releases = Releases(tmp_path)
    release(tmp_path, "v1")
    releases.poll()
    building = publish.begin(tmp_path, "v2")
    (building / "notes.txt").write_text("half")
    assert not releases.poll()
    assert publish.versions(tmp_path) == ["v1"]


ITEMS = 60_000


@pytest.fixture(scope="module")
def recommender(tmp_path_factory: pytest.TempPathFactory) -> RecommenderFiles:
    folder = tmp_path_factory.mktemp("releases")
    publish_release(folder, "v1", items=ITEMS, width=32)
    releases = Releases(folder)
    releases.poll()
    assert releases.recommender is not None
    return releases.recommender


def recall(recommender: RecommenderFiles, mask: NDArray[np.bool_]) -> float:
    """Share of the exact 100 nearest among the allowed that are found, over 40 queries near items."""
    rng, vectors = np.random.default_rng(3), recommender.catalogue.vectors
    allowed, members = ItemSet.from_mask(mask), np.flatnonzero(mask)
    recalls = []
    for item in rng.integers(0, ITEMS, 40):
        query = vectors[item] + rng.normal(scale=0.05, size=vectors.shape[1]).astype(np.float32)
        exact = members[np.argsort(-(vectors[members] @ query))[:100]]
        hits = recommender.nearest(query, 100, allowed)
        assert mask[hits].all()
        assert len(set(hits.tolist())) == len(hits)
        recalls.append(np.isin(exact, hits).mean())
    return float(np.mean(recalls))


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1, 0.01, 0.001])
def test_recall_holds_however_few_items_a_filter_leaves(recommender: RecommenderFiles, share: float) -> None:
    assert recommender.manifest.recommend is not None
    assert recommender.manifest.recommend.index_kind.startswith("IVF")
    rng = np.random.default_rng(4)
    assert recall(recommender, rng.random(ITEMS) < share) >= 0.95
    # A filter that follows the vectors leaves only items far from most queries.
    direction = recommender.catalogue.vectors @ rng.normal(size=32).astype(np.float32)
    assert recall(recommender, direction >= np.quantile(direction, 1 - share)) >= 0.95


def test_a_filter_that_leaves_little_is_searched_exactly(recommender: RecommenderFiles) -> None:
    mask = np.zeros(ITEMS, dtype=bool)
    mask[:MAX_LISTED_MEMBERS] = True
    assert recall(recommender, mask) == 1.0
    assert (
        recommender.nearest(
            recommender.catalogue.vectors[0], 10, ItemSet.from_mask(np.zeros(ITEMS, dtype=bool))
        ).tolist()
        == []
    )


def test_the_arrays_are_mapped_and_not_copied(recommender: RecommenderFiles) -> None:
    for array in (recommender.catalogue.vectors, recommender.catalogue.neighbours, recommender.windows):
        assert not array.flags.owndata
        assert not array.flags.writeable

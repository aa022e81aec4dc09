"""Tests the scores of the baselines against values computed by hand."""

import numpy as np

from features.contract.timestamps import DAY
from training.benchmark.baselines import ItemKnn, ItemKnnConfig, Popularity, PopularityConfig
from training.benchmark.interactions import Sequences


def sequences(rows: list[list[int]], times: list[int] | None = None) -> Sequences:
    offsets = np.concatenate(([0], np.cumsum([len(row) for row in rows]))).astype(np.int64)
    flat = np.array([item for row in rows for item in row], dtype=np.int64)
    return Sequences(offsets, flat, np.array(times) if times else np.arange(len(flat)))


def test_item_knn_is_the_cosine_of_co_counts_with_decay() -> None:
    learn = sequences([[0, 1], [0, 1, 2], [0, 2], [3]])
    model = ItemKnn(learn, 5, ItemKnnConfig(recent=2, decay=0.5))
    scores = model.scores(sequences([[3, 1, 0]]))[0]
    # Of the last two, 0 counts fully and 1 half; 3 is too long ago, and nobody took 4.
    assert np.isclose(scores[2], 2 / np.sqrt(3 * 2) + 0.5 * 1 / np.sqrt(2 * 2))
    assert np.isclose(scores[1], 2 / np.sqrt(3 * 2))
    assert np.isneginf(scores[[3, 4]]).all()


def test_item_knn_can_count_in_one_direction() -> None:
    learn = sequences([[0, 1, 2], [0, 1], [1, 3]])
    scores = ItemKnn(learn, 4, ItemKnnConfig(ahead=2)).scores(sequences([[1], [2], [0]]))
    assert np.isclose(scores[0, [2, 3]], [1 / np.sqrt(3 * 1), 1 / np.sqrt(3 * 1)]).all()
    assert np.isneginf(scores[0, [0, 1]]).all()
    assert np.isneginf(scores[1]).all()
    assert np.isclose(scores[2, [1, 2]], [2 / np.sqrt(2 * 3), 0.5 / np.sqrt(2 * 1)]).all()


def test_item_knn_recommends_re_purchase_only_when_configured() -> None:
    learn = sequences([[0, 1], [2, 1]])
    assert np.isneginf(ItemKnn(learn, 3, ItemKnnConfig()).scores(sequences([[0]]))[0, 0])
    assert ItemKnn(learn, 3, ItemKnnConfig(own=0.7)).scores(sequences([[0]]))[0, 0] == np.float32(0.7)


def test_popularity_can_count_the_last_days_only() -> None:
    learn = sequences([[0, 0, 1]], [0, DAY, 20 * DAY])
    whole = Popularity(learn, 3, PopularityConfig()).scores(sequences([[1], [2]]))
    assert whole[1].tolist() == [2.0, 1.0, -np.inf]
    assert Popularity(learn, 3, PopularityConfig(days=7)).scores(sequences([[1]]))[0].tolist() == [
        -np.inf,
        1.0,
        -np.inf,
    ]

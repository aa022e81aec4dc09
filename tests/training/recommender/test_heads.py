"""Heads of the ranker: made where there is something to learn, and each says what it was planted to say."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from features.recommender.candidates import CANDIDATE_FEATURES, Candidates
from tests.training.shop_worker import CPU, ITEMS, RANKER, drawn, queries
from training.configs import RankerConfig
from training.core.export import export, open_onnx
from training.core.sharding import process_group
from training.recommender.examples import RankingExample
from training.recommender.heads import MIN_EXAMPLES, supported_heads
from training.recommender.ranker import FittedRanker, fit_ranker

VISITS, SHOWN = 500, 12
LURE, GOOD, POOR = 0, 1, 2
"""Items: looked at always and never bought; bought always; the same, and it always comes back."""


def visits(*, seed: int = 4, tells: bool = True) -> list[RankingExample]:
    """Visits whose candidates differ in nothing but their item, what was looked at the day before, sold and returned.

    tells: whether what comes back is the poor item, or is drawn by lot.
    """
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(VISITS):
        items = np.concatenate(([LURE, GOOD, POOR], rng.choice(np.arange(3, ITEMS), SHOWN - 3, replace=False)))
        features = rng.normal(size=(SHOWN, len(CANDIDATE_FEATURES))).astype(np.float32)
        features[:, CANDIDATE_FEATURES.index("item_returns_30d")] = np.where(items == POOR, 9, 0)
        features[:, CANDIDATE_FEATURES.index("item_orders_30d")] = np.isin(items, (GOOD, POOR)) * 9
        features[:, CANDIDATE_FEATURES.index("own_viewed")] = items == LURE
        none = np.zeros(SHOWN, dtype=np.int64)
        bought = np.isin(items, (GOOD, POOR))
        also = {
            "view": np.isin(items, (LURE, GOOD, POOR)),
            "cart": bought,
            "return": bought & ((items == POOR) if tells else (rng.random(SHOWN) < 0.3)),
        }
        made.append(RankingExample(Candidates(items, none[:, None], features, none), bought, also))
    return made


def fitted(lists: list[RankingExample], config: RankerConfig) -> FittedRanker:
    with process_group(CPU):
        return fit_ranker(lists[:440], lists[440:], items=ITEMS, config=config, device=CPU, seed=2)


ALL = replace(RANKER, cart_loss=0.3, view_loss=0.3, return_loss=0.3)


@pytest.fixture(scope="module")
def ranking() -> FittedRanker:
    return fitted(visits(), replace(ALL, return_score=4.0, cart_score=0.5, view_score=0.1))


def logits(ranking: FittedRanker, one: RankingExample) -> dict[str, torch.Tensor]:
    """Each head's logits of the candidates; the first three are LURE, GOOD and POOR."""
    model, (features, items) = ranking.model, inputs(one)
    with torch.no_grad():
        return dict(zip(ranking.heads, model.dense(features, model.table(items)).T, strict=True))


def inputs(one: RankingExample) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(one.candidates.features), torch.from_numpy(one.candidates.items)


@pytest.mark.slow
def test_each_head_tells_what_was_planted(ranking: FittedRanker) -> None:
    told = logits(ranking, visits()[450])
    assert list(ranking.heads) == ["purchase", "cart", "view", "return"]
    for head in ("purchase", "cart"):
        assert set(told[head].topk(2).indices.tolist()) == {GOOD, POOR}, (
            "looked at always and bought never is no purchase"
        )
    assert set(told["view"].topk(3).indices.tolist()) == {LURE, GOOD, POOR}
    assert told["return"][POOR] > 0 > told["return"][GOOD]


@pytest.mark.slow
def test_what_comes_back_is_scored_lower_by_the_log_of_its_chance_to_be_kept(ranking: FittedRanker) -> None:
    one = visits()[450]
    told, model = logits(ranking, one), ranking.model
    with torch.no_grad():
        score = model(*inputs(one))
    assert score.argmax() == GOOD
    kept = torch.log1p(-torch.sigmoid(told["return"]))
    expected = told["purchase"] + 0.5 * told["cart"] + 0.1 * told["view"] + 4 * kept
    assert torch.allclose(score, expected, atol=1e-4)


@pytest.mark.slow
def test_the_file_answers_what_the_model_does(ranking: FittedRanker, tmp_path: Path) -> None:
    features, items = inputs(visits(seed=8)[0])
    export(ranking.model, tmp_path / "ranker.onnx", {"features": features, "items": items}, output="score")
    session = open_onnx(tmp_path / "ranker.onnx")
    (answered,) = session.run(None, {"features": features.numpy(), "items": items.numpy()})
    assert answered.shape == (SHOWN,)
    assert answered.dtype == np.float32
    with torch.no_grad():
        assert np.allclose(answered, ranking.model(features, items).numpy(), atol=1e-4)
        extreme = torch.tensor([[0.0, 0.0, 0.0, logit] for logit in (-1e4, 0.0, 1e4)])
        assert ranking.model.dense.score(extreme).tolist() == pytest.approx([0, -4 * np.log(2), -4e4])
    # Features far from any that were learnt from, as checks of an export have them.
    export(ranking.model, tmp_path / "far.onnx", {"features": features.abs() * 1e12, "items": items}, output="score")


@pytest.mark.slow
def test_with_purchases_alone_there_is_one_head_and_the_same_fit_whatever_is_asked_for() -> None:
    alone = [RankingExample(one.candidates, one.bought) for one in visits()[:150]]
    with process_group(CPU):
        asked, not_asked = (
            fit_ranker(alone[:120], alone[120:], items=ITEMS, config=config, device=CPU, seed=2)
            for config in (ALL, replace(ALL, cart_loss=0.0, view_loss=0.0, return_loss=0.0))
        )
    assert asked.heads == not_asked.heads == {"purchase": 1.0}
    assert asked.curve.losses == not_asked.curve.losses
    features, items = inputs(alone[0])
    with torch.no_grad():
        assert torch.equal(asked.model(features, items), logits(asked, alone[0])["purchase"])
        assert torch.equal(asked.model(features, items), not_asked.model(features, items))


@pytest.mark.slow
def test_returns_that_follow_nothing_make_no_head() -> None:
    lists = visits(tells=False)
    assert "return" in supported_heads(lists, ALL)
    assert list(fitted(lists, ALL).heads) == ["purchase", "cart", "view"]


def test_a_head_needs_enough_to_learn_from_and_a_weight() -> None:
    lists = visits()
    few = [
        RankingExample(one.candidates, one.bought, {"view": one.auxiliary_labels["view"]})
        for one in lists[: MIN_EXAMPLES - 1]
    ]
    assert supported_heads(few, ALL) == {"purchase": 1.0}
    assert list(supported_heads(lists[:MIN_EXAMPLES], ALL)) == ["purchase", "cart", "view", "return"]
    assert list(supported_heads(lists, replace(ALL, view_loss=0.0))) == ["purchase", "cart", "return"]
    assert list(supported_heads(drawn(queries()), ALL)) == ["purchase"]

"""Tests the heads of the ranker: built where there is enough to learn, and each predicts what was planted."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from features.recommender.candidates import CANDIDATE_FEATURES, Candidates
from tests.training.shop_worker import CPU, ITEMS, RANKER, queries, with_candidates
from training.configs import RankerConfig
from training.core.export import export, open_onnx
from training.core.sharding import process_group
from training.recommender.examples import RankingExample
from training.recommender.heads import MIN_EXAMPLES, supported_heads
from training.recommender.ranker import FittedRanker, fit_ranker

VISITS, SHOWN = 500, 12
LURE, GOOD, POOR = 0, 1, 2
"""Items: always viewed and never bought; always bought; always bought and always returned."""


def visits(*, seed: int = 4, predictable: bool = True) -> list[RankingExample]:
    """Returns visits whose candidates differ only by item, earlier views, sales and returns.

    predictable: whether the poor item is returned, or random purchases are.
    """
    rng = np.random.default_rng(seed)
    examples = []
    for _ in range(VISITS):
        items = np.concatenate(([LURE, GOOD, POOR], rng.choice(np.arange(3, ITEMS), SHOWN - 3, replace=False)))
        features = rng.normal(size=(SHOWN, len(CANDIDATE_FEATURES))).astype(np.float32)
        features[:, CANDIDATE_FEATURES.index("item_returns_30d")] = np.where(items == POOR, 9, 0)
        features[:, CANDIDATE_FEATURES.index("item_orders_30d")] = np.isin(items, (GOOD, POOR)) * 9
        features[:, CANDIDATE_FEATURES.index("own_viewed")] = items == LURE
        none = np.zeros(SHOWN, dtype=np.int64)
        bought = np.isin(items, (GOOD, POOR))
        labels = {
            "view": np.isin(items, (LURE, GOOD, POOR)),
            "cart": bought,
            "return": bought & ((items == POOR) if predictable else (rng.random(SHOWN) < 0.3)),
        }
        examples.append(RankingExample(Candidates(items, none[:, None], features, none), bought, labels))
    return examples


def fitted(lists: list[RankingExample], config: RankerConfig) -> FittedRanker:
    with process_group(CPU):
        return fit_ranker(lists[:440], lists[440:], items=ITEMS, config=config, device=CPU, seed=2)


ALL = replace(RANKER, cart_loss=0.3, view_loss=0.3, return_loss=0.3)


@pytest.fixture(scope="module")
def ranking() -> FittedRanker:
    return fitted(visits(), replace(ALL, return_score=4.0, cart_score=0.5, view_score=0.1))


def logits(ranking: FittedRanker, example: RankingExample) -> dict[str, torch.Tensor]:
    """Returns each head's logits of the candidates, of which the first three are LURE, GOOD and POOR."""
    model, (features, items) = ranking.model, inputs(example)
    with torch.no_grad():
        return dict(zip(ranking.heads, model.dense(features, model.table(items)).T, strict=True))


def inputs(example: RankingExample) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(example.candidates.features), torch.from_numpy(example.candidates.items)


@pytest.mark.slow
def test_each_head_predicts_what_was_planted(ranking: FittedRanker) -> None:
    head_logits = logits(ranking, visits()[450])
    assert list(ranking.heads) == ["purchase", "cart", "view", "return"]
    for head in ("purchase", "cart"):
        assert set(head_logits[head].topk(2).indices.tolist()) == {GOOD, POOR}, (
            "what is always viewed and never bought is no purchase"
        )
    assert set(head_logits["view"].topk(3).indices.tolist()) == {LURE, GOOD, POOR}
    assert head_logits["return"][POOR] > 0 > head_logits["return"][GOOD]


@pytest.mark.slow
def test_a_score_contains_the_log_probability_that_the_item_is_kept(ranking: FittedRanker) -> None:
    example = visits()[450]
    head_logits, model = logits(ranking, example), ranking.model
    with torch.no_grad():
        score = model(*inputs(example))
    assert score.argmax() == GOOD
    log_kept = torch.log1p(-torch.sigmoid(head_logits["return"]))
    expected = head_logits["purchase"] + 0.5 * head_logits["cart"] + 0.1 * head_logits["view"] + 4 * log_kept
    assert torch.allclose(score, expected, atol=1e-4)


@pytest.mark.slow
def test_the_exported_file_answers_as_the_model_does(ranking: FittedRanker, tmp_path: Path) -> None:
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
    # The check of an export uses features far from any in training.
    export(ranking.model, tmp_path / "far.onnx", {"features": features.abs() * 1e12, "items": items}, output="score")


@pytest.mark.slow
def test_with_purchases_alone_there_is_one_head_and_the_same_fit_with_any_settings() -> None:
    purchases_only = [RankingExample(example.candidates, example.bought) for example in visits()[:150]]
    with process_group(CPU):
        fit_with_heads, fit_without_heads = (
            fit_ranker(purchases_only[:120], purchases_only[120:], items=ITEMS, config=config, device=CPU, seed=2)
            for config in (ALL, replace(ALL, cart_loss=0.0, view_loss=0.0, return_loss=0.0))
        )
    assert fit_with_heads.heads == fit_without_heads.heads == {"purchase": 1.0}
    assert fit_with_heads.curve.losses == fit_without_heads.curve.losses
    features, items = inputs(purchases_only[0])
    with torch.no_grad():
        assert torch.equal(fit_with_heads.model(features, items), logits(fit_with_heads, purchases_only[0])["purchase"])
        assert torch.equal(fit_with_heads.model(features, items), fit_without_heads.model(features, items))


@pytest.mark.slow
def test_random_returns_give_no_head() -> None:
    lists = visits(predictable=False)
    assert "return" in supported_heads(lists, ALL)
    assert list(fitted(lists, ALL).heads) == ["purchase", "cart", "view"]


def test_a_head_needs_enough_examples_and_a_weight() -> None:
    lists = visits()
    few = [
        RankingExample(example.candidates, example.bought, {"view": example.auxiliary_labels["view"]})
        for example in lists[: MIN_EXAMPLES - 1]
    ]
    assert supported_heads(few, ALL) == {"purchase": 1.0}
    assert list(supported_heads(lists[:MIN_EXAMPLES], ALL)) == ["purchase", "cart", "view", "return"]
    assert list(supported_heads(lists, replace(ALL, view_loss=0.0))) == ["purchase", "cart", "return"]
    assert list(supported_heads(with_candidates(queries()), ALL)) == ["purchase"]

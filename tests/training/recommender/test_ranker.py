"""Tests the fits of ranker and two-tower: where they start, the validation metric, and that exports answer the same."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from features.recommender.candidates import padded_histories
from tests.training.shop_worker import CPU, ITEMS, RANKER, RETRIEVAL, catalogue, queries, with_candidates
from training.core.export import export, open_onnx
from training.core.ranking_metrics import ndcg
from training.core.sharding import process_group
from training.models.ranker import squash
from training.recommender.heads import listwise
from training.recommender.ranker import fit_ranker, list_ndcg
from training.recommender.two_tower import fit_two_tower, recalls


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_validation_ndcg_is_that_of_the_ranked_list(candidates: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    bought = np.zeros((1, candidates), dtype=np.float32)
    bought[0, rng.choice(candidates, rng.integers(1, candidates + 1), replace=False)] = 1
    scores = rng.permutation(candidates).astype(np.float32)[None]
    expected = ndcg(bought[:, np.argsort(-scores[0])], bought.sum(axis=1).astype(np.int64), k=k)
    assert list_ndcg(torch.from_numpy(scores), torch.from_numpy(bought), k=k) == pytest.approx(expected)


def test_validation_ndcg_equals_a_value_computed_by_hand() -> None:
    """The bought candidates rank first and third of four; the best list has them first and second."""
    scores, bought = torch.tensor([[0.9, 0.8, 0.7, 0.1]]), torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    assert list_ndcg(scores, bought, k=20) == pytest.approx((1 + 1 / 2) / (1 + 1 / np.log2(3)))
    assert list_ndcg(scores, bought, k=2) == pytest.approx(1 / (1 + 1 / np.log2(3)))


def test_the_listwise_loss_is_least_when_bought_candidates_share_the_mass() -> None:
    bought = torch.tensor([[1.0, 1.0, 0.0]])
    assert float(listwise(torch.tensor([[30.0, 30.0, 0.0]]), bought)) == pytest.approx(np.log(2), abs=1e-6)
    assert float(listwise(torch.tensor([[0.0, 30.0, 30.0]]), bought)) > 10


@pytest.mark.slow
def test_the_ranker_starts_as_the_linear_model_and_keeps_it_where_crosses_add_nothing() -> None:
    lists = with_candidates(queries())
    with process_group(CPU):
        # A rate this high only makes it worse: the start has to come back.
        config = replace(RANKER, learning_rate=3.0, epochs=2, dropout=0.0)
        fitted = fit_ranker(lists[:150], lists[150:], items=ITEMS, config=config, device=CPU, seed=1)
    assert fitted.curve.best_epoch == 0
    assert fitted.curve.start is not None
    assert fitted.curve.start <= min(fitted.curve.values)
    dense = fitted.model.dense
    features = torch.from_numpy(lists[0].candidates.features)
    with torch.no_grad():
        scores = fitted.model(features, torch.from_numpy(lists[0].candidates.items))
        linear = (squash(features) - dense.mean) / dense.std @ dense.linear[0]
    assert torch.allclose(scores, linear, atol=1e-6)
    assert int(dense.linear.argmax()) == 0, "the only feature that predicts purchases"


@pytest.mark.slow
def test_an_item_without_purchases_is_near_to_users_who_like_its_content(tmp_path: Path) -> None:
    visits = [replace(query, targets=query.targets[query.targets >= 6]) for query in queries()]
    shop = catalogue()
    with process_group(CPU):
        fitted = fit_two_tower(shop, visits, [], replace(RETRIEVAL, epochs=4), device=CPU, seed=1, label="t")
    lists = padded_histories([query.visitor for query in visits[:30]])
    path = tmp_path / "user_tower.onnx"
    export(
        fitted.user_tower, path, dict(zip(("items", "weights"), map(torch.from_numpy, lists), strict=True)), output="v"
    )
    (users,) = open_onnx(path).run(None, {"items": lists[0], "weights": lists[1]})
    assert np.linalg.norm(users, axis=1) == pytest.approx(np.ones(30), abs=1e-5)
    assert np.allclose(users, fitted.user_vectors([query.visitor for query in visits[:30]]), atol=1e-5)
    liked = (users @ fitted.vectors[:6].T).argmax(axis=1) % 3
    assert np.mean(liked == np.arange(30) % 3) > 0.8, "no visit bought the first six"
    assert np.mean(recalls(fitted, queries())) > 0.8


@pytest.mark.slow
def test_a_fit_can_start_from_another() -> None:
    shop, visits = catalogue(), queries()
    with process_group(CPU):
        first = fit_two_tower(shop, visits, [], replace(RETRIEVAL, epochs=2), device=CPU, seed=1, label="a")
        unchanged = fit_two_tower(
            shop, visits, [], replace(RETRIEVAL, epochs=0), device=CPU, seed=2, label="b", initial=first
        )
        continued = fit_two_tower(
            shop, visits, [], replace(RETRIEVAL, epochs=1), device=CPU, seed=2, label="c", initial=first
        )
    assert np.allclose(unchanged.vectors, first.vectors, atol=1e-6)
    assert continued.curve.losses[0] < first.curve.losses[0]
    assert not np.allclose(continued.vectors, first.vectors, atol=1e-3)

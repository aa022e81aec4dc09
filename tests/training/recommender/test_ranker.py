"""The ranker: it starts as a linear model, its metric is the gate's, and what is exported answers the same."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from features.recommender.candidates import padded_histories
from tests.training.shop_worker import CPU, ITEMS, RANKER, RETRIEVAL, catalogue, drawn, queries
from training.core.export import export, open_onnx
from training.core.sharding import process_group
from training.models.ranker import squash
from training.recommender.heads import listwise
from training.recommender.ranker import fit_ranker, ndcg
from training.recommender.two_tower import fit_retrieval, recalls
from training.release.gate import list_metrics


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_the_validation_metric_is_the_gates(candidates: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    bought = np.zeros(candidates, dtype=np.float32)
    bought[rng.choice(candidates, rng.integers(1, candidates + 1), replace=False)] = 1
    scores = rng.permutation(candidates).astype(np.float32)
    ranked = np.argsort(-scores)
    expected, _, _ = list_metrics(ranked, np.flatnonzero(bought), k=k)
    found = ndcg(torch.from_numpy(scores)[None], torch.from_numpy(bought)[None], k=k)
    assert float(found) == pytest.approx(expected, abs=1e-6)


def test_the_listwise_loss_is_least_when_the_bought_share_the_mass() -> None:
    bought = torch.tensor([[1.0, 1.0, 0.0]])
    assert float(listwise(torch.tensor([[30.0, 30.0, 0.0]]), bought)) == pytest.approx(np.log(2), abs=1e-6)
    assert float(listwise(torch.tensor([[0.0, 30.0, 30.0]]), bought)) > 10


@pytest.mark.slow
def test_the_ranker_starts_as_the_linear_model_and_keeps_it_where_crosses_add_nothing() -> None:
    lists = drawn(queries())
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
    assert int(dense.linear.argmax()) == 0, "the one feature that tells what was bought"


@pytest.mark.slow
def test_an_item_that_was_in_no_order_is_near_to_whoever_likes_its_words(tmp_path: Path) -> None:
    asked = [replace(query, targets=query.targets[query.targets >= 6]) for query in queries()]
    shop = catalogue()
    with process_group(CPU):
        fitted = fit_retrieval(shop, asked, [], replace(RETRIEVAL, epochs=4), device=CPU, seed=1, label="t")
    lists = padded_histories([query.visitor for query in asked[:30]])
    path = tmp_path / "user_tower.onnx"
    export(
        fitted.user_tower, path, dict(zip(("items", "weights"), map(torch.from_numpy, lists), strict=True)), output="v"
    )
    (users,) = open_onnx(path).run(None, {"items": lists[0], "weights": lists[1]})
    assert np.linalg.norm(users, axis=1) == pytest.approx(np.ones(30), abs=1e-5)
    assert np.allclose(users, fitted.user_vectors([query.visitor for query in asked[:30]]), atol=1e-5)
    liked = (users @ fitted.vectors[:6].T).argmax(axis=1) % 3
    assert np.mean(liked == np.arange(30) % 3) > 0.8, "no order held the first six"
    assert np.mean(recalls(fitted, queries())) > 0.8


@pytest.mark.slow
def test_a_fit_goes_on_from_where_another_ended() -> None:
    shop, asked = catalogue(), queries()
    with process_group(CPU):
        whole = fit_retrieval(shop, asked, [], replace(RETRIEVAL, epochs=2), device=CPU, seed=1, label="a")
        stands = fit_retrieval(
            shop, asked, [], replace(RETRIEVAL, epochs=0), device=CPU, seed=2, label="b", begin=whole
        )
        further = fit_retrieval(
            shop, asked, [], replace(RETRIEVAL, epochs=1), device=CPU, seed=2, label="c", begin=whole
        )
    assert np.allclose(stands.vectors, whole.vectors, atol=1e-6)
    assert further.curve.losses[0] < whole.curve.losses[0]
    assert not np.allclose(further.vectors, whole.vectors, atol=1e-3)

"""The two-tower learns from what a visit bought, carted and looked at, each by its weight, and from purchases alone as
if there were nothing else."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from features.contract.timestamps import DAY
from features.history.timeline import NoDataError
from features.recommender.candidates import Visitor
from tests.training.shop_worker import CPU, ITEMS, RETRIEVAL, catalogue, queries
from training.configs import RetrievalConfig
from training.core.sharding import process_group
from training.recommender.examples import RetrievalExample, split_at_purchases, split_latest
from training.recommender.two_tower import FittedTwoTower, fit_two_tower

KNOWN = catalogue()
BATCH = replace(RETRIEVAL, dropout=0.0, epochs=1, batch_visits=1000, cart_weight=0.5, view_weight=2.0)
NOTHING = np.empty(0, dtype=np.int64)
NEVER_HERE = Visitor(DAY, NOTHING, NOTHING, NOTHING, np.empty(0), np.empty(0))


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    with process_group(CPU):
        yield


def fitted(
    training: list[RetrievalExample], config: RetrievalConfig, *, validation: list[RetrievalExample] | None = None
) -> FittedTwoTower:
    return fit_two_tower(KNOWN, training, validation or [], config, device=CPU, seed=3, label="test")


def with_looks(asked: list[RetrievalExample]) -> list[RetrievalExample]:
    """Every second visit bought nothing; all looked at something, some put something into the cart."""
    rng = np.random.default_rng(1)
    return [
        RetrievalExample(
            query.visitor,
            query.targets if number % 2 else NOTHING,
            {"view": np.unique(rng.choice(ITEMS, 5)), "cart": np.unique(rng.choice(ITEMS, 2))[: number % 3]},
        )
        for number, query in enumerate(asked)
    ]


def first_loss(asked: list[RetrievalExample], config: RetrievalConfig) -> float:
    """Of a first batch of all visits, the slow way: for each kind the mean cross entropy of its items, times its
    weight; the mean over the visits that have anything with a weight."""
    start = fitted(asked, replace(config, epochs=0))
    logits = torch.from_numpy(start.user_vectors([query.visitor for query in asked]) @ start.vectors.T) * np.exp(2.5)
    logs = torch.log_softmax(logits.double(), dim=1)
    losses = []
    for row, query in enumerate(asked):
        kinds = [(query.targets, 1.0)]
        kinds += [
            (query.auxiliary_targets.get(k, NOTHING), w)
            for k, w in (("cart", config.cart_weight), ("view", config.view_weight))
        ]
        found = [-float(logs[row, items].mean()) * weight for items, weight in kinds if len(items) and weight]
        losses += [sum(found)] if found else []
    return float(np.mean(losses))


@pytest.mark.parametrize(("cart", "view"), [(0.0, 0.0), (0.5, 2.0), (0.0, 1.0)])
def test_the_loss_is_the_cross_entropy_of_each_kind_by_its_weight(cart: float, view: float) -> None:
    asked = with_looks(queries())
    config = replace(BATCH, cart_weight=cart, view_weight=view)
    assert fitted(asked, config).curve.losses == pytest.approx([first_loss(asked, config)], rel=1e-5)


def test_in_a_log_of_purchases_alone_the_weights_change_nothing() -> None:
    asked = queries()
    nothing = {"view": NOTHING, "cart": NOTHING}
    none = [replace(query, auxiliary_targets={**nothing, "return": query.targets}) for query in asked]
    config = replace(RETRIEVAL, cart_weight=0.0, view_weight=0.0)
    before = fitted(asked, config, validation=asked[150:])
    after = fitted(none, replace(config, cart_weight=0.5, view_weight=2.0), validation=asked[150:])
    assert after.curve.losses == before.curve.losses
    assert after.curve.values == before.curve.values
    assert (after.vectors == before.vectors).all()


def test_what_teaches_nothing_is_left_out() -> None:
    asked = queries()
    idle = replace(asked[0], targets=NOTHING, auxiliary_targets={"return": asked[0].targets})
    looked = replace(asked[0], targets=NOTHING, auxiliary_targets={"view": asked[0].targets})
    config = replace(RETRIEVAL, view_weight=0.0, epochs=2)
    known = fitted(asked, config).curve.losses
    assert fitted([*asked, idle, looked, replace(asked[0], visitor=NEVER_HERE)], config).curve.losses == known
    assert fitted([*asked, looked], replace(config, view_weight=1.0)).curve.losses != known
    with pytest.raises(NoDataError, match="no user who was there before has come back"):
        fitted([idle, looked], config)


def test_looks_tell_what_few_purchases_do_not() -> None:
    """Users who like one colour look at it in every visit and buy in one of twenty."""
    asked = queries()
    rare = [
        replace(
            query,
            targets=query.targets if number % 20 == 0 else NOTHING,
            auxiliary_targets={"view": query.targets},
        )
        for number, query in enumerate(asked[:151])
    ]
    config = replace(RETRIEVAL, epochs=3, patience=3, content_buckets=1)

    def near(view: float) -> float:
        """Share of a user's ten nearest items that have the colour they like."""
        found = fitted(rare, replace(config, view_weight=view))
        scores = found.user_vectors([query.visitor for query in asked[151:]]) @ found.vectors.T
        top = np.argsort(-scores, axis=1)[:, :10]
        return float((top % 3 == np.array([[query.targets[0] % 3] for query in asked[151:]])).mean())

    assert near(1.0) > near(0.0) + 0.1


@given(st.lists(st.booleans(), min_size=1, max_size=60).filter(any), st.floats(0.01, 0.99))
def test_retrieval_is_checked_by_the_latest_purchases_and_learns_from_all_before(buys: list[bool], part: float) -> None:
    rows = [RetrievalExample(replace(NEVER_HERE, at=at), np.arange(int(bought))) for at, bought in enumerate(buys)]
    bought = [query for query in rows if len(query.targets)]
    learn, check = split_at_purchases(rows, part)
    assert check == split_latest(bought, part)[1]
    assert learn == rows[: check[0].visitor.at]
    assert split_at_purchases(bought, part) == split_latest(bought, part), "purchases alone: as ever"

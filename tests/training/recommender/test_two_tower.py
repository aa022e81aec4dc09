"""Tests that the two-tower learns from a visit's purchases, carts and views by their weights, and from purchases alone
as if there were no others."""

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
NEW_VISITOR = Visitor(DAY, NOTHING, NOTHING, NOTHING, np.empty(0), np.empty(0))


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    with process_group(CPU):
        yield


def fitted(
    training: list[RetrievalExample], config: RetrievalConfig, *, validation: list[RetrievalExample] | None = None
) -> FittedTwoTower:
    return fit_two_tower(KNOWN, training, validation or [], config, device=CPU, seed=3, label="test")


def with_views(visits: list[RetrievalExample]) -> list[RetrievalExample]:
    """Adds views to all visits and carts to some, and removes every second visit's purchases."""
    rng = np.random.default_rng(1)
    return [
        RetrievalExample(
            query.visitor,
            query.targets if number % 2 else NOTHING,
            {"view": np.unique(rng.choice(ITEMS, 5)), "cart": np.unique(rng.choice(ITEMS, 2))[: number % 3]},
        )
        for number, query in enumerate(visits)
    ]


def first_loss(visits: list[RetrievalExample], config: RetrievalConfig) -> float:
    """Computes the loss of a first batch of all visits, the slow way.

    It is the mean cross entropy of each event type's items, times its weight, as the mean over the visits with any.
    """
    start = fitted(visits, replace(config, epochs=0))
    logits = torch.from_numpy(start.user_vectors([query.visitor for query in visits]) @ start.vectors.T) * np.exp(2.5)
    logs = torch.log_softmax(logits.double(), dim=1)
    losses = []
    for row, query in enumerate(visits):
        weighted = [(query.targets, 1.0)]
        weighted += [
            (query.auxiliary_targets.get(event_type, NOTHING), weight)
            for event_type, weight in (("cart", config.cart_weight), ("view", config.view_weight))
        ]
        parts = [-float(logs[row, items].mean()) * weight for items, weight in weighted if len(items) and weight]
        losses += [sum(parts)] if parts else []
    return float(np.mean(losses))


@pytest.mark.parametrize(("cart", "view"), [(0.0, 0.0), (0.5, 2.0), (0.0, 1.0)])
def test_the_loss_is_the_cross_entropy_of_each_event_type_by_its_weight(cart: float, view: float) -> None:
    visits = with_views(queries())
    config = replace(BATCH, cart_weight=cart, view_weight=view)
    assert fitted(visits, config).curve.losses == pytest.approx([first_loss(visits, config)], rel=1e-5)


def test_in_a_log_of_purchases_alone_the_weights_change_nothing() -> None:
    visits = queries()
    nothing = {"view": NOTHING, "cart": NOTHING}
    none = [replace(query, auxiliary_targets={**nothing, "return": query.targets}) for query in visits]
    config = replace(RETRIEVAL, cart_weight=0.0, view_weight=0.0)
    before = fitted(visits, config, validation=visits[150:])
    after = fitted(none, replace(config, cart_weight=0.5, view_weight=2.0), validation=visits[150:])
    assert after.curve.losses == before.curve.losses
    assert after.curve.values == before.curve.values
    assert (after.vectors == before.vectors).all()


def test_visits_without_targets_are_left_out() -> None:
    visits = queries()
    idle = replace(visits[0], targets=NOTHING, auxiliary_targets={"return": visits[0].targets})
    viewed = replace(visits[0], targets=NOTHING, auxiliary_targets={"view": visits[0].targets})
    config = replace(RETRIEVAL, view_weight=0.0, epochs=2)
    known = fitted(visits, config).curve.losses
    assert fitted([*visits, idle, viewed, replace(visits[0], visitor=NEW_VISITOR)], config).curve.losses == known
    assert fitted([*visits, viewed], replace(config, view_weight=1.0)).curve.losses != known
    with pytest.raises(NoDataError, match="no user who had visited before came back"):
        fitted([idle, viewed], config)


def test_views_predict_what_few_purchases_do_not() -> None:
    """Users who like one colour view it in every visit and buy in one of twenty."""
    visits = queries()
    rare = [
        replace(
            query,
            targets=query.targets if number % 20 == 0 else NOTHING,
            auxiliary_targets={"view": query.targets},
        )
        for number, query in enumerate(visits[:151])
    ]
    config = replace(RETRIEVAL, epochs=3, patience=3, content_buckets=1)

    def precision(view_weight: float) -> float:
        """Returns the share of a user's ten nearest items that have the colour they like."""
        model = fitted(rare, replace(config, view_weight=view_weight))
        scores = model.user_vectors([query.visitor for query in visits[151:]]) @ model.vectors.T
        top = np.argsort(-scores, axis=1)[:, :10]
        return float((top % 3 == np.array([[query.targets[0] % 3] for query in visits[151:]])).mean())

    assert precision(1.0) > precision(0.0) + 0.1


@given(st.lists(st.booleans(), min_size=1, max_size=60).filter(any), st.floats(0.01, 0.99))
def test_validation_has_the_latest_purchases_and_training_all_visits_before(buys: list[bool], part: float) -> None:
    rows = [RetrievalExample(replace(NEW_VISITOR, at=at), np.arange(int(bought))) for at, bought in enumerate(buys)]
    bought = [query for query in rows if len(query.targets)]
    learn, check = split_at_purchases(rows, part)
    assert check == split_latest(bought, part)[1]
    assert learn == rows[: check[0].visitor.at]
    assert split_at_purchases(bought, part) == split_latest(bought, part), "with purchases alone, a plain split"

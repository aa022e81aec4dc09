"""Tests that the blend learns the weight of each signal, in shops where the right one is known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from training.benchmark.blend import GENERAL_SIGNALS, HISTORY_SIGNALS, Blend, Signals, learn_weights
from training.benchmark.interactions import Sequences
from training.benchmark.protocols import Cases

ITEMS, USERS = 40, 300


class Oracle:
    """An encoder that gives the successor of the last item the score `confidence`."""

    def __init__(self, confidence: float) -> None:
        self._certain = confidence

    def scores(self, inputs: Sequences) -> NDArray[np.float32]:
        scores = np.zeros((len(inputs), ITEMS), dtype=np.float32)
        last = inputs.items[inputs.offsets[1:] - 1]
        scores[np.arange(len(inputs)), (last + 1) % ITEMS] = self._certain
        return scores


def rows(histories: NDArray[np.int64]) -> Sequences:
    users, length = histories.shape
    return Sequences(np.arange(users + 1) * length, histories.ravel(), np.arange(histories.size))


@pytest.fixture
def histories() -> NDArray[np.int64]:
    return np.random.default_rng(4).integers(0, ITEMS, (USERS, 6))


def learn_and_test(
    histories: NDArray[np.int64], targets: NDArray[np.int64], *, confidence: float
) -> tuple[dict[str, float], float]:
    """Returns the weights learnt on half of the users, and the share of the other half's targets that score best."""
    inputs = rows(histories)
    signals = Signals(Oracle(confidence), inputs, ITEMS, temperature=1.0, own=True)
    cases = Cases(inputs, rows(targets[:, None]), np.arange(USERS))
    half = np.arange(USERS // 2)
    weights = learn_weights(signals, cases.rows(half), mask_history=False, rng=np.random.default_rng(0))
    rest = cases.rows(half + USERS // 2)
    first = Blend(signals, weights).scores(rest.inputs).argmax(axis=1)
    return weights, float((first == rest.targets.items).mean())


def test_a_signal_that_predicts_gets_the_weight(histories: NDArray[np.int64]) -> None:
    weights, accuracy = learn_and_test(histories, (histories[:, -1] + 1) % ITEMS, confidence=1.0)
    assert set(weights) == {*GENERAL_SIGNALS, *HISTORY_SIGNALS}
    assert weights["encoder"] > 3
    assert accuracy > 0.95


def test_where_users_buy_again_their_history_gets_the_weight(histories: NDArray[np.int64]) -> None:
    weights, accuracy = learn_and_test(histories, histories[:, -1], confidence=0.0)
    assert weights["encoder"] == 0.0
    assert accuracy > 0.9


def test_masked_items_are_left_out_of_the_loss(histories: NDArray[np.int64]) -> None:
    """With history masked, the loss is over the other items only: only the successor can be learnt."""
    inputs = rows(histories)
    targets = (histories[:, -1] + 1) % ITEMS
    new = np.flatnonzero((histories != targets[:, None]).all(axis=1))
    cases = Cases(inputs, rows(targets[:, None]), np.arange(USERS)).rows(new)
    signals = Signals(Oracle(1.0), inputs, ITEMS, temperature=1.0, own=False)
    weights = learn_weights(signals, cases, mask_history=True, rng=np.random.default_rng(0))
    assert set(weights) == set(GENERAL_SIGNALS)
    assert weights["encoder"] > 3

"""The blend finds out what each signal is worth, in shops where that is known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from training.benchmark.blend import GENERAL_SIGNALS, HISTORY_SIGNALS, Blend, Signals, learn_weights
from training.benchmark.interactions import Sequences
from training.benchmark.protocols import Cases

ITEMS, USERS = 40, 300


class Oracle:
    """An encoder that says, `certain` of it, that the next item is the successor of the last."""

    def __init__(self, certain: float) -> None:
        self._certain = certain

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


def found(
    histories: NDArray[np.int64], targets: NDArray[np.int64], *, certain: float
) -> tuple[dict[str, float], float]:
    """What is learnt of half of the users, and how many of the other half's targets are then first."""
    inputs = rows(histories)
    signals = Signals(Oracle(certain), inputs, ITEMS, temperature=1.0, own=True)
    cases = Cases(inputs, rows(targets[:, None]), np.arange(USERS))
    half = np.arange(USERS // 2)
    weights = learn_weights(signals, cases.rows(half), mask_history=False, rng=np.random.default_rng(0))
    rest = cases.rows(half + USERS // 2)
    first = Blend(signals, weights).scores(rest.inputs).argmax(axis=1)
    return weights, float((first == rest.targets.items).mean())


def test_a_signal_that_knows_is_followed(histories: NDArray[np.int64]) -> None:
    weights, right = found(histories, (histories[:, -1] + 1) % ITEMS, certain=1.0)
    assert set(weights) == {*GENERAL_SIGNALS, *HISTORY_SIGNALS}
    assert weights["encoder"] > 3
    assert right > 0.95


def test_where_people_buy_again_their_own_history_is_followed(histories: NDArray[np.int64]) -> None:
    weights, right = found(histories, histories[:, -1], certain=0.0)
    assert weights["encoder"] == 0.0
    assert right > 0.9


def test_what_may_not_be_listed_teaches_nothing(histories: NDArray[np.int64]) -> None:
    """With history masked, the loss is over the other items only: buying the successor is all there is to learn."""
    inputs = rows(histories)
    targets = (histories[:, -1] + 1) % ITEMS
    new = np.flatnonzero((histories != targets[:, None]).all(axis=1))
    cases = Cases(inputs, rows(targets[:, None]), np.arange(USERS)).rows(new)
    signals = Signals(Oracle(1.0), inputs, ITEMS, temperature=1.0, own=False)
    weights = learn_weights(signals, cases, mask_history=True, rng=np.random.default_rng(0))
    assert set(weights) == set(GENERAL_SIGNALS)
    assert weights["encoder"] > 3

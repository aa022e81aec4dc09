"""Runs the fraud model of a release and explains its scores. Knows nothing of where features come from."""

from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from features.contract.events import Reason
from features.contract.release import FraudModelCard
from features.fraud.velocity import FEATURES, REASONS

MAX_REASONS = 4
SMALLEST_WEIGHT = 0.1
"""A reason that moves the log-odds less than this is left out."""
PRESENT_OR_NOT = frozenset({"terminal_new", "night", "weekend", "contactless", "online"})
"""Features of 0 or 1, whose text holds only for 1."""

CODES = tuple(dict.fromkeys(reason.code for reason in REASONS.values()))
_BELONGS = np.array([[REASONS[name].code == code for name in FEATURES] for code in CODES])
"""Shape [codes, features]: which features share a reason code."""


class FraudModel(Protocol):
    """A loaded fraud model."""

    @property
    def card(self) -> FraudModelCard: ...

    @property
    def version(self) -> str: ...

    def score(self, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        """Returns probabilities of fraud, shape [N]; matrix: raw features, shape [N, len(FEATURES)]."""
        ...


class OnnxFraudModel:
    """Runs an exported detector.

    Raises ValueError when it was trained on other features than this version computes.
    """

    def __init__(self, path: Path, *, card: FraudModelCard, version: str) -> None:
        if card.features != FEATURES:
            raise ValueError(f"release {version} scores other features than this version of Headrace: train again")
        options = onnxruntime.SessionOptions()
        # Many small requests run at once: threads within one would only slow the others down.
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.card = card
        self.version = version

    def score(self, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        (scores,) = self._session.run(None, {"features": matrix})
        return np.asarray(scores, dtype=np.float64)


def explain(model: FraudModel, matrix: NDArray[np.float32]) -> list[tuple[Reason, ...]]:
    """Returns for each row the few reasons that raise its score most, heaviest first.

    By occlusion: the weight of a reason is how far the log-odds fall when its features take their typical values
    (model.card.reference_values) and all others stay. All variants of all rows are scored as one batch.
    """
    if not len(matrix):
        return []
    typical = np.asarray(model.card.reference_values, dtype=np.float32)
    variants = np.where(_BELONGS[None, :, :], typical, matrix[:, None, :])
    batch = np.concatenate((matrix[:, None, :], variants), axis=1).reshape(-1, matrix.shape[1])
    odds = _log_odds(model.score(batch)).reshape(len(matrix), 1 + len(CODES))
    weights = odds[:, :1] - odds[:, 1:]
    leads = _leads(matrix, typical)
    return [
        tuple(
            Reason(code=CODES[code], weight=round(float(weights[row, code]), 3), text=text)
            for code in np.argsort(-weights[row])[:MAX_REASONS].tolist()
            if weights[row, code] >= SMALLEST_WEIGHT and (text := _text(leads[row, code], matrix[row], typical))
        )
        for row in range(len(matrix))
    ]


def _log_odds(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    inside = np.clip(scores, 1e-6, 1 - 1e-6)
    return np.log(inside) - np.log1p(-inside)


def _leads(matrix: NDArray[np.float32], typical: NDArray[np.float32]) -> NDArray[np.int64]:
    """Returns the feature of each code that departs most from its typical value, by factors; -1 where no text holds.

    Shape [N, codes].
    """
    departure = np.abs(_by_magnitude(matrix) - _by_magnitude(typical))
    textless = np.array([name in PRESENT_OR_NOT for name in FEATURES]) & (matrix < 0.5)
    departure[textless] = 0
    by_code = np.where(_BELONGS[None, :, :], departure[:, None, :], 0)
    leads: NDArray[np.int64] = np.where(by_code.max(axis=2) > 0, by_code.argmax(axis=2), -1)
    return leads


def _by_magnitude(values: NDArray[np.float32]) -> NDArray[np.float32]:
    result: NDArray[np.float32] = np.sign(values) * np.log1p(np.abs(values))
    return result


def _text(feature: int, values: NDArray[np.float32], typical: NDArray[np.float32]) -> str:
    if feature < 0:
        return ""
    return REASONS[FEATURES[feature]].text.format(value=float(values[feature]), usual=float(typical[feature]))

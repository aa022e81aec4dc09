"""The models that the bench judges: each is settings to choose from, and a fit that gives a scorer of all items.

Peers run in another environment (training/benchmark/peers.py); the judge treats all alike.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import optuna
from numpy.typing import NDArray

from training.benchmark.baselines import ItemKnn, ItemKnnConfig, Popularity, PopularityConfig
from training.benchmark.blend import Blend, Signals, learn_weights
from training.benchmark.lists import Scorer, lists_of
from training.benchmark.metrics import ndcg
from training.benchmark.protocols import Cases, Split
from training.benchmark.sequence import FittedSequence, SequenceConfig, fit_sequence
from training.core.sharding import choose_device

JUDGED_CASES = 6_000
"""Validation cases that stop a training and weigh its memory, drawn by the seed where there are more."""

Hyperparameters = dict[str, int | float | str]
"""What a model can be told, by name; empty is as it comes."""
C = TypeVar("C", bound=Any)


@dataclass
class Fitted:
    """A fitted model's lists for cases, and what fitting took."""

    lists: NDArray[np.int64]
    """int64 [cases, DEPTH] by the split's rule of masking."""
    new_lists: NDArray[np.int64]
    """The same without what the user took before."""
    learnt: Hyperparameters = field(default_factory=dict)
    """What fitting itself found on the validation cases (epochs, weights), for the fit that is judged."""
    epoch_seconds: float | None = None


class BenchmarkModel(Protocol):
    name: str

    def suggest(self, trial: optuna.Trial) -> Hyperparameters:
        """Settings to try."""
        ...

    def fit(self, split: Split, settings: Hyperparameters, *, judged: bool, seed: int, seconds: float) -> Fitted:
        """Learn from `split.learn` and list for the validation cases, or (judged) for the test cases.

        A judged fit learns from `split.final`, with what an earlier one has `learnt` among its settings. Training by
        epochs ends with the one that passes `seconds`.
        """
        ...


def configured(config: C, settings: Hyperparameters) -> C:
    """The config with those of the settings that it has a field for."""
    own = {field.name: type(getattr(config, field.name)) for field in fields(config)}
    return replace(config, **{name: own[name](value) for name, value in settings.items() if name in own})


def _lists(scorer: Scorer, cases: Cases, split: Split) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return lists_of(lambda rows: scorer.scores(cases.inputs.rows(rows)), cases.inputs, mask_history=split.mask_history)


def _listed(split: Split, scorer: Scorer, *, judged: bool) -> Fitted:
    return Fitted(*_lists(scorer, split.test if judged else split.validation, split))


class PopularityModel:
    name = "popularity"

    def suggest(self, trial: optuna.Trial) -> Hyperparameters:
        return {"days": trial.suggest_categorical("days", [0, 7, 14, 30, 60, 90])}

    def fit(self, split: Split, settings: Hyperparameters, *, judged: bool, seed: int, seconds: float) -> Fitted:
        config = configured(PopularityConfig(), settings)
        learn = split.final if judged else split.learn
        return _listed(split, Popularity(learn, split.items, config), judged=judged)


class ItemKnnModel:
    name = "item_knn"

    def suggest(self, trial: optuna.Trial) -> Hyperparameters:
        return {
            "recent": trial.suggest_int("recent", 2, 200, log=True),
            "decay": trial.suggest_float("decay", 0.5, 1.0),
            "shrink": trial.suggest_float("shrink", 0.1, 30.0, log=True),
            "own": trial.suggest_float("own", 0.0, 1.0),
        }

    def fit(self, split: Split, settings: Hyperparameters, *, judged: bool, seed: int, seconds: float) -> Fitted:
        learn = split.final if judged else split.learn
        return _listed(split, ItemKnn(learn, split.items, configured(ItemKnnConfig(), settings)), judged=judged)


class SequenceBenchmarkModel:
    """The sequence encoder, and beside it the other signals that the validation cases give a weight."""

    def __init__(self, name: str = "sequence", *, blend: bool = True, config: SequenceConfig | None = None) -> None:
        self.name, self._blend = name, blend
        self._config = config or SequenceConfig()

    def suggest(self, trial: optuna.Trial) -> Hyperparameters:
        return {
            "dropout": trial.suggest_float("dropout", 0.1, 0.6),
            "temperature": trial.suggest_float("temperature", 0.05, 0.2, log=True),
            "horizon": trial.suggest_categorical("horizon", [1, 5, 20, 60]),
            "length": trial.suggest_categorical("length", [50, 100]),
        }

    def fit(self, split: Split, settings: Hyperparameters, *, judged: bool, seed: int, seconds: float) -> Fitted:
        config = configured(self._config, settings)
        drawn = np.random.default_rng(seed).permutation(len(split.validation))[:JUDGED_CASES]
        some = split.validation.rows(np.sort(drawn))

        def judge(fitted: FittedSequence) -> float:
            return ndcg(_lists(fitted, some, split)[0], some, items=split.items)

        # A judged fit on more data than the validation left runs for as long as the one before found best.
        blind = judged and split.refits and "epochs" in settings
        learn = split.final if judged and split.refits else split.learn
        fitted = fit_sequence(
            learn, items=split.items, config=config, validate=None if blind else judge,
            device=choose_device(), seed=seed, seconds=seconds, label=self.name,
        )  # fmt: skip
        learnt: Hyperparameters = {"epochs": max(1, fitted.curve.best_epoch)}
        scorer: Scorer = fitted
        if self._blend:
            signals = Signals(fitted, learn, split.items, temperature=config.temperature, own=not split.mask_history)
            weights = (
                {name: float(settings[f"weight_{name}"]) for name in signals.names}
                if blind
                else learn_weights(signals, some, mask_history=split.mask_history, rng=np.random.default_rng(seed))
            )
            learnt |= {f"weight_{name}": weight for name, weight in weights.items()}
            scorer = Blend(signals, weights)
        result = _listed(split, scorer, judged=judged)
        result.learnt, result.epoch_seconds = learnt, float(np.median(fitted.curve.seconds))
        return result


OWN: dict[str, Callable[[], BenchmarkModel]] = {
    "popularity": PopularityModel,
    "item_knn": ItemKnnModel,
    "sequence": SequenceBenchmarkModel,
    "sequence_encoder": lambda: SequenceBenchmarkModel("sequence_encoder", blend=False),
}

"""Adapts our models to the benchmark: each suggests settings, and a fit returns ranked lists of all items.

Peers run in another environment (training/benchmark/peers.py); the evaluation treats all alike.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import optuna
from numpy.typing import NDArray

from training.benchmark.baselines import ItemKnn, ItemKnnConfig, Popularity, PopularityConfig
from training.benchmark.blend import Blend, Signals, learn_weights
from training.benchmark.lists import Scorer, ranked_lists
from training.benchmark.metrics import mean_ndcg
from training.benchmark.protocols import Cases, Split
from training.benchmark.sequence import FittedSequence, SequenceConfig, fit_sequence
from training.core.sharding import choose_device

MAX_VALIDATION_CASES = 6_000
"""Most validation cases for early stopping and blend weights; sampled by the seed where there are more."""

Hyperparameters = dict[str, int | float | str]
"""Settings of a model by name; those that are missing keep the model's defaults."""
ConfigT = TypeVar("ConfigT", bound=Any)


@dataclass
class Fitted:
    """Holds the lists of a fitted model for the cases, and what the fit learnt and took."""

    lists: NDArray[np.int64]
    """int64 [cases, DEPTH]; history is masked where the split says so."""
    new_lists: NDArray[np.int64]
    """The same with history masked in any case."""
    learnt: Hyperparameters = field(default_factory=dict)
    """Settings that the fit chose on the validation cases (epochs, weights), for the final fit."""
    epoch_seconds: float | None = None


class BenchmarkModel(Protocol):
    """A model as the benchmark uses it."""

    name: str

    def suggest(self, trial: optuna.Trial) -> Hyperparameters:
        """Suggests settings to try."""
        ...

    def fit(self, split: Split, settings: Hyperparameters, *, final: bool, seed: int, seconds: float) -> Fitted:
        """Learns from `split.learn` and ranks the validation cases; if final, from `split.final` for the test cases.

        The settings of a final fit include what an earlier fit has `learnt`. Training ends with the epoch that passes
        `seconds`.
        """
        ...


def configured(config: ConfigT, settings: Hyperparameters) -> ConfigT:
    """Returns the config with those of the settings that it has a field for, converted to the field's type."""
    types = {field.name: type(getattr(config, field.name)) for field in fields(config)}
    return replace(config, **{name: types[name](value) for name, value in settings.items() if name in types})


def _lists(scorer: Scorer, cases: Cases, split: Split) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ranks for the cases: see `ranked_lists`."""
    return ranked_lists(
        lambda rows: scorer.scores(cases.inputs.rows(rows)), cases.inputs, mask_history=split.mask_history
    )


def _fitted(split: Split, scorer: Scorer, *, final: bool) -> Fitted:
    """Ranks for the validation or the test cases."""
    return Fitted(*_lists(scorer, split.test if final else split.validation, split))


class PopularityModel:
    """The popularity baseline."""

    name = "popularity"

    def suggest(self, trial: optuna.Trial) -> Hyperparameters:
        return {"days": trial.suggest_categorical("days", [0, 7, 14, 30, 60, 90])}

    def fit(self, split: Split, settings: Hyperparameters, *, final: bool, seed: int, seconds: float) -> Fitted:
        config = configured(PopularityConfig(), settings)
        learn = split.final if final else split.learn
        return _fitted(split, Popularity(learn, split.items, config), final=final)


class ItemKnnModel:
    """The ItemKNN baseline."""

    name = "item_knn"

    def suggest(self, trial: optuna.Trial) -> Hyperparameters:
        return {
            "recent": trial.suggest_int("recent", 2, 200, log=True),
            "decay": trial.suggest_float("decay", 0.5, 1.0),
            "shrink": trial.suggest_float("shrink", 0.1, 30.0, log=True),
            "own": trial.suggest_float("own", 0.0, 1.0),
        }

    def fit(self, split: Split, settings: Hyperparameters, *, final: bool, seed: int, seconds: float) -> Fitted:
        learn = split.final if final else split.learn
        return _fitted(split, ItemKnn(learn, split.items, configured(ItemKnnConfig(), settings)), final=final)


class SequenceBenchmarkModel:
    """The sequence encoder, alone or blended with the other signals by weights from the validation cases."""

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

    def fit(self, split: Split, settings: Hyperparameters, *, final: bool, seed: int, seconds: float) -> Fitted:
        config = configured(self._config, settings)
        sample = np.random.default_rng(seed).permutation(len(split.validation))[:MAX_VALIDATION_CASES]
        validation = split.validation.rows(np.sort(sample))

        def validate(fitted: FittedSequence) -> float:
            return mean_ndcg(_lists(fitted, validation, split)[0], validation, items=split.items)

        # A final fit that learns from the validation cases cannot validate: it takes the epochs of the fit before.
        refit = final and split.refits and "epochs" in settings
        learn = split.final if final and split.refits else split.learn
        fitted = fit_sequence(
            learn, items=split.items, config=config, validate=None if refit else validate,
            device=choose_device(), seed=seed, seconds=seconds, label=self.name,
        )  # fmt: skip
        learnt: Hyperparameters = {"epochs": max(1, fitted.curve.best_epoch)}
        scorer: Scorer = fitted
        if self._blend:
            signals = Signals(fitted, learn, split.items, temperature=config.temperature, own=not split.mask_history)
            weights = (
                {name: float(settings[f"weight_{name}"]) for name in signals.names}
                if refit
                else learn_weights(
                    signals, validation, mask_history=split.mask_history, rng=np.random.default_rng(seed)
                )
            )
            learnt |= {f"weight_{name}": weight for name, weight in weights.items()}
            scorer = Blend(signals, weights)
        result = _fitted(split, scorer, final=final)
        result.learnt, result.epoch_seconds = learnt, float(np.median(fitted.curve.seconds))
        return result


OUR_MODELS: dict[str, Callable[[], BenchmarkModel]] = {
    "popularity": PopularityModel,
    "item_knn": ItemKnnModel,
    "sequence": SequenceBenchmarkModel,
    "sequence_encoder": lambda: SequenceBenchmarkModel("sequence_encoder", blend=False),
}
